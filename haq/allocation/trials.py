"""Trials: what one episode tried and what came of it, and which of them were good.

A trial is one line of JSON, written when its episode ends.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from haq.allocation.policy import Bits
from haq.errors import RunError, look_up


class Score(NamedTuple):
    """How good a policy is: higher accuracy is better, the loss is only noted.

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
        accuracy: On validation data, a share in [0, 1] (or what the caller's score is).
        loss: On validation data; NaN where nobody measured it.
        reward: What the agent learned from.
        seconds: What the evaluation took.
        cached: Whether the policy had been met before and was not evaluated again.
        stopped: Whether the evaluation ended early, as hopeless; such a trial never wins.
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

    def line(self) -> str:
        """Return the trial as one line of JSON, without the newline; bits are lists."""
        policy = {name: bits.row() for name, bits in self.policy.items()}
        loss = None if math.isnan(self.loss) else self.loss
        fields = asdict(self) | {"policy": policy, "loss": loss}
        return json.dumps(fields)

    @staticmethod
    def from_line(line: str) -> "Trial":
        """Return the trial that ``line`` wrote, equal to the original to the last digit.

        Raises:
            RunError: The line is torn or not a trial.
        """
        try:
            fields = json.loads(line)
            policy = {name: Bits(*bits) for name, bits in fields.pop("policy").items()}
            loss = math.nan if fields["loss"] is None else fields["loss"]
            return Trial(**fields | {"policy": policy, "loss": loss})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"not a trial: {line[:80]!r} ({error})") from error


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
