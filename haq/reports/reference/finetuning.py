"""Markdown of how fine-tuning was chosen, and of what it reaches."""

from typing import Any

from haq.reports.reference.markdown import markdown, spread

_BEFORE = {
    "agent": "ilp", "bits": 2.25, "images": 5000, "start": "nearest", "optimizer": "sgd",
    "lr": 0.005, "weight_decay": 1e-4, "batch": 64, "warm_up": 0.1, "schedule": "linear",
    "loss": "kd", "labels": 0.1, "temperature": 4.0, "steps": 0.0, "norms": "trained",
    "after": "nothing", "augmented": True, "average": 0.0, "seed": 0,
}  # fmt: skip


def finetuning_table(records: list[dict[str, Any]]) -> str:
    """Return what each factor of fine-tuning does, in pairs with the defaults before the study."""
    (record,) = records
    rows = sorted(record["rows"], key=lambda row: (row["way"]["bits"], row["val_divergence"]))
    lead = (
        f"Ways to fine-tune {record['model']} on CIFAR-10 (JPEG), on a float network that has not "
        f"seen the {rows[0]['val_images']} validation images (it has "
        f"{record['float_val_accuracy']:.2%} of them): what is changed of rate 0.005, weight decay "
        "1e-4, batches of 64, kd at temperature 4 with a tenth of labels, nearest levels, fixed "
        "steps, 5000 images. Gains and changes of divergence are in pairs with that, with "
        "intervals of 95%; *corrected*: statistics measured afresh after the epoch; *adaround*: "
        "the epoch begins with learned rounding. One seed:"
    )
    head = ["bits, activations 4", "changed", "validation", "gain, points", "divergence",
            "change", "CPU seconds"]  # fmt: skip
    return markdown(lead, head, [_way(row) for row in rows])


def _way(row: dict[str, Any]) -> list[str]:
    way, pair = row["way"], row.get("against_before")
    changed = [
        f"{name} {value}" for name, value in way.items()
        if name not in ("agent", "bits") and value != _BEFORE[name]
    ]  # fmt: skip
    gain = change = "-"
    if pair:
        gain = f"{100 * pair['gain']:+.2f} ± {100 * pair['gain_half_interval']:.2f}"
        half = pair["divergence_change_half_interval"]
        change = f"{pair['divergence_change']:+.1%} ± {half:.1%}"
    return [
        f"{way['agent']} {way['bits']:g}", ", ".join(changed) or "nothing",
        f"{row['val_accuracy']:.2%}", gain, f"{row['val_divergence']:.4f}", change,
        f"{row['seconds']:.0f}",
    ]  # fmt: skip


def goals_table(records: list[dict[str, Any]]) -> str:
    """Return the test accuracies that the defaults reach."""
    (record,) = records
    lead = (
        f"{record['model']} of the shared weights on CIFAR-10 (JPEG), 4-bit activations, first "
        "and last layer at 8 bits, after one epoch with the defaults: test accuracy of the file "
        "in ONNX Runtime. Where the epoch did no good by validation images, the network without "
        "it was handed over. One seed:"
    )
    head = ["policy", "bits", "images", "learned rounding", "test", "handed over", "CPU seconds"]
    rows = [
        [
            row["agent"], f"{row['bits']:g}", f"{row['images']:,}",
            f"{row['rounding_steps']} steps" if row["rounding_steps"] else "-",
            f"{row['test_accuracy']:.2%}",
            "after the epoch" if row["handed_over_tuned"] else "before it",
            f"{row['epoch_seconds']:.0f}",
        ]
        for row in sorted(record["rows"], key=lambda row: (row["images"], row["bits"]))
    ]  # fmt: skip
    return markdown(lead, head, rows)


def digits_table(records: list[dict[str, Any]]) -> str:
    """Return what `haq search` without arguments hands over, by the rule that chooses it."""
    (record,) = records
    lead = (
        "`haq search` without arguments (digits, 3 bits), what is handed over by the rule that "
        "chooses between fine-tuned networks and the one before: means over the seeds, with the "
        "lowest and the highest:"
    )
    rules: dict[str, list[dict[str, Any]]] = {row["rule"]: [] for row in record["rows"]}
    for row in record["rows"]:
        rules[row["rule"]].append(row)
    rows = [
        [rule, str(len(some)), spread([row["final_val_accuracy"] for row in some], ".2%"),
         spread([row["final_test_accuracy"] for row in some], ".2%")]
        for rule, some in rules.items()
    ]  # fmt: skip
    return markdown(lead, ["rule", "seeds", "validation", "test"], rows)
