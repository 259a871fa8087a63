"""Sweeps: which searches, in which order, and what an interrupted one leaves."""

import csv
import sys
from contextlib import contextmanager

import pytest

from haq.agents import uniform
from haq.cli.main import main
from haq.errors import BudgetError, HaqError, RunError
from haq.reports.comparable import treatment
from haq.reports.sweep import find_sweep, parse_sweep, read_sweep, run_sweep, searches, start
from haq.runs import calibration
from haq.runs import folder as results

SMALL = {"model": "digits_mlp", "episodes": 3, "float_epochs": 1, "val_images": 60,
         "train_images": 64, "final_epochs": 0, "threads": 1}  # fmt: skip


def small(budgets="avg_weight_bits=5,6", agents="ddpg", seeds="0", **changes):
    return parse_sweep([budgets], agents, seeds, SMALL | changes)


@contextmanager
def quiet():
    yield lambda _: None


def test_a_search_for_each_budget_agent_and_seed_and_the_reference():
    sweep = small(agents="ddpg,random", seeds="0,1")
    names = [search.name for search in searches(sweep)]
    assert names == [
        f"avg_weight_bits={limit}-{agent}-{seed}"
        for limit in (5, 6) for agent in ("uniform", "ddpg", "random") for seed in (0, 1)
    ]  # fmt: skip
    jobs = {search.name: search.job for search in searches(sweep)}
    job = jobs["avg_weight_bits=6-random-1"]
    assert (job.budgets, job.agent, job.seed) == (("avg_weight_bits=6",), "random", 1)
    assert job.episodes == 3


def test_the_reference_plays_what_it_needs_whatever_the_agents_play():
    for episodes in (1, 100):
        first, second, *_ = searches(small(episodes=episodes))
        assert (first.job.agent, first.job.episodes) == ("uniform", uniform.EPISODES)
        assert (second.job.agent, second.job.episodes) == ("ddpg", episodes)


TREATMENT = ("evaluation", "finalists", "reward", "lr", "train_images", "val_images", "distill",
             "final_epochs", "rounding_steps", "clipping", "calibration_images")  # fmt: skip


@pytest.mark.parametrize(
    "agents, evaluation, finalists",
    [
        ("ilp", "cheap", 0),
        ("guided", "cheap", 3),
        ("ilp,guided", "cheap", 3),
        ("guided,random", "cheap", 3),
        ("uniform", "cheap", 3),
        ("uniform,ilp", "cheap", 0),
    ],
)
def test_all_are_evaluated_and_fine_tuned_alike(agents, evaluation, finalists):
    jobs = [search.job for search in searches(parse_sweep(["size=9kB"], agents, "0", ALIKE))]
    assert jobs[0].agent == "uniform" and len(jobs) == len({*agents.split(","), "uniform"})
    for job in jobs:
        assert (job.evaluation, job.finalists) == (evaluation, finalists)
        assert all(getattr(job, name) == getattr(jobs[0], name) for name in TREATMENT)
        assert treatment(job.model_dump(mode="json")) == treatment(jobs[0].model_dump(mode="json"))


ALIKE = {name: value for name, value in SMALL.items() if name != "episodes"}


def test_an_agent_that_needs_one_episode_plays_one_beside_others():
    jobs = {
        s.job.agent: s.job for s in searches(parse_sweep(["size=9kB"], "ilp,guided", "0", ALIKE))
    }
    assert jobs["ilp"].episodes == 1 and jobs["guided"].episodes != 1


def test_a_budget_of_the_job_is_kept_by_every_search():
    fixed = parse_sweep(["size=8kB"], "ddpg", "0", SMALL | {"budgets": ("avg_weight_bits=6",)})
    assert {s.job.budgets for s in searches(fixed)} == {("size=8kB", "avg_weight_bits=6")}


def test_only_ddpg_follows_the_paper():
    jobs = {s.job.agent: s.job for s in searches(small(agents="random,ddpg", paper=True))}
    assert [jobs[agent].paper for agent in ("uniform", "random", "ddpg")] == [False, False, True]
    assert not any(job.distill for job in jobs.values())


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"budgets": "size"}, "budgets 'size': write them like"),
        ({"budgets": "size=1kB,,2kB"}, "write them like"),
        ({"agents": "dpg"}, "unknown agent 'dpg'; did you mean 'ddpg'"),
        ({"seeds": "0,x"}, "seeds '0,x'"),
        ({"seeds": "-1"}, "seed"),
        ({"episodes": 0}, "episodes"),
        ({"agents": "random", "paper": True}, "paper is a way to run ddpg"),
    ],
)
def test_a_mistake_is_named(changes, sentence):
    with pytest.raises(HaqError, match=sentence):
        small(**changes)


def test_a_sweep_needs_budgets():
    with pytest.raises(HaqError, match="a sweep needs budgets"):
        parse_sweep([], "ddpg", "0", SMALL)


def test_an_impossible_budget_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(BudgetError, match="the cheapest one needs"):
        start(small(budgets="avg_weight_bits=6,1"), str(tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()


def test_there_is_no_sweep_where_there_is_none(tmp_path):
    with pytest.raises(RunError, match="no sweep at"):
        find_sweep(str(tmp_path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = start(small(), str(tmp_path_factory.mktemp("sweeps") / "whole"))
    started = []
    state = run_sweep(folder, lambda number, count, search: started.append(number), quiet)
    assert (state, started) == ("finished", [1, 2, 3, 4])
    return folder


def outcome(folder):
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: text for name, text in row.items() if "seconds" not in name} for row in rows]


def test_a_sweep_leaves_a_run_for_each_search_and_the_front(finished):
    names = {search.name for search in searches(read_sweep(finished))}
    assert {path.name for path in finished.iterdir()} == {
        *names, "sweep.json", "sweep.csv", "sweep.html",
    }  # fmt: skip
    assert [row["run"] for row in outcome(finished)] == [
        "avg_weight_bits=5-uniform-0", "avg_weight_bits=5-ddpg-0",
        "avg_weight_bits=6-uniform-0", "avg_weight_bits=6-ddpg-0",
    ]  # fmt: skip
    page = (finished / "sweep.html").read_text()
    assert "uniform bits, the reference" in page
    assert "4 of 4 runs finished" in page


def test_every_run_starts_from_the_same_float_network(finished):
    for name in ("float.safetensors", "clips.safetensors"):
        assert len({path.read_bytes() for path in finished.glob(f"*/{name}")}) == 1


def test_a_run_of_a_sweep_is_what_the_search_alone_is(finished, tmp_path):
    from haq.runs.run import run

    (search,) = (s for s in searches(read_sweep(finished)) if s.name == "avg_weight_bits=6-ddpg-0")
    alone = run(search.job, tmp_path)
    summary = results.read_json(finished / search.name / "summary.json")
    assert alone["final_test_accuracy"] == summary["final_test_accuracy"]
    assert alone["layers"] == summary["layers"]


def test_a_finished_sweep_runs_nothing_again(finished):
    before = outcome(finished)

    def never(number, count, search):
        raise AssertionError(search.name)

    assert run_sweep(finished, never, quiet) == "finished"
    assert outcome(finished) == before


@pytest.mark.parametrize("stage, met", [("train", 1), ("search", 5)])
def test_an_interrupted_sweep_goes_on_to_the_same_front(finished, tmp_path, stage, met):
    folder = start(small(), str(tmp_path / "stopped"))
    seen = []

    def interrupt(where):
        seen.append(where.stage)
        if seen.count(stage) == met:
            raise KeyboardInterrupt

    @contextmanager
    def interrupting():
        yield interrupt

    assert run_sweep(folder, lambda *_: None, interrupting) == "interrupted"
    assert run_sweep(folder, lambda *_: None, quiet) == "finished"
    assert outcome(folder) == outcome(finished)


def test_from_the_command_line(monkeypatch, capsys, tmp_path):
    def haq(*arguments):
        monkeypatch.setattr(sys, "argv", ["haq", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = [text for name, value in SMALL.items()
               for text in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    asked = ["--budgets", "avg_weight_bits=6", "--agents", "uniform", "--out", "mine"]
    assert haq("sweep", *asked, *options) == 0
    said = capsys.readouterr()
    assert said.out == "results/mine/sweep.html\nresults/mine/sweep.csv\n"
    assert "1 of 1: avg_weight_bits=6-uniform-0" in said.err
    assert read_sweep(tmp_path / "results/mine").job.val_images == 60
    assert haq("sweep", *asked, *options) == 2
    assert "exists already" in capsys.readouterr().err
    assert haq("sweep", "--resume", "mine", "--seeds", "1") == 2
    assert "leave out --seeds" in capsys.readouterr().err
    assert haq("sweep", "--resume", "mine") == 0
    assert "1 of 1" not in capsys.readouterr().err


def test_names_are_those_of_folders():
    (first, *_) = searches(small(budgets="latency=50%w8a8", target="bismo-edge"))
    assert first.name == "latency=50pw8a8-uniform-0"


def test_a_front_is_drawn_from_one_set_of_sensitivities(tmp_path, monkeypatch):
    measured = []
    before = calibration.second_order
    monkeypatch.setattr(calibration, "second_order", lambda *a: measured.append(1) or before(*a))
    sweep = small("avg_weight_bits=5,6,7", "ilp", episodes=None, evaluation="cheap",
                  rounding_steps=0)  # fmt: skip
    folder = start(sweep, str(tmp_path / "front"))
    assert run_sweep(folder, lambda *_: None, quiet) == "finished"
    assert len(measured) == 1
    texts = {path.read_text() for path in folder.glob("*-ilp-0/sensitivity.json")}
    assert len(texts) == 1
