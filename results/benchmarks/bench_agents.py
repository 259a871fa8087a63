"""What agents find in 200 episodes of HAQ-Bench.

python results/benchmarks/bench_agents.py NAME ...

Every agent, budget and seed plays the table of NAME (results/haq-bench), where a policy that is not
in the table is answered by the surrogate; ilp and uniform play their own first episodes. Beside
them "optimum": the best policy of the surrogate that integer programming over its terms and a climb
from there find; it is not proven to be the best. Each agent plays in a process of its own, which
tells its peak memory. Rows are added to results/reference/bench-agents.json as they come; what
stands there is left out, so the same command goes on. ``bench_judge.py`` evaluates the answers.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from haq.agents import AGENTS, play
from haq.allocation.budgets import solve
from haq.allocation.policy import Bits, Policy
from haq.bench.environment import Answers, bench_env
from haq.bench.policies import moves
from haq.bench.table import Bench, read_bench
from haq.envs.quantization import QuantizationEnv
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import read_json, write_json

BUDGETS = (
    ("avg_weight_bits=3", None, 4),
    ("avg_weight_bits=2.25", None, 4),
    ("latency=50%w8a8", "bismo-edge", None),
    ("latency=35%w8a8", "bismo-edge", None),
    ("latency=35%w8a8", "bismo-cloud", None),
)
"""Budget, target, activation bits."""

EPISODES = 200
SEEDS = (0, 1, 2)
SINGLE = {"ilp": 1, "uniform": 2}
"""Agents whose answer stands after so many episodes, whatever the seed."""

PAPER = "ddpg as in the paper"
"""DDPG with one update a step, rewarded for accuracy."""

BLIND = "random, chosen by accuracy"
"""Random search that is rewarded as the paper's agent is."""

FOR_ACCURACY: dict[str, tuple[str, dict[str, Any]]] = {
    PAPER: ("ddpg", {"paper": True}), BLIND: ("random", {})
}  # fmt: skip
"""Players that are rewarded for accuracy instead of divergence: the agent, and its options."""

ORDER = tuple(
    dict.fromkeys(["optimum", "ilp", "uniform", "random", BLIND, "guided", "ddpg", PAPER, *AGENTS])
)
"""All that play, the quick ones first."""

PLACE = REFERENCE / "bench-agents.json"


def record() -> dict[str, Any]:
    """Return what stands in the record."""
    return read_json(PLACE) if PLACE.exists() else {"played": [], "judged": []}


def add(kind: str, row: dict[str, Any]) -> None:
    """Add a row to the record."""
    now = record()
    now[kind].append(row)
    write_json(PLACE, {"what": __doc__.splitlines()[0], **now, **script_provenance()})


def forget(name: str, policies: int) -> None:
    """Drop the rows that were played on a smaller table of that name."""
    now = record()
    rows = [row for row in now["played"] if (row["table"], row["policies"]) == (name, policies)]
    others = [row for row in now["played"] if row["table"] != name]
    judged = [row for row in now["judged"] if row["table"] != name or len(rows)]
    write_json(PLACE, {**now, "played": [*others, *rows], "judged": judged})


def played(
    bench: Bench, answers: Answers, name: str, agents: Sequence[str], seeds: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table that are not in the record yet."""
    known = {
        (row["table"], row["setting"], row["agent"], row["seed"]) for row in record()["played"]
    }
    for seed, (budget, target, act_bits), agent in itertools.product(seeds, BUDGETS, agents):
        setting = " ".join(filter(None, (target, budget, act_bits and f"a{act_bits}")))
        key = {"table": name, "setting": setting, "agent": agent, "seed": seed}
        once = agent in (*SINGLE, "optimum")
        if tuple(key.values()) not in known and not (once and seed):
            env = bench_env(
                bench, budget, target=target, act_bits=act_bits, answers=answers,
                reward="accuracy" if agent in FOR_ACCURACY else "loss",
            )  # fmt: skip
            key["policies"] = len(bench)
            yield key | (climbed(env, answers) if agent == "optimum" else one(env, agent, seed))


def one(env: QuantizationEnv, agent: str, seed: int) -> dict[str, Any]:
    """Return what an agent finds."""
    count = SINGLE.get(agent, EPISODES)
    name, options = FOR_ACCURACY.get(agent, (agent, {}))
    started = time.process_time()
    played_by = AGENTS[name](env, count, seed, **options)
    answers = env.evaluate
    assert isinstance(answers, Answers)
    asked, measured = answers.asked, answers.measured
    episodes = list(play(played_by, env, count))
    best = max(episodes, key=lambda episode: episode.reward)
    losses = np.array([episode.info["loss"] for episode in episodes])
    rewards = np.array([episode.reward for episode in episodes])
    chosen = [losses[int(rewards[: at + 1].argmax())] for at in range(count)]
    return {
        "episodes": count, "divergence": best.info["loss"], "accuracy": best.info["accuracy"],
        "after": {str(at): float(chosen[at - 1]) for at in (10, 25, 50, 100, 200) if at <= count},
        "first": float(losses[0]), "late_median": float(np.median(losses[-count // 4 :])),
        "measured_share": round((answers.measured - measured) / (answers.asked - asked), 3),
        "cpu_seconds": round(time.process_time() - started, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "policy": row(best.info["policy"]),
    }  # fmt: skip


def row(policy: Policy) -> str:
    """Return the bits of a policy as a text."""
    return " ".join(f"{bits.weight},{bits.act}" for bits in policy.values())


def climbed(env: QuantizationEnv, answers: Answers) -> dict[str, Any]:
    """Return the best policy of the surrogate that a solver and a climb find."""
    started = time.process_time()
    policy = solve(answers.losses.objective(env.table), env.table, env.budgets)
    assert policy is not None
    while True:
        near = [one for one in neighbours(env, answers, policy) if env.keeps_budgets(one)]
        losses = answers.losses.predict([policy, *near])
        if losses.argmin() == 0:
            break
        policy = near[int(losses.argmin()) - 1]
    score = answers.predicted(policy)
    return {
        "divergence": score.loss, "accuracy": score.accuracy, "policy": row(policy),
        "cpu_seconds": round(time.process_time() - started, 2),
    }  # fmt: skip


def neighbours(env: QuantizationEnv, answers: Answers, policy: Policy) -> list[dict[str, Bits]]:
    """Return policies one bit away, and those of two such moves that promise the most."""
    one = list(moves(env.table, policy, (-1, 1)))
    order = np.argsort(answers.losses.predict(one))
    best, cheapest = [one[at] for at in order[:40]], [one[at] for at in order[:120]]
    both = [
        {**first, **{n: bits for n, bits in second.items() if bits != policy[n]}}
        for first in best for second in cheapest
    ]  # fmt: skip
    return [*one, *both]


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, each agent in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--agents", nargs="+", default=ORDER)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    asked = parser.parse_args(arguments)
    for name, agent in itertools.product(asked.names, asked.agents):
        if len(asked.agents) > 1:
            seeds = map(str, asked.seeds)
            command = [sys.executable, __file__, name, "--agents", agent, "--seeds", *seeds]
            subprocess.run(command, check=True)
            continue
        bench = read_bench(Path("results/haq-bench") / f"{name}.parquet")
        forget(name, len(bench))
        for one in played(bench, Answers(bench), name, asked.agents, asked.seeds):
            add("played", one)
            print({key: one[key] for key in one if key != "policy"}, flush=True)


if __name__ == "__main__":
    main()
