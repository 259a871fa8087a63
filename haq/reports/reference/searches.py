"""Markdown of the searches that are published."""

from statistics import mean
from typing import Any

from haq.reports.reference.markdown import TITLES, asked, markdown, spread, width


def measured_table(records: list[dict[str, Any]]) -> str:
    """Return the searches whose winner was measured end to end."""
    lead = (
        "Searches on a profile of this CPU. The winner was built and measured end to end before it "
        "was declared one (microseconds for one image, one thread; test accuracy of the network "
        "handed over):"
    )
    rows = []
    for record in records:
        times, job = record["measured_latency"], record["job"]
        rows.append(
            [
                f"{job['model']}, {' and '.join(job['budgets'])}", job["agent"],
                f"{times['predicted']:,.0f}",
                f"{times['value']:,.0f} ({times['low']:,.0f} to {times['high']:,.0f})",
                f"{times['budget']:,.0f}", times["how"], f"{record['float_test_accuracy']:.2%}",
                f"{record['final_test_accuracy']:.2%}",
            ]
        )  # fmt: skip
    head = [
        "network, budgets", "agent", "predicted", "measured (95 %)", "budget", "winner",
        "float: test", "found: test",
    ]  # fmt: skip
    return markdown(lead, head, rows)


def agents_table(records: list[dict[str, Any]]) -> str:
    """Return what agents reach under the same budget."""
    (record,) = records
    lead = (
        "Agents under the same budget with 40 cheap evaluations each (statistics corrected, no "
        "fine-tuning). Their three best policies, and the known answers that `ilp` and `guided` "
        "begin with, got an epoch of 5000 images, and the best of these on validation images is "
        "tested: after that epoch, and the best policy of all without it. Version 0.2.0 fine-"
        "tunes with a rate of 0.005 and begins `guided` and `uniform` with the best uniform bits "
        "within the budget; 0.1.0 had a rate of 0.02. *Divergence*: the least one from the float "
        "network on validation images, before fine-tuning. Means over the seeds, with the lowest "
        "and the highest; seconds on one thread of a busy machine, without tests and the reading "
        "of data. The float network was trained on the validation images too, so only test "
        "columns compare with other work:"
    )
    head = [
        "network, budget", "agent", "haq", "seeds", "divergence", "test after the epoch",
        "test without", "CPU seconds", "wall seconds", "peak MB",
    ]  # fmt: skip
    searches: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        budget = asked(row)
        key = f"{row['model']}{width(row)}, {budget}", row["versions"]["haq"], row["agent"]
        searches.setdefault(key, []).append(row)
    rows = []
    for (budget, release, agent), some in sorted(searches.items()):
        timed = [row for row in some if row["cpu_seconds"] is not None]
        rows.append(
            [
                budget, f"`{agent}`" + (" (paper)" if agent == "ddpg" else ""), release,
                str(len(some)),
                spread([row["best"]["val_loss"] for row in some], ".3f"),
                spread([row["test_accuracy"] for row in some], ".2%"),
                spread([row["untuned_test_accuracy"] for row in some], ".2%"),
                f"{mean([row['cpu_seconds'] for row in timed]):.0f}" if timed else "-",
                f"{mean([row['wall_seconds'] for row in timed]):.0f}" if timed else "-",
                f"{max(row['peak_memory_mb'] for row in some):,}",
            ]
        )  # fmt: skip
    return markdown(lead, head, rows)


def neighbours_table(records: list[dict[str, Any]]) -> str:
    """Return what the sensitivities leave to be learned."""
    (record,) = records
    lead = (
        "What the sensitivities leave to be learned: policies around their optimum, each scored by "
        "its divergence from the float network on two halves of the validation images. Rank "
        "correlations of the sum of the sensitivities with the divergence, and of what the sum "
        "leaves unexplained in one half with that in the other; and how much lower than the "
        "optimum's the divergence of the policy that is best on one half is on the other:"
    )
    head = [
        "budget", "policies", "sum and divergence", "unexplained, half and half", "optimum",
        "best of them", "gain",
    ]  # fmt: skip
    rows = []
    for row in record["rows"]:
        optimum, best = row["optimum"][1], row["best"]["there"]
        rows.append(
            [
                asked(row),
                str(row["policies"]), f"{row['sum_with_divergence']:.2f}",
                f"{row['unexplained_half_with_half']:.2f}", f"{optimum:.4f}", f"{best:.4f}",
                f"{1 - best / optimum:.0%}",
            ]
        )  # fmt: skip
    return markdown(lead, head, rows)


def transfers_table(records: list[dict[str, Any]]) -> str:
    """Return what policies for one target cost on others."""
    lead = (
        "Policies found for one target within a share of its latency at 8 bits, the mean bits "
        "(weights / activations) that they give to depthwise and pointwise layers, and what they "
        "cost on each target as a share of its latency at 8 bits:"
    )
    targets = list(records[0]["rows"][0]["latency_share_of_w8a8"])
    head = ["network, found for", "depthwise", "pointwise", *(f"on {name}" for name in targets)]
    rows = [
        [
            f"{record['model']} ({record['width']:g}), {row['found_for']}",
            *(_pair(row["mean_bits"][kind]) for kind in ("depthwise", "pointwise")),
            *(f"{row['latency_share_of_w8a8'][name]:.1%}" for name in targets),
        ]
        for record in records for row in record["rows"] if row["policy"]
    ]  # fmt: skip
    return markdown(lead, head, rows)


def _pair(bits: dict[str, float] | None) -> str:
    return "-" if bits is None else f"{bits['weights']:.1f} / {bits['activations']:.1f}"


def searches_table(records: list[dict[str, Any]]) -> str:
    """Return the searches that have no measured latency."""
    records.sort(key=lambda r: [str(r["job"][key]) for key in ("target", "budgets", "agent")])
    lines = [
        "Searches from that float network; one seed, 5 000 training and 2 500 validation images an "
        "episode, one thread of a busy machine. *Drop* is in points of test accuracy, from the "
        "float network to the end. *uniform* is the best of the same bits everywhere, lowered from "
        "the last layer on until they keep the budget. Each record names the commit that made it.",
        "",
        "| target | budget | agent | policies evaluated | achieved | after its epoch: test (val) "
        "| after one epoch of all: test (val) | drop | s per evaluation |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *(_row(record) for record in records)])


def _row(record: dict[str, Any]) -> str:
    job, budget = record["job"], record["budgets"][0]
    acts = "" if job["act_bits"] is None else f", {job['act_bits']}-bit activations"
    drop = 100 * (record["float_test_accuracy"] - record["final_test_accuracy"])
    # Of searches that do not fine-tune in their episodes, only the network handed over is tested.
    episode = record.get("episode_test_accuracy")
    tested = "-" if episode is None else f"{episode:.2%}"
    cells = [
        job["target"] or "-",
        f"{budget['asked']}{acts}",
        job["agent"] + (" (paper)" if job["paper"] else ""),
        str(record["evaluations"]),
        f"{budget['achieved']:,.4g} of {budget['limit']:,.4g} {budget['unit']}",
        f"{tested} ({record['episode_val_accuracy']:.2%})",
        f"{record['final_test_accuracy']:.2%} ({record['final_val_accuracy']:.2%})",
        f"{drop:.2f}",
        f"{record['seconds_per_evaluation']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def trust_region_table(records: list[dict[str, Any]]) -> str:
    """Return how much nearer to the float network the trust region comes than the start."""
    (record,) = records
    first = record["rows"][0]
    lead = (
        f"A trust region from the policy of `ilp`, {first['episodes']} episodes with policies "
        f"scored on half of the validation images, {TITLES[first['data']]}, "
        f"{first['act_bits']}-bit activations; nothing is trained. *Change*: of the divergence, "
        "from the policy of `ilp` to the answer, with the 95 % interval, on images that chose "
        "neither: the other validation images, and test images. *Uniform*: that of the best "
        "uniform widths on the test images. *An earlier form* drew the policies that it measures "
        "from what it believed of the steps, and its answer is its last episode. CPU seconds of "
        "the evaluations and of the agent:"
    )
    rows = [
        [
            f"{row['model']}, {row['avg_weight_bits']:g} bits, seed {row['seed']}",
            f"`{row['agent']}`" + (", an earlier form" if "agent_form" in row else ""),
            *(_changed(row[part]) for part in ("validation", "test")),
            f"{row['uniform_on_test']['change']:+.1%}",
            f"{row['cpu_seconds']['evaluations']:.0f}", f"{row['cpu_seconds']['agent']:.1f}",
        ]
        for row in sorted(record["rows"], key=lambda row: (row["model"], row["seed"], row["agent"]))
    ]  # fmt: skip
    head = [
        "network", "agent", f"change, {first['validation']['images']:,} validation images",
        f"change, {first['test']['images']:,} test images", "uniform", "evaluations", "agent alone",
    ]  # fmt: skip
    return markdown(lead, head, rows)


def _changed(judged: dict[str, Any]) -> str:
    low, high = judged["interval_95"]
    return f"{judged['change']:+.1%} ({low:+.1%} to {high:+.1%})"
