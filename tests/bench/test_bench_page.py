from pathlib import Path

import numpy as np
import pytest
from readme_blocks import run_blocks

from haq.agents import AGENTS, play
from haq.agents.uniform import candidates
from haq.bench.environment import Answers, bench_env
from haq.bench.table import read_bench

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "results/haq-bench").glob("*.parquet"))
BUDGETS = (
    ("avg_weight_bits=3", None, 4),
    ("avg_weight_bits=2.25", None, 4),
    ("latency=50%w8a8", "bismo-edge", None),
    ("latency=35%w8a8", "bismo-edge", None),
    ("latency=35%w8a8", "bismo-cloud", None),
)


@pytest.fixture(scope="module", params=TABLES, ids=lambda place: place.stem)
def played(request):
    bench = read_bench(request.param)
    return bench, Answers(bench)


def test_there_are_tables():
    assert "resnet20" in {place.stem for place in TABLES}


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
@pytest.mark.parametrize("agent", AGENTS)
def test_no_agent_leaves_the_budget_or_ends_worse_than_it_began(
    played, agent, budget, target, act_bits
):
    bench, answers = played
    env = bench_env(bench, budget, target=target, act_bits=act_bits, answers=answers)
    begun = AGENTS[agent](env, 4, seed=0)
    rewards = []
    for episode in play(begun, env, 4):
        assert env.keeps_budgets(episode.info["policy"])
        rewards.append(episode.reward)
    assert max(rewards) >= rewards[0]
    if begun.references:
        best_uniform = max(-answers(policy).loss for policy in list(candidates(env).values())[:2])
        known = {"ilp": rewards[0]}.get(agent, best_uniform)
        assert max(rewards) >= known
