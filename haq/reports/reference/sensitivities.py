"""Markdown of what sensitivities are worth, how soon they are there, and of accuracy targets."""

from typing import Any

from haq.reports.reference.markdown import markdown


def quick_policy_table(records: list[dict[str, Any]]) -> str:
    """Return how soon a policy is there."""
    (record,) = records
    lead = (
        f"`haq.quick_policy`: from loaded weights and {record['inputs']} images without labels to "
        f"a policy, for {record['model']} on one thread (the first call of a process, which loads "
        f"libraries too: {record['first_cpu_seconds']:.1f} CPU seconds). Accuracy on all test "
        "images with corrected statistics, nothing trained:"
    )
    rows = [
        [
            f"{row['avg_weight_bits']:.2f}", f"{row['cpu_seconds']:.1f}",
            f"{row['test_accuracy']:.2%}",
        ]
        for row in record["rows"]
    ]  # fmt: skip
    return markdown(lead, ["average bits", "CPU seconds", "test"], rows)


def second_order_table(records: list[dict[str, Any]]) -> str:
    """Return how sensitivities to second order compare with the exact ones."""
    (record,) = records
    seconds, ranks = record["seconds"], record["with_exact"]
    known = {record["model"]: record["budgets"], **record.get("other_networks", {})}
    ways = [
        way for way in _WAYS
        if any(way in row["divergence"] for budgets in known.values() for row in budgets)
    ]  # fmt: skip
    lead = (
        "Sensitivities to second order (one forward and one backward for all layers and widths) "
        f"against the exact isolated ones, {record['model']}: rank correlation over all layers and "
        f"widths {ranks['weights']:.3f} for weights and {ranks['activations']:.3f} for "
        f"activations, {record['with_corrected']:.3f} with weights measured one by one after their "
        f"statistics are corrected; {seconds['resnet20']:.1f} CPU seconds instead of "
        f"{seconds['resnet20, exact']:.1f}; on 64 images resnet56 takes {seconds['resnet56']:.1f}, "
        f"a chain of 200 layers {seconds['chain of 200']:.1f}. Divergence of what the integer "
        f"program chooses by each, with 4-bit activations and corrected statistics, on "
        f"{record['test_images']} test images. "
        + " ".join(text for way, text in _WAYS.items() if text and way in ways)
        + " *Completeness* is the sum of the shares over the divergence:"
    )
    rows = [
        [
            f"{model}, {row['avg_weight_bits']:g} bits",
            *(_with_error(row, name) for name in ways), f"{row['completeness']:.2f}",
        ]
        for model, budgets in known.items() for row in budgets
    ]  # fmt: skip
    return markdown(
        lead, ["network", *(way.replace("_", " ") for way in ways), "completeness"], rows
    )


_WAYS = {
    "exact": "", "second_order": "",
    "in_context": "*In context*: rescaled by each layer's share of the divergence of the whole "
    "policy (path attribution); that is farther everywhere, so no search does it.",
    "halfway": "*Halfway*: by the root of that.",
    "again": "*Again*: once more, in the context of the nearest of these on 1,000 training images.",
    "kept": "*Kept*: the nearest on those where that is beyond chance, else by second order.",
}  # fmt: skip
"""Ways of choosing, and what a table says of them where it has them."""


def _with_error(row: dict[str, Any], name: str) -> str:
    if name not in row["divergence"]:
        return ""
    return f"{row['divergence'][name]:.4f} ± {row['standard_error'][name]:.4f}"


def accuracy_target_table(records: list[dict[str, Any]]) -> str:
    """Return how often accuracy targets are met, and how often what is met is exceeded."""
    (record,) = records
    lead = (
        f"`--max-drop` on the digits, {record['runs']} searches from float networks of different "
        f"seeds, {record['most_verifications']} verifications at most. *Violations*: targets "
        f"reported as met whose drop on the {record['test_images']} test images is larger by more "
        "than the noise of these:"
    )
    drops = sorted({row["max_drop"] for row in record["rows"]})
    rows = []
    for drop in drops:
        some = [row for row in record["rows"] if row["max_drop"] == drop]
        met = [row for row in some if row["met"]]
        larger = [row for row in met if row["test_drop"] > drop]
        share = sum(row["share_of_8_bits"] for row in some) / len(some)
        rows.append([
            f"{100 * drop:g} points", str(len(some)), str(len(met)),
            f"{max((row['test_drop'] for row in met), default=0):.2%}", str(len(larger)),
            f"{share:.0%}",
        ])  # fmt: skip
    head = [
        "asked", "searches", "met", "largest drop on test images", "larger than asked",
        "size of 8 bits",
    ]  # fmt: skip
    return markdown(lead, head, rows) + f"\n\nViolations: {record['violations']}."
