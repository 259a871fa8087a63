"""What may be asked for, and what is said of the rest."""

import math
import os

import pytest

from haq.errors import HaqError
from haq.runs.folder import read_job, write_job
from haq.runs.job import Job, JobError, check_threads, cores, default_threads, option, parse_job


def test_the_default_is_guided_and_paper_alone_means_ddpg():
    assert (parse_job().agent, Job().agent) == ("guided", "guided")
    paper = parse_job(paper=True)
    assert (paper.agent, paper.evaluation, paper.finalists, paper.distill) == (
        "ddpg", "finetune", 0, {},
    )  # fmt: skip


def test_what_is_not_said_is_as_suits_the_agent():
    ilp, guided, both = (
        parse_job(**fields)
        for fields in (
            {"agent": "ilp", "episodes": None},
            {"agent": "guided"},
            {"agent": "guided", "evaluation": "finetune"},
        )
    )
    assert (ilp.episodes, ilp.evaluation, ilp.finalists, ilp.last_steps) == (1, "cheap", 0, 300)
    assert (guided.episodes, guided.evaluation, guided.finalists) == (None, "cheap", 3)
    assert (guided.last_steps, both.finalists, both.last_steps) == (300, 0, 0)
    assert (guided.last_epochs, ilp.last_epochs) == (30, 0)
    assert parse_job(data="cifar10:X", agent="ilp", final_epochs=2).last_epochs == 2
    assert parse_job(agent="ilp", episodes=9).episodes == 9


def test_every_agent_learns_from_divergence_unless_the_paper_is_asked_for():
    for agent in ("guided", "ddpg", "random", "uniform", "my.package:Agent"):
        job = parse_job(agent=agent)
        assert (job.evaluation, job.finalists, job.reward) == ("cheap", 3, "agreement")
    assert parse_job(agent="ilp", episodes=9).reward == "agreement"
    assert parse_job(agent="ddpg", metric="top5").reward == "metric"
    paper = parse_job(paper=True, agent="ddpg")
    assert (paper.evaluation, paper.finalists, paper.reward) == ("finetune", 0, "accuracy")


def test_activations_are_searched_where_a_budget_counts_them():
    assert parse_job().fixed_act_bits == 8
    assert parse_job(budgets=["latency=5ms"]).fixed_act_bits is None
    assert parse_job(budgets=["latency=5ms"], act_bits=4).fixed_act_bits == 4
    assert parse_job(act_bits="search").fixed_act_bits is None


# The value, the rule, the way out: as on the command line, and never pydantic's words.
@pytest.mark.parametrize(
    "fields, message",
    [
        ({"pins": {"conv1": 32}}, "--pin conv1=32: a pin is 2 to 8 bits; leave the layer out to"),
        ({"pins": {"conv1": 1}}, "--pin conv1=1: a pin is 2 to 8 bits"),
        ({"pins": {"conv1": "x"}}, "--pin conv1=x: a pin is 2 to 8 bits"),
        ({"lr": math.inf}, "--lr inf: a learning rate is a finite number above 0"),
        ({"lr": math.nan}, "--lr nan: a learning rate is a finite number above 0"),
        ({"lr": 0}, "--lr 0: a learning rate"),
        ({"lr": "fast"}, "--lr fast: a learning rate"),
        ({"width": math.nan}, "--width nan: a width multiplier is above 0"),
        ({"width": math.inf}, "--width inf: a width multiplier is above 0"),
        ({"episodes": 0}, "--episodes 0: a search plays a whole number of episodes, 1 or more"),
        ({"episodes": 1.5}, "--episodes 1.5: a search plays a whole number of episodes"),
        ({"reward": "size"}, "--reward size: give metric, accuracy, loss or agreement"),
        ({"evaluation": "quick"}, "--evaluation quick: give finetune .* or cheap"),
        ({"act_bits": 9}, "--act-bits 9: activations have 2 to 8 bits; give one number, or search"),
        ({"act_bits": "all"}, "--act-bits all: activations have 2 to 8 bits"),
        ({"weight_bits": (1, 8)}, "--weight-bits 1: weights have 2 to 8 bits"),
        ({"weight_bits": (4, 2)}, "--weight-bits 4..2 is empty; give the smaller number first"),
        ({"workers": 0}, "--workers 0: give a whole number of processes, 1 or more"),
        ({"threads": 0}, "--threads 0: give a whole number of threads, 1 or more"),
        ({"seed": -1}, "--seed -1: a seed is a whole number from 0"),
        ({"train_images": 1}, "--train-images 1: give a whole number of images, 2 or more"),
        ({"budgets": ()}, "a search needs a budget"),
        ({"budgets": 3}, "--budget 3: a budget is text such as"),
        (
            {"budgets": "size=9kB"},
            "--budget size=9kB: a budget is text .*; write a list, in brackets",
        ),
        ({"groups": 32}, "--groups 32: give the weights of a group.*; write a list, in brackets"),
        ({"model": 3}, "--model 3: give text"),
        ({"sed": 1}, "a search has no field 'sed' \\(known: act_bits, agent, "),
        ({"paper": True, "agent": "ilp"}, "--paper is a way to run ddpg, not ilp"),
        ({"weights": "w.pt", "float_epochs": 3}, "--weights w.pt and --float-epochs 3 exclude"),
    ],
)
def test_mistakes_are_one_sentence_with_value_rule_and_way_out(fields, message):
    with pytest.raises(JobError, match=f"^{message}") as refused:
        parse_job(**fields)
    text = str(refused.value)
    assert "Input should" not in text and "\n" not in text


@pytest.mark.parametrize("field", sorted(Job.model_fields))
def test_every_field_has_a_rule_of_its_own(field):
    with pytest.raises(JobError) as refused:
        parse_job(**{field: object()})
    assert refused.value.field == field
    assert str(refused.value).startswith(option(field))


def test_a_job_comes_back_from_its_file(tmp_path):
    job = parse_job(agent="ilp", budgets=["size=3kB"], pins={"conv1": 4}, lr=0.5)
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job


# --- threads ---------------------------------------------------------------------------------


def test_workers_share_the_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert parse_job(workers=10_000).threads == 1
    assert parse_job(workers=2).threads == max(1, cores() // 2)
    assert parse_job(workers=2, threads=5).threads == 5
    assert parse_job().threads is None


@pytest.mark.parametrize(
    "told, threads", [("3", 3), ("7,2", 7), (" 5 ", 5), ("", None), ("0", None), ("many", None)]
)
def test_the_environment_says_how_many_threads(monkeypatch, told, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert default_threads() == (threads or cores())
    assert parse_job(workers=3).threads == max(1, (threads or cores()) // 3)


def test_more_threads_than_cores_are_refused():
    check_threads(parse_job(threads=cores()))
    check_threads(parse_job())
    with pytest.raises(HaqError, match=f"--threads 1000: there are {cores()} cores here"):
        check_threads(parse_job(threads=1000))


def test_cores_are_counted_on_every_platform(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1
