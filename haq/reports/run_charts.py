"""The charts that a run has numbers for."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from haq.agents import ddpg, guided
from haq.allocation.costs import WITHOUT_TARGET
from haq.allocation.policy import Bits
from haq.allocation.trials import Trial
from haq.errors import TargetError
from haq.hw_profiles.ceilings import ceilings
from haq.metrics import metric_of
from haq.network.layers import Layer
from haq.reports.charts.bits import bits_chart
from haq.reports.charts.progress import progress_chart
from haq.reports.charts.roofline import roofline_chart
from haq.reports.charts.sensitivity import sensitivity_chart
from haq.reports.charts.shares import shares_chart
from haq.reports.charts.theme import Chart, spoken
from haq.reports.charts.trials import trials_chart
from haq.reports.record import RunRecord, kind_of
from haq.runs.job import Job
from haq.runs.summary import left_layers

ROOFS = 4
"""How many rooflines are drawn at most: each pair of bits has its own."""


def all_charts(record: RunRecord) -> list[Chart]:
    """Return the charts that the run has numbers for, in the order of the page."""
    charts: list[Chart | None] = []
    if record.summary:
        layers = record.summary["layers"]
        charts = [
            bits_chart(layers),
            shares_chart(layers, record.summary["units"]),
            sensitivity_chart(layers, record.sensitivity) if record.sensitivity else None,
            roofline(record),
        ]
    if record.trials:
        metric = metric_of(record.summary)
        if len(record.trials) > 1:
            charts.append(progress_chart(record.trials, noise(record), kind_of(record), metric))
        charts += _trials_charts(record)
    return [chart for chart in charts if chart is not None]


def noise(record: RunRecord) -> list[float | None]:
    """Return the sigma of the agent's noise in each episode; None where it had none.

    It follows from the schedules of the agents: what they note is not kept with the trials.
    """
    schedule = SCHEDULES.get(record.job.agent)
    if schedule is None:
        return [None] * len(record.trials)
    return [schedule(trial.episode, record.job) for trial in record.trials]


def _ddpg_noise(number: int, job: Job) -> float | None:
    if number < ddpg.WARM_UP:  # uniform actions
        return None
    return ddpg.exploration(number, job.episodes or 1, job.paper)


SCHEDULES: Mapping[str, Callable[[int, Job], float | None]] = {
    "ddpg": _ddpg_noise,
    "guided": lambda number, job: guided.exploration(number, job.episodes or 1),
}
"""Agent to the sigma of its noise in an episode, counted from 0."""


def _trials_charts(record: RunRecord) -> list[Chart]:
    """Return one chart a quantity, that of the first budget first."""
    units = {**WITHOUT_TARGET, **record.summary.get("units", {})}
    limits = {budget["quantity"]: budget["limit"] for budget in record.summary.get("budgets", [])}
    quantities = dict.fromkeys([*limits, *record.trials[0].cost])
    charts, metric = [], metric_of(record.summary)
    for at, quantity in enumerate(quantities):
        chart = trials_chart(
            record.trials, quantity, units.get(quantity, ""), kind_of(record), limits.get(quantity),
            # Policies of an accuracy target are tried on training images; it is of others.
            None if record.job.max_drop else record.summary.get(metric.key("float_val")),
            handed_over(record), metric,
            None if record.job.max_drop else record.summary.get(metric.key("final_val")),
        )  # fmt: skip
        key = "trials" if at == 0 else f"trials-{quantity}"
        charts.append(chart._replace(key=key, title=f"All trials, by {spoken(quantity)}"))
    return charts


def handed_over(record: RunRecord) -> Trial | None:
    """Return what the policy handed over is worth, also where none of the trials had it.

    An accuracy target raises a policy until it is verified; measured latencies lower one.
    """
    summary = record.summary
    if "best_episode" not in summary:
        return None
    number, metric = summary["best_episode"], metric_of(summary)
    same = (t for t in record.trials if t.episode == number and t.policy == record.policy)
    value = metric.score(summary[metric.key("episode_val")])
    other = Trial(number, record.policy, summary["cost"], value, math.nan, math.nan, 0.0)
    return next(same, other)


def roofline(record: RunRecord) -> Chart | None:
    """Return the roofline chart, None where ``no_roof`` says why there is none."""
    target = record.planned.target if record.planned else None
    if record.planned is None or target is None or "latency" not in target.si:
        return None
    points, roofs, work = [], {}, {"w8a8": math.inf}
    layers = left_layers(record.planned, record.policy)
    for layer in [layer for layer in layers if not layer.weights_alone]:
        point: dict[str, Any] = {"name": layer.name, "kind": layer.kind}
        for state, bits in (
            ("w8a8", Bits(8, 8)),
            ("run", record.policy[layer.name].with_keep(1.0)),
        ):
            roof = ceilings(target, bits)
            if roof is None:
                if state == "run":
                    return None
                continue
            roofs[str(bits)] = (roof.macs_per_second, roof.bytes_per_second)
            work[str(bits)] = work.get(str(bits), 0) + layer.macs
            try:
                seconds = target.cost(layer, bits)["latency"] * target.si["latency"]
            except TargetError:
                continue
            intensity = layer.macs * target.batch / moved_bytes(layer, bits, target.batch)
            point[state] = {
                "bits": str(bits), "intensity": intensity,
                "attained": layer.macs * target.batch / seconds,
                "ceiling": min(roof.macs_per_second, intensity * roof.bytes_per_second),
            }  # fmt: skip
        points.append(point)
    # The roofs of 8 bits and of the pairs of bits that most of the work is done in.
    drawn = sorted(roofs, key=lambda bits: -work[bits])[:ROOFS]
    return roofline_chart(points, {bits: roofs[bits] for bits in drawn})


def moved_bytes(layer: Layer, bits: Bits, batch: int) -> float:
    """Return the least bytes that a layer must read: its weights once, its inputs once an image."""
    inputs = sum(part.c_in * math.prod(part.in_size) * part.calls for part in layer.by_size())
    return (layer.weights * bits.weight + batch * inputs * bits.act) / 8


def no_roof(record: RunRecord) -> str:
    """Return the reason why the run has no roofline."""
    if record.job.target is None:
        return (
            "There is no roofline: the run has no target. With --target its layers are shown "
            "against what the hardware can do."
        )
    if record.planned is None:
        return "There is no roofline: " + record.missing.get("plan", "nothing has been tried yet.")
    return f"There is no roofline: {record.job.target} states no ceilings of its own."
