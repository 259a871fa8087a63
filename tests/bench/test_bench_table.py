import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow
import pytest
from bench_parts import COUNTS, LAYERS, bench, settings, subject, truth
from pyarrow import parquet

from haq.agents import AGENTS, play
from haq.allocation.budgets.limit import all_within, spent
from haq.allocation.choices import share_activations
from haq.allocation.policy import Bits
from haq.bench.environment import Answers, bench_env
from haq.bench.policies import assembled, drawn
from haq.bench.surrogate import decisions_of, fit_surrogate
from haq.bench.table import read_bench, write_bench
from haq.errors import HaqError
from haq.network.layers import CallShape


@pytest.fixture(scope="module")
def table():
    return bench()


@pytest.fixture(scope="module")
def answers(table):
    return Answers(table)


def test_a_table_reads_back_as_it_was_written(table, tmp_path):
    shapes = (CallShape((4, 4), (4, 4), 7, 2),)
    layers = (*LAYERS[:-1], replace(LAYERS[-1], shapes=shapes))
    written = replace(table, subject=replace(table.subject, layers=layers))
    written.figures["some"] = np.where(np.arange(len(table)) % 2, 0.5, np.nan)
    write_bench(written, tmp_path / "there" / "t.parquet")
    again = read_bench(tmp_path / "there" / "t.parquet")
    assert again.subject == written.subject
    assert list(again.drawn) == list(written.drawn)
    for name, values in written.figures.items():
        np.testing.assert_allclose(again.figures[name], values, rtol=1e-6)
    del written.figures["some"]


@pytest.mark.parametrize("content", [None, b"", b"no parquet at all"])
def test_a_file_that_is_no_table_is_refused_in_one_sentence(tmp_path, content):
    place = tmp_path / "t.parquet"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(HaqError, match=r"t\.parquet is no table of a benchmark \(.*haq_bench\.py"):
        read_bench(place)


def test_a_parquet_file_of_something_else_is_refused(tmp_path):
    place = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"x": [1]}), place)
    with pytest.raises(HaqError, match="is no table of a benchmark"):
        read_bench(place)
    text = json.dumps({"model": "m"})
    parquet.write_table(pyarrow.table({"x": [1]}).replace_schema_metadata({b"haq": text}), place)
    with pytest.raises(HaqError, match="is no table of a benchmark"):
        read_bench(place)


def test_policies_follow_from_the_seed_and_are_met_once():
    network = subject()
    one, same, other = (
        drawn(network.costs(), settings(network), seed, COUNTS) for seed in (0, 0, 1)
    )
    assert one == same != other
    keys = [tuple(each.policy.values()) for each in one]
    assert len(set(keys)) == len(keys)
    assert {each.family for each in one} == {
        "uniform", "levels", "moves", "budget", "doubted", "moved",
    }  # fmt: skip


def test_policies_are_among_the_choices_and_those_of_a_budget_keep_it():
    network = subject()
    offered = share_activations(LAYERS, network.costs().choices)
    limits = {one.name: one for one in settings(network)}
    for each in drawn(network.costs(), list(limits.values()), 0, COUNTS):
        assert all(bits in offered[name] for name, bits in each.policy.items())
        assert each.policy["a"].act == each.policy["shortcut"].act
        if each.family in ("budget", "doubted"):
            setting = limits[each.setting]
            cost = spent(setting.table, each.policy, setting.budgets)
            assert all_within(cost, setting.budgets)


def test_a_policy_is_assembled_from_the_nearest_widths_that_layers_share():
    names = [layer.name for layer in LAYERS]
    policy = assembled(
        subject().costs(), dict.fromkeys(names, 3.4), dict.fromkeys(names, 9) | {"a": 2}
    )
    assert policy["a"] == Bits(3, 2) and policy["shortcut"] == Bits(3, 2)
    assert policy["b"] == Bits(3, 8) and policy["first"] == Bits(8, 8)


def test_what_is_decided_are_inner_weights_and_tensors():
    decisions = decisions_of(subject())
    assert decisions.weights == ("a", "b", "shortcut", "c", "d")
    assert decisions.tensors == ("a", "b", "c", "d")
    assert (1, 6) in map(tuple, decisions.pairs)  # b's weights, and what b reads
    policy = {**dict.fromkeys("abcd", Bits(4, 5)), "shortcut": Bits(2, 5)}
    assert decisions.widths([policy]).tolist() == [[4, 4, 2, 4, 4, 5, 5, 5, 5]]


def test_the_surrogate_predicts_policies_that_it_was_not_fitted_on(table):
    chosen = [at for at in range(len(table)) if at % 5]
    logs = np.log(table.figures["divergence"])
    surrogate = fit_surrogate(table, logs, chosen)
    held = [at for at in range(len(table)) if not at % 5]
    predicted = surrogate.predict([table.drawn[at].policy for at in held])
    assert np.abs(predicted - logs[held]).mean() < 0.1
    assert np.corrcoef(predicted, logs[held])[0, 1] > 0.995


def test_the_environment_answers_from_the_table_and_else_by_the_surrogate(table, answers):
    env = bench_env(table, "avg_weight_bits=3", act_bits=4, answers=answers)
    known = next(each.policy for each in table.drawn if each.family == "doubted")
    at = [each.policy for each in table.drawn].index(known)
    score = env.evaluate(known)
    assert score.loss == table.figures["divergence"][at]
    assert score.accuracy == table.figures["accuracy"][at]
    policy = dict(known)
    policy["d"], policy["c"] = Bits(7, 4), Bits(6, 4)
    score = env.evaluate(policy)
    assert score == answers.predicted(policy)
    assert abs(np.log(score.loss / truth(policy))) < 0.3
    assert abs(score.accuracy - 0.9 * np.exp(-truth(policy))) < 0.05


def test_rewards_are_divergence_unless_asked_otherwise(table, answers):
    for reward, expected in (
        ("loss", lambda info: -info["loss"]),
        ("accuracy", lambda info: 10 * (info["accuracy"] - 0.9)),
        (lambda score, _: 7 * score.accuracy, lambda info: 7 * info["accuracy"]),
    ):
        env = bench_env(
            table, "avg_weight_bits=3", act_bits=4, reward=reward, answers=answers
        )  # fmt: skip
        env.reset(seed=0)
        for _ in range(env.n_steps):
            *_, gained, terminated, _, info = env.step(np.array([0.4], np.float32))
        assert terminated and gained == pytest.approx(expected(info))


@pytest.mark.parametrize("target, budget", [(None, "size=3kB"), ("bismo-edge", "latency=60%w8a8")])
@pytest.mark.parametrize("agent", AGENTS)
def test_agents_keep_the_budget_and_end_no_worse_than_they_began(
    table, answers, agent, target, budget
):
    env = bench_env(table, budget, target=target, answers=answers)
    played = AGENTS[agent](env, 6, 0)
    rewards = []
    for episode in play(played, env, 6):
        assert env.keeps_budgets(episode.info["policy"])
        rewards.append(episode.reward)
    assert max(rewards) >= rewards[0]


def test_nothing_of_it_needs_torch(table, tmp_path):
    write_bench(table, tmp_path / "t.parquet")
    script = f"""
import sys
from haq.bench.environment import bench_env
from haq.bench.table import read_bench
env = bench_env(read_bench({str(tmp_path / "t.parquet")!r}), "size=3kB", target="bismo-edge")
env.reset(seed=0)
while not env.step(env.action_space.sample())[2]:
    pass
heavy = {{"torch", "stable_baselines3", "onnxruntime", "sklearn"}}
assert not heavy & {{name.partition(".")[0] for name in sys.modules}}
"""
    subprocess.run([sys.executable, "-c", script], check=True)
