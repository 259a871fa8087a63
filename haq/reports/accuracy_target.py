"""What came of an accuracy target, for people."""

from collections.abc import Mapping
from typing import Any


def accuracy_target_sentence(target: Mapping[str, Any]) -> str:
    """Return what came of an accuracy target, in one sentence."""
    count = len(target["verifications"])
    figures = (
        f"a drop of {target['drop']:.2%} on {target['images']} validation images that nothing was "
        f"chosen by, at most {target['bound']:.2%} with {target['confidence']:.0%} confidence "
        f"({count} verification{'s' if count > 1 else ''})"
    )
    if target["met"]:
        return f"accuracy target of at most {target['max_drop']:.2%} met: {figures}"
    return (
        f"accuracy target of at most {target['max_drop']:.2%} NOT met: {figures}; give more "
        "validation images, allow more, or fine-tune with --final-epochs"
    )
