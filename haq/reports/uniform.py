"""Whether a run beats uniform bits, in words: what anybody would try first, within its budgets."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from haq.metrics import metric_of


class Versus(NamedTuple):
    """The policy of a run and the best uniform bits, on the same validation images.

    Attributes:
        own: The metric of the run's policy on validation inputs, such as accuracy.
        uniform: That of the best uniform bits within the budgets.
        tuned: Whether both are of fine-tuned networks.
        same: Whether they are the same policy.
    """

    own: float
    uniform: float
    tuned: bool
    same: bool


def versus_uniform(summary: Mapping[str, Any]) -> Versus | None:
    """Return how a run stands against uniform bits; None where no two episodes tell it.

    Both accuracies are of the same kind: of fine-tuned networks where both have one, else
    as they were in their episodes.
    """
    reference, key = summary.get("best_uniform"), metric_of(summary).key
    if not reference or key("val") not in reference or _lowered(summary):
        return None
    tuned = {row["episode"]: row[key("tuned_val")] for row in summary.get("finalists", [])}
    own, other = summary["best_episode"], reference["episode"]
    if own in tuned and other in tuned:
        return Versus(tuned[own], tuned[other], True, own == other)
    return Versus(
        summary[key("episode_val")], reference[key("val")], False, own == other
    )  # fmt: skip


def _lowered(summary: Mapping[str, Any]) -> bool:
    """Return whether the policy handed over is none of an episode, but one lowered afterwards."""
    return bool(summary.get("measured_latency", {}).get("how") == "lowered")


def uniform_sentence(summary: Mapping[str, Any]) -> str:
    """Return what is known of the run against uniform bits; empty where a run says nothing."""
    if "best_uniform" not in summary:
        return ""
    reference = summary["best_uniform"]
    if reference is None:
        return "No uniform bits keep the budgets, so there are none to compare with."
    if _lowered(summary):
        return (
            "The policy was lowered after the episodes until it measured within the budget, so it "
            "is not compared with uniform bits."
        )
    versus = versus_uniform(summary)
    if versus is None:
        return "Uniform bits were not tried in this run; haq sweep holds agents against them."
    bits = (
        f"{reference['weight_bits']:.3g}-bit weights, {reference['act_bits']:.3g}-bit activations"
    )
    name = f"the best uniform bits within the budgets ({bits}; episode {reference['episode']})"
    if versus.same:
        return f"The policy chosen is {name}: the search found nothing better."
    metric = metric_of(summary)
    gain = metric.difference(versus.own, versus.uniform)
    verdict = "no difference" if not any(digit in gain for digit in "123456789") else gain
    when = "fine-tuned each" if versus.tuned else "as in their episodes"
    return (
        f"Against {name}: {verdict} of validation {metric.said} ({metric.text(versus.own)} against "
        f"{metric.text(versus.uniform)}, {when}; on the images that the policy was chosen on)."
    )
