"""What a checkpoint says of where its network comes from."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from haq.formats import checkpoint
from haq.network.inputs import InputShape
from haq.runs.job import Job

_VERSIONS = ("haq", "torch", "python")


def origin_of(
    job: Job,
    images: Mapping[str, Any],
    transforms: Sequence[dict[str, Any]],
    accuracy: Mapping[str, float],
    versions: Mapping[str, str],
) -> checkpoint.Origin:
    """Return what the checkpoint of a run's network says of it.

    Args:
        job: What was asked for.
        images: What the network is fed with, as in the run's summary.
        transforms: What changed the model before it was quantized.
        accuracy: What was measured.
        versions: Of packages.
    """
    return checkpoint.Origin(
        model=job.model,
        shape=tuple(images["shape"]),
        tokens=images.get("tokens"),
        inputs={
            name: InputShape(tuple(one["shape"]), one["tokens"], one.get("dtype", ""))
            for name, one in images.get("inputs", {}).items()
        },
        classes=len(images["classes"]) if "classes" in images else None,
        width=job.width,
        transforms=tuple(transforms),
        data=images.get("data"),
        mean=tuple(images.get("mean", ())),
        std=tuple(images.get("std", ())),
        accuracy={key: value for key, value in accuracy.items() if math.isfinite(value)},
        versions={name: versions[name] for name in _VERSIONS if name in versions},
    )
