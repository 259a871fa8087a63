"""The command line: heavy imports stand inside the commands, so ``haq --help`` is instant."""

import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from haq.errors import HaqError

if TYPE_CHECKING:
    from haq.reports.sweep import Planned
    from haq.runs.run import OnProgress

Command = TypeVar("Command", bound=Callable[..., None])

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
    from haq.cli.train import run_training
    from haq.runs.job import parse_job

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
    target: Annotated[
        str | None,
        typer.Option(help="As haq targets lists them, or my-machine.json, table:board.csv."),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images the target computes at once.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="avg_weight_bits=3, size=90kB, latency=50%w8a8, …; may be repeated."),
    ] = None,
    agent: Annotated[str, typer.Option(help="ddpg, guided, ilp, random or uniform.")] = "ddpg",
    paper: Annotated[bool, typer.Option("--paper", help="DDPG to the letter.")] = False,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Policies to try; default: 60, ilp: 1.")
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(help="finetune (one epoch) or cheap (none); default: cheap for guided, ilp."),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="accuracy, loss, or agreement with the float network (guided's)."),
    ] = None,
    finalists: Annotated[
        int | None,
        typer.Option(help="Best by the cheap evaluation that get their epoch; guided: 3."),
    ] = None,
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
        int | None,
        typer.Option(help="For the policy found; default: 1, digits: 30, all cheap: 0."),
    ] = None,
    rounding_steps: Annotated[
        int | None,
        typer.Option(help="Of learning its rounding, without labels; default: 0, all cheap: 300."),
    ] = None,
    float_epochs: Annotated[
        int | None, typer.Option(help="Train the float network first; digits: 60.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[str | None, typer.Option(help="Name or folder of the run.")] = None,
    resume: Annotated[str | None, typer.Option(help="A run to go on with.")] = None,
    threads: Threads = None,
    workers: Annotated[
        int, typer.Option(help="Evaluations at once, each in a process of its own.")
    ] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Ray cluster for the workers: HOST:PORT, auto or local.")
    ] = None,
) -> None:
    """Search the bits of every layer, fine-tune the best policy, write the run."""
    from haq.runs import folder as results
    from haq.runs.job import parse_job
    from haq.runs.run import run

    if resume is not None:
        _check_alone(context)
        folder = results.find_folder(resume)
        job = results.read_job(folder)
    else:
        job = parse_job(**_fields(context.params))
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
    from haq.runs import folder as results

    folder = results.find_folder(run)
    if not (folder / "summary.json").exists():
        raise HaqError(f"run {folder} has no finished episode yet: haq search --resume {folder}")
    _show(folder, results.read_json(folder / "summary.json"))


@app.command("cost")
def cost_command(
    model: Model,
    target: Annotated[
        str, typer.Option(help="As haq targets lists them, or my-machine.json, table:board.csv.")
    ],
    batch: Annotated[int | None, typer.Option(help="Images computed at once.")] = None,
    width: Width = 1.0,
    size: Annotated[int | None, typer.Option(help="Height and width of an image.")] = None,
    classes: Annotated[int | None, typer.Option(help="Classes of the last layer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every pair of bits, as JSON.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Every pair of bits, as a table for --target table:FILE.")
    ] = False,
) -> None:
    """Print what each layer costs on a target."""
    from haq.cli.cost import cost_csv, cost_table

    if as_json and as_csv:
        raise HaqError("--json and --csv are two ways to print the same; give one")
    asked: dict[str, Any] = {"batch": batch, "width": width, "size": size, "classes": classes}
    if as_csv:
        typer.echo(cost_csv(model, target, **asked), nl=False)
    elif as_json:
        typer.echo(json.dumps(cost_table(model, target, **asked)))
    else:
        from haq.cli.show import print_costs

        print_costs(cost_table(model, target, **asked))


@app.command("profile")
def profile_command(  # noqa: PLR0913 - one argument an option
    model: Model,
    out: Annotated[Path, typer.Option(help="The profile to write, such as my-machine.json.")],
    weights: Annotated[Path | None, typer.Option(help="Float weights; else random ones.")] = None,
    data: Annotated[
        str | None, typer.Option(help="To take the images' size, the classes and clips from.")
    ] = None,
    provider: Annotated[str, typer.Option(help="cpu, cuda or tensorrt.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="For one operator.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images computed at once.")] = 1,
    width: Width = 1.0,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width of an image.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Most rounds of measuring.")] = 150,
    seed: Seed = 0,
) -> None:
    """Measure a network in ONNX Runtime on this machine, for --target FILE."""
    from haq.hw_profiles.onnx_runtime import Setup, check_provider
    from haq.runs.profile import check_out, describe, run_profile, subject

    check_provider(provider)
    check_out(out)
    asked = subject(model, weights=weights, data=data, width=width, size=size, seed=seed)
    setup = Setup(provider, threads, batch)
    with _progress() as on_progress:
        profile = run_profile(asked, out, setup, rounds, seed, on_progress)
    typer.echo(describe(profile))
    typer.echo(f"{out}: haq search --model {model} --target {out} --budget latency=70%fp32")


@app.command("targets")
def targets_command(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="my-machine.json or table:board.csv; default: all that come with haq."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All there is to know, as JSON.")] = False,
) -> None:
    """List targets: devices, bits, and how far their costs can be trusted."""
    from haq.hw_profiles import TARGETS
    from haq.runs.provenance import describe

    targets = [describe(name) for name in files or TARGETS]
    if as_json:
        typer.echo(json.dumps(targets))
    else:
        from haq.cli.show import print_targets

        print_targets(targets)


@app.command("export")
def export_command(
    run: Annotated[str, typer.Argument(help="A run's name or folder.")],
    format: Annotated[str, typer.Option(help="onnx: for ONNX Runtime; safetensors: for haq.load.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    measure: Annotated[
        bool, typer.Option(help="ONNX: measure accuracy and latency in ONNX Runtime.")
    ] = True,
) -> None:
    """Write a run's network as a file to take away."""
    from haq.errors import look_up
    from haq.runs.export import FORMATS

    written = look_up(FORMATS, "format", format)(run, out)
    typer.echo(f"{out}: {out.stat().st_size / 1000:.1f} kB")
    if format == "onnx" and measure:
        from haq.cli.show import print_onnx
        from haq.runs.onnx_file import summarise

        with _progress() as on_progress:
            summary = summarise(run, written, on_progress=on_progress)
        print_onnx(summary)


@app.command("verify")
def verify_command(
    file: Annotated[Path, typer.Argument(help="A file that haq export --format onnx wrote.")],
    data: Annotated[str | None, typer.Option(help="digits, cifar10:DIR, folder:DIR, …")] = None,
    size: Size = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
) -> None:
    """Check an ONNX file: valid, loads, integer kernels, exact integers, accuracy."""
    from haq.cli.show import print_verified
    from haq.datasets import load
    from haq.runs.onnx_file import verify

    images = None if data is None else load(data, seed=0, size=size)
    with _progress() as on_progress:
        found = verify(file, images, on_progress)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        print_verified(file, found)


def _taking(command: Callable[..., None], but: Collection[str]) -> Callable[[Command], Command]:
    """Give a command the options of another one too, but for some: it gets them as keywords."""

    def decorated(own: Command) -> Command:
        named = [p for p in signature(own).parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {parameter.name for parameter in named} | set(but)
        more = [p for p in signature(command).parameters.values() if p.name not in taken]
        own.__signature__ = Signature([*named, *more])  # type: ignore[attr-defined]
        own.__annotations__ = {p.name: p.annotation for p in (*named, *more)}
        return own

    return decorated


@app.command("sweep")
@_taking(search_command, but=("agent", "seed"))
def sweep_command(
    context: typer.Context,
    budgets: Annotated[
        list[str] | None,
        typer.Option(help="avg_weight_bits=2.25,3,4: a search for each; may be repeated."),
    ] = None,
    agents: Annotated[str, typer.Option(help="Names with commas; uniform always plays.")] = "ddpg",
    seeds: Annotated[str, typer.Option(help="Numbers with commas.")] = "0",
    out: Annotated[str | None, typer.Option(help="Name or folder of the sweep.")] = None,
    resume: Annotated[str | None, typer.Option(help="A sweep to go on with.")] = None,
    **options: Any,
) -> None:
    """Search under several budgets, one after the other, and draw the front."""
    from haq.reports.sweep import find_sweep, parse_sweep, run_sweep, start

    if resume is not None:
        _check_alone(context)
        folder = find_sweep(resume)
    else:
        folder = start(parse_sweep(budgets or (), agents, seeds, _fields(options)), out)

    def on_search(number: int, count: int, search: "Planned") -> None:
        typer.echo(f"{number} of {count}: {search.name}", err=True)

    state = run_sweep(folder, on_search, _progress)
    if state == "interrupted":
        typer.echo(f"haq: interrupted; go on with: haq sweep --resume {folder}", err=True)
        raise typer.Exit(130)
    typer.echo(f"{folder / 'sweep.html'}\n{folder / 'sweep.csv'}")


@app.command("inspect")
def inspect_command(
    run: Annotated[str, typer.Argument(help="A run's name or folder.")],
    out: Annotated[
        Path | None, typer.Option(help="The page to write; default: report.html in the run.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="A folder for the charts as pictures; needs Chromium.")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option(help="Measure the layers' sensitivities where the run has none.")
    ] = True,
) -> None:
    """Write a page with all that a run found, and why each layer got its bits."""
    from haq.files import write_text
    from haq.reports.report import report_html
    from haq.runs import folder as results
    from haq.runs.measure import measure

    folder = results.find_folder(run)
    if sensitivity:
        try:
            with _progress() as on_progress:
                measure(folder, on_progress)
        except HaqError as error:
            typer.echo(f"haq: not measured for the page: {error}", err=True)
    page = out or folder / "report.html"
    write_text(page, report_html(folder))
    typer.echo(str(page))
    if png is not None:
        from haq.reports.pictures import write_pictures

        for path in write_pictures(folder, png):
            typer.echo(str(path))


@app.command("compare")
def compare_command(
    runs: Annotated[list[str], typer.Argument(help="Names or folders of runs.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
    csv: Annotated[Path, typer.Option(help="The table to write.")] = Path("compare.csv"),
) -> None:
    """Write a page and a table that show several runs side by side."""
    from haq.files import write_text
    from haq.reports.compare import compared, comparison_csv, comparison_html
    from haq.runs import folder as results

    folders = [results.find_folder(run) for run in runs]
    write_text(csv, comparison_csv(compared(folders)))
    write_text(out, comparison_html(folders))
    typer.echo(f"{out}\n{csv}")


Files = Annotated[
    Path, typer.Option(envvar="HAQ_FILES", help="Folder of the service's runs and uploads.")
]
Database = Annotated[
    str | None,
    typer.Option(
        envvar="HAQ_DATABASE", show_envvar=True,
        help="sqlite:///FILE or postgresql+psycopg://…; default: a file in the folder.",
    ),
]  # fmt: skip
OfferedData = Annotated[
    list[str] | None, typer.Option(help="NAME=DATA that users may ask for; may be repeated.")
]
OfferedWeights = Annotated[
    list[str] | None, typer.Option(help="NAME=FILE that users may ask for; may be repeated.")
]
Lease = Annotated[float, typer.Option(help="Seconds until a dead worker's run goes to another.")]
Tries = Annotated[int, typer.Option(min=1, help="In a row without a new episode.")]
SearchThreads = Annotated[int, typer.Option(min=1, help="CPU threads of one search, at most.")]

_FILES = Path("haq-files")


def _check_service() -> None:
    missing = [
        name for name in ("alembic", "fastapi", "sqlalchemy", "uvicorn") if not find_spec(name)
    ]
    if missing:
        raise HaqError(f"the service needs {', '.join(missing)}: pip install 'haq[service]'")


@app.command("serve")
def serve_command(  # noqa: PLR0913 - one argument an option
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8080,
    database: Database = None,
    files: Files = _FILES,
    workers: Annotated[int, typer.Option(min=0, help="Searches at once.")] = 1,
    data: OfferedData = None,
    weights: OfferedWeights = None,
    threads: SearchThreads = 1,
    lease: Lease = 30.0,
    tries: Tries = 3,
    everyone: Annotated[
        bool, typer.Option("--open", help="Let everyone who reaches it in, without tokens.")
    ] = False,
) -> None:
    """Serve searches over HTTP, with a page and workers."""
    _check_service()
    from haq.service.serve import serve, settings_of

    asked = settings_of(files, database, data or [], weights or [], threads, lease, tries)
    serve(asked, host, port, workers, everyone)


@app.command("worker")
def worker_command(
    database: Database = None,
    files: Files = _FILES,
    data: OfferedData = None,
    weights: OfferedWeights = None,
    threads: SearchThreads = 1,
    lease: Lease = 30.0,
    tries: Tries = 3,
) -> None:
    """Do runs of a service, one at a time; give what haq serve was given."""
    _check_service()
    from haq.service.serve import settings_of, worker

    worker(settings_of(files, database, data or [], weights or [], threads, lease, tries))


token_app = typer.Typer(help="Tokens for the service.", no_args_is_help=True)
app.add_typer(token_app, name="token")


@token_app.command("create")
def token_create_command(
    name: Annotated[str, typer.Argument(help="The user's name.")],
    scope: Annotated[str, typer.Option(help="read, submit or admin.")] = "submit",
    database: Database = None,
    files: Files = _FILES,
) -> None:
    """Make a token and print it, this once."""
    _check_service()
    from haq.service.serve import new_token, settings_of

    typer.echo(new_token(settings_of(files, database), name, scope))


@token_app.command("list")
def token_list_command(database: Database = None, files: Files = _FILES) -> None:
    """List all tokens, without their secrets."""
    _check_service()
    from haq.service.serve import settings_of, token_lines

    for line in token_lines(settings_of(files, database)):
        typer.echo(line)


@token_app.command("revoke")
def token_revoke_command(
    name: Annotated[str, typer.Argument(help="A token's id, or a user's name for all of them.")],
    database: Database = None,
    files: Files = _FILES,
) -> None:
    """Revoke a token, or all of a user."""
    _check_service()
    from haq.service.serve import revoke_token, settings_of

    typer.echo(f"revoked: {', '.join(revoke_token(settings_of(files, database), name))}")


def _stop(folder: Path) -> NoReturn:
    typer.echo(f"haq: interrupted; go on with: haq search --resume {folder}", err=True)
    raise typer.Exit(130)


def _show(folder: Path, summary: dict[str, Any]) -> None:
    from haq.cli.show import print_run

    print_run(folder, summary)


def _fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a job that the options of ``search`` ask for."""
    fields = {name: value for name, value in options.items() if name not in ("out", "resume")}
    budgets, pins = fields.pop("budget"), fields.pop("pin")
    fields |= {
        "weight_bits": _range(fields["weight_bits"]),
        "act_bits": _bits_or_search(fields["act_bits"]),
        "pins": _pins(list(pins or ())),
        "per_channel": not fields.pop("per_tensor"),
        "threads": _threads(fields["threads"], fields["data"], max(1, fields["workers"])),
    }
    return fields | ({"budgets": tuple(budgets)} if budgets else {})


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


def _threads(asked: int | None, data: str, workers: int = 1) -> int:
    """Return how many threads to use: as asked, or each worker's share of this process's cores.

    Networks for the digits are so small that a second thread only waits for the first.
    """
    from haq.runs.job import cores

    if asked is not None and asked < 1:
        raise HaqError(f"threads {asked}: give at least 1")
    return asked or (1 if data == "digits" else max(1, cores() // workers))


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

    from haq.runs.run import Progress as Where

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
