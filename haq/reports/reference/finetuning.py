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


_NOW = _DEFAULT | {
    "rounding_steps": 600, "rounding_batch": 32, "beside": 0.2, "fresh": True,
    "rounding_images": 5000, "rounding_temperature": 4.0, "reach": 0,
}  # fmt: skip

_OF_ROUNDING = (
    "start", "rounding_steps", "rounding_lr", "rounding_batch", "beside", "fresh", "mixed",
    "rounding_images", "rounding_temperature", "reach",
)  # fmt: skip


def finetuning_table(records: list[dict[str, Any]]) -> str:
    """Return what each factor of fine-tuning does, in pairs with the defaults before the study."""
    (record,) = records
    rows = sorted(record["rows"], key=lambda row: (row["way"]["bits"], row["val_divergence"]))
    former = [row for row in rows if "basis" not in row]
    return _former_table(record, former) + "\n\n" + _table(rows)


def _table(rows: list[dict[str, Any]]) -> str:
    """Return the rows that say which way they are compared with."""
    lead = (
        "The same since learned rounding is the default: 600 steps of 32 images, augmented anew, "
        "norms and clips of activations beside it at 0.2 of its rate; *no epoch* or an epoch of so "
        "many images after it. *nearest*: the epoch begins with the nearest levels instead, or "
        "nothing is trained; *blocks*: half the steps for each block alone, on the block's output, "
        "then half of them for all; *progressive*: a third of the steps each at 4, 3 and the bits "
        "asked for; *reach*: levels that a weight may move beyond its two neighbours. Each is "
        "compared in pairs with the way that lacks one of its changes:"
    )
    head = ["bits, activations 4", "epoch, images", "changed", "seed", "validation", "divergence",
            "against", "gain, points", "change", "CPU seconds"]  # fmt: skip
    shown = [row for row in rows if "basis" in row]
    shown.sort(key=lambda row: (row["way"]["bits"], row["way"]["images"], row["val_divergence"]))
    return markdown(lead, head, [_way_now(row) for row in shown])


def _way_now(row: dict[str, Any]) -> list[str]:
    way, pair = row["way"], row.get("against")
    gain, change = _pair(pair) if pair else ("-", "-")
    return [
        f"{way['agent']} {way['bits']:g}", f"{way['images']:,}" if way["images"] else "no epoch",
        _words(way), str(way["seed"]), f"{row['val_accuracy']:.2%}", f"{row['val_divergence']:.4f}",
        _basis(way, row["basis"]) if pair else "-", gain, change, f"{row['seconds']:.0f}",
    ]  # fmt: skip


def _basis(way: dict[str, Any], basis: dict[str, Any]) -> str:
    """Return what a way is compared with, where that differs from it."""
    if not basis["images"] and way["images"]:
        return "no epoch"
    return _words(basis)


def _words(way: dict[str, Any]) -> str:
    """Return what a way changes of what is done now, but for the images of its epoch."""
    names = [n for n in way if n not in ("agent", "bits", "images", "seed") and way[n] != _NOW[n]]
    if way["start"] == "nearest":
        names = [n for n in names if n not in _OF_ROUNDING[1:]]
    if not way["images"]:
        names = [n for n in names if n in _OF_ROUNDING]
    parts = [way[n] if n == "start" else f"{n} {way[n]}".removesuffix(" True") for n in names]
    return ", ".join(parts) or "nothing"


def _pair(pair: dict[str, Any]) -> tuple[str, str]:
    half = pair["divergence_change_half_interval"]
    return (
        f"{100 * pair['gain']:+.2f} ± {100 * pair['gain_half_interval']:.2f}",
        f"{pair['divergence_change']:+.1%} ± {half:.1%}",
    )


def _former_table(record: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the rows that are compared with the defaults before learned rounding."""
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
    gain, change = _pair(pair) if pair else ("-", "-")
    return [
        f"{way['agent']} {way['bits']:g}", _changed(way), f"{row['val_accuracy']:.2%}", gain,
        f"{row['val_divergence']:.4f}", change, f"{row['seconds']:.0f}",
    ]  # fmt: skip


def _changed(way: dict[str, Any]) -> str:
    """Return what a way changes of the defaults, in words; of no epoch its rounding alone."""
    default = _DEFAULT | ({"start": "nearest"} if way["bits"] > 3 else {})
    names = [name for name in way if name not in ("agent", "bits") and way[name] != default[name]]
    if way["images"] == 0:
        names = [name for name in names if name in _OF_ROUNDING]
    parts = [name if way[name] is True else f"{name} {way[name]}" for name in names]
    return ", ".join([*(["no epoch"] if way["images"] == 0 else []), *parts]) or "nothing"


def goals_table(records: list[dict[str, Any]]) -> str:
    """Return the test accuracies that the defaults reach."""
    (record,) = records
    lead = (
        f"{record['model']} of the shared weights on CIFAR-10 (JPEG), 4-bit activations, first "
        "and last layer at 8 bits, fine-tuned with the defaults: test accuracy of the file in ONNX "
        "Runtime. Where fine-tuning did no good by validation images, the network without it was "
        "handed over. *before*: up to 3 bits 300 steps of learned rounding in batches of 64, then "
        "an epoch; above, and at 45,000 images, the epoch alone. *now*: 600 steps in batches of "
        "32, without an epoch where there are fewer than 20,000 images. One seed:"
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
