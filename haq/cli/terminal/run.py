"""Print a run or a cost table in the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from haq.allocation.costs import CODED, UNITS
from haq.allocation.policy import Bits
from haq.cli.terminal.console import console, holds
from haq.metrics import metric_of
from haq.reports.accuracy_target import accuracy_target_sentence
from haq.reports.charts.theme import counted
from haq.reports.uniform import uniform_sentence

BLOCKS, DIGITS = " ▁▂▃▄▅▆▇█", "012345678"
"""One sign for 0 to 8 bits: blocks, or digits where the output cannot hold blocks."""


def print_run(folder: Path, summary: dict[str, Any], as_json: bool = False) -> None:
    """Print the per-layer table, the bits as a chart, the budgets and the accuracies; or JSON."""
    if as_json:
        typer.echo(json.dumps({"run": str(folder), **summary}, indent=2))
        return
    screen = console()
    quantities = list(dict.fromkeys(budget["quantity"] for budget in summary["budgets"]))
    shown = [q if q in _PER_LAYER else "size" for q in quantities]
    screen.print(_layer_table(summary["layers"], list(dict.fromkeys(shown))))
    for row, label in (("weight_bits", "weights    "), ("act_bits", "activations")):
        bars = bits_in_signs([layer[row] for layer in summary["layers"]])
        screen.print(f"{label}  {bars}  {_legend(summary['layers'], row)}, in order of execution")
    for note in summary.get("notes", []):
        screen.print(f"note: {note}")
    for budget in summary["budgets"]:
        screen.print(
            f"budget {budget['asked']}: {budget['achieved']:,.6g} of {budget['limit']:,.6g} "
            f"{budget['unit']}",
        )
        screen.print(f"  {_origin(summary, budget['quantity'])}")
    _print_measured(screen, summary.get("measured_latency"))
    if coded := summary.get(CODED):
        screen.print(coded_size_sentence(coded))
    for quantity, encoded in summary.get("encoded", {}).items():
        screen.print(encoded_sentence(quantity, encoded))
    _print_accuracies(screen, summary)
    if target := summary.get("accuracy_target"):
        screen.print(accuracy_target_sentence(target))
    screen.print(f"run: {folder}")


def coded_size_sentence(coded: Mapping[str, Any]) -> str:
    """Return how large the network's packet is, and how far that was predicted."""
    if coded["packet"] is None:
        return "the network has no checkpoint, so that no packet of it was measured"
    apart = coded["packet"] / coded["predicted"] - 1
    sentence = (
        f"packet (haq export --format safetensors, haq pack): {coded['packet']:,} bytes, "
        f"{abs(apart):.1%} {'more' if apart > 0 else 'less'} than predicted"
    )
    if coded["budget"] is not None and coded["packet"] > coded["budget"]:
        return f"{sentence}, and over the budget: give one that is lower by as much"
    return sentence


def encoded_sentence(quantity: str, encoded: Mapping[str, Any]) -> str:
    """Return what the weights that are handed over take on the target, beside what was planned."""
    value, limit = encoded["encoded"], encoded["budget"]
    sentence = (
        f"{quantity} with the codes that are handed over: {value:,.6g} {encoded['unit']}, planned "
        f"{encoded['predicted']:,.6g}"
    )
    if limit is not None and value > limit:
        return f"{sentence}, and over the budget: give one that is lower by as much"
    return sentence


def bits_in_signs(widths: Sequence[int]) -> str:
    """Return a sign for each width; what is wider than 8 bits, such as float, is a star."""
    signs = BLOCKS if holds(BLOCKS) else DIGITS
    return "".join(signs[width] if width < len(signs) else "*" for width in widths)


def _legend(layers: Sequence[Mapping[str, Any]], row: str) -> str:
    widths = sorted({layer[row] for layer in layers})
    span = f"{widths[0]} to {widths[-1]}" if len(widths) > 1 else "".join(map(str, widths))
    return f"{span or 'no'} bits"


def _origin(summary: dict[str, Any], quantity: str) -> str:
    """Say how a cost was found and how far it can be trusted."""
    if quantity in UNITS:
        return "counted"
    if quantity == CODED:
        return "measured on the codes of each layer and width"
    origin = summary.get("cost_origin")
    if origin is None:
        return "the run does not say where this number comes from"
    cost = origin["quantities"][quantity]
    layers = ", ".join(f"{count} {method}" for method, count in cost["methods"].items())
    edges = f", {cost['edges']} edges fitted" if cost["edges"] else ""
    error = "" if cost["error"] is None else f" (totals within {cost['error']:.1%})"
    return (
        f"{cost['provenance']}{error}; layers: {layers}{edges}; profile {origin['profile']} "
        f"{origin['version'][:12]}, batch {origin['batch']}"
    )


_PER_LAYER = ("latency", "energy", "bops", "size", CODED)


def _print_measured(screen: Console, latency: dict[str, Any] | None) -> None:
    if latency is None:
        return
    if "missing" in latency:
        text = f"latency was not measured: {latency['missing']}"
    else:
        text = (
            f"latency measured end to end: {latency['value']:,.1f} {latency['unit']} "
            f"({latency['low']:,.1f} to {latency['high']:,.1f}), predicted "
            f"{latency['predicted']:,.1f}, budget {latency['budget']:,.1f}; {_HOW[latency['how']]}"
        )
    screen.print(text)


_HOW = {
    "best": "the best policy keeps it",
    "next best": "better policies measured over the budget",
    "lowered": "all tried measured over the budget, so the best one was lowered",
}


def _layer_table(layers: list[dict[str, Any]], quantities: list[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer")
    table.add_column("kind")
    widths = all("channels" in layer for layer in layers)
    for column in (*["channels"] * widths, "w bits", "a bits", "params", "MACs"):
        table.add_column(column, justify="right")
    for quantity in quantities:
        table.add_column(f"{quantity} w8a8", justify="right")
        table.add_column("now", justify="right")
    for layer in layers:
        shares = [
            share
            for quantity in quantities
            for share in (
                _share(layers, layer, "cost_w8a8", quantity),
                _share(layers, layer, "cost", quantity),
            )
        ]
        table.add_row(
            layer["name"], layer["kind"],
            *[f"{layer['channels']} of {layer['float_channels']}" for _ in range(widths)],
            _weight_bits(layer), str(layer["act_bits"]),
            f"{layer['params']:,}", f"{layer['macs']:,}", *shares,
        )  # fmt: skip
    return table


def _weight_bits(layer: dict[str, Any]) -> str:
    """Return the bits of a layer's weights: 4, 4g32 in groups of 32, 4k with a codebook."""
    pair = layer["weight_bits"], layer["act_bits"]
    bits = Bits(*pair, layer.get("block", 0), layer.get("dynamic", ""))
    return str(bits).removeprefix("w") if bits.is_special else str(bits.weight)


def _share(layers: list[dict[str, Any]], layer: dict[str, Any], column: str, quantity: str) -> str:
    values = [other[column].get(quantity) for other in layers]
    if any(value is None for value in values) or not sum(values):
        return "-"
    return f"{layer[column][quantity] / sum(values):.1%}"


def _print_accuracies(screen: Console, summary: dict[str, Any]) -> None:
    metric = metric_of(summary)
    if metric.word != "accuracy":
        screen.print(f"{metric.said}, {'higher' if metric.higher else 'lower'} is better:")
    for label, validation, test in accuracies(summary):
        text = f"{label:>25}: validation {metric.text(validation)}"
        screen.print(text + (f", test {metric.text(test)}" if test is not None else ""))
    if interval := summary.get("final_test_interval"):
        low, high = map(metric.text, interval)
        screen.print(f"95 % confidence interval of the network handed over, test: {low} to {high}")
    if sentence := uniform_sentence(summary):
        screen.print(sentence)
    screen.print(
        f"{counted(summary['episodes'], 'episode')}, "
        f"{counted(summary['evaluations'], 'evaluation')} of "
        f"{summary['seconds_per_evaluation']:.2f} s"
    )


def accuracies(summary: Mapping[str, Any]) -> list[tuple[str, float, float | None]]:
    """Return of which network each value of the metric is, on validation and on test images.

    The policy chosen has up to three networks: the one that scored in its episode, the one that was
    fine-tuned where there were finalists, and the one handed over.
    """
    key = metric_of(summary).key
    tuned = {row["episode"]: row[key("tuned_val")] for row in summary.get("finalists", [])}
    # An accuracy target is tried on training images: what episodes score is no validation accuracy.
    scored = None if "accuracy_target" in summary else summary.get(key("episode_val"))
    networks = [
        ("float network", summary.get(key("float_val")), summary.get(key("float_test"))),
        ("as scored in its episode", scored, summary.get(key("episode_test"))),
        ("fine-tuned", tuned.get(summary.get("best_episode")), None),
        ("handed over", summary.get(key("final_val")), summary.get(key("final_test"))),
    ]
    return [(label, val, test) for label, val, test in networks if val is not None]
