"""The environment in which an agent gives each layer its bits, one action after the other.

It knows neither torch nor data: it gets a cost table and a function that says how good a policy is.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box

from haq.allocation.budgets import Budget, Fitting
from haq.allocation.budgets.limit import all_within, spent
from haq.allocation.choices import share_activations
from haq.allocation.costs import CostTable, total
from haq.allocation.policy import Bits, Policy, readers
from haq.allocation.trials import Score
from haq.envs.observations import (
    Array,
    Decision,
    Features,
    Option,
    layer_features,
    offered_options,
    option_of,
    own_features,
    sensitivity_features,
)
from haq.envs.rewards import LEAST_REWARD, REWARDS, Reward
from haq.errors import HaqError

REMEMBERED = 256
"""Policies that were brought within the budgets: an episode is announced before it is played."""


class QuantizationEnv(gym.Env[Array, Array]):
    """Walk through the layers of a network and choose the bits of weights and activations.

    ## Action Space

    A ``Box(0, 1, (1,), float32)``: few bits to many.

    | Num | Action                                      | Unit  | Min | Max |
    |-----|---------------------------------------------|-------|-----|-----|
    | 0   | place among the bit-widths the step offers  | share | 0   | 1   |

    With n widths on offer, the lowest of them ``lo``, action a takes the one at place
    ``clip(round(lo - 0.5 + a * n) - lo, 0, n - 1)``; for the widths from b_min to b_max without a
    gap that is the paper's b = round(b_min - 0.5 + a * (b_max - b_min + 1)), clipped. An action
    beyond [0, 1] counts as the nearest one within. Where weights of equal bits have several formats
    (``haq.allocation.schemes``), the step of the weights offers each: a codebook before scales,
    larger groups first, and of equal groups activations that are rounded as the layer runs before
    float ones. A step that decides channels chooses among the shares of them that may stay in the
    same way, with ``lo`` 0.

    ## Observation Space

    A ``Box(0, 1, (10,), float32)``. Numbers 0 to 7 describe the layer of the step and are scaled so
    that the least among the layers walked becomes 0 and the greatest 1; where all are equal, 0.

    | Num | Observation                             | Unit before scaling | Linear layer | Range  |
    |-----|-----------------------------------------|---------------------|--------------|--------|
    | 0   | place of the layer in the network       | layers              | the same     | [0, 1] |
    | 1   | input channels                          | channels            | features     | [0, 1] |
    | 2   | output channels                         | channels            | features     | [0, 1] |
    | 3   | kernel, the longer side                 | pixels              | 1            | [0, 1] |
    | 4   | stride, the longer one                  | pixels              | 0            | [0, 1] |
    | 5   | input feature map, height times width   | pixels              | positions    | [0, 1] |
    | 6   | parameters: weights without biases      | weights             | the same     | [0, 1] |
    | 7   | depthwise convolution                   | 1 if so, else 0     | 0            | [0, 1] |
    | 8   | what is decided: weights 1, activations 0, channels .5 | as it is | the same | [0, 1]|
    | 9   | the action before this one, at first 0  | share, not scaled   | the same     | [0, 1] |

    With ``sensitivity`` it is a ``Box(0, 1, (12,), float32)``; to the paper's ten come, scaled as
    numbers 0 to 7,

    | Num | Observation                                       | Unit before scaling    | Range  |
    |-----|---------------------------------------------------|------------------------|--------|
    | 10  | what the fewest bits on offer do to the network   | log10 of the objective | [0, 1] |
    | 11  | what the middle ones of the bits on offer do      | log10 of the objective | [0, 1] |

    With ``features`` as many more come behind these as that function gives for a layer, scaled as
    numbers 0 to 7.

    ## Steps

    In execution order, each layer has a step for its channels if some may be removed and it is the
    first of those whose channels go together (``CostTable.together``), then one for its weights if
    it may have more than one width of weights, then one for its activations if it may have more
    than one width of those and is the first to read its tensor; later readers take over what was
    decided there. So every episode has the same ``n_steps``. The last step offers the activation
    widths that go with the weights just chosen, if only one; a later reader's weights are chosen
    among those that go with the activations it takes over.

    ## Reward

    0 at every step but the last, where the budgets are enforced on the whole policy
    (``haq.allocation.budgets.fit``), it is evaluated once, and the reward is 0.1 times (accuracy -
    ``float_accuracy``) in percentage points. With ``reward="loss"`` it is ``float_loss`` - loss,
    which ranks policies better from as many images (``results/reference/sensitivity.json``). With a
    function it is what that makes of the score of the policy and that of the float network.

    A score whose accuracy is not finite, or whose loss is not where the loss is the reward, belongs
    to a network that diverged. It counts as an accuracy of 0 without a loss, marked as stopped so
    that it never wins; gymnasium's logger warns. A reward that is not finite even then is -10.

    ## Starting State

    The first step, with a previous action of 0. Nothing is random, and nothing is left over from
    the episode before.

    ## Episode End

    The episode terminates with the step that completes the policy; it is never truncated. ``info``
    is empty until then, and at the end holds "policy" (what was evaluated), "proposed" (the same
    before the budgets), "cost" (quantity to cost, in the table's units), "accuracy", "loss" and
    "stopped" (the evaluation ended early, as hopeless, or the network diverged).

    ## Arguments

    * ``table``: layers, the bits they may have, and what they cost.
    * ``evaluate``: from a policy to its score. What it raises goes through; ``reset`` starts anew.
    * ``budgets``: all are kept by every policy that is evaluated.
    * ``float_accuracy``: of the network before quantization, in the unit of the score's accuracy.
    * ``float_loss``: likewise, where the loss is the reward.
    * ``reward``: "accuracy", as in the paper, or "loss", or a function from the score of the policy
      and that of the float network to a number, the higher the better.
    * ``sensitivity``: layer to what each of its choices does to the network, positive, in the
      order of the table: what ``haq.allocation.budgets.solve`` takes as its objective.
    * ``features``: from a ``Layer`` to finite numbers, as many for every layer.

    Raises ``HaqError`` if the table leaves nothing to choose.

    Source: Wang et al., "HAQ: Hardware-Aware Automated Quantization with Mixed Precision",
    arXiv:1811.08886, sections 3.1 to 3.4.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(
        self,
        table: CostTable,
        evaluate: Callable[[Policy], Score],
        budgets: Sequence[Budget] = (),
        float_accuracy: float = 1.0,
        *,
        float_loss: float = 0.0,
        reward: Literal["accuracy", "loss"] | Reward = "accuracy",
        sensitivity: Mapping[str, Array] | None = None,
        features: Features | None = None,
    ) -> None:
        self.table = table
        self.evaluate = evaluate
        self.budgets = tuple(budgets)
        self._fit = Fitting(table, self.budgets)
        self.float_score, self.reward = Score(float_accuracy, float_loss), reward
        self._reward = REWARDS[reward] if isinstance(reward, str) else reward
        self.sensitivity = sensitivity
        self.action_space = Box(0.0, 1.0, (1,), np.float32)
        self._readers = readers(table.layers)
        self._first = {name: group[0] for name, group in self._readers.items()}
        self._choices = share_activations(table.layers, table.choices)
        self._walk = _steps(table, self._choices, self._first)
        if not self._walk:
            raise HaqError(_nothing_to_choose(self._choices))
        self._features = layer_features(table.layers, self._walk)
        self._known = np.zeros((self.n_steps, 0))
        if sensitivity is not None:
            self._known = sensitivity_features(self._walk, table, sensitivity)
        if features is not None:
            own = own_features(self._walk, table.layers, features)
            self._known = np.column_stack([self._known, own])
        self.observation_space = Box(0.0, 1.0, (10 + self._known.shape[1],), np.float32)
        self._within: OrderedDict[tuple[Bits, ...], Policy] = OrderedDict()
        self._begin()

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What the steps of an episode decide, in order."""
        return tuple(self._walk)

    @property
    def n_steps(self) -> int:
        """Number of steps of every episode."""
        return len(self._walk)

    def actions(self, policy: Policy) -> list[float]:
        """Return the actions that lead to a policy: the middle of what stands for each width.

        Args:
            policy: Bits among the choices, equal activation bits for layers that read one tensor.

        Raises:
            ValueError: No actions lead there.
        """
        left, actions = dict(self._choices), []
        for step in self._walk:
            offered = offered_options(left[step.layer], step.what)
            bits = policy[step.layer]
            option = option_of(bits, step.what)
            if option not in offered:
                raise ValueError(f"layer {step.layer!r} cannot have {bits} here")
            actions.append((offered.index(option) + 0.5) / len(offered))
            self._narrow(left, step, option)
        return actions

    def policy(self, actions: Sequence[float]) -> dict[str, Bits]:
        """Return the policy that an episode of these actions evaluates: budgets are kept.

        Nothing happens to the environment.

        Args:
            actions: One for each step.

        Raises:
            ValueError: There are more or fewer of them, or one is not finite.
            BudgetError: No policy keeps the budgets.
        """
        left = dict(self._choices)
        for step, action in zip(self._walk, actions, strict=True):
            self._decide(left, step, _share(np.array([action])))
        return dict(self._fitted(self._settled(left)))

    def keeps_budgets(self, policy: Policy) -> bool:
        """Return whether a policy keeps every budget as it is."""
        return all_within(spent(self.table, policy, self.budgets), self.budgets)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Return the first observation of a new episode; the seed changes nothing."""
        super().reset(seed=seed)
        self._begin()
        return self._observation(), {}

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Decide one width, and at the last step evaluate the policy.

        Args:
            action: Of shape (1,), finite.

        Raises:
            ValueError: The action has another shape or is not finite.
            ResetNeeded: The episode is over.
            BudgetError: No policy keeps the budgets.
        """
        if self._done == self.n_steps:
            raise ResetNeeded("the episode is over; call reset() for the next one")
        share = _share(action)
        self._decide(self._left, self._walk[self._done], share)
        self._previous = share
        self._done += 1
        if self._done < self.n_steps:
            return self._observation(), 0.0, False, False, {}
        reward, info = self._evaluated()
        return self._observation(), reward, True, False, info

    def _begin(self) -> None:
        self._done = 0
        self._previous = 0.0
        # What is left to each layer: every decision narrows it, for the activations in the group.
        self._left: dict[str, tuple[Bits, ...]] = dict(self._choices)

    def observe(self, step: int, previous: float) -> Array:
        """Return the observation at a step, counted from 0, after some action before it."""
        at = min(step, self.n_steps - 1)  # the end has no next step
        return np.array([*self._features[at], previous, *self._known[at]], np.float32)

    def _observation(self) -> Array:
        return self.observe(self._done, self._previous)

    def _decide(self, left: dict[str, tuple[Bits, ...]], step: Decision, share: float) -> None:
        option = _pick(offered_options(left[step.layer], step.what), share)
        self._narrow(left, step, option)

    def _narrow(self, left: dict[str, tuple[Bits, ...]], step: Decision, option: Option) -> None:
        if step.what == "channels":
            for name in self.table.groups[step.layer]:
                left[name] = tuple(bits for bits in left[name] if bits.keep == option[1])
            return
        if step.what == "weights":
            left[step.layer] = tuple(
                bits for bits in left[step.layer] if option_of(bits, "weights") == option
            )
            return
        for name in self._readers[step.layer]:
            left[name] = tuple(bits for bits in left[name] if bits.act == option[0])

    def _fitted(self, proposed: Policy) -> Policy:
        """Bring a policy within the budgets; those of the episodes under way are remembered."""
        key = tuple(proposed.values())
        if key not in self._within:
            self._within[key] = self._fit(proposed)
            if len(self._within) > REMEMBERED:
                self._within.popitem(last=False)
        return self._within[key]

    def _evaluated(self) -> tuple[float, dict[str, Any]]:
        """Return the reward of the policy that the episode has led to, and its info."""
        proposed = self._settled(self._left)
        policy = dict(self._fitted(proposed))
        score = self._countable(self.evaluate(dict(policy)))
        reward = float(self._reward(score, self.float_score))
        info = {
            "policy": policy,
            "proposed": proposed,
            "cost": {quantity: total(self.table, policy, quantity) for quantity in self.table.rows},
            "accuracy": float(score.accuracy),
            "loss": float(score.loss),
            "stopped": score.stopped,
        }
        return reward if math.isfinite(reward) else LEAST_REWARD, info

    def _countable(self, score: Score) -> Score:
        needed = score.loss if self.reward == "loss" else 0.0
        if math.isfinite(score.accuracy) and math.isfinite(needed):
            return score if math.isfinite(score.loss) else score._replace(loss=math.nan)
        gym.logger.warn(f"a policy's {score} is not finite; it counts as an accuracy of 0")
        return Score(0.0, math.nan, stopped=True)

    def _settled(self, left: Mapping[str, Sequence[Bits]]) -> dict[str, Bits]:
        policy = {}
        for layer in self.table.layers:
            (policy[layer.name],) = left[layer.name]
        return policy


def _nothing_to_choose(choices: Mapping[str, Sequence[Bits]]) -> str:
    each = ", ".join(f"{name} {bits}" for name, (bits, *_) in [*choices.items()][:3])
    more = ", …" if len(choices) > 3 else ""
    return (
        f"there is nothing to search: every layer has a single choice of bits ({each}{more}); "
        "allow some layer more of them, by its pins or by the ranges of weight and activation bits"
    )


def _steps(
    table: CostTable, choices: Mapping[str, Sequence[Bits]], first: Mapping[str, str]
) -> list[Decision]:
    steps = []
    for layer in table.layers:
        offered = choices[layer.name]
        leads = table.groups[layer.name][0] == layer.name
        if leads and len({bits.keep for bits in offered}) > 1:
            steps.append(Decision(layer.name, "channels"))
        if len({option_of(bits, "weights") for bits in offered}) > 1:
            steps.append(Decision(layer.name, "weights"))
        if first[layer.name] == layer.name and len({bits.act for bits in offered}) > 1:
            steps.append(Decision(layer.name, "activations"))
    return steps


def _share(action: Array) -> float:
    values = np.asarray(action, np.float64)
    if values.shape != (1,) or not np.isfinite(values).all():
        raise ValueError(f"an action is one finite number in an array of shape (1,), not {action}")
    return float(np.clip(values[0], 0.0, 1.0))


def _pick(options: Sequence[Option], share: float) -> Option:
    low, count = options[0][0], len(options)
    place = int(np.round(low - 0.5 + share * count)) - low
    return options[min(max(place, 0), count - 1)]
