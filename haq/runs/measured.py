"""The last word on latency: the best policies of a search are built and measured end to end.

A prediction ranks policies; whether the one that is handed over keeps its budget is for the clock
to say. ``measure_candidates`` asks the clock, ``confirm`` decides: it takes the best policy that
measures within the budget and, where none does, lowers the best one until it does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import onnx
import onnxruntime

from haq.allocation.budgets import Budget, fit
from haq.allocation.costs import CostTable, total
from haq.allocation.policy import Bits, Policy
from haq.allocation.trials import Score
from haq.errors import BudgetError, TargetError
from haq.hw_profiles import kernels, onnx_runtime
from haq.hw_profiles.document import Measured, Profile
from haq.hw_profiles.measured import FLOATS, STANDARD
from haq.network.layers import Layer
from haq.runs.progress import OnProgress, Progress, silent

FIRST = 5
"""How many candidates are measured together."""

MOST = 20
"""How many trials are measured before the best one is lowered instead."""

LOWERINGS = 4
"""How often a policy is lowered further before the budget is given up."""

_MARGIN = 0.995


class Measurement(NamedTuple):
    """One candidate, measured.

    Attributes:
        policy: Its bits.
        predicted: Latency by the cost table, in microseconds for the target's batch.
        us: Latency by the clock, times ``drift``.
        low: End of the 95 % interval of ``us``.
        high: The other end.
        samples: Calls behind it.
        contended: Share of them that another process interrupted.
        drift: What the references take in the profile, over what they take now: the machine may be
            busier or cooler than it was then.
    """

    policy: Policy
    predicted: float
    us: float
    low: float
    high: float
    samples: int
    contended: float
    drift: float


Measure = Callable[[Sequence[Policy]], Sequence[Measurement]]
How = Literal["best", "next best", "lowered"]


def setup_of(profile: Profile) -> onnx_runtime.Setup:
    """Return the circumstances under which a profile was measured.

    Raises:
        TargetError: It was not measured by ``haq profile``, or not with this processor and this
            ONNX Runtime.
    """
    options = profile.runtime.options
    by_name = {provider: name for name, provider in onnx_runtime.PROVIDERS.items()}
    provider = by_name.get(str(options.get("provider")))
    if not isinstance(profile.model, Measured) or provider is None:
        raise TargetError(f"{profile.name} was not measured in ONNX Runtime: see haq profile")
    here = onnx_runtime.machine() | {"version": onnxruntime.__version__}
    there = {**options, "version": profile.runtime.version}
    for what in ("cpu", "instructions", "version"):
        if here[what] != there.get(what):
            raise TargetError(
                f"{profile.name} was measured with {what} {there.get(what)!r}, here it is "
                f"{here[what]!r}: nothing can be checked here; make a profile of this machine "
                "with haq profile"
            )
    return onnx_runtime.Setup(provider, int(options["threads"]), profile.batch.reference)


def measure_candidates(
    lowered: Callable[[Policy], bytes],
    policies: Sequence[Policy],
    table: CostTable,
    profile: Profile,
    rounds: int = 60,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> list[Measurement]:
    """Return how long networks of some policies take, measured together with the references.

    Args:
        lowered: From a policy to its ONNX file; ``haq.runs.profile.lowering`` makes one.
        policies: At least one.
        table: Of the target: what the policies were predicted to take.
        profile: Of the target, measured on this machine.
        rounds: Most rounds of measuring.
        seed: Of the order and the bootstrap.
        on_progress: Called after each round.

    Raises:
        TargetError: The profile is another machine's, or a layer runs in another kernel than its
            bits claim.
    """
    setup = setup_of(profile)
    names = [layer.name for layer in table.layers]
    asked: dict[str, Policy] = {str(place): policy for place, policy in enumerate(policies)}
    asked |= _references(profile, table.layers)
    sessions = {}
    for what, policy in asked.items():
        model = lowered(policy)
        opened = onnx_runtime.opened(model, setup)
        origins = kernels.Origins(onnx.load_from_string(model).graph, opened.graph, names)
        kernels.check_kernels(origins.kernels, policy)
        sessions[what] = opened.session

    def on_round(done: int, most: int) -> None:
        on_progress(Progress("measure", done, most, f"{len(policies)} candidates"))

    timings = onnx_runtime.measure(sessions, setup, rounds, seed=seed, on_round=on_round)
    assert isinstance(profile.model, Measured)
    then = {what: network.value for what, network in profile.model.networks.items()}
    factor = onnx_runtime.drift(then, {what: timing.us for what, timing in timings.items()})
    found = []
    for place, policy in enumerate(policies):
        timing = timings[str(place)].times(factor)
        found.append(
            Measurement(
                policy, total(table, policy, "latency"), timing.us, timing.low, timing.high,
                timing.samples, timing.contended, factor,
            )
        )  # fmt: skip
    return found


def _references(profile: Profile, layers: Sequence[Layer]) -> dict[str, Policy]:
    # Networks of 7-bit and of 8-bit weights run in the same kernels.
    uniform: Mapping[str, Bits] = {"fp32": FLOATS, "w7a8": STANDARD, "w8a8": STANDARD}
    assert isinstance(profile.model, Measured)
    known = profile.model.networks.keys()
    return {
        what: {layer.name: bits for layer in layers}
        for what, bits in uniform.items() if what in known
    }  # fmt: skip


@dataclass(frozen=True)
class Confirmed:
    """The policy that is handed over.

    Attributes:
        policy: It measures within the budget.
        measurement: Of this policy.
        how: "best" where it is the best trial's, "next best" where better ones measured over the
            budget, "lowered" where all did.
        score: What a lowered policy is worth; None for a trial's, which has its score.
        measured: All that were measured, in that order.
    """

    policy: Policy
    measurement: Measurement
    how: How
    score: Score | None
    measured: tuple[Measurement, ...]


def confirm(
    ranked: Sequence[Policy],
    table: CostTable,
    budgets: Sequence[Budget],
    measure: Measure,
    evaluate: Callable[[Policy], Score],
) -> Confirmed:
    """Return the best policy that keeps the latency budget by the clock.

    The trials are measured in groups of ``FIRST``, the best ones first, until one is within the
    budget. Where none of the first ``MOST`` is, the best one is lowered by ``budgets.fit`` to a
    limit that is tightened by as much as the clock said more than the table, and evaluated.

    Args:
        ranked: The policies of the trials, the best one first; at least one.
        table: Of the target.
        budgets: All of the job's; one of them on "latency".
        measure: As ``measure_candidates`` does.
        evaluate: What a policy is worth that was not tried yet.

    Raises:
        BudgetError: No policy was found that measures within the budget.
    """
    limit = min(budget.limit for budget in budgets if budget.quantity == "latency")
    different = list({tuple(sorted(policy.items())): policy for policy in ranked}.values())[:MOST]
    measured: list[Measurement] = []
    for start in range(0, len(different), FIRST):
        measured += measure(different[start : start + FIRST])
        found = within(measured, limit)
        if found is not None:
            how: How = "best" if found is measured[0] else "next best"
            return Confirmed(found.policy, found, how, None, tuple(measured))
    last = measured[0]
    for _ in range(LOWERINGS):
        tight = Budget("latency", tightened(limit, last))
        others = [budget for budget in budgets if budget.quantity != "latency"]
        try:
            lowered = fit(different[0], table, [*others, tight])
        except BudgetError:
            break
        (last,) = measure([lowered])
        measured.append(last)
        if last.us <= limit:
            return Confirmed(lowered, last, "lowered", evaluate(lowered), tuple(measured))
    least = min(measured, key=lambda one: one.us)
    raise BudgetError(
        f"no policy was found that measures within latency <= {limit:.6g} us: the best trials and "
        f"{len(measured) - len(different)} lowered ones take {least.us:.6g} us or more; raise the "
        "budget, or profile this machine again"
    )


def within(measured: Sequence[Measurement], limit: float) -> Measurement | None:
    """Return the first measurement that is not over the limit."""
    return next((one for one in measured if one.us <= limit), None)


def tightened(limit: float, over: Measurement) -> float:
    """Return the limit for predictions under which the clock should keep ``limit``.

    It is lower by as much as the clock said more than the table of a policy over the limit, and a
    little more; so it is below what that policy was predicted to take.
    """
    return _MARGIN * limit * over.predicted / over.us


def summary_fields(confirmed: Confirmed, limit: float) -> dict[str, Any]:
    """Return what a run's summary says of the latency that was measured, in microseconds."""
    found = confirmed.measurement
    return {
        "unit": "us", "value": found.us, "low": found.low, "high": found.high,
        "predicted": found.predicted, "budget": limit, "how": confirmed.how,
        "candidates": len(confirmed.measured), "samples": found.samples,
        "contended": found.contended, "drift": found.drift,
    }  # fmt: skip
