"""Trials: what one episode tried and what came of it, and which of them were good.

A trial is one line of JSON, written when its episode ends.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple

from haq.allocation.policy import Bits
from haq.errors import RunError, look_up


class Score(NamedTuple):
    """How good a policy is: higher accuracy is better, the loss is only noted.

    The accuracy is the score of the run's metric (``haq.metrics``): accuracy, unless another one is
    asked for.

    One that was ``stopped`` is an estimate from some of the images: the rest could not make the
    policy the best.
    """

    accuracy: float
    loss: float = math.nan
    stopped: bool = False


@dataclass(frozen=True)
class Trial:
    """One episode of a search.

    Attributes:
        episode: Counted from 0.
        policy: The bits that were evaluated.
        cost: Quantity to cost, in the units of the cost table.
        accuracy: On validation data, a share in [0, 1] (or the score of another metric, or what the
            caller's is).
        loss: On validation data; NaN where nobody measured it.
        reward: What the agent learned from.
        seconds: What the evaluation took.
        cached: Whether the policy had been met before and was not evaluated again.
        stopped: Whether the evaluation ended early, as hopeless; such a trial never wins.
        notes: What the agent says about itself, by name, such as ``{"sigma": 0.5}``; finite.
    """

    episode: int
    policy: Mapping[str, Bits]
    cost: Mapping[str, float]
    accuracy: float
    loss: float
    reward: float
    seconds: float
    cached: bool = False
    stopped: bool = False
    notes: Mapping[str, float] = field(default_factory=dict)

    def line(self, word: str = "accuracy", value: float | None = None) -> str:
        """Return the trial as one line of JSON, without the newline; bits are lists.

        Args:
            word: What the metric is called there.
            value: Its value; None where that is the score itself, which is kept beside it else.
        """
        policy = {name: bits.row() for name, bits in self.policy.items()}
        loss = None if math.isnan(self.loss) else self.loss
        parts = {
            word if name == "accuracy" else name: part for name, part in asdict(self).items()
        } | {"policy": policy, "loss": loss}
        if not self.notes:
            del parts["notes"]
        if value is not None:
            parts |= {word: value, "metric_score": self.accuracy}
        return json.dumps(parts)

    @staticmethod
    def from_line(line: str) -> "Trial":
        """Return the trial that ``line`` wrote, equal to the original to the last digit.

        Raises:
            RunError: The line is torn or not a trial.
        """
        try:
            parts = json.loads(line)
            policy = {name: Bits(*bits) for name, bits in parts.pop("policy").items()}
            loss = math.nan if parts["loss"] is None else parts["loss"]
            (word,) = parts.keys() - _OTHERS  # the metric's
            value = parts.pop(word)
            parts["accuracy"] = parts.pop("metric_score", value)
            return Trial(**parts | {"policy": policy, "loss": loss})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"not a trial: {line[:80]!r} ({error})") from error


_OTHERS = {field.name for field in fields(Trial)} - {"accuracy"} | {"metric_score"}


def best(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the highest reward, whatever the run rewards.

    Of equals that is the more accurate one, then the one with the lower loss, then the earlier. One
    that was stopped early wins only where all were.

    Raises:
        ValueError: There are no trials.
    """
    return min(trials, key=rank)


def rank(trial: Trial) -> tuple[bool, float, float, float, int]:
    """Return what trials are sorted by, the best first."""
    return trial.stopped, -trial.reward, -trial.accuracy, _loss(trial), trial.episode


def _loss(trial: Trial) -> float:
    return math.inf if math.isnan(trial.loss) else trial.loss


def pareto(trials: Sequence[Trial], quantity: str) -> list[Trial]:
    """Return the trials that no other beats in both accuracy and cost, the cheapest first.

    Of trials equal in both only the earliest is given; those stopped early do not count.

    Args:
        trials: In any order.
        quantity: Which cost counts.

    Raises:
        HaqError: The trials have no such cost.
    """
    costs = {trial.episode: look_up(trial.cost, "quantity", quantity) for trial in trials}
    front: list[Trial] = []
    whole = [trial for trial in trials if not trial.stopped]
    for trial in sorted(whole, key=lambda t: (costs[t.episode], -t.accuracy, t.episode)):
        if not front or trial.accuracy > front[-1].accuracy:
            front.append(trial)
    return front
