import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("envs", "agents", "hw_profiles")
SOURCES = [path for room in ("haq", *ROOMS, "tests") for path in (ROOT / room).rglob("*.py")]


def lint(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
    )


def test_every_room_imports_only_what_it_may():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "file, line, refused",
    [
        ("envs/quantization.py", "import torch", "haq.envs is not allowed to import torch"),
        ("haq/files.py", "import haq.distillation.kd", "haq.envs is not allowed to import torch"),
        (
            "haq/network/graph.py",
            "import haq.runs.job",
            "haq.network is not allowed to import haq.runs",
        ),
        (
            "haq/network/graph.py",
            "import haq",
            "haq.network is not allowed to import haq.runs",
        ),
        ("hw_profiles/__init__.py", "import haq.envs", "import haq.envs"),
        ("haq/runs/job.py", "import stable_baselines3", "of protected package stable_baselines3"),
        ("haq/new.py", "", "haq.new"),
    ],
)
def test_an_import_through_the_wrong_door_is_noticed(tmp_path, file, line, refused):
    for room in ("haq", *ROOMS):
        shutil.copytree(ROOT / room, tmp_path / room, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a") as source:
        source.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert refused in done.stdout


def imported(path: Path) -> list[str]:
    """Return the modules that the statements of a file import, wherever they stand."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]


def test_rooms_are_imported_as_parts_of_haq():
    # Import Linter follows only haq: by the name of its folder a room would escape it.
    found = [(str(path), name) for path in SOURCES for name in imported(path)]
    assert not [(path, name) for path, name in found if name.partition(".")[0] in ROOMS]
