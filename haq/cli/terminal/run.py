"""Print a run or a cost table in the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from haq.allocation.costs import UNITS

BLOCKS = " ▁▂▃▄▅▆▇█"
"""One sign for 0 to 8 bits."""


def print_run(folder: Path, summary: dict[str, Any]) -> None:
    """Print the per-layer table, the bits as a chart, the budgets and the accuracies."""
    console = Console()
    quantities = list(dict.fromkeys(budget["quantity"] for budget in summary["budgets"]))
    shown = [q if q in _PER_LAYER else "size" for q in quantities]
    console.print(_layer_table(summary["layers"], list(dict.fromkeys(shown))))
    for row, label in (("weight_bits", "weights    "), ("act_bits", "activations")):
        bars = "".join(BLOCKS[min(layer[row], 8)] for layer in summary["layers"])
        console.print(f"{label}  {bars}  2 to 8 bits, in order of execution", highlight=False)
    for budget in summary["budgets"]:
        console.print(
            f"budget {budget['asked']}: {budget['achieved']:,.6g} of {budget['limit']:,.6g} "
            f"{budget['unit']}",
            highlight=False,
        )
        console.print(f"  {_origin(summary, budget['quantity'])}", highlight=False)
    _print_measured(console, summary.get("measured_latency"))
    _print_accuracies(console, summary)
    console.print(f"run: {folder}", highlight=False, soft_wrap=True)


def _origin(summary: dict[str, Any], quantity: str) -> str:
    """Say how a cost was found and how far it can be trusted."""
    if quantity in UNITS:
        return "counted"
    origin = summary.get("cost_origin")
    if origin is None:
        return "the run does not say where this number comes from"
    found = origin["quantities"][quantity]
    layers = ", ".join(f"{count} {method}" for method, count in found["methods"].items())
    edges = f", {found['edges']} edges fitted" if found["edges"] else ""
    error = "" if found["error"] is None else f" (totals within {found['error']:.1%})"
    return (
        f"{found['provenance']}{error}; layers: {layers}{edges}; profile {origin['profile']} "
        f"{origin['version'][:12]}, batch {origin['batch']}"
    )


_PER_LAYER = ("latency", "energy", "bops", "size")


def _print_measured(console: Console, latency: dict[str, Any] | None) -> None:
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
    console.print(text, highlight=False, soft_wrap=True)


_HOW = {
    "best": "the best policy keeps it",
    "next best": "better policies measured over the budget",
    "lowered": "all tried measured over the budget, so the best one was lowered",
}


def _layer_table(layers: list[dict[str, Any]], quantities: list[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer")
    table.add_column("kind")
    for column in ("w bits", "a bits", "params", "MACs"):
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
            layer["name"], layer["kind"], str(layer["weight_bits"]), str(layer["act_bits"]),
            f"{layer['params']:,}", f"{layer['macs']:,}", *shares,
        )  # fmt: skip
    return table


def _share(layers: list[dict[str, Any]], layer: dict[str, Any], column: str, quantity: str) -> str:
    values = [other[column].get(quantity) for other in layers]
    if any(value is None for value in values) or not sum(values):
        return "-"
    return f"{layer[column][quantity] / sum(values):.1%}"


def _print_accuracies(console: Console, summary: dict[str, Any]) -> None:
    accuracies = {
        "float": ("float_val_accuracy", "float_test_accuracy"),
        "best episode": ("episode_val_accuracy", "episode_test_accuracy"),
        "finished": ("final_val_accuracy", "final_test_accuracy"),
    }
    for label, (val, test) in accuracies.items():
        if val in summary:
            text = f"{label:>12}: validation {summary[val]:.2%}"
            text += f", test {summary[test]:.2%}" if test in summary else ""
            console.print(text, highlight=False)
    console.print(
        f"{summary['episodes']} episodes, {summary['evaluations']} evaluations of "
        f"{summary['seconds_per_evaluation']:.2f} s",
        highlight=False,
    )
