"""A trust region: sensitivities measured again in the context of whole policies, and solved again.

The first episode is the policy of ``ilp``, the next two are those of ``uniform``; the best of them
is the first centre. A round plays policies around the centre, each the best by sensitivities that
are doubted at random, so that every reward tells of many decisions at once. Bayesian linear
regression on all rewards so far says what the steps of each decision do in this context. Then come
candidates, the best policies by that within some moves of the centre: 6, 3 and 2. The first one
with a higher reward is the next centre, and another round begins. The last episode is one more
candidate.

A move is one step of one decision: one bit, as a rule. What a step does to the network is taken
for normally distributed about what its sensitivity says (``Terms``).
"""

from collections.abc import Mapping
from dataclasses import replace

import gymnasium as gym
import numpy as np

from haq.agents.base import Agent, Array, Proposal
from haq.agents.guided import FARTHEST, Guided
from haq.agents.ilp import RETRIES, Key, key, optimum, predicted, sensitivity_parts
from haq.agents.uniform import EPISODES, candidates
from haq.allocation.budgets import Budget, solve, solve_nearly
from haq.allocation.costs import CostTable
from haq.allocation.policy import Bits, Policy
from haq.envs.observations import Decision, option_of
from haq.envs.quantization import QuantizationEnv

ROUNDS = 3
"""Rounds that the episodes are meant for; what is left over goes on in the same way."""

REGIONS = (6, 3, 2)
"""Moves away from the centre, from the first try of a round to its last."""

AROUND = 8
"""Moves away from the centre of the policies that are measured, about."""

DOUBT, COMMON = 0.5, 0.3
"""Standard deviations of what a step does, and of what all steps of a decision share, as parts of
what the sensitivity says."""

LEAST = 1 / 3
"""Standard deviation of a step at least, as a part of the mean damage of a decision."""

UNEXPLAINED = 0.5
"""Part of the standard deviation of the rewards that no steps explain."""

DRAWN = 0.5
"""Standard deviation of the logarithms of the doubts in what is measured."""

_MOVES = "moves"


class TrustRegion(Agent):
    """Integer programming over sensitivities that are measured again around the best policy.

    A policy that was met before is not played again, but at the end. The notes hold "predicted", as
    with ``ilp``, and "region": how many moves a policy that may be the next centre was allowed; 0
    for the others.

    Args:
        env: A ``QuantizationEnv`` with sensitivities, or a wrapper of one.
        episodes: How many will be played.
        seed: Decides what is measured.

    Raises:
        ValueError: The environment has no sensitivities.
    """

    informed = True
    references = 1 + EPISODES

    def __init__(self, env: gym.Env[Array, Array], episodes: int, seed: int) -> None:
        super().__init__(env, episodes, seed)
        self.generator = np.random.default_rng(seed)
        self.terms = Terms(self.env)
        self.answers = [optimum(self.env, np.ones(self.env.n_steps))]
        self.answers += [dict(one) for one in [*candidates(self.env).values()][:EPISODES]]
        self.centre, self.top = self.answers[0], -np.inf
        self.met: set[Key] = set()
        self.rewards: dict[Key, float] = {}
        self.features: list[Array] = []
        self.losses: list[float] = []
        self.price = 0.0  # of a move, where policies are drawn
        self.length = max(2 * len(REGIONS), (episodes - len(self.answers)) // ROUNDS)
        self.place = 0  # in the round

    def propose(self, number: int) -> Proposal:
        """Return a known answer, a policy to learn from, or the best by what was learned.

        Raises:
            BudgetError: No policy keeps the budgets.
        """
        if number < len(self.answers) and key(self.answers[number]) not in self.met:
            return self._proposal(self.answers[number])
        if number == self.episodes - 1:
            return self._proposal(self._best(REGIONS[0]), REGIONS[0])
        while self.place >= self.length - len(REGIONS):
            region = REGIONS[self.place - self.length]
            self.place = (self.place + 1) % self.length
            policy = self._best(region)
            if key(policy) not in self.met:
                return self._proposal(policy, region)
            self._accept(policy)
        self.place += 1
        return self._proposal(self._drawn())

    def _proposal(self, policy: Mapping[str, Bits], region: int = 0) -> Proposal:
        self.met.add(key(policy))
        notes = {"predicted": predicted(self.env, policy), "region": float(region)}
        return Proposal(self.env.actions(policy), notes=notes)

    def _best(self, region: int) -> dict[str, Bits]:
        """Return the best policy by what is believed, so many moves from the centre at most."""
        goal = self.terms.goal(self.terms.believed(np.array(self.features), np.array(self.losses)))
        table = with_moves(self.env, self.terms.moves(self.centre))
        policy = solve(goal, table, [*self.env.budgets, Budget(_MOVES, region)])
        return policy or dict(self.centre)

    def _drawn(self) -> dict[str, Bits]:
        """Return the best policy by beliefs that are doubted, near the centre."""
        moves, policy = self.terms.moves(self.centre), dict(self.centre)
        believed = self.terms.believed(np.array(self.features), np.array(self.losses))
        for _ in range(RETRIES):
            doubts = np.exp(DRAWN * self.generator.standard_normal(len(believed)))
            goal = self.terms.goal(believed * doubts)
            dear = {name: values + self.price * moves[name] for name, values in goal.items()}
            # That some policy keeps the budgets was seen at the start.
            policy = solve_nearly(dear, self.env.table, self.env.budgets) or policy
            away = sum(moves[n][self.env.table.positions[n][bits]] for n, bits in policy.items())
            self.price = self._price(away)
            if key(policy) not in self.met:
                break
        return policy

    def _price(self, away: float) -> float:
        """Return the price of a move after one policy that went so far: higher if too far."""
        if away > AROUND:
            return max(1.5 * self.price, self.terms.least)
        return self.price / 1.5

    def learn(self, number: int, proposal: Proposal, reward: float) -> None:
        """Take down the reward; the best known answer or candidate is the next centre.

        The uniform policies teach nothing about steps: they are far from the others.
        """
        policy = self.env.policy(proposal.actions)
        self.rewards[key(policy)] = reward
        if policy not in self.answers[1:]:
            self.features.append(self.terms.features(policy))
            self.losses.append(-reward)
        if policy in self.answers or proposal.notes["region"]:
            self._accept(policy)

    def _accept(self, policy: Policy) -> None:
        reward = self.rewards.get(key(policy), -np.inf)
        if reward > self.top:
            self.top = reward
            if key(policy) != key(self.centre):
                self.centre, self.place = dict(policy), 0

    @classmethod
    def episodes_for(cls, seconds: float, layers: int) -> int:
        """Return how many episodes suit an evaluation that takes so long: as for ``guided``."""
        return Guided.episodes_for(seconds, layers)


def with_moves(env: QuantizationEnv, moves: Mapping[str, Array]) -> CostTable:
    """Return the table of an environment, with moves as one more quantity."""
    table = env.table
    return replace(table, rows={**table.rows, _MOVES: moves}, units={**table.units, _MOVES: _MOVES})


class Terms:
    """What the steps of all decisions do to the network, as far as is known.

    The options of a decision, from the least harmful to the most, are levels; a step leads from
    one to the next. A policy takes the steps below its levels, and its loss is taken for a constant
    plus the sum of them::

        step ~ normal(m, (DOUBT m + least)**2)      m: difference of two sensitivities

    with a common part for the steps of one decision, and one for all steps: the exchange rate of
    the two units.

    Attributes:
        mean: m of all steps, (steps,).
        least: ``LEAST`` of the mean damage of a decision of the best policy.
    """

    def __init__(self, env: QuantizationEnv) -> None:
        """Take the decisions and sensitivities of an environment."""
        assert env.sensitivity is not None
        self.table, self.sensitivity = env.table, env.sensitivity
        self.levels: dict[Decision, Array] = {}  # of each choice of the layer
        means = []
        for decision in env.decisions:
            levels, values = _levels(env, decision)
            self.levels[decision] = levels
            means.append(np.diff(values))
        ends = np.cumsum([len(mean) for mean in means])
        self.ranges = [slice(end - len(mean), end) for end, mean in zip(ends, means, strict=True)]
        self.mean: Array = np.concatenate(means)
        best = self.features(optimum(env, np.ones(env.n_steps)))
        self.least = LEAST * float(best @ self.mean) / len(means)
        self.alone = DOUBT * self.mean + self.least
        self.prior = np.diag(self.alone**2) + np.outer(self.mean, self.mean)
        for part in self.ranges:
            self.prior[part, part] += COMMON**2 * np.outer(self.mean[part], self.mean[part])

    def features(self, policy: Policy) -> Array:
        """Return which steps a policy takes, (steps,), of 0 and 1."""
        taken = np.zeros(len(self.mean))
        for (decision, levels), part in zip(self.levels.items(), self.ranges, strict=True):
            place = self.table.positions[decision.layer][policy[decision.layer]]
            taken[part][: levels[place]] = 1
        return taken

    def moves(self, policy: Policy) -> dict[str, Array]:
        """Return for each choice of each layer how many levels it is away from a policy's."""
        away = {name: np.zeros(len(choices)) for name, choices in self.table.choices.items()}
        for decision, levels in self.levels.items():
            place = self.table.positions[decision.layer][policy[decision.layer]]
            away[decision.layer] += np.abs(levels - levels[place])
        return away

    def goal(self, steps: Array) -> dict[str, Array]:
        """Return what each choice does by some values of the steps, for ``budgets.solve``."""
        goal = {name: np.array(values) for name, values in self.sensitivity.items()}
        for (decision, levels), part in zip(self.levels.items(), self.ranges, strict=True):
            added = np.concatenate([[0.0], np.cumsum(steps[part] - self.mean[part])])
            goal[decision.layer] = goal[decision.layer] + added[levels]
        return goal

    def believed(self, features: Array, losses: Array) -> Array:
        """Return the mean of the steps after some policies were played.

        Losses that are far from the median count less: there steps do not add up.

        Args:
            features: Of the policies, (policies, steps).
            losses: (policies,), in any unit.

        Returns:
            (steps,), each within a factor of ``FARTHEST`` of what its sensitivity says.
        """
        if len(losses) < 3:
            return self.mean
        sums = features @ self.mean
        scale, unit = _spread(losses), _spread(sums)
        if scale == 0 or unit == 0:
            return self.mean
        seen = losses * unit / scale  # in the unit of the sensitivities
        noise = UNEXPLAINED * np.maximum(unit, np.abs(seen - np.median(seen)))
        weights = noise**-2.0 / np.sum(noise**-2.0)
        inputs = features - weights @ features
        gain = self.prior @ inputs.T
        left = seen - weights @ seen - inputs @ self.mean
        after = self.mean + gain @ np.linalg.solve(inputs @ gain + np.diag(noise**2), left)
        result: Array = after.clip(self.mean / FARTHEST, self.mean * FARTHEST + self.least)
        return result


def _spread(values: Array) -> float:
    """Return the standard deviation, as the median distance from the median tells it."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _levels(env: QuantizationEnv, decision: Decision) -> tuple[Array, Array]:
    """Return the level of each choice of a decision's layer, and what the levels do."""
    choices = env.table.choices[decision.layer]
    values = sensitivity_parts(env)[decision.layer][decision.what]
    options = [option_of(bits, decision.what) for bits in choices]
    harm = {option: float(value) for option, value in zip(options, values, strict=True)}
    # Of equally harmful options that of more bits comes first.
    order = sorted(sorted(harm, reverse=True), key=harm.__getitem__)
    levels = np.array([order.index(option) for option in options])
    return levels, np.array([harm[option] for option in order])
