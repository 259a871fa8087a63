"""``--config FILE``: a search as a file asks for it."""

import sys
from pathlib import Path

import pytest
import typer

from haq.cli.config import read_config
from haq.cli.main import app, main
from haq.cli.search import asked_fields
from haq.cli.sweep import asked_sweep
from haq.errors import HaqError
from haq.runs.job import Job, parse_job


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def context_of(command, *arguments):
    return typer.main.get_command(app).commands[command].make_context(command, [*arguments])


def asked(*arguments):
    """Return the job that the options of a search ask for."""
    context = context_of("search", *arguments)
    return parse_job(**asked_fields(context, context.params))


def ended(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["haq", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_a_file_says_what_options_would(tmp_path):
    (tmp_path / "job.yaml").write_text(
        "model: digits_mlp\nbudgets: [size=9kB, avg_weight_bits=3]\npins: {fc1: 6}\n"
        "weight_bits: [3, 6]\nper_channel: false\nseed: 7\nlr:\n"
    )
    options = [
        *("--model", "digits_mlp", "--budget", "size=9kB", "--budget", "avg_weight_bits=3"),
        *("--pin", "fc1=6", "--weight-bits", "3..6", "--per-tensor", "--seed", "7"),
    ]
    by_file = asked("--config", "job.yaml")
    assert by_file == asked(*options)
    assert by_file.pins == {"fc1": 6} and by_file.lr == 0.005


def test_a_pinned_layer_may_be_called_by_a_number():
    Path("job.yaml").write_text("pins: {0: 4, 2: 8}\n")
    assert asked("--config", "job.yaml").pins == {"0": 4, "2": 8}


def test_an_option_goes_before_the_file(tmp_path):
    (tmp_path / "job.yaml").write_text("budgets: [size=9kB]\npins: {fc1: 6}\nseed: 7\n")
    job = asked("--config", "job.yaml", "--budget", "size=8kB", "--pin", "none")
    assert (job.budgets, job.pins, job.seed) == (("size=8kB",), {}, 7)


def test_the_job_of_a_run_asks_for_that_run_again(tmp_path):
    job = parse_job(model="digits_mlp", agent="ilp", max_drop=1.0, seed=3, threads=1)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    assert asked("--config", "job.json") == job


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("modle: x", "--config job.yaml: unknown field modle; did you mean 'model'? (known: "),
        ("a: 1\nb: 2", "unknown fields a, b (known: "),
        ("[1", "--config job.yaml is neither YAML nor JSON: while parsing"),
        ("- model", "holds no fields: write lines such as 'model: resnet20'"),
        ("", "holds no fields"),
        ("model: \x07", "is neither YAML nor JSON"),
        ("[" * 5000, "is neither YAML nor JSON"),
        ("!!python/object/apply:os.getcwd []", "is neither YAML nor JSON"),
    ],
)
def test_what_a_file_may_not_be(tmp_path, text, sentence):
    Path("job.yaml").write_text(text)
    with pytest.raises(HaqError) as error:
        read_config(Path("job.yaml"), Job.model_fields)
    assert sentence in str(error.value)


def test_a_wrong_value_is_said_as_for_an_option(tmp_path, monkeypatch, capsys):
    (tmp_path / "job.yaml").write_text("seed: -1\n")
    assert ended(monkeypatch, "search", "--config", "job.yaml") == 2
    assert "--seed -1: a seed is a whole number" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]
    assert ended(monkeypatch, "search", "--config", "nowhere.yaml") == 2
    assert "--config nowhere.yaml cannot be read: No such file" in capsys.readouterr().err


def test_a_run_that_goes_on_takes_no_file(monkeypatch, capsys):
    assert ended(monkeypatch, "search", "--resume", "mine", "--config", "job.yaml") == 2
    assert "leave out --config" in capsys.readouterr().err


@pytest.mark.parametrize("more, agents, seeds", [
    ([], ["uniform", "ilp"], (3,)),
    (["--agents", "random,ilp", "--seeds", "0,1"], ["uniform", "random", "ilp"], (0, 1)),
])  # fmt: skip
def test_a_sweep_takes_the_file_of_a_search(tmp_path, more, agents, seeds):
    job = parse_job(model="digits_mlp", agent="ilp", seed=3, threads=1, pins={"fc1": 6})
    (tmp_path / "job.json").write_text(job.model_dump_json())
    context = context_of("sweep", "--config", "job.json", *more)
    options = dict(context.params)
    named = options.pop("agents"), options.pop("seeds")
    for name in ("budgets", "out", "resume"):
        options.pop(name)
    sweep = asked_sweep(context, ["size=9kB,8kB"], *named, options)
    assert [*sweep.jobs] == agents and sweep.seeds == seeds
    assert sweep.budgets == ("size=9kB", "size=8kB")
    assert sweep.job.pins == {"fc1": 6} and sweep.job.budgets == ("avg_weight_bits=3",)


def test_a_sweep_has_no_accuracy_target(tmp_path):
    (tmp_path / "job.yaml").write_text("max_drop: 1.0\n")
    context = context_of("sweep", "--config", "job.yaml")
    with pytest.raises(HaqError, match="unknown field max_drop"):
        asked_sweep(context, ["size=9kB"], "ilp", "0", context.params)
