"""``haq distill``: train a network that learns from another one, usually a larger one."""

from pathlib import Path
from typing import Annotated

import typer

from haq.cli.options import (
    NETWORK,
    RUN,
    TRAINING,
    Data,
    Distill,
    Length,
    Metric,
    Seed,
    Size,
    Threads,
    Tokenizer,
    option,
    threads_for,
)
from haq.cli.terminal.output import warn


def distill_command(  # noqa: PLR0913 - one argument an option
    teacher: Annotated[
        str, option(NETWORK, "Network that teaches: a name such as resnet56.", metavar="NAME")
    ],
    student: Annotated[
        str, option(NETWORK, "Network that learns: a name such as resnet20.", metavar="NAME")
    ],
    out: Annotated[
        Path, option(RUN, "The weights to write, such as student.safetensors.", metavar="FILE")
    ],
    teacher_weights: Annotated[
        Path | None,
        option(NETWORK, "Its weights, as haq train writes them.", metavar="FILE",
               show_default="those of an hf: or onnx: model"),
    ] = None,
    student_weights: Annotated[
        Path | None,
        option(NETWORK, "Weights that the student starts from.", metavar="FILE",
               show_default="the model's own, or drawn from the seed"),
    ] = None,
    teacher_width: Annotated[
        float, option(NETWORK, "Width multiplier of the teacher.", metavar="FACTOR")
    ] = 1.0,
    student_width: Annotated[
        float, option(NETWORK, "Width multiplier of the student.", metavar="FACTOR")
    ] = 1.0,
    data: Data = "digits",
    size: Size = None,
    metric: Metric = None,
    tokenizer: Tokenizer = None,
    length: Length = None,
    distill: Distill = None,
    epochs: Annotated[
        int, option(TRAINING, "Epochs of training.", metavar="N", min=1)
    ] = 30,
    lr: Annotated[
        float,
        option(TRAINING, "Highest learning rate of training.", metavar="RATE", min=1e-9, max=1e3),
    ] = 0.05,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:  # fmt: skip
    """Train a network that learns from another one."""
    from haq.cli.distillation import Networks, run_distillation
    from haq.cli.terminal.progress import progress
    from haq.metrics import metric_of
    from haq.runs.job import parse_job

    job = parse_job(
        model=student,
        data=data,
        width=student_width,
        size=size,
        metric=metric,
        tokenizer=tokenizer,
        length=length,
        seed=seed,
        distill=distill,
        threads=threads_for(threads, data),
    )
    networks = Networks(teacher, teacher_width, teacher_weights, student_weights)
    try:
        with progress() as on_progress:
            summary = run_distillation(job, networks, out, epochs, lr, on_progress)
    except KeyboardInterrupt:
        if not out.with_suffix(".part").exists():
            raise
        warn("interrupted; the same command goes on from the last epoch")
        raise typer.Exit(130) from None
    said = metric_of(summary)
    typer.echo(
        f"test {said.said} {said.text(summary[said.key('test')])} "
        f"(teacher {said.text(summary[said.key('teacher_test')])}); weights in {out}"
    )
