"""``haq prune``: take weights, channels or ranks out of a network, and train what is left."""

from pathlib import Path
from typing import Annotated

import typer

from haq.cli.ignored import check_pruning
from haq.cli.options import (
    NETWORK,
    RUN,
    TRAINING,
    Data,
    Distill,
    Length,
    Metric,
    Model,
    Seed,
    Size,
    Threads,
    Tokenizer,
    Width,
    given,
    option,
    threads_for,
)
from haq.cli.terminal.output import warn
from haq.errors import HaqError

PRUNING = "Pruning"


def prune_command(  # noqa: PLR0913 - one argument an option
    context: typer.Context,
    out: Annotated[
        Path, option(RUN, "The weights to write, such as pruned.safetensors.", metavar="FILE")
    ],
    weights: Annotated[
        Path | None,
        option(NETWORK, "Float weights, as haq train or haq prune writes them.", metavar="FILE",
               show_default="those of an hf: or onnx: model"),
    ] = None,
    filters: Annotated[
        str | None,
        option(PRUNING, "Share of each layer's channels that stays; the others are removed. Or "
               "search: each layer's own, chosen with bits within --budget.", metavar="SHARE",
               show_default="none are removed"),
    ] = None,
    sparsity: Annotated[
        float | None,
        option(PRUNING, "Share of the weights that becomes zero, step by step.", metavar="SHARE",
               show_default="none do"),
    ] = None,
    factorise: Annotated[
        str | None,
        option(PRUNING, "Put layers of low rank in: linear, separable, tucker, depthwise or "
               "two3x3.", metavar="KIND", show_default="none are put in"),
    ] = None,
    layer: Annotated[
        list[str] | None,
        option(PRUNING, "A layer that is pruned, with its own share or ranks: NAME, NAME=SHARE or "
               "NAME=RANK,RANK. May be repeated.", metavar="NAME=VALUE",
               show_default="all that suit"),
    ] = None,
    energy: Annotated[
        float, option(PRUNING, "Share of a layer's energy that its ranks hold.", metavar="SHARE")
    ] = 0.9,
    scope: Annotated[
        str, option(PRUNING, "Whether each layer has the sparsity, or the network as a whole: "
                    "layer or network.", metavar="NAME")
    ] = "layer",
    residual: Annotated[
        bool, option(PRUNING, "Remove channels too that several layers compute together.",
                     "--residual")
    ] = False,
    channel_multiple: Annotated[
        int, option(PRUNING, "With --filters: the number of channels that stay is a multiple of "
                    "this. Files are faster in ONNX Runtime where it is 16.", min=1,
                    metavar="CHANNELS")
    ] = 1,
    budget: Annotated[
        list[str] | None,
        option(PRUNING, "Limit within which --filters search chooses, such as size=20kB or "
               "latency=50%w8a8. May be repeated.", metavar="LIMIT", show_default="none"),
    ] = None,
    target: Annotated[
        str | None,
        option(PRUNING, "Hardware that budgets are counted for, as for haq search.",
               metavar="NAME", show_default="none: size and operations only"),
    ] = None,
    model: Model = "digits_cnn",
    data: Data = "digits",
    width: Width = 1.0,
    size: Size = None,
    metric: Metric = None,
    tokenizer: Tokenizer = None,
    length: Length = None,
    distill: Distill = None,
    epochs: Annotated[
        int, option(TRAINING, "Epochs of training.", metavar="N", min=0)
    ] = 10,
    lr: Annotated[
        float,
        option(TRAINING, "Highest learning rate of training.", metavar="RATE", min=1e-9, max=1e3),
    ] = 0.02,
    measure: Annotated[
        bool, option(RUN, "Measure the latency of both networks in ONNX Runtime.")
    ] = True,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:  # fmt: skip
    """Take weights, channels or ranks out of a network, and train what is left."""
    from haq.cli.terminal.progress import progress
    from haq.cli.training import check_out
    from haq.metrics import metric_of
    from haq.runs.job import parse_job
    from haq.runs.pruning import Pruning, run_pruning

    kinds = {"filters": filters, "sparsity": sparsity, "factorise": factorise}
    chosen = [name for name, value in kinds.items() if value is not None]
    if len(chosen) != 1:
        raise HaqError(
            "give one of --filters, --sparsity and --factorise; the next one prunes the file that "
            "the first one wrote"
        )
    (what,) = chosen
    search = filters == "search"
    if search != bool(budget):
        raise HaqError("--filters search chooses within --budget: give both of them, or neither")
    check_pruning(given(context), what)
    value = energy if what == "factorise" else kinds[what]
    share = 1.0 if search else _share("energy" if what == "factorise" else what, value)
    if scope not in ("layer", "network"):
        raise HaqError(f"--scope {scope}: give layer or network")
    check_out(out)
    job = parse_job(
        model=model, data=data, width=width, size=size, seed=seed, distill=distill,
        metric=metric, tokenizer=tokenizer, length=length, weights=weights,
        threads=threads_for(threads, data), target=target,
        budgets=tuple(budget) if budget else None,
    )  # fmt: skip
    asked = Pruning(
        what,  # type: ignore[arg-type]
        share, _layers(layer or (), what, share), factorise or "", scope,  # type: ignore[arg-type]
        residual, search, channel_multiple,
    )  # fmt: skip
    with progress() as on_progress:
        summary = run_pruning(job, asked, out, epochs, lr, on_progress, measure)
    for note in summary["notes"]:
        warn(note)
    before, after, said = summary["before"], summary["after"], metric_of(summary)
    key = said.key("test")
    latency = summary.get("latency_us")
    us = f"latency {latency['before']:.1f} -> {latency['after']:.1f} us, " if latency else ""
    typer.echo(
        f"weights {before['non_zeros']} -> {after['non_zeros']} of {after['weights']}, "
        f"multiplications {before['macs']} -> {after['macs']}, {us}"
        f"test {said.said} {said.text(before[key])} -> {said.text(after[key])}; "
        f"weights in {out}"
    )


def _share(what: str, value: object) -> float:
    try:
        share = float(str(value))
    except ValueError:
        share = 0.0
    if not 0 < share <= 1 or (what == "sparsity" and share == 1):
        most = "below 1" if what == "sparsity" else "at most 1"
        raise HaqError(f"--{what} {value}: give a share above 0 and {most}")
    return share


def _layers(texts: "list[str] | tuple[str, ...]", what: str, share: float) -> dict[str, object]:
    layers: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name in layers:
            raise HaqError(f"--layer {text}: {name} was named before; name each layer once")
        try:
            if what == "factorise":
                layers[name] = [int(part) for part in value.split(",")] if equals else None
            else:
                layers[name] = float(value) if equals else share
        except ValueError:
            raise HaqError(f"--layer {text}: write NAME, NAME=SHARE or NAME=RANK,RANK") from None
    return layers
