"""The trust region: where it begins, what it believes, how its rounds go, and what it finds."""

from collections.abc import Callable

import numpy as np
import pytest
from toys import played, toy, weight_closeness

from haq.agents import play
from haq.agents.guided import shares
from haq.agents.ilp import optimum
from haq.agents.trust_region import LEAST, REGIONS, Terms, TrustRegion
from haq.allocation.budgets import fit, solve, uniform_policy, uniform_within
from haq.allocation.policy import Bits, Policy
from haq.allocation.trials import Score

# --- where it begins and ends ----------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 4])
def test_it_begins_at_the_optimum_and_at_the_uniform_policies(window: int) -> None:
    env = toy(budgets=["avg_weight_bits=4.5"])
    first, second, third, *_ = played("trust", env, 12, window=window)
    assert first.info["policy"] == optimum(env, np.ones(env.n_steps))
    assert second.info["policy"] == uniform_within(env.table, env.budgets)
    assert third.info["policy"] == fit(uniform_policy(env.table, 5), env.table, env.budgets)
    assert TrustRegion.references == 3


def test_it_ends_at_the_best_policy_by_what_it_believes() -> None:
    env = toy(misjudged(), budgets=["avg_weight_bits=4"], act_bits=8, reward="loss")
    agent = TrustRegion(env, 20, 0)
    *others, last = play(agent, env, 20)
    assert last.notes["region"] == REGIONS[0]
    assert last.info["policy"] == agent._best(REGIONS[0])
    # That it may play again, other policies it does not.
    policies = [tuple(episode.info["policy"].items()) for episode in others]
    assert len(set(policies)) == 19


def test_episodes_adapt_to_what_an_evaluation_takes() -> None:
    assert [TrustRegion.episodes_for(s, 20) for s in (0.1, 20.0, 1e6)] == [60, 30, 4]


# --- what it believes ------------------------------------------------------------------------


def two_layers() -> Terms:
    """Three widths for each of two layers: damages of .5, .2 and .1, and of .8, .4 and .1."""
    env = toy(layers=2, act_bits=8)
    table = env.table
    known = {name: np.zeros(len(bits)) for name, bits in table.choices.items()}
    for name, damages in (("stem", (0.5, 0.2, 0.1)), ("dw1", (0.8, 0.4, 0.1))):
        known[name] = np.array([*damages, *[0.1] * (len(table.choices[name]) - 3)])
    env.sensitivity = known
    return Terms(env)


def test_steps_by_hand() -> None:
    terms = two_layers()
    # From 8 bits down nothing changes until 3 bits, and then by the differences.
    assert terms.mean.tolist() == pytest.approx([0, 0, 0, 0, 0.1, 0.3, 0, 0, 0, 0, 0.3, 0.4])
    policy = {"stem": Bits(3, 8), "dw1": Bits(2, 8)}
    assert terms.features(policy) @ terms.mean == pytest.approx(0.1 + 0.7)
    assert terms.features(policy).tolist()[4:6] + terms.features(policy).tolist()[10:] == [
        1, 0, 1, 1,
    ]  # fmt: skip
    # The optimum without a budget takes no step, so nothing is known of a usual damage.
    assert terms.least == LEAST * 0


def test_moves_count_levels() -> None:
    moves = two_layers().moves({"stem": Bits(3, 8), "dw1": Bits(2, 8)})
    assert moves["stem"][:2].tolist() == [1, 0]
    assert moves["dw1"][:3].tolist() == [0, 1, 2]


def test_what_is_known_of_no_rewards_is_what_the_sensitivities_say() -> None:
    env = toy(budgets=["avg_weight_bits=3"])
    terms = Terms(env)
    nothing = terms.believed(np.zeros((0, len(terms.mean))), np.zeros(0))
    assert nothing.tolist() == pytest.approx(terms.mean.tolist())
    assert solve(terms.goal(nothing), env.table, env.budgets) == optimum(env, np.ones(env.n_steps))


@pytest.mark.parametrize("unit", [1.0, 250.0])
def test_rewards_in_any_unit_tell_what_the_steps_do(unit: float) -> None:
    terms = Terms(toy(budgets=["avg_weight_bits=3"], act_bits=8))
    generator = np.random.default_rng(0)
    features = (generator.random((600, len(terms.mean))) < 0.5).astype(float)
    true = terms.mean * generator.choice([0.5, 1.5], len(terms.mean))
    believed = terms.believed(features, 7 + unit * (features @ true))
    large = terms.mean > 0.01
    ratio = believed[large] / true[large]
    assert ratio / ratio.mean() == pytest.approx(np.ones(large.sum()), rel=0.1)


# --- its rounds ------------------------------------------------------------------------------


def misjudged() -> Callable[[Policy], Score]:
    """Return a loss of which the sensitivities know the layers' parts, but not their factors."""
    env = toy(budgets=["avg_weight_bits=4"], act_bits=8)
    factors = np.array([4, 0.25, 1, 4, 0.25, 1])
    return lambda policy: Score(0.0, float(shares(env, policy) @ factors))


def test_candidates_are_few_moves_away_from_the_best_so_far() -> None:
    env = toy(misjudged(), budgets=["avg_weight_bits=4"], act_bits=8, reward="loss")
    agent = TrustRegion(env, 40, 0)
    start, regions = agent.centre, []
    for number in range(40):
        proposal = agent.propose(number)
        policy = env.policy(proposal.actions)
        if proposal.notes["region"]:
            regions.append(proposal.notes["region"])
            moves = agent.terms.moves(agent.centre)
            away = [moves[n][env.table.positions[n][bits]] for n, bits in policy.items()]
            assert sum(away) <= proposal.notes["region"]
        agent.learn(number, proposal, -env.evaluate(policy).loss)
    assert set(regions) <= set(REGIONS)
    assert env.evaluate(agent.centre).loss < env.evaluate(start).loss


def test_a_candidate_that_is_no_better_leaves_the_centre_where_it_was() -> None:
    env = toy(budgets=["avg_weight_bits=4"], act_bits=8, reward="loss")
    agent, start = TrustRegion(env, 40, 0), optimum(env, np.ones(6))
    for number in range(39):
        proposal = agent.propose(number)
        at_start = env.policy(proposal.actions) == start
        agent.learn(number, proposal, 0.0 if at_start else -1.0 - 0.01 * number)
    assert agent.centre == start


# --- what it finds ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_what_the_sensitivities_do_not_know(seed: int) -> None:
    env = toy(misjudged(), budgets=["avg_weight_bits=4"], act_bits=8, reward="loss")
    least = env.evaluate(optimum(env, [4, 0.25, 1, 4, 0.25, 1])).loss
    regrets = [episode.info["loss"] / least - 1 for episode in played("trust", env, 40, seed)]
    assert regrets[0] == pytest.approx(0.185, abs=0.001)  # of the sensitivities alone
    assert min(regrets) <= 0.2 * regrets[0]
    assert regrets[-1] <= 0.5 * regrets[0]


def test_another_reward_than_the_loss_leads_it_too() -> None:
    env = toy(weight_closeness, budgets=["avg_weight_bits=4"], act_bits=8)
    episodes = played("trust", env, 60)
    assert max(e.reward for e in episodes[30:]) > episodes[0].reward
