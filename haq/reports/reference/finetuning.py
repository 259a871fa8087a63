"""Markdown of how fine-tuning was chosen, and of what it reaches."""

from typing import Any

from haq.reports.reference.markdown import markdown, spread

_DEFAULT = {
    "agent": "ilp", "bits": 2.25, "images": 5000, "passes": 1, "start": "adaround",
    "rounding_steps": 300, "rounding_lr": 0.005, "rounding_batch": 64, "beside": 0.0,
    "fresh": False, "mixed": 0.0, "optimizer": "sgd", "lr": 0.005, "weight_decay": 1e-4,
    "batch": 64, "warm_up": 0.1, "schedule": "linear", "loss": "kd", "labels": 0.1,
    "temperature": 4.0, "steps": 0.0, "norms": "trained", "after": "corrected",
    "augmented": True, "average": 0.0, "seed": 0,
}  # fmt: skip


def finetuning_table(records: list[dict[str, Any]]) -> str:
    """Return what each factor of fine-tuning does, in pairs with the defaults before the study."""
    (record,) = records
    rows = sorted(record["rows"], key=lambda row: (row["way"]["bits"], row["val_divergence"]))
    lead = (
        f"Ways to fine-tune {record['model']} on CIFAR-10 (JPEG), on a float network that has not "
        f"seen the {rows[0]['val_images']} validation images (it has "
        f"{record['float_val_accuracy']:.2%} of them): what is changed of the defaults before this "
        "study: learned rounding (*adaround*; up to 3 bits) of 300 steps on the images of the "
        "epoch, augmented once, in batches of 64; then an epoch of 5000 images at a rate of 0.005, "
        "weight decay 1e-4, batches of 64, kd at temperature 4 with a tenth of labels, fixed "
        "steps, statistics measured afresh (*corrected*). *beside*: rate of norms and clips of "
        "activations beside the rounding, as a share of its rate; *fresh*: images augmented anew "
        "each time the rounding sees them; *steps* as optimizer: Adam, rates in steps of the "
        "quantizers; *norms frozen*: statistics stay. Gains and changes of divergence are in "
        "pairs, with intervals of 95%. One seed:"
    )
    head = ["bits, activations 4", "changed", "validation", "gain, points", "divergence",
            "change", "CPU seconds"]  # fmt: skip
    return markdown(lead, head, [_way(row) for row in rows])


def _way(row: dict[str, Any]) -> list[str]:
    way, pair = row["way"], row.get("against_default")
    gain = change = "-"
    if pair:
        gain = f"{100 * pair['gain']:+.2f} ± {100 * pair['gain_half_interval']:.2f}"
        half = pair["divergence_change_half_interval"]
        change = f"{pair['divergence_change']:+.1%} ± {half:.1%}"
    return [
        f"{way['agent']} {way['bits']:g}", _changed(way), f"{row['val_accuracy']:.2%}", gain,
        f"{row['val_divergence']:.4f}", change, f"{row['seconds']:.0f}",
    ]  # fmt: skip


def _changed(way: dict[str, Any]) -> str:
    """Return what a way changes of the defaults, in words; of no epoch its rounding alone."""
    default = _DEFAULT | ({"start": "nearest"} if way["bits"] > 3 else {})
    names = [name for name in way if name not in ("agent", "bits") and way[name] != default[name]]
    if way["images"] == 0:
        of_rounding = ("start", "rounding_steps", "rounding_lr", "rounding_batch", "beside",
                       "fresh", "mixed")  # fmt: skip
        names = [name for name in names if name in of_rounding]
    parts = [name if way[name] is True else f"{name} {way[name]}" for name in names]
    return ", ".join([*(["no epoch"] if way["images"] == 0 else []), *parts]) or "nothing"


def goals_table(records: list[dict[str, Any]]) -> str:
    """Return the test accuracies that the defaults reach."""
    (record,) = records
    lead = (
        f"{record['model']} of the shared weights on CIFAR-10 (JPEG), 4-bit activations, first "
        "and last layer at 8 bits, fine-tuned with the defaults: test accuracy of the file in ONNX "
        "Runtime. Where fine-tuning did no good by validation images, the network without it was "
        "handed over. *before*: 300 steps of learned rounding in batches of 64, then an epoch; at "
        "45,000 images the epoch alone. *now*: 600 steps in batches of 32 at few bits, without an "
        "epoch where there are few images. One seed:"
    )
    head = ["policy", "bits", "images", "defaults", "learned rounding", "test", "handed over",
            "CPU seconds"]  # fmt: skip
    rows = [
        [
            row["agent"], f"{row['bits']:g}", f"{row['images']:,}", row["defaults"],
            f"{row['rounding_steps']} steps" if row["rounding_steps"] else "-",
            f"{row['test_accuracy']:.2%}",
            "fine-tuned" if row["handed_over_tuned"] else "not fine-tuned",
            f"{row['epoch_seconds']:.0f}",
        ]
        for row in sorted(record["rows"], key=_case)
    ]  # fmt: skip
    return markdown(lead, head, rows)


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["images"], row["bits"], row["agent"], row["defaults"]


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
