import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("envs", "agents", "hw_profiles")
PACKED = ("haq", *ROOMS, "pyproject.toml", "README.md", "LICENSE")


def build(source: Path, place: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", place, *options, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = place.iterdir()
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    place = tmp_path_factory.mktemp("source")
    for name in PACKED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, place / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, place)
    return place


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return contents(build(source, tmp_path_factory.mktemp("wheel"), "--wheel"))


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    archive = build(source, tmp_path_factory.mktemp("sdist"), "--sdist")
    place = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as file:
        file.extractall(place, filter="data")
    (unpacked,) = place.iterdir()
    return unpacked


def test_the_only_name_a_wheel_installs_is_haq(wheel):
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"haq"}


def test_a_wheel_holds_every_module(wheel, source):
    files = [path for room in ("haq", *ROOMS) for path in (source / room).rglob("*.py")]
    modules = [path.relative_to(source).as_posix().removeprefix("haq/") for path in files]
    assert {name for name in wheel if name.endswith(".py")} == {f"haq/{name}" for name in modules}


def test_a_wheel_holds_profiles_readmes_and_the_mark_of_typing(wheel, source):
    profiles = {f"haq/hw_profiles/{path.name}" for path in source.glob("hw_profiles/*.json")}
    assert profiles
    readmes = {f"haq/{room}/README.md" for room in ROOMS}
    assert profiles | readmes | {"haq/py.typed"} <= wheel.keys()


def test_a_wheel_holds_every_page(wheel, source):
    kinds = (".html", ".css", ".js")
    files = [path for path in (source / "haq").rglob("*") if path.suffix in kinds]
    assert len(files) > 10
    assert {path.relative_to(source).as_posix() for path in files} <= wheel.keys()


def test_what_an_index_shows_of_a_release_is_whole(source, tmp_path):
    wheel = build(source, tmp_path, "--wheel")
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    metadata = contents(wheel)["haq-0.2.0.dist-info/METADATA"].decode()
    asked = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    core = {line.split()[1].partition(">")[0] for line in asked if "extra ==" not in line}
    assert not core & {"fastapi", "sqlalchemy", "torchvision", "timm", "transformers", "ray"}


def test_a_citation_says_the_version_of_the_release():
    [line] = [
        line for line in (ROOT / "CITATION.cff").read_text("utf-8").splitlines()
        if line.startswith("version: ")
    ]  # fmt: skip
    assert line == f"version: {version('haq')}"


def test_an_sdist_builds_the_same_wheel(sdist, wheel, tmp_path):
    assert contents(build(sdist, tmp_path, "--wheel")) == wheel


def test_importing_haq_imports_nothing_heavy():
    code = "import sys, haq; print({'torch', 'numpy', 'pydantic'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_asking_for_help_does_not_import_torch():
    haq = Path(sys.executable).with_name("haq")
    done = subprocess.run(
        [haq, "--help"],
        env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "search" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "haq.cli.main" in imported
    assert not imported & {"torch", "stable_baselines3", "sklearn", "scipy", "pyarrow"}
