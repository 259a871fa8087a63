"""Whether a run beats uniform bits, in words: what anybody would try first, within its budgets."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from haq.metrics import Metric, metric_of
from haq.metrics.metric import Interval
from haq.runs.uniform_reference import said


class Versus(NamedTuple):
    """The policy of a run and the best uniform bits, on the same validation images.

    Attributes:
        own: The metric of the run's policy on validation inputs, such as accuracy.
        uniform: That of the best uniform bits within the budgets.
        tuned: Whether both are of fine-tuned networks.
        same: Whether they are the same policy.
        name: What the uniform bits are called.
        apart: Whether no policy was chosen by the images.
        interval: 95 % confidence interval of own less uniform; None where there is none.
    """

    own: float
    uniform: float
    tuned: bool
    same: bool
    name: str = ""
    apart: bool = False
    interval: Interval | None = None


def versus_uniform(summary: Mapping[str, Any]) -> Versus | None:
    """Return how a run stands against uniform bits; None where nothing tells it.

    Finished runs have evaluated both alike. Of others, and of older ones, two episodes tell it:
    both accuracies are of fine-tuned networks where both have one, else as in their episodes.
    """
    if summary.get("uniform_reference"):
        row = summary["uniform_reference"]
        interval = row["interval"]
        return Versus(
            row["own"], row["uniform"], row["tuned"], row["same"], said(row), row["apart"],
            None if interval is None else (interval[0], interval[1]),
        )  # fmt: skip
    reference, key = summary.get("best_uniform"), metric_of(summary).key
    if not reference or key("val") not in reference or _lowered(summary):
        return None
    tuned = {row["episode"]: row[key("tuned_val")] for row in summary.get("finalists", [])}
    own, other = summary["best_episode"], reference["episode"]
    name = f"{said({**reference, 'lowered': 0})}; episode {other}"
    if own in tuned and other in tuned:
        return Versus(tuned[own], tuned[other], True, own == other, name)
    return Versus(
        summary[key("episode_val")], reference[key("val")], False, own == other, name
    )  # fmt: skip


def _lowered(summary: Mapping[str, Any]) -> bool:
    """Return whether the policy handed over is none of an episode, but one lowered afterwards."""
    return bool(summary.get("measured_latency", {}).get("how") == "lowered")


def gain_text(versus: Versus, metric: Metric) -> str:
    """Return by how much a run is better than uniform bits, with the interval where there is one.

    >>> from haq.metrics import METRICS
    >>> gain_text(Versus(0.9, 0.88, False, False, interval=(0.01, 0.03)), METRICS["top1"])
    '+2.00 points (+1.00 to +3.00)'
    """
    text = metric.difference(versus.own, versus.uniform)
    if versus.interval is None:
        return text
    low, high = (metric.difference(end, 0.0).partition(" ")[0] for end in versus.interval)
    return f"{text} ({low} to {high})"


def beats(versus: Versus, metric: Metric) -> bool | None:
    """Return whether a run is better than uniform bits beyond chance; None where none can tell."""
    if versus.same:
        return None
    if versus.interval is not None:
        low, high = versus.interval
        return True if low > 0 else False if high < 0 else None
    return None


def uniform_sentence(summary: Mapping[str, Any]) -> str:
    """Return what is known of the run against uniform bits; empty where a run says nothing."""
    versus = versus_uniform(summary)
    if versus is None:
        return _why_none(summary)
    name = f"the best uniform bits within the budgets ({versus.name})"
    if summary.get("accuracy_target"):
        name = f"the best uniform bits at the same cost ({versus.name})"
    if versus.same:
        return f"The policy chosen is {name}: the search found nothing better."
    metric = metric_of(summary)
    gain = gain_text(versus, metric)
    verdict = gain if any(digit in gain for digit in "123456789") else "no difference"
    when = "fine-tuned each" if versus.tuned else "as in their episodes"
    on = "images that nothing was chosen by" if versus.apart else (
        "the images that the policy was chosen on")  # fmt: skip
    return (
        f"Against {name}: {verdict} of validation {metric.said} ({metric.text(versus.own)} against "
        f"{metric.text(versus.uniform)}, {when}; on {on})."
    )


def _why_none(summary: Mapping[str, Any]) -> str:
    """Return why a run is not compared with uniform bits; empty where it says nothing."""
    if "uniform_reference" in summary:
        return (
            "There are no uniform bits to compare with: none keep the budgets or can be evaluated."
        )
    if "best_uniform" not in summary:
        return ""
    if summary["best_uniform"] is None:
        return "No uniform bits keep the budgets, so there are none to compare with."
    if _lowered(summary):
        return (
            "The policy was lowered after the episodes until it measured within the budget, so it "
            "is not compared with uniform bits."
        )
    return "Uniform bits were not tried in this run; haq sweep holds agents against them."
