"""Print targets, and what layers cost on them."""

from collections.abc import Collection
from typing import Any

from rich.table import Table

from haq.cli.terminal.console import console


def print_targets(targets: list[dict[str, Any]]) -> None:
    """Print what each target is, its quantities and where they come from."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("target", "device", "costs", "bits", "batch"):
        table.add_column(column, overflow="fold", no_wrap=column in ("costs", "batch"))
    for target in targets:
        costs = "\n".join(f"{name} {q['provenance']}" for name, q in target["quantities"].items())
        reference = str(target["batch"]["reference"])
        table.add_row(target["target"], target["device"], costs, target["bits"], reference)
    console().print(table)


def print_costs(costs: dict[str, Any]) -> None:
    """Print the cost of every layer at a few pairs of bits, and the sums."""
    layers = costs["layers"]
    offered = {pair for layer in layers for pair in layer["cost"]}
    pairs = [pair for pair in _shown(offered) if pair in offered] or sorted(offered)[:6]
    title = f"{costs['target']}, batch {costs['batch']}, {costs['unit']}"
    table = Table(title=title, box=None, header_style="bold", pad_edge=False)
    columns = {
        "w{}a{}".format(*pair.split(",")): [layer["cost"].get(pair) for layer in layers]
        for pair in pairs
    }
    counted = [any(pair in layer["cost"] for pair in pairs) for layer in layers]
    cells = [
        [_number(value) for value in (*column, _sum(column, counted))]
        for column in columns.values()
    ]  # fmt: skip
    names = [(layer["name"], layer["kind"]) for layer in layers]
    for place, name in enumerate(("layer", "kind")):
        table.add_column(name, min_width=max(len(texts[place]) for texts in names))
    for name, numbers in zip(columns, cells, strict=True):
        table.add_column(name, justify="right", min_width=max(map(len, numbers)))
    every = ("all" if all(counted) else "all that multiply", "")  # tables are only looked up
    for row in zip([*names, every], *cells, strict=True):
        table.add_row(*row[0], *row[1:])
    screen = console()
    screen.print(table, crop=False)  # a number cut off is worse than a line that is wrapped
    for name in sorted(set(layers[0]) - {"name", "kind", "cost"} if layers else ()):
        if not name.startswith("raw"):
            sums = ((pair, [layer[name].get(pair) for layer in layers]) for pair in pairs)
            whole = [
                f"{_number(sum(values))} at w{{}}a{{}}".format(*pair.split(","))
                for pair, values in sums if None not in values
            ]  # fmt: skip
            screen.print(f"{name}, all layers: {', '.join(whole)}", highlight=False)
    classes = ", ".join(f"{name} {origin}" for name, origin in costs["provenance"].items())
    screen.print(f"where the numbers come from: {classes}", highlight=False)


def _shown(offered: Collection[str]) -> tuple[str, ...]:
    """Return pairs worth a column; where activations have 8 bits alone, more of the weights."""
    if {pair.split(",")[1] for pair in offered} == {"8"}:
        return ("8,8", "6,8", "4,8", "3,8", "2,8")
    return ("32,32", "8,8", "8,4", "4,8", "6,6", "4,4", "2,2")


def _sum(column: list[float | None], counted: list[bool]) -> float | None:
    """Return the sum over the layers that count; None where one of them has no number."""
    values = [value for value, counts in zip(column, counted, strict=True) if counts]
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:,.4g}"
