"""The environment: its steps, actions, observations, reward and end."""

import itertools
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import haq.envs
from haq.allocation.budgets import Budget
from haq.allocation.choices import permitted
from haq.allocation.costs import CostTable, tabulate
from haq.allocation.policy import Bits
from haq.allocation.trials import Score
from haq.envs.quantization import QuantizationEnv
from haq.errors import BudgetError, HaqError
from haq.network.layers import Layer

CONV = Layer("conv", "conv", 3, 8, (3, 3), (1, 1), in_size=(32, 32), weights=216, macs=1000)
DEPTH = Layer("dw", "depthwise", 8, 8, (3, 5), (2, 1), in_size=(16, 16), weights=72, macs=500)
SIDE = Layer("side", "pointwise", 8, 16, stride=(2, 2), in_size=(16, 16), weights=128, reads="dw")
FC = Layer("fc", "linear", 16, 10, weights=160, macs=160)
LAYERS = (CONV, DEPTH, SIDE, FC)


def score(policy):
    return Score(0.5 + 0.01 * policy["fc"].weight, loss=2.0)


def make(layers=LAYERS, budgets=(), evaluate=score, float_accuracy=0.6, **ranges):
    table = tabulate(layers, permitted(layers, None, **ranges))
    return QuantizationEnv(table, evaluate, budgets, float_accuracy)


def odd(evaluate=score, **choices):
    """Return the environment of one layer for each list of pairs; all after the first read "a"."""
    pairs = {name: tuple(Bits(*pair) for pair in some) for name, some in choices.items()}
    layers = tuple(Layer(name, "conv", 1, 1, reads="a") for name in choices)
    rows = {"size": {name: np.ones(len(some)) for name, some in pairs.items()}}
    return QuantizationEnv(CostTable(layers, pairs, rows, {"size": "bytes"}), evaluate)


def play(env, actions):
    """Return all observations, rewards, ends and infos of one episode."""
    observation, info = env.reset()
    observations, rewards, ends, infos = [observation], [], [], [info]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(np.array([action], np.float32))
        assert not truncated
        observations.append(observation)
        rewards.append(reward)
        ends.append(terminated)
        infos.append(info)
    return np.array(observations), rewards, ends, infos


def end(env, actions):
    return play(env, actions)[-1][-1]


def constant(_):
    return Score(0.5)


# --- steps and actions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "ranges, steps",
    [
        ({}, 7),  # side takes over dw's activations
        ({"act_bits": 4}, 4),
        ({"pins": {"conv": 8, "fc": 8}}, 3),
        ({"pins": {"dw": 8}}, 5),  # conv 2, side's weights, fc 2
        ({"weight_bits": (4, 4)}, 3),
    ],
)
def test_every_free_width_is_a_step(ranges, steps):
    env = make(**ranges)
    assert env.n_steps == steps
    _, rewards, ends, _ = play(env, [0.5] * steps)
    assert ends == [False] * (steps - 1) + [True]
    assert rewards[:-1] == [0.0] * (steps - 1)


def test_a_table_without_a_choice_is_refused():
    with pytest.raises(HaqError, match=r"nothing to search: .* \(conv w4a4, dw w4a4, side w4a4, …"):
        make(weight_bits=(4, 4), act_bits=4)


@pytest.mark.parametrize(
    "action, bits",
    [(0, 2), (0.14, 2), (0.15, 3), (0.5, 5), (0.85, 7), (0.86, 8), (1, 8), (-3, 2), (3, 8)],
)
def test_an_action_becomes_bits_as_in_the_paper(action, bits):
    # round(2 - 0.5 + 7a): 0.14 gives round(2.48), 0.15 round(2.55), 0.5 round(5.0), 1 round(8.5)
    assert end(make([FC]), [action, action])["policy"] == {"fc": Bits(bits, bits)}


@given(low=st.integers(2, 8), high=st.integers(2, 8), action=st.floats(0, 1, width=32))
@settings(max_examples=200, deadline=None)
def test_without_gaps_the_rule_is_the_papers_clipped(low, high, action):
    low, high = sorted((low, high))
    env = make([FC], weight_bits=(low, high))
    bits = int(np.clip(np.round(low - 0.5 + float(action) * (high - low + 1)), low, high))
    chosen = end(env, [action] * env.n_steps)["policy"]["fc"].weight
    assert chosen == (bits if low < high else low)


def test_a_list_with_gaps_is_chosen_from_by_place():
    env = odd(constant, a=[(2, 8), (4, 8), (8, 8)])
    chosen = [end(env, [action])["policy"]["a"].weight for action in (0, 0.3, 0.4, 0.6, 0.9, 1)]
    assert chosen == [2, 2, 4, 4, 8, 8]


def test_the_second_step_offers_what_goes_with_the_weights():
    env = odd(constant, a=[(2, 2), (2, 4), (8, 8)])
    assert end(env, [0, 1])["policy"]["a"] == (2, 4)
    assert end(env, [0, 0])["policy"]["a"] == (2, 2)
    assert end(env, [1, 0])["policy"]["a"] == (8, 8)  # one width only, yet a step


def test_a_later_reader_takes_over_the_activations():
    env = odd(constant, a=[(4, 4), (4, 8)], b=[(2, 4), (4, 4), (8, 8)])
    assert env.n_steps == 2
    assert end(env, [0, 0])["policy"] == {"a": (4, 4), "b": (2, 4)}
    assert end(env, [0, 1])["policy"] == {"a": (4, 4), "b": (4, 4)}
    assert end(env, [1, 0])["policy"] == {"a": (4, 8), "b": (8, 8)}


def test_a_first_reader_is_offered_only_what_others_can_follow():
    env = odd(constant, a=[(4, 4), (4, 6), (2, 6), (4, 8)], b=[(2, 4), (8, 8)])
    policies = [end(env, [action, 0.5])["policy"] for action in (0, 0.4, 0.6, 1)]
    assert [policy["a"] for policy in policies] == [(4, 4), (4, 4), (4, 8), (4, 8)]
    assert [policy["b"] for policy in policies] == [(2, 4), (2, 4), (8, 8), (8, 8)]


def test_readers_without_a_common_width_are_refused():
    with pytest.raises(HaqError, match="read the same tensor"):
        odd(a=[(4, 4)], b=[(4, 8), (8, 8)])


@pytest.mark.parametrize("action", [0.5, [0.5, 0.5], [[0.5]], [], [np.nan], [np.inf], ["a"]])
def test_a_bad_action_is_refused_and_changes_nothing(action):
    env = make([FC])
    env.reset()
    with pytest.raises(ValueError):
        env.step(np.array(action))
    env.step(np.array([0.0]))
    assert env.step(np.array([0.0]))[-1]["policy"] == {"fc": Bits(2, 2)}


# --- observations ----------------------------------------------------------------------------


def test_the_observations_by_hand():
    env = make(pins={"conv": 8})  # walked: dw, side, fc; conv does not set the scale
    observations, *_ = play(env, [0.1, 0.2, 0.3, 0.4, 0.5])
    dw = [0, 0, 0, 1, 1, 1, 0, 1]  # kernel (3, 5): 5; stride (2, 1): 2
    side = [0.5, 0, 1, 0, 1, 1, (128 - 72) / (160 - 72), 0]
    fc = [1, 1, (10 - 8) / (16 - 8), 0, 0, 0, 1, 0]
    expected = [
        [*dw, 1, 0],
        [*dw, 0, 0.1],
        [*side, 1, 0.2],
        [*fc, 1, 0.3],
        [*fc, 0, 0.4],
        [*fc, 0, 0.5],  # after the end
    ]
    assert observations == pytest.approx(np.array(expected), abs=1e-6)
    assert observations.dtype == np.float32


def test_what_is_the_same_for_all_layers_is_zero():
    observations, *_ = play(make([FC]), [0.7, 0.7])
    assert observations[:, :8].tolist() == [[0.0] * 8] * 3


def test_previous_actions_are_seen_within_bounds():
    observations, *_ = play(make([FC]), [7, -7])
    assert observations[:, 9].tolist() == [0, 1, 0]


# --- reward and end --------------------------------------------------------------------------


def test_the_reward_is_a_tenth_of_the_percentage_points():
    _, rewards, _, _ = play(make([FC]), [1, 1])  # accuracy 0.58, float 0.6
    assert rewards == [0.0, pytest.approx(0.1 * (58 - 60))]


def test_info_is_empty_until_the_end_and_then_complete():
    *_, infos = play(make([FC]), [1, 0])
    assert infos[:-1] == [{}, {}]
    assert infos[-1] == {
        "policy": {"fc": Bits(8, 2)},
        "proposed": {"fc": Bits(8, 2)},
        "cost": {"size": 160 + 40, "avg_weight_bits": 8, "bops": 160 * 16},
        "accuracy": pytest.approx(0.58),
        "loss": 2.0,
        "stopped": False,
    }


def test_the_budget_is_enforced_before_the_one_evaluation():
    seen = []

    def note(policy):
        seen.append(dict(policy))
        policy.clear()  # what an evaluation does to its argument is its own affair
        return Score(0.5)

    env = make(budgets=[Budget("avg_weight_bits", 5.0)], evaluate=note)
    info = end(env, [1] * 7)
    assert info["proposed"] == {layer.name: Bits(8, 8) for layer in LAYERS}
    assert info["cost"]["avg_weight_bits"] <= 5
    assert seen == [info["policy"]]


def test_an_impossible_budget_is_said_at_the_end():
    env = make([FC], budgets=[Budget("avg_weight_bits", 1.5)])
    with pytest.raises(BudgetError, match=r"avg_weight_bits <= 1\.5 bits: the cheapest one"):
        play(env, [1, 1])


def test_what_evaluate_raises_goes_through_and_reset_mends():
    scores = [RuntimeError("no memory"), Score(0.5)]

    def fail_once(policy):
        result = scores.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    env = make([FC], evaluate=fail_once)
    with pytest.raises(RuntimeError, match="no memory"):
        play(env, [1, 1])
    with pytest.raises(ResetNeeded):
        env.step(np.array([0.5]))
    assert end(env, [0, 0])["policy"] == {"fc": Bits(2, 2)}


def test_no_step_follows_the_last():
    env = make([FC])
    play(env, [1, 1])
    with pytest.raises(ResetNeeded, match="the episode is over"):
        env.step(np.array([0.5]))


def test_nothing_leaks_into_the_next_episode():
    actions = np.random.default_rng(0).random((3, 7))
    fresh = [play(make(), some) for some in actions]
    env = make()
    env.reset()
    env.step(np.array([0.9]))  # an episode left halfway
    for some, expected in zip(actions, fresh, strict=True):
        observations, *rest = play(env, some)
        assert np.array_equal(observations, expected[0])
        assert rest == list(expected[1:])


def test_two_seeded_episodes_are_equal():
    def seeded():
        env = make(budgets=[Budget("avg_weight_bits", 4)])
        first, _ = env.reset(seed=3)
        env.action_space.seed(3)
        steps = [env.step(env.action_space.sample()) for _ in range(env.n_steps)]
        return first.tolist(), [step[0].tolist() for step in steps], [step[1:] for step in steps]

    assert seeded() == seeded()


# --- as others see it ------------------------------------------------------------------------


def test_gymnasium_is_content():
    table = tabulate(LAYERS, permitted(LAYERS, None))
    env = gymnasium.make("haq/Quantization-v0", table=table, evaluate=score)
    assert isinstance(env.unwrapped, QuantizationEnv)
    assert haq.envs.__doc__
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized.*:UserWarning")
def test_stable_baselines3_is_content():
    check_env_for_sb3(make())


def test_it_imports_neither_torch_nor_data():
    code = (
        "import sys, haq.envs.quantization\n"
        "print([name for name in ('torch', 'haq.datasets', 'haq.models') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- sensitivities, rewards, float layers ----------------------------------------------------


def test_sensitivities_are_two_more_observations():
    table = tabulate([CONV, FC], permitted([CONV, FC], None, (2, 4), 8))
    known = {"conv": np.array([1e-1, 1e-3, 1e-9]), "fc": np.array([1e-3, 1e-4, 1e-5])}
    env = QuantizationEnv(table, score, sensitivity=known)
    observations, *_ = play(env, [0.0, 0.0])
    assert env.observation_space.shape == (12,)
    # fewest: log10 is -1 and -3; middle: -3 and -4
    assert observations[:, 10:].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert play(QuantizationEnv(table, score), [0.0, 0.0])[0].shape == (3, 10)


def test_the_loss_as_a_reward():
    table = tabulate([FC], permitted([FC], None))
    env = QuantizationEnv(table, score, reward="loss", float_loss=0.5)
    assert play(env, [1, 1])[1] == [0.0, 0.5 - 2.0]


@given(st.data())
def test_the_actions_of_a_policy_lead_to_it(data):
    env = make(evaluate=constant)
    wanted = end(env, [data.draw(st.floats(0, 1)) for _ in range(env.n_steps)])["policy"]
    assert end(env, env.actions(wanted))["policy"] == wanted


@given(st.data())
def test_the_policy_of_actions_is_the_one_they_evaluate(data):
    env = make(evaluate=constant, budgets=[Budget("avg_weight_bits", 4)])
    actions = [data.draw(st.floats(0, 1)) for _ in range(env.n_steps)]
    env.reset()
    env.step(np.array([0.3]))
    foreseen = env.policy(actions)  # in the middle of an episode, which it does not touch
    assert env.step(np.array([0.3]))[0][9] == np.float32(0.3)
    assert end(env, actions)["policy"] == foreseen


@pytest.mark.parametrize(
    "actions, message", [([0.5] * 6, "argument 2 is shorter"), ([0.5] * 6 + [np.nan], "finite")]
)
def test_actions_that_make_no_episode_have_no_policy(actions, message):
    with pytest.raises(ValueError, match=message):
        make().policy(actions)


def test_a_policy_that_no_actions_lead_to_is_refused():
    with pytest.raises(ValueError, match="layer 'fc' cannot have w1a8"):
        make([FC]).actions({"fc": Bits(1, 8)})


FLOATS = [*itertools.product((2, 4, 8), (4, 8)), (32, 32)]


def test_float_is_one_more_width_and_goes_with_float_activations():
    env = odd(constant, a=FLOATS, b=FLOATS)
    assert env.n_steps == 3
    assert end(env, [1, 0, 0])["policy"] == {"a": (32, 32), "b": (32, 32)}
    assert end(env, [0.7, 0.9, 0.9])["policy"] == {"a": (8, 8), "b": (8, 8)}
    assert end(env, [0, 0, 0.5])["policy"] == {"a": (2, 4), "b": (4, 4)}


@given(st.data())
def test_budgets_are_kept_where_layers_may_stay_float(data):
    layers = [Layer(name, "conv", 1, 1, weights=10, macs=10, reads="a") for name in "ab"]
    pairs = {name: tuple(Bits(*pair) for pair in FLOATS) for name in "ab"}
    table = tabulate(layers, pairs)
    env = QuantizationEnv(table, constant, [Budget("avg_weight_bits", 10)])
    info = end(env, [data.draw(st.floats(0, 1)) for _ in range(env.n_steps)])
    assert info["cost"]["avg_weight_bits"] <= 10
    assert len({bits.act for bits in info["policy"].values()}) == 1


# --- rewards and features of one's own ---------------------------------------------------------


def with_score(result, **options):
    """Return the last reward and info of an episode whose policy has that score."""
    env = QuantizationEnv(
        tabulate([FC], permitted([FC], None)), lambda _: result, (), 0.9, float_loss=0.5, **options
    )
    _, rewards, _, infos = play(env, [1, 1])
    return rewards[-1], infos[-1]


def test_a_function_makes_a_reward_of_both_scores():
    def log_odds(one, floats):
        return 100 * one.accuracy - floats.accuracy + 10 * (floats.loss - one.loss)

    reward, info = with_score(Score(0.25, 0.75), reward=log_odds)
    assert reward == 25 - 0.9 + 10 * (0.5 - 0.75)
    assert (info["accuracy"], info["loss"], info["stopped"]) == (0.25, 0.75, False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "reward, expected",
    [
        ("accuracy", 10 * (0 - 0.9)),  # of an accuracy of 0
        ("loss", -10.0),
        (lambda one, floats: one.accuracy - 2 * floats.accuracy, -1.8),
        (lambda one, floats: one.loss, -10.0),
    ],
)
def test_a_network_that_diverged_is_survived_and_never_wins(bad, reward, expected):
    with pytest.warns(UserWarning, match="is not finite; it counts as an accuracy of 0"):
        got, info = with_score(Score(bad, bad), reward=reward)
    assert got == pytest.approx(expected)
    assert (info["accuracy"], info["stopped"]) == (0.0, True)
    assert np.isnan(info["loss"])
    # What is remembered of it gives the same reward again: a resumed run repeats itself.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again, _ = with_score(Score(info["accuracy"], info["loss"], True), reward=reward)
    assert again == got


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_counts_only_where_it_is_the_reward(bad):
    reward, info = with_score(Score(0.8, bad))
    assert reward == pytest.approx(-1.0)
    assert not info["stopped"] and np.isnan(info["loss"])
    with pytest.warns(UserWarning, match="not finite"):
        reward, info = with_score(Score(0.8, bad), reward="loss")
    assert (reward, info["accuracy"], info["stopped"]) == (-10.0, 0.0, True)


def test_features_of_ones_own_come_last_and_are_scaled():
    table = tabulate(LAYERS, permitted(LAYERS, None, act_bits=8))
    known = {layer.name: np.arange(7) + 1.0 for layer in LAYERS}
    env = QuantizationEnv(
        table, score, sensitivity=known, features=lambda layer: (layer.macs, 3.0, -layer.c_in)
    )
    observations, *_ = play(env, [0.5] * 4)
    assert env.observation_space.shape == (15,)
    assert observations[:4, 12] == pytest.approx([1, 0.5, 0, 0.16])  # of 1000, 500, 0, 160 MACs
    assert observations[:4, 13].tolist() == [0, 0, 0, 0]  # the same everywhere
    assert observations[:4, 14] == pytest.approx([1, 8 / 13, 8 / 13, 0])  # of -3, -8, -8, -16
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize(
    "features, said",
    [
        (lambda layer: [np.nan], r"features gave \[nan\] for layer 'conv'"),
        (lambda layer: [1.0] * (1 + (layer.name == "dw")), "for layer 'dw'; .* as many for every"),
    ],
)
def test_features_that_are_no_numbers_are_refused(features, said):
    table = tabulate(LAYERS, permitted(LAYERS, None))
    with pytest.raises(ValueError, match=said):
        QuantizationEnv(table, score, features=features)
