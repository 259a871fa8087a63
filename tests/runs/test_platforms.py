"""A search with workers where Python lacks what only some systems have."""

import os
import subprocess
import sys
import textwrap

from haq.runs.folder import read_json, read_trials

# Read by every Python that starts with this folder on its path, workers among them.
POORER = """
    import os, pathlib, subprocess, sys

    for name in ("sched_getaffinity", "getloadavg", "fork", "forkpty", "killpg", "setsid"):
        delattr(os, name)
    for name in ("fcntl", "resource", "pwd", "grp", "termios"):
        sys.modules[name] = None

    start = subprocess.Popen.__init__

    def portable(self, *args, **options):
        assert not {"pass_fds", "process_group", "preexec_fn"} & set(options), options
        start(self, *args, **options)

    subprocess.Popen.__init__ = portable
    read = pathlib.Path.read_text

    def no_proc(self, *args, **options):
        if str(self).startswith("/proc/"):
            raise FileNotFoundError(self)
        return read(self, *args, **options)

    pathlib.Path.read_text = no_proc
"""

SEARCH = """
    import os, sys
    import torch, haq
    from torch import nn

    if __name__ != "__main__":
        raise SystemExit("the script runs once, in the process of its owner")
    assert not hasattr(os, "sched_getaffinity")
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    inputs = torch.randn(64, 8)
    truth = model(inputs).detach()

    def closeness(network):
        assert not hasattr(os, "sched_getaffinity"), "in a worker"
        print("what a model prints is no message")
        return -float((network(inputs) - truth).square().mean())

    haq.search(model, inputs, evaluate=closeness, out=sys.argv[1], episodes=4, agent="random",
               budgets=["avg_weight_bits=6"], workers=2)
"""


def test_a_pool_needs_nothing_that_only_some_systems_have(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(POORER), encoding="utf-8")
    (tmp_path / "script.py").write_text(textwrap.dedent(SEARCH), encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(read_trials(tmp_path / "run")) == 4
    machine = read_json(tmp_path / "run" / "summary.json")["provenance"]["machine"]
    assert machine["load"] is None
    assert "what a model prints is no message" in done.stdout  # of the owner's own evaluations
    assert "what a model prints is no message" in done.stderr  # of the workers'
