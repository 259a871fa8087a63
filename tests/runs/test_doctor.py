"""What a machine is said to be able to do."""

import importlib.metadata

import torch

from haq.formats.onnx.runtime import exact_kernels
from haq.runs import doctor
from haq.runs.doctor import Check, check_up, verdict


def checks():
    return {check.what: check for check in check_up()}


def test_the_checks_say_what_is_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    here = checks()
    assert here["torch"].here == torch.__version__.partition("+")[0]
    assert here["CUDA"].works == (True if torch.cuda.is_available() else None)
    assert ("32 bits" in here["8-bit kernels"].here) == exact_kernels()
    assert all(check.here and check.means for check in here.values())


def test_a_release_that_was_not_tested_must_be_mended(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        importlib.metadata.Distribution, "requires", ["torch>=2.8,<2.9", "onnxruntime>=1"]
    )
    check = checks()["torch"]
    assert check.works is False
    assert check.means == "HAQ takes torch<2.9,>=2.8: pip install 'torch<2.9,>=2.8'"


def test_an_extra_that_is_missing_says_what_to_install():
    check = doctor._extra("timm", "no_such_package", "models by timm:NAME")
    assert check.works is None
    assert check.means == "models by timm:NAME: pip install 'haq[timm]'"


def test_runs_need_a_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert checks()["folder results"].works is True
    assert not (tmp_path / "results").exists()
    (tmp_path / "results").write_text("")
    assert checks()["folder results"].works is False


def test_the_verdict_names_what_must_be_mended():
    fine, missing, bad = (Check(f"it{works}", "", "", works) for works in (True, None, False))
    assert verdict([fine, missing]) == "HAQ works here; 1 optional thing is missing"
    assert verdict([fine]) == "HAQ works here; 0 optional things are missing"
    assert verdict([fine, missing, bad]) == "itFalse must be mended before HAQ works here"
