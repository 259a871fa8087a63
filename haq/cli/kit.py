"""``haq kit``: a profile of a device of your own."""

from pathlib import Path
from typing import Annotated

import typer

from haq.cli.options import (
    MeasuredData,
    MeasuredSize,
    MeasuredWeights,
    Model,
    Seed,
    Width,
    given,
    option,
    width_range,
)
from haq.cli.terminal.output import with_output

KIT, DEVICE = "Kit", "Device"

MOST_ACT_BITS = 8

NO_GAIN = 0.95
"""Share of the latency at the most bits above which the fewest gain hardly any."""

FAR_OFF = 0.1
"""Mean error of predictions above which a profile is not worth choosing by."""

kit_app = typer.Typer(help="Make a profile of a device of your own.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The kit, as haq kit make writes it.", metavar="KIT")]


@kit_app.command("make")
@with_output
def make_command(  # noqa: PLR0913 - one argument an option
    model: Model,
    out: Annotated[Path, option(KIT, "The folder to write.", metavar="DIR")],
    weights: MeasuredWeights = None,
    data: MeasuredData = None,
    width: Width = 1.0,
    size: MeasuredSize = None,
    seed: Seed = 0,
    weight_bits: Annotated[
        str, option(KIT, "Widths of weights that searches may choose.", metavar="A..B")
    ] = "2..8",
    act_bits: Annotated[
        str, option(KIT, "Widths of activations that searches may choose.", metavar="A[,B...]")
    ] = "8",
    floats: Annotated[
        bool, typer.Option("--floats", help="Measure float layers too: searches may leave some so.",
                           rich_help_panel=KIT)
    ] = False,
    batch: Annotated[int, option(KIT, "Images computed at once.", metavar="N", min=1)] = 1,
    cpu: Annotated[
        str,
        option(KIT, "What the files are for: any x86 CPU, or those that add 8-bit products in 32 "
               "bits (vnni), as ARM does too.", metavar="any|vnni")
    ] = "any",
) -> None:  # fmt: skip
    """Write a folder with all that has to be measured on a device, and what measures it."""
    from haq.cli.terminal.progress import progress
    from haq.errors import HaqError, look_up
    from haq.runs.kit.make import RUNNER, Choices, check_folder, make_kit
    from haq.runs.profiling.profile import CPUS
    from haq.runs.profiling.subject import subject

    low, high = width_range(weight_bits)
    if not 2 <= low < high <= 8:
        raise HaqError(f"weight-bits {weight_bits}: give at least two widths, within 2..8")
    acts = act_widths(act_bits)
    runs_on = look_up({name: name for name in CPUS}, "cpu", cpu)
    check_folder(out)
    asked = subject(model, weights=weights, data=data, width=width, size=size, seed=seed)
    with progress() as on_progress:
        contents = make_kit(
            asked,
            out,
            Choices(range(low, high + 1), acts, floats),
            batch,
            runs_on,
            seed,
            on_progress=on_progress,
        )
    alone = sum("shape" in about for about in contents.files.values())
    typer.echo(
        f"{out}: {alone} files of single layers ({len(contents.shapes)} shapes), "
        f"{len(contents.files) - alone} networks. Copy it to the device and run {RUNNER} there "
        f"(or haq kit run {out} --ssh HOST), then haq kit read {out} --out board.json"
    )


def act_widths(text: str) -> list[int]:
    """Return widths of activations, the fewest bits first.

    Raises:
        HaqError: They are not numbers from 2 to 8.

    >>> act_widths("8,4")
    [4, 8]
    """
    from haq.errors import HaqError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 2 <= int(part) <= MOST_ACT_BITS for part in parts):
        raise HaqError(f"act-bits {text}: give widths of 2 to 8 with commas between, such as 4,8")
    return sorted(set(map(int, parts)))


@kit_app.command("run")
def run_command(
    context: typer.Context,
    kit: Folder,
    ssh: Annotated[
        str | None,
        option(DEVICE, "Machine to copy the kit to, run it on, and fetch the figures from.",
               metavar="HOST", show_default="this machine"),
    ] = None,
    python: Annotated[
        str, option(DEVICE, "Python of that machine.", metavar="NAME")
    ] = "python3",
    command: Annotated[
        str | None,
        option(DEVICE, "A program that prints the microseconds of {file}, instead of ONNX Runtime.",
               metavar="TEXT"),
    ] = None,
    threads: Annotated[
        int, option(DEVICE, "CPU threads of one operator.", metavar="N", min=1)
    ] = 1,
    rounds: Annotated[
        int, option(DEVICE, "How often each file is measured.", metavar="N", min=1)
    ] = 5,
    timeout: Annotated[
        int, option(DEVICE, "Seconds that a program of --command may take.", metavar="N", min=1)
    ] = 600,
) -> None:  # fmt: skip
    """Measure a kit, here or over ssh; given again, it goes on where it was."""
    from haq.errors import HaqError
    from haq.runs.kit.device import run_kit

    if ssh is None and "python" in given(context):
        raise HaqError(
            f"--python {python} is of the machine of --ssh, and there is none; leave it out"
        )
    if command is None and "timeout" in given(context):
        raise HaqError(f"--timeout {timeout} is of --command, and there is none; leave it out")
    options = ["--threads", str(threads), "--rounds", str(rounds)]
    if command is not None:
        options += ["--command", command, "--timeout", str(timeout)]
    run_kit(kit, ssh, python, options)


@kit_app.command("read")
def read_command(
    kit: Folder,
    out: Annotated[
        Path, option(KIT, "The profile to write, such as board.json.", metavar="FILE")
    ],
) -> None:  # fmt: skip
    """Make a profile of what was measured, and say how far its predictions are off."""
    from haq.files import write_text
    from haq.hw_profiles.document import write_json
    from haq.runs.kit.read import read_kit
    from haq.runs.profiling.profile import check_out, validated

    check_out(out)
    read = read_kit(kit, out.stem)
    write_text(out, write_json(read.profile))
    typer.echo(read.profile.title)
    typer.echo(validated(read.validation))
    if read.validation.mean_error > FAR_OFF:
        typer.echo(
            f"that is far off (above {FAR_OFF:.0%}): do not choose by this profile; measure again "
            "on a quiet device, with more rounds"
        )
    typer.echo(f"{read.rounds} rounds; the reference drifted by {read.drift:+.1%}")
    of_uniform = ", ".join(f"{bits} {us:,.1f}" for bits, us in read.uniform.items())
    typer.echo(f"us of the network with the same bits everywhere: {of_uniform}")
    most, *_, least = [bits for bits in read.uniform if not bits.floats]
    if read.uniform[least] > NO_GAIN * read.uniform[most]:
        typer.echo("fewer bits hardly gain time on this device: they gain size, by --budget size")
    typer.echo(f"{out}: haq search --target {out} --budget latency=90%{most}")
