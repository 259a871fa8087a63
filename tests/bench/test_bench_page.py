import json
from pathlib import Path

import numpy as np
import pytest
from readme_blocks import run_blocks

from haq.agents import AGENTS, play
from haq.agents.uniform import candidates
from haq.allocation.budgets import parse_budget
from haq.allocation.budgets.limit import all_within, spent
from haq.allocation.policy import Bits
from haq.bench.environment import Answers, bench_env
from haq.bench.table import read_bench
from haq.hw_profiles import load

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "results/haq-bench").glob("*.parquet"))
BUDGETS = (
    ("avg_weight_bits=3", None, 4),
    ("avg_weight_bits=2.25", None, 4),
    ("latency=50%w8a8", "bismo-edge", None),
    ("latency=35%w8a8", "bismo-edge", None),
    ("latency=35%w8a8", "bismo-cloud", None),
    ("avg_weight_bits=4", None, 4),
    ("avg_weight_bits=2.5", None, 4),
    ("size=50%w8a8", None, None),
)
PLAYED = json.loads((ROOT / "results/reference/bench-agents.json").read_text("utf-8"))["played"]


@pytest.fixture(scope="module", params=TABLES, ids=lambda place: place.stem)
def played(request):
    bench = read_bench(request.param)
    return bench, Answers(bench)


def test_there_are_tables():
    assert {"resnet20", "mobilenet_v2"} <= {place.stem for place in TABLES}


def test_a_table_has_two_thousand_policies_and_its_budgets_are_those_tested_here(played):
    bench, _ = played
    assert len(bench) >= 2000
    settings = bench.subject.about["settings"]
    assert {(budget, target, act) for _, target, budget, act in settings} == set(BUDGETS)


def test_the_page_plays_as_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = run_blocks(ROOT / "docs/bench.md")
    assert names["best"] < 0 < names["divergence"] < 5


def test_figures_of_a_table_are_those_of_networks(played):
    bench, answers = played
    loss, accuracy = bench.figures["divergence"], bench.figures["accuracy"]
    assert np.isfinite(loss).all() and (loss > 0).all()
    assert ((accuracy >= 0) & (accuracy <= 1)).all()
    assert answers(bench.drawn[0].policy).loss == loss[0]


@pytest.mark.parametrize("budget, target, act_bits", BUDGETS)
def test_no_agent_leaves_the_budget_or_ends_worse_than_it_began_or_than_known_answers(
    played, budget, target, act_bits
):
    bench, answers = played
    env = bench_env(bench, budget, target=target, act_bits=act_bits, answers=answers)
    uniform = max(-answers(each).loss for each in candidates(env).values())
    (programmed,) = (one.reward for one in play(AGENTS["ilp"](env, 1, seed=0), env, 1))
    for agent, kind in AGENTS.items():
        episodes = max(2, kind.references)
        rewards = []
        for episode in play(kind(env, episodes, seed=0), env, episodes):
            assert env.keeps_budgets(episode.info["policy"]), agent
            rewards.append(episode.reward)
        assert max(rewards) >= rewards[0], agent
        if kind.references:
            assert max(rewards) >= uniform, agent
        if kind.references > 2:
            assert max(rewards) >= programmed, agent


def test_published_answers_keep_their_budgets_and_are_no_worse_than_known_ones(played):
    bench, _ = played
    names = [layer.name for layer in bench.subject.layers]
    rows = [row for row in PLAYED if row["table"] == bench.subject.model]
    assert {row["setting"] for row in rows} == {_title(*one) for one in BUDGETS[:5]}
    for budget, target, act_bits in BUDGETS[:5]:
        table = bench.subject.costs(target, act_bits)
        limits = [
            parse_budget(
                budget, bench.subject.layers, load(target) if target else None,
                bench.subject.float_values,
            )
        ]  # fmt: skip
        here = [row for row in rows if row["setting"] == _title(budget, target, act_bits)]
        for row in here:
            bits = [Bits(*map(int, pair.split(","))) for pair in row["policy"].split()]
            policy = dict(zip(names, bits, strict=True))
            assert all_within(spent(table, policy, limits), limits)
        known = [row["divergence"] for row in here if row["agent"] in ("ilp", "uniform")]
        begun = [row["divergence"] for row in here if row["agent"] in ("guided", "trust")]
        assert len(known) == 2 and len(begun) >= 3 and max(begun) <= min(known)


def _title(budget, target, act_bits):
    return " ".join(filter(None, (target, budget, act_bits and f"a{act_bits}")))
