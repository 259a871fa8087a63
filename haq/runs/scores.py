"""Scores that cannot be used: of networks that diverged, or that give no numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.allocation.trials import Score


def usable(score: Score | None, images: Mapping[str, Any], known: Sequence[Score]) -> Score:
    """Return a score that agents can learn from: the worst there is in place of no number.

    Args:
        score: None where training diverged; its loss is NaN where only accuracy is known.
        images: On record of the data; labelled data have "classes".
        known: Scores so far, that of the float network among them.

    Returns:
        The score, or the one of a network that knows nothing: no accuracy, and the loss of equal
        chances. Without classes it is worse than all that are known, and never the best trial.
    """
    classes = len(images.get("classes", ()))
    losses = [one.loss for one in known if math.isfinite(one.loss)]
    if score is not None and math.isfinite(score.accuracy):
        if math.isfinite(score.loss) or (math.isnan(score.loss) and not losses):
            return score
    if classes > 1 and losses:
        return Score(0.0, max(math.log(classes), *losses))
    accuracies = [one.accuracy for one in known if math.isfinite(one.accuracy)]
    loss = max(losses) + 1 if losses else math.nan
    return Score(min([0.0, *accuracies]) - 1, loss, stopped=True)
