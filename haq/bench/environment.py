"""The environment of a search, answered from a table instead of evaluations.

It is ``haq.envs.quantization.QuantizationEnv`` with the costs of any target and the sensitivities
of the network, so whatever plays that plays this: agents of ``haq.agents``, a library of
reinforcement learning, a loop. An episode takes milliseconds. Nothing here needs torch.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from haq.allocation.budgets import parse_budget
from haq.allocation.policy import Bits, Policy
from haq.allocation.sensitivities import objective
from haq.allocation.trials import Score
from haq.bench.surrogate import LEAST, fit_surrogate
from haq.bench.table import Bench
from haq.envs.observations import Features
from haq.envs.quantization import QuantizationEnv
from haq.envs.rewards import Reward
from haq.hw_profiles import load as load_target


class Answers:
    """What policies are worth: as measured where they are in the table, else by surrogates.

    Attributes:
        losses: The surrogate of the logarithm of the divergence.
        asked: How often it was asked.
        measured: How often the table knew.
    """

    def __init__(self, bench: Bench) -> None:
        """Fit the surrogates of divergence and accuracy on all policies, which takes a second."""
        self.layers = [layer.name for layer in bench.subject.layers]
        distance, right = bench.figures["divergence"], bench.figures["accuracy"]
        self._known = {
            self._key(one.policy): Score(float(accuracy), float(loss))
            for one, loss, accuracy in zip(bench.drawn, distance, right, strict=True)
        }
        self.losses = fit_surrogate(bench, logarithms(distance))
        self._wrong = fit_surrogate(bench, log_odds(right))
        self.asked = self.measured = 0

    def __call__(self, policy: Policy) -> Score:
        """Return the accuracy, a share, and the divergence, in nats, of a policy."""
        self.asked += 1
        known = self._known.get(self._key(policy))
        if known is not None:
            self.measured += 1
            return known
        return self.predicted(policy)

    def predicted(self, policy: Policy) -> Score:
        """Return what the surrogates say, also where the table knows better."""
        loss = float(np.exp(self.losses.predict([policy])[0]))
        odds = float(np.exp(-self._wrong.predict([policy])[0]))
        return Score(odds / (1 + odds), loss)

    def _key(self, policy: Policy) -> tuple[Bits, ...]:
        return tuple(policy[name] for name in self.layers)


def logarithms(divergences: NDArray[Any]) -> NDArray[Any]:
    """Return the logarithms of divergences, which the surrogate predicts."""
    result: NDArray[Any] = np.log(np.maximum(divergences, LEAST))
    return result


def log_odds(accuracies: NDArray[Any]) -> NDArray[Any]:
    """Return the logarithms of the odds of a wrong answer, which the surrogate predicts."""
    shares = np.clip(accuracies, 1e-3, 1 - 1e-3)
    odds: NDArray[Any] = np.log((1 - shares) / shares)
    return odds


def bench_env(
    bench: Bench,
    budgets: str | Sequence[str],
    *,
    target: str | None = None,
    act_bits: int | None = None,
    reward: Literal["accuracy", "loss"] | Reward = "loss",
    sensitivity: bool = True,
    features: Features | None = None,
    answers: Answers | None = None,
) -> QuantizationEnv:
    """Return the environment of a search of the network of a table.

    Args:
        bench: From ``read_bench``.
        budgets: One or several, such as "avg_weight_bits=3" or "latency=50%w8a8".
        target: Name or file of a profile, for latency and energy.
        act_bits: Of all activations, or None where they are chosen too.
        reward: "loss": the negative divergence from the float network, which ranks policies best;
            "accuracy", as in the paper; or a function, as for ``QuantizationEnv``.
        sensitivity: Whether agents know what each layer's bits do alone.
        features: From a layer to more numbers that are observed of it.
        answers: Of the same table, where several environments share them.

    Raises:
        HaqError: A budget or a target cannot be had.
    """
    subject = bench.subject
    table = subject.costs(target, act_bits)
    hardware = load_target(target) if target else None
    texts = [budgets] if isinstance(budgets, str) else budgets
    return QuantizationEnv(
        table,
        answers or Answers(bench),
        [parse_budget(text, subject.layers, hardware, subject.float_values) for text in texts],
        subject.float_accuracy,
        reward=reward,
        sensitivity=objective(subject.sensitivity, table) if sensitivity else None,
        features=features,
    )
