"""``haq search``: find the bits of every layer, fine-tune the best policy, write the run."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from haq.cli import completion
from haq.cli.config import read_config
from haq.cli.ignored import check_used, check_workers, unbudgeted
from haq.cli.options import (
    BITS,
    HARDWARE,
    NETWORK,
    OUTPUT,
    QUANTIZATION,
    RUN,
    SEARCH,
    TRAINING,
    Data,
    Distill,
    Groups,
    Length,
    Metric,
    Model,
    Schemes,
    Seed,
    Size,
    Threads,
    Tokenizer,
    Track,
    Width,
    check_alone,
    given,
    groups_of,
    option,
    threads_for,
    width_range,
)
from haq.cli.terminal.output import warn
from haq.cli.track import trackers_of
from haq.errors import HaqError


def search_command(  # noqa: PLR0913 - one argument an option
    context: typer.Context,
    model: Model = "digits_cnn",
    data: Data = "digits",
    weights: Annotated[
        Path | None,
        option(NETWORK, "Float weights to start from, as haq train writes them.", metavar="FILE",
               show_default="none: see --float-epochs"),
    ] = None,
    float_epochs: Annotated[
        int | None,
        option(NETWORK, "Epochs in which the float network is trained first.", metavar="N",
               show_default="60 for digits; others need --weights"),
    ] = None,
    width: Width = 1.0,
    size: Size = None,
    metric: Metric = None,
    tokenizer: Tokenizer = None,
    length: Length = None,
    target: Annotated[
        str | None,
        option(HARDWARE, "Name that haq targets lists, or FILE.json, or table:FILE.csv.",
               metavar="NAME", show_default="none: size and operations only",
               autocompletion=completion.targets),
    ] = None,
    batch: Annotated[
        int | None,
        option(HARDWARE, "Images that the target computes at once.", metavar="N",
               show_default="the target's own"),
    ] = None,
    budget: Annotated[
        list[str] | None,
        option(HARDWARE, "Limit such as avg_weight_bits=3, size=90kB or latency=50%w8a8. "
               "May be repeated.", metavar="LIMIT", show_default="avg_weight_bits=3",
               autocompletion=completion.among(completion.QUANTITIES)),
    ] = None,
    max_drop: Annotated[
        float | None,
        option(HARDWARE, "Percentage points of accuracy that may be lost, for the least cost: "
               "verified with 95 % confidence.", metavar="POINTS",
               show_default="none: see --budget"),
    ] = None,
    minimise: Annotated[
        str | None,
        option(HARDWARE, "What is to cost the least with --max-drop.", metavar="QUANTITY",
               show_default="latency with a target, else size"),
    ] = None,
    weight_bits: Annotated[
        str, option(BITS, "Range of the weights' bits.", metavar="LOW..HIGH")
    ] = "2..8",
    act_bits: Annotated[
        str | None,
        option(BITS, "Bits of all activations, 2 to 8, or search.", metavar="BITS",
               show_default="search for latency, energy and bops; else 8"),
    ] = None,
    scheme: Schemes = None,
    groups: Groups = None,
    widths: Annotated[
        str | None,
        option(BITS, "Shares of a layer's channels that may stay, such as 1,.75,.5,.25: they are "
               "chosen with the bits, and the other channels removed.", metavar="SHARES",
               show_default="all channels stay"),
    ] = None,
    channel_multiple: Annotated[
        int,
        option(BITS, "With --widths: the number of channels that stay is a multiple of this. Files "
               "are faster in ONNX Runtime where it is 16.", min=1, metavar="CHANNELS"),
    ] = 1,
    pin: Annotated[
        list[str] | None,
        option(BITS, "Bits of one layer, as NAME=BITS, or none. May be repeated.",
               metavar="LAYER=BITS", show_default="first and last layer at 8"),
    ] = None,
    agent: Annotated[
        str | None,
        option(SEARCH, "Agent that proposes policies: guided, trust, ilp, ddpg, random, uniform or "
               "package.module:Class.",
               metavar="NAME", show_default="guided; ddpg with --paper",
               autocompletion=completion.among(completion.AGENTS)),
    ] = None,
    episodes: Annotated[
        int | None,
        option(SEARCH, "Policies to try.", metavar="N", min=1,
               show_default="as many as their time suits; 1 for ilp"),
    ] = None,
    evaluation: Annotated[
        str | None,
        option(SEARCH, "What scores a policy: finetune, after one epoch, or cheap, without.",
               metavar="NAME", show_default="cheap; finetune with --paper"),
    ] = None,
    reward: Annotated[
        str | None,
        option(SEARCH, "metric (accuracy says the same of top1), loss, or agreement with the "
               "float network.", metavar="NAME",
               show_default="agreement; metric with --metric or --paper"),
    ] = None,
    finalists: Annotated[
        int | None,
        option(SEARCH, "Best policies of cheap episodes that are fine-tuned.", metavar="N",
               show_default="3; 0 for ilp, --paper and --evaluation finetune"),
    ] = None,
    paper: Annotated[
        bool, option(SEARCH, "Run --agent ddpg as the paper describes it.", "--paper")
    ] = False,
    seed: Seed = 0,
    clipping: Annotated[
        str,
        option(QUANTIZATION, "Clips are chosen by kl, mse, percentile or max.", metavar="NAME",
               autocompletion=completion.among(completion.CLIPPING)),
    ] = "kl",
    per_tensor: Annotated[
        bool,
        option(QUANTIZATION, "Give each layer one scale, not one for each channel.",
               "--per-tensor"),
    ] = False,
    calibration_images: Annotated[
        int, option(QUANTIZATION, "Training images that the clips are chosen on.", metavar="N")
    ] = 512,
    train_images: Annotated[
        int, option(TRAINING, "Images of an episode's epoch.", metavar="N")
    ] = 5000,
    val_images: Annotated[
        int, option(TRAINING, "Validation images that score an episode.", metavar="N")
    ] = 2500,
    lr: Annotated[
        float, option(TRAINING, "Highest learning rate of fine-tuning.", metavar="RATE")
    ] = 0.005,
    distill: Distill = None,
    final_epochs: Annotated[
        int | None,
        option(TRAINING, "Epochs of fine-tuning for the policy chosen.", metavar="N",
               show_default="1; 30 for digits; 0 if nothing was fine-tuned"),
    ] = None,
    rounding_steps: Annotated[
        int | None,
        option(TRAINING, "Steps in which the chosen and finalists learn their rounding.",
               metavar="N", show_default="300 for cheap episodes, else 0"),
    ] = None,
    config: Annotated[
        Path | None,
        option(RUN, "YAML or JSON with what job.json of a run holds; other options go before it.",
               metavar="FILE", show_default="none"),
    ] = None,
    out: Annotated[
        str | None,
        option(RUN, "Name of the run below results/, or a path.", metavar="NAME",
               show_default="named after what is asked for"),
    ] = None,
    resume: Annotated[
        str | None,
        option(RUN, "Name or folder of a run to go on with, without other options.",
               metavar="NAME", autocompletion=completion.runs),
    ] = None,
    threads: Threads = None,
    device: Annotated[
        str, option(RUN, "Where networks are trained and scored: cpu, cuda or cuda:N.",
                    metavar="NAME")
    ] = "cpu",
    workers: Annotated[
        int, option(RUN, "Policies evaluated at once, each in a process.", metavar="N")
    ] = 1,
    ray: Annotated[
        str | None,
        option(RUN, "Ray cluster for the workers: HOST:PORT, auto or local.", metavar="ADDRESS"),
    ] = None,
    track: Track = None,
    as_json: Annotated[
        bool, option(RUN, "Print all that is known of the run as JSON at the end.", "--json")
    ] = False,
) -> None:  # fmt: skip
    """Search the bits of every layer, fine-tune the best policy, write the run."""
    from haq.cli.terminal.progress import progress
    from haq.cli.terminal.run import print_run
    from haq.runs.folder import find_folder, new_folder, read_job
    from haq.runs.job import parse_job
    from haq.runs.run import run
    from haq.runs.tracking import following

    trackers = trackers_of(track)
    if resume is not None:
        check_alone(context, but=("track", "as_json"))
        folder = find_folder(resume)
        job = read_job(folder)
    else:
        job = parse_job(**asked_fields(context, context.params))
        check_used(given(context), job)
        check_workers(job)
        if note := unbudgeted(job):
            warn(note)
        folder = new_folder(job, out)
    try:
        with progress() as shown, following(folder, shown, trackers, warn) as on_progress:
            summary = run(job, folder, on_progress)
    except KeyboardInterrupt:
        if not (folder / "job.json").exists():
            raise
        _stop(folder)
    print_run(folder, summary, as_json)
    if summary["state"] == "interrupted":
        _stop(folder)
    if not summary.get("accuracy_target", {}).get("met", True):
        raise typer.Exit(1)


def _stop(folder: Path) -> NoReturn:
    warn(f"interrupted; go on with: haq search --resume {folder}")
    raise typer.Exit(130)


def asked_fields(
    context: typer.Context, options: Mapping[str, Any], without: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields of a job that options of ``search`` and perhaps a file ask for.

    Args:
        context: Of the command.
        options: Of ``search``; those that were given go before what stands in the file.
        without: Fields that the file may not have.

    Raises:
        HaqError: An option or the file cannot be read.
    """
    from haq.runs.job import Job

    fields = job_fields(options)
    if options["config"] is None:
        return fields
    written = read_config(options["config"], Job.model_fields.keys() - set(without))
    named = {FIELDS.get(name, name) for name in given(context)}
    merged = written | {name: value for name, value in fields.items() if name in named}
    data, workers = merged.get("data", fields["data"]), merged.get("workers", 1)
    if "threads" not in merged and isinstance(workers, int):
        merged["threads"] = threads_for(None, str(data), max(1, workers))
    return merged


FIELDS = {"budget": "budgets", "pin": "pins", "scheme": "schemes", "per_tensor": "per_channel"}
"""Parameter of ``search`` to the field of a job, where they differ."""


def job_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a job that the options of ``search`` ask for."""
    fields = {name: value for name, value in options.items() if name not in NOT_OF_THE_JOB}
    budgets, pins = fields.pop("budget"), fields.pop("pin")
    fields |= {
        "schemes": tuple(fields.pop("scheme") or ()) or None,
        "groups": groups_of(fields["groups"]),
        "widths": _widths(fields["widths"]),
        "weight_bits": width_range(fields["weight_bits"]),
        "act_bits": _bits_or_search(fields["act_bits"]),
        "pins": _pins(list(pins or ())),
        "per_channel": not fields.pop("per_tensor"),
        "threads": threads_for(fields["threads"], fields["data"], max(1, fields["workers"])),
    }
    return fields | ({"budgets": tuple(budgets)} if budgets else {})


NOT_OF_THE_JOB = ("out", "resume", "config", "track", "as_json", *OUTPUT)


def _widths(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(share) for share in text.split(","))
    except ValueError:
        raise HaqError(f"widths {text!r}: write shares like 1,.75,.5,.25") from None


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
        if not 2 <= int(bits) <= 8:
            raise HaqError(
                f"--pin {text}: a pin is 2 to 8 bits; leave the layer out to let the search "
                "decide, or give --pin none"
            )
        pins[name] = int(bits)
    return pins
