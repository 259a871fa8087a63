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


def print_targets(targets: list[dict[str, Any]]) -> None:
    """Print what each target is, its quantities and where they come from."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("target", "device", "costs", "bits", "batch"):
        table.add_column(column, overflow="fold", no_wrap=column in ("costs", "batch"))
    for target in targets:
        costs = "\n".join(f"{name} {q['provenance']}" for name, q in target["quantities"].items())
        reference = str(target["batch"]["reference"])
        table.add_row(target["target"], target["device"], costs, target["bits"], reference)
    Console().print(table)


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


def print_costs(costs: dict[str, Any]) -> None:
    """Print the cost of every layer at a few pairs of bits, and the sums."""
    layers = costs["layers"]
    offered = {pair for layer in layers for pair in layer["cost"]}
    shown = ("32,32", "8,8", "8,4", "4,8", "6,6", "4,4", "2,2")
    pairs = [pair for pair in shown if pair in offered] or sorted(offered)[:6]
    title = f"{costs['target']}, batch {costs['batch']}, {costs['unit']}"
    table = Table(title=title, box=None, header_style="bold", pad_edge=False)
    columns = {
        "w{}a{}".format(*pair.split(",")): [layer["cost"].get(pair) for layer in layers]
        for pair in pairs
    }
    cells = [
        [_number(value) for value in (*column, None if None in column else sum(column))]
        for column in columns.values()
    ]
    names = [(layer["name"], layer["kind"]) for layer in layers]
    for place, name in enumerate(("layer", "kind")):
        table.add_column(name, min_width=max(len(texts[place]) for texts in names))
    for name, numbers in zip(columns, cells, strict=True):
        table.add_column(name, justify="right", min_width=max(map(len, numbers)))
    for row in zip([*names, ("all", "")], *cells, strict=True):
        table.add_row(*row[0], *row[1:])
    console = Console()
    console.print(table, crop=False)  # a number cut off is worse than a line that is wrapped
    classes = ", ".join(f"{name} {found}" for name, found in costs["provenance"].items())
    console.print(f"where the numbers come from: {classes}", highlight=False)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:,.4g}"


def print_onnx(summary: dict[str, Any]) -> None:
    """Print what an exported file is worth in ONNX Runtime."""
    console = Console(highlight=False, soft_wrap=True)
    kernels = ", ".join(f"{count} {kernel}" for kernel, count in summary["kernels"].items())
    console.print(f"layers run in {kernels}")
    if "test_images" in summary:
        console.print(
            f"accuracy on {summary['test_images']} test images: ONNX Runtime "
            f"{summary['onnxruntime_test_accuracy']:.2%}, PyTorch "
            f"{summary['torch_test_accuracy']:.2%}; same answer for "
            f"{summary['top1_agreement']:.2%} of {summary['compared_images']}"
        )
    times = summary["latency"]
    own = times["this"]["value"]
    shares = ", ".join(
        f"{own / times[name]['value']:.2f} of {label}'s {times[name]['value']:,.0f} us"
        for name, label in (("fp32", "the float network"), ("quantize_static", "quantize_static"))
    )
    console.print(
        f"latency of one image, {times['threads']} thread ({times['clock']}, "
        f"{times['statistic']}): {own:,.0f} us; {shares}"
    )


def print_verified(file: Path, found: dict[str, Any]) -> None:
    """Print what could be found out about an ONNX file."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{file}: {found['bytes'] / 1000:.1f} kB, valid ONNX, loads in ONNX Runtime")
    kernels = ", ".join(f"{count} {kernel}" for kernel, count in found["kernels"].items())
    console.print(f"every layer runs as its bits claim: {kernels}")
    exact = f"{found['equal_images']} of {found['simulated_images']} images equal to the last bit"
    if not found["all_integer"]:
        exact += f", largest difference {found['largest_difference']:.2g} (some layers are float)"
    console.print(f"integers worked out in numpy: {exact}")
    if "test_accuracy" in found:
        promised = found["promised_test_accuracy"]
        text = "" if promised is None else f" (its run measured {promised:.2%})"
        console.print(
            f"accuracy on {found['test_images']} test images: {found['test_accuracy']:.2%}{text}"
        )
