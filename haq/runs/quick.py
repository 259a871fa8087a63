"""A policy in seconds: no labels, no training, no run, nothing on the disk.

What torch.export loads at its first use, which takes as long as the rest, is imported here.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch._dynamo
import torch._inductor.decomposition  # noqa: F401
from torch import Tensor, nn

from haq.allocation.budgets import fit, most_bits, solve
from haq.allocation.policy import Bits
from haq.allocation.schemes import Scheme
from haq.allocation.sensitivities import objective, widths
from haq.quantization.calibration import Clips, calibrate, calibrate_weights
from haq.quantization.second_order import second_order
from haq.runs.own import own_task
from haq.runs.plan import plan

IMAGES = 64
"""Inputs that sensitivities are measured on."""


def quick_policy(  # noqa: PLR0913 - one keyword a field of the job
    model: nn.Module,
    inputs: Tensor,
    budgets: Sequence[str] | str = ("avg_weight_bits=3",),
    *,
    target: str | None = None,
    batch: int | None = None,
    weight_bits: tuple[int, int] = (2, 8),
    act_bits: int | Literal["search"] | None = None,
    schemes: Sequence[Scheme] = ("static",),
    groups: Sequence[int] = (),
    pins: Mapping[str, int] | None = None,
    clipping: str = "kl",
    per_channel: bool = True,
    images: int = IMAGES,
    seed: int = 0,
) -> dict[str, Bits]:
    """Return the bits of every layer that are best by sensitivities to second order.

    That is the first policy of ``haq.search(agent="ilp")`` from fewer inputs: for a network of 20
    layers about two CPU seconds. The network is neither quantized nor scored.

    Args:
        model: As for ``haq.search``.
        inputs: As the network takes them, (N, ...), without labels; 2 at least, the first ones
            are used.
        budgets: One or several, as for ``haq.search``, as are all below but ``images``.
        target: As above.
        batch: As above.
        weight_bits: As above.
        act_bits: As above.
        schemes: As above.
        groups: As above.
        pins: As above.
        clipping: As above.
        per_channel: As above.
        images: Inputs to measure on, at most.
        seed: Decides everything random.

    Raises:
        HaqError: As ``haq.search``.
    """
    given = {
        "budgets": (budgets,) if isinstance(budgets, str) else tuple(budgets), "target": target,
        "batch": batch, "weight_bits": weight_bits, "act_bits": act_bits, "pins": pins,
        "schemes": tuple(schemes), "groups": tuple(groups),
        "clipping": clipping, "per_channel": per_channel, "seed": seed, "agent": "ilp",
    }  # fmt: skip
    task = own_task(model, inputs, None, given)
    planned = plan(task.job, task.model, task.images, task.sample, task.notes)
    assert task.inputs is not None
    some, asked = task.inputs[: max(2, images)], widths(planned.table.choices)
    choices = planned.table.choices
    if any(asked["activations"].values()):
        clips = calibrate(planned.graph, some.split(128), clipping, per_channel, choices=choices)
    else:
        clips = Clips(calibrate_weights(planned.graph, clipping, per_channel, choices=choices), {})
    known = second_order(planned.graph, clips, some, asked, seed=seed)
    policy = solve(objective(known, planned.table), planned.table, planned.budgets)
    return policy or fit(most_bits(planned.table), planned.table, planned.budgets)
