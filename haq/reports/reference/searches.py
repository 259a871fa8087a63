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
    """Return how much nearer to the float network agents come than the known answers."""
    (record,) = records
    first = record["rows"][0]
    test = next(iter(first["test"].values()))
    lead = (
        f"Agents from the policy of `ilp`, {first['episodes']} episodes with policies scored on "
        f"half of the validation images, {TITLES[first['data']]}; 4-bit activations where mean "
        "bits are budgeted, nothing is trained. Then the best few were compared on other images, "
        "and the best of these was handed on where it was nearer than every known answer on "
        "images again others, beyond chance (*accepted*). Difference of the divergence as a share "
        f"of the rival's, with the 95 % interval, on {test['images']:,} test images; the last "
        "column is of the policy that scored best, which would be handed on without that. CPU "
        "seconds of evaluations, confirmation and agent:"
    )
    rows = [
        [
            f"{row['model']}, {row['budget'].replace(':', ' ')}, seed {row['seed']}",
            f"`{row['agent']}`", _accepted(row["confirmation"]),
            *(_changed(row["test"][pair]) for pair in (
                "confirmed against ilp", "confirmed against uniform", "scored against ilp",
            )),
            " + ".join(f"{seconds:.0f}" for seconds in (
                row["cpu_seconds"][part] for part in ("evaluations", "confirmation", "agent")
            )),
        ]
        for row in sorted(
            record["rows"], key=lambda row: (row["model"], row["budget"], row["agent"], row["seed"])
        )
    ]  # fmt: skip
    head = [
        "network, budget", "agent", "accepted", "against `ilp`", "against `uniform`",
        "best score against `ilp`", "CPU seconds",
    ]  # fmt: skip
    return markdown(lead, head, rows)


def _accepted(confirmation: dict[str, Any] | None) -> str:
    if confirmation is None:
        return "nothing scored higher"
    return "yes" if confirmation["accepted"] else "no"


def images_needed_table(records: list[dict[str, Any]]) -> str:
    """Return how many images tell policies near the optimum apart."""
    (record,) = records
    settings = record["rows"]
    lead = (
        "How many images tell policies near the optimum apart, CIFAR-10 (JPEG), nothing trained: "
        "rank correlation of the divergence on some images, at a temperature, with the divergence "
        "at a temperature of 1 on others; and, behind it, that of the policy that is best on the "
        "first, against that of `ilp`. Means over draws of the images. "
        + " ".join(
            f"{title}: {row['policies']} policies, the best of them {row['best']:+.1%} on all "
            f"{row['images']:,} images, standard error of a difference on 2,500 images "
            f"{row['error_of_a_difference']['2500']:.1%}."
            for title, row in settings.items()
        )
    )
    cells = [
        [
            f"{one['images']:,}", f"{one['temperature']:g}",
            *(f"{by['rank']:.2f}; {by['chosen']:+.1%}"
              for by in (row["by"][at] for row in settings.values())),
        ]
        for at, one in enumerate(next(iter(settings.values()))["by"])
    ]  # fmt: skip
    return markdown(lead, ["images", "temperature", *settings], cells)


def _changed(judged: dict[str, Any]) -> str:
    low, high = judged["interval_95"]
    return f"{judged['change']:+.1%} ({low:+.1%} to {high:+.1%})"
