"""``haq profile``: measure a network on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from haq.cli.options import (
    Groups,
    Length,
    MeasuredData,
    MeasuredSize,
    MeasuredWeights,
    Model,
    Schemes,
    Seed,
    Tokenizer,
    Width,
    formats_of,
    option,
)  # fmt: skip

MEASURING = "Measuring"


def profile_command(  # noqa: PLR0913 - one argument an option
    model: Model,
    out: Annotated[
        Path, option(MEASURING, "The profile to write, such as my-machine.json.", metavar="FILE")
    ],
    weights: MeasuredWeights = None,
    data: MeasuredData = None,
    width: Width = 1.0,
    size: MeasuredSize = None,
    seed: Seed = 0,
    tokenizer: Tokenizer = None,
    length: Length = None,
    scheme: Schemes = None,
    groups: Groups = None,
    provider: Annotated[
        str, option(MEASURING, "Who computes: cpu, cuda or tensorrt.", metavar="NAME")
    ] = "cpu",
    floats: Annotated[
        str,
        option(MEASURING, "What float layers compute in, on a GPU.", metavar="float32|float16"),
    ] = "float32",
    threads: Annotated[
        int, option(MEASURING, "CPU threads of one operator.", metavar="N", min=1)
    ] = 1,
    batch: Annotated[
        int, option(MEASURING, "Images computed at once.", metavar="N", min=1)
    ] = 1,
    rounds: Annotated[
        int, option(MEASURING, "Rounds of measuring, at most.", metavar="N", min=1)
    ] = 150,
    cpu: Annotated[
        str,
        option(MEASURING, "CPUs the files must be right on: any x86, or those with vnni, which "
               "alone are right at w8a8.", metavar="any|vnni")
    ] = "any",
    energy: Annotated[
        bool, typer.Option("--energy", help="Measure energy too, where there is a counter: some "
                           "four minutes more.", rich_help_panel=MEASURING)
    ] = False,
) -> None:  # fmt: skip
    """Measure a network in ONNX Runtime on this machine, for --target FILE.

    With --scheme and --groups the kernels of these number formats are measured too, each in a
    network of its own and in mixed ones.
    """
    from haq.cli.terminal.progress import progress
    from haq.errors import HaqError
    from haq.hw_profiles.measure.onnx_runtime import Setup, check_floats, check_provider
    from haq.runs.profiling.energy import meter_of
    from haq.runs.profiling.profile import check_cpu, check_out, describe, run_profile
    from haq.runs.profiling.subject import subject

    check_floats(floats, provider)
    check_provider(provider)
    meter = meter_of(provider) if energy else None
    runs_on = check_cpu(cpu)
    if provider != "cpu" and runs_on != "any":
        raise HaqError(
            f"--cpu {cpu} is of kernels of CPUs, and --provider {provider} has others; leave it out"
        )
    check_out(out)
    formats = formats_of(scheme, groups)
    asked = subject(
        model, weights=weights, data=data, width=width, size=size, seed=seed, tokenizer=tokenizer,
        length=length, formats=formats,
    )  # fmt: skip
    setup = Setup(provider, threads, batch, floats)
    with progress() as on_progress:
        profile = run_profile(asked, out, setup, rounds, seed, on_progress, runs_on, meter)
    typer.echo(describe(profile))
    typer.echo(f"{out}: haq search --model {model} --target {out} --budget latency=70%fp32")
