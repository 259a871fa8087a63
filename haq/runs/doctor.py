"""What works on this machine, and what that means for a user: what ``haq doctor`` prints."""

import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from haq.errors import HaqError
from haq.formats.onnx.runtime import exact_kernels
from haq.hw_profiles.measure import card
from haq.hw_profiles.measure.energy import find_meter
from haq.hw_profiles.measure.onnx_runtime import PROVIDERS, check_provider
from haq.runs.folder import HOME
from haq.runs.job import cores

EXTRAS: Mapping[str, Sequence[tuple[str, str]]] = {
    "vision": [("torchvision", "models by torchvision:NAME")],
    "timm": [("timm", "models by timm:NAME")],
    "data": [("pyarrow", "cifar10 as parquet, dataset:DIR, tables of HAQ-Bench")],
    "transformers": [("transformers", "models by hf:DIR, and texts")],
    "service": [("fastapi", "haq serve and haq worker")],
    "ray": [("ray", "workers on a cluster, --ray")],
}
"""Optional extra to a package it installs, and what for."""


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        what: That is looked at.
        here: What was found.
        means: What it means for the user, and the way out where something is missing.
        works: False where something that everybody needs does not work; None where something
            optional is missing.
    """

    what: str
    here: str
    means: str
    works: bool | None


def check_up() -> Iterator[Check]:
    """Yield what was found on this machine, one check after the other."""
    yield _python()
    yield from (_package(name) for name in ("torch", "onnxruntime"))
    yield _processor()
    yield _kernels()
    yield _cuda()
    yield from (_provider(name) for name in PROVIDERS if name != "cpu")
    yield from (_meter(processor) for processor in ("cpu", "gpu"))
    for extra, packages in EXTRAS.items():
        yield from (_extra(extra, package, what_for) for package, what_for in packages)
    yield _browser()
    yield _place()


def _python() -> Check:
    here = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("Python", here, f"runs HAQ {version('haq')}", True)


def _package(name: str) -> Check:
    """Check the release of a package against what HAQ asks for."""
    asked = {one.name: one for one in map(Requirement, requires("haq") or [])}[name]
    here = version(name)
    if asked.specifier.contains(here, prereleases=True):
        return Check(name, here, "a release that HAQ takes", True)
    return Check(name, here, f"HAQ takes {asked}: pip install '{asked}'", False)


def _processor() -> Check:
    of_all = os.cpu_count() or 1
    usable = f"{cores()} of {of_all} cores" if cores() != of_all else f"{of_all} cores"
    threads = torch.get_num_threads()
    return Check(
        "CPU", f"{usable}, {torch.backends.cpu.get_cpu_capability()}",
        f"PyTorch computes with {threads} thread{'s' * (threads != 1)}; --workers shares the cores",
        True,
    )  # fmt: skip


def _kernels() -> Check:
    if exact_kernels():
        return Check(
            "8-bit kernels", "add products in 32 bits",
            "files of --cpu any and --cpu vnni are exact here", True,
        )  # fmt: skip
    return Check(
        "8-bit kernels", "add pairs of products in 16 bits and saturate",
        "files of --cpu any (the default) are exact here, those of --cpu vnni are not", True,
    )  # fmt: skip


def _cuda() -> Check:
    if torch.cuda.is_available():
        held = card.state().get("held_back_by")
        means = "PyTorch can compute on it" + (f"; held back now by {held}" if held else "")
        return Check("CUDA", torch.cuda.get_device_name(0), means, True)
    return Check("CUDA", "no GPU that PyTorch can use", "everything is computed on the CPU", None)


def _provider(name: str) -> Check:
    what = f"provider {name}"
    try:
        check_provider(name)
    except HaqError:
        if name == "tensorrt":
            means = (
                "haq profile --provider tensorrt needs an NVIDIA GPU: pip install 'haq[tensorrt]'"
            )
            return Check(what, "no TensorRT, or no GPU for it", means, None)
        means = f"haq profile --provider {name} needs an ONNX Runtime that has it"
        return Check(what, "not in this ONNX Runtime", means, None)
    return Check(what, "there", f"haq profile --provider {name} measures with it", True)


def _meter(processor: str) -> Check:
    what = f"energy of the {processor.upper()}"
    try:
        meter = find_meter(processor)  # type: ignore[arg-type]
    except HaqError as error:
        return Check(what, "a counter that cannot be read", str(error), None)
    if meter is None:
        return Check(what, "no counter", "no energy is measured; targets that model it do", None)
    return Check(what, meter.name, "energy is measured", True)


def _extra(extra: str, package: str, what_for: str) -> Check:
    try:
        return Check(package, version(package), what_for, True)
    except PackageNotFoundError:
        return Check(package, "not installed", f"{what_for}: pip install 'haq[{extra}]'", None)


def _browser() -> Check:
    """Check for what draws pictures; kaleido looks for a browser as it will when it draws."""
    what_for = "pictures, haq inspect --png"
    if find_spec("kaleido") is None:
        return Check("kaleido", "not installed", f"{what_for}: pip install 'haq[png]'", None)
    from choreographer.browsers.chromium import Chromium

    browser = Chromium.find_browser(skip_local=False)
    if browser is None:
        return Check("Chromium", "none, and no Chrome", f"{what_for}: install one", None)
    return Check("Chromium", Path(browser).name, what_for, True)


def _place() -> Check:
    if HOME.exists() and not HOME.is_dir():
        return Check(f"folder {HOME}", "is a file", "runs go there: rename it", False)
    folder = next(one for one in (HOME, *HOME.resolve().parents) if one.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        means = "runs cannot be written here: start in another folder"
        return Check(f"folder {HOME}", (error.strerror or str(error)).lower(), means, False)
    return Check(f"folder {HOME}", "can be written", "runs go there unless --out says where", True)


def verdict(checks: Sequence[Check]) -> str:
    """Return one sentence about all checks."""
    broken = [check.what for check in checks if check.works is False]
    if broken:
        return f"{' and '.join(broken)} must be mended before HAQ works here"
    missing = sum(check.works is None for check in checks)
    return f"HAQ works here; {missing} optional thing{'s are' if missing != 1 else ' is'} missing"
