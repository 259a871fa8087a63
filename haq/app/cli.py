"""The command line: heavy imports stand inside the commands, so ``haq --help`` is instant."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from haq.errors import HaqError

if TYPE_CHECKING:
    from haq.app.search import OnProgress

app = typer.Typer(
    help="Find how many bits each layer of a network should have, under a budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Typer's base of all wrong options, which it does not name: in some releases it is click's.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

Model = Annotated[str, typer.Option(help="resnet20, mobilenet_v2, … or package.module:factory.")]
Data = Annotated[
    str, typer.Option(help="digits, cifar10:DIR, folder:DIR or package.module:factory.")
]
Width = Annotated[float, typer.Option(help="Width multiplier (MobileNets).")]
Size = Annotated[int | None, typer.Option(help="Height and width of folder images; 224.")]
Seed = Annotated[int, typer.Option(help="Decides everything random.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: all cores, digits: 1.")]


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    sys.path.insert(0, os.getcwd())  # so that --model mymodule:factory finds what lies here
    # Spinning threads starve each other where processes share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        typer.echo(f"haq: {error.format_message()}", err=True)  # type: ignore[attr-defined]
        sys.exit(2)
    except HaqError as error:
        typer.echo(f"haq: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("haq: interrupted", err=True)
        sys.exit(130)


@app.command("train")
def train_command(  # noqa: PLR0913 - one argument an option
    out: Annotated[Path, typer.Option(help="Where to write the weights (.safetensors).")],
    model: Model = "digits_cnn",
    data: Data = "digits",
    width: Width = 1.0,
    size: Size = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs.")] = 30,
    lr: Annotated[float, typer.Option(min=1e-9, max=1e3, help="Highest learning rate.")] = 0.2,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train a float network."""
    from haq.app.job import parse_job
    from haq.app.train import run_training

    job = parse_job(
        model=model, data=data, width=width, size=size, seed=seed, threads=_threads(threads, data)
    )
    with _progress() as on_progress:
        summary = run_training(job, out, epochs, lr, on_progress)
    typer.echo(
        f"validation accuracy {summary['val_accuracy']:.2%}, "
        f"test accuracy {summary['test_accuracy']:.2%}; weights in {out}"
    )


@app.command("search")
def search_command(  # noqa: PLR0913 - one argument an option
    context: typer.Context,
    model: Model = "digits_cnn",
    data: Data = "digits",
    width: Width = 1.0,
    size: Size = None,
    weights: Annotated[Path | None, typer.Option(help="Float weights to start from.")] = None,
    target: Annotated[str | None, typer.Option(help="bismo-cloud, bismo-edge.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images the target computes at once.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="avg_weight_bits=3, size=90kB, latency=50%w8a8, …; may be repeated."),
    ] = None,
    agent: Annotated[str, typer.Option(help="ddpg, random or uniform.")] = "ddpg",
    paper: Annotated[bool, typer.Option("--paper", help="DDPG to the letter.")] = False,
    episodes: Annotated[int, typer.Option(min=1, help="Policies to try.")] = 60,
    weight_bits: Annotated[str, typer.Option(help="Range of the weights' bits.")] = "2..8",
    act_bits: Annotated[str | None, typer.Option(help="2 to 8, or search.")] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(help="NAME=BITS, or none; default: first and last layer at 8."),
    ] = None,
    clipping: Annotated[str, typer.Option(help="kl, mse, percentile or max.")] = "kl",
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One scale a layer, not one a channel.")
    ] = False,
    calibration_images: Annotated[int, typer.Option(help="Images for the clips.")] = 512,
    train_images: Annotated[int, typer.Option(help="Of an episode's epoch.")] = 5000,
    val_images: Annotated[int, typer.Option(help="Of an episode's score.")] = 2500,
    lr: Annotated[float, typer.Option(help="Of fine-tuning.")] = 0.02,
    distill: Annotated[bool, typer.Option(help="Learn from the float network too.")] = True,
    final_epochs: Annotated[
        int | None, typer.Option(help="For the policy found; default: 1, digits: 30.")
    ] = None,
    float_epochs: Annotated[
        int | None, typer.Option(help="Train the float network first; digits: 60.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[str | None, typer.Option(help="Name or folder of the run.")] = None,
    resume: Annotated[str | None, typer.Option(help="A run to go on with.")] = None,
    threads: Threads = None,
) -> None:
    """Search the bits of every layer, fine-tune the best policy, write the run."""
    from haq.app import results
    from haq.app.job import parse_job
    from haq.app.search import run

    if resume is not None:
        _check_alone(context)
        folder = results.find_folder(resume)
        job = results.read_job(folder)
    else:
        job = parse_job(
            model=model, data=data, width=width, size=size, weights=weights, target=target,
            batch=batch,
            agent=agent, paper=paper, episodes=episodes, weight_bits=_range(weight_bits),
            act_bits=_bits_or_search(act_bits), pins=_pins(pin), clipping=clipping,
            per_channel=not per_tensor, calibration_images=calibration_images,
            train_images=train_images, val_images=val_images, lr=lr, distill=distill,
            final_epochs=final_epochs, float_epochs=float_epochs, seed=seed,
            threads=_threads(threads, data),
            **({"budgets": tuple(budget)} if budget else {}),
        )  # fmt: skip
        folder = results.new_folder(job, out)
    try:
        with _progress() as on_progress:
            summary = run(job, folder, on_progress)
    except KeyboardInterrupt:
        if not (folder / "job.json").exists():
            raise
        _stop(folder)
    _show(folder, summary)
    if summary["state"] == "interrupted":
        _stop(folder)


@app.command("show")
def show_command(run: Annotated[str, typer.Argument(help="A run's name or folder.")]) -> None:
    """Show what a run found, layer by layer."""
    from haq.app import results

    folder = results.find_folder(run)
    if not (folder / "summary.json").exists():
        raise HaqError(f"run {folder} has no finished episode yet: haq search --resume {folder}")
    _show(folder, results.read_json(folder / "summary.json"))


@app.command("cost")
def cost_command(
    model: Model,
    target: Annotated[str, typer.Option(help="bismo-cloud, bismo-edge.")],
    batch: Annotated[int | None, typer.Option(help="Images computed at once.")] = None,
    width: Width = 1.0,
    size: Annotated[int | None, typer.Option(help="Height and width of an image.")] = None,
    classes: Annotated[int | None, typer.Option(help="Classes of the last layer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every pair of bits, as JSON.")] = False,
) -> None:
    """Print what each layer costs on a target."""
    from haq.app.cost import cost_table

    table = cost_table(model, target, batch=batch, width=width, size=size, classes=classes)
    if as_json:
        typer.echo(json.dumps(table))
    else:
        from haq.app.show import print_costs

        print_costs(table)


def _stop(folder: Path) -> NoReturn:
    typer.echo(f"haq: interrupted; go on with: haq search --resume {folder}", err=True)
    raise typer.Exit(130)


def _show(folder: Path, summary: dict[str, Any]) -> None:
    from haq.app.show import print_run

    print_run(folder, summary)


def _check_alone(context: typer.Context) -> None:
    """Refuse options beside --resume: a run goes on as it was asked for."""
    given = [
        name
        for name in context.params
        if name != "resume" and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise HaqError(f"--resume goes on with a run as it was asked for; leave out {options}")


def _threads(asked: int | None, data: str) -> int:
    """Return how many threads to use: as asked, or as many as there are cores for this process.

    Networks for the digits are so small that a second thread only waits for the first.
    """
    if asked is not None and asked < 1:
        raise HaqError(f"threads {asked}: give at least 1")
    return asked or (1 if data == "digits" else len(os.sched_getaffinity(0)))


def _range(text: str) -> tuple[int, int]:
    low, dots, high = text.partition("..")
    try:
        return int(low), int(high if dots else low)
    except ValueError:
        raise HaqError(f"weight-bits {text!r}: write a range like 2..8, or one number") from None


def _bits_or_search(text: str | None) -> int | str | None:
    if text is None or text == "search":
        return text
    try:
        return int(text)
    except ValueError:
        raise HaqError(f"act-bits {text!r}: give 2 to 8, or search") from None


def _pins(texts: list[str] | None) -> dict[str, int] | None:
    if not texts:
        return None
    if texts == ["none"]:
        return {}
    pins = {}
    for text in texts:
        name, _, bits = text.rpartition("=")
        if not name or not bits.isdecimal():
            raise HaqError(f"pin {text!r}: write NAME=BITS, or none alone")
        pins[name] = int(bits)
    return pins


@contextmanager
def _progress() -> "Iterator[OnProgress]":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from haq.app.search import Progress as Where

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def on_progress(where: Where) -> None:
            if where.stage not in tasks:
                tasks[where.stage] = bars.add_task(where.stage, total=where.total, note="")
            bars.update(
                tasks[where.stage], completed=where.done, total=where.total, note=where.note
            )

        yield on_progress
