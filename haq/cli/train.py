"""``haq train``: train a float network."""

from pathlib import Path
from typing import Annotated

import typer

from haq.cli.options import (
    RUN,
    TRAINING,
    Data,
    Length,
    Metric,
    Model,
    Seed,
    Size,
    Threads,
    Tokenizer,
    Width,
    option,
    threads_for,
)
from haq.cli.terminal.output import warn


def train_command(  # noqa: PLR0913 - one argument an option
    out: Annotated[
        Path, option(RUN, "The weights to write, such as float.safetensors.", metavar="FILE")
    ],
    model: Model = "digits_cnn",
    data: Data = "digits",
    width: Width = 1.0,
    size: Size = None,
    metric: Metric = None,
    tokenizer: Tokenizer = None,
    length: Length = None,
    epochs: Annotated[
        int, option(TRAINING, "Epochs of training.", metavar="N", min=1)
    ] = 30,
    lr: Annotated[
        float,
        option(TRAINING, "Highest learning rate of training.", metavar="RATE", min=1e-9, max=1e3),
    ] = 0.2,
    keep_states: Annotated[
        Path | None,
        option(RUN, "Folder for the weights after every epoch but the last: a route for "
               "haq distill --distill kd:0.9+route:DIR.", metavar="DIR", show_default="none"),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:  # fmt: skip
    """Train a float network."""
    from haq.cli.terminal.progress import progress
    from haq.cli.training import run_training
    from haq.metrics import metric_of
    from haq.runs.job import parse_job

    job = parse_job(
        model=model,
        data=data,
        width=width,
        size=size,
        metric=metric,
        tokenizer=tokenizer,
        length=length,
        seed=seed,
        threads=threads_for(threads, data),
    )
    try:
        with progress() as on_progress:
            summary = run_training(job, out, epochs, lr, on_progress, keep_states)
    except KeyboardInterrupt:
        if not out.with_suffix(".part").exists():
            raise
        warn("interrupted; the same command goes on from the last epoch")
        raise typer.Exit(130) from None
    said = metric_of(summary)
    typer.echo(
        f"validation {said.said} {said.text(summary[said.key('val')])}, "
        f"test {said.said} {said.text(summary[said.key('test')])}; weights in {out}"
    )
