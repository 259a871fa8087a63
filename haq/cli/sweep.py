"""``haq sweep``: searches under several budgets, one after the other, and their front."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from haq.cli.ignored import check_used
from haq.cli.options import HARDWARE, RUN, SEARCH, check_alone, given, option, with_options_of
from haq.cli.search import asked_fields, search_command
from haq.cli.terminal.output import say, warn

if TYPE_CHECKING:
    from haq.reports.sweep import Planned, Sweep


@with_options_of(search_command, but=("agent", "seed", "max_drop", "minimise", "track", "as_json"))
def sweep_command(
    context: typer.Context,
    budgets: Annotated[
        list[str] | None,
        option(HARDWARE, "Limits such as avg_weight_bits=2.25,3,4: a search for each. "
               "May be repeated.", metavar="LIMITS"),
    ] = None,
    agents: Annotated[
        str,
        option(SEARCH, "Names with commas between them; uniform always plays.", metavar="NAMES"),
    ] = "guided",
    seeds: Annotated[
        str,
        option(SEARCH, "Numbers with commas between them: a search for each.", metavar="NUMBERS"),
    ] = "0",
    out: Annotated[
        str | None,
        option(RUN, "Name of the sweep below results/, or a path.", metavar="NAME",
               show_default="named after what is asked for"),
    ] = None,
    resume: Annotated[
        str | None,
        option(RUN, "Name or folder of a sweep to go on with, without other options.",
               metavar="NAME"),
    ] = None,
    **options: Any,
) -> None:  # fmt: skip
    """Search under several budgets, one after the other, and draw the front.

    The best uniform bits within each budget are searched as well and treated alike.
    """
    from haq.cli.terminal.progress import progress
    from haq.reports.sweep import find_sweep, run_sweep, start

    if resume is not None:
        check_alone(context)
        folder = find_sweep(resume)
    else:
        sweep = asked_sweep(context, budgets or (), agents, seeds, options)
        check_used(given(context), sweep.job)
        folder = start(sweep, out)

    def on_search(number: int, count: int, search: "Planned") -> None:
        say(f"{number} of {count}: {search.name}")

    try:
        state = run_sweep(folder, on_search, progress)
    except KeyboardInterrupt:
        state = "interrupted"
    if state == "interrupted":
        warn(f"interrupted; go on with: haq sweep --resume {folder}")
        raise typer.Exit(130)
    typer.echo(f"{folder / 'sweep.html'}\n{folder / 'sweep.csv'}")


def asked_sweep(
    context: typer.Context,
    budgets: Sequence[str],
    agents: str,
    seeds: str,
    options: Mapping[str, Any],
) -> "Sweep":
    """Return the sweep that options and perhaps a file ask for.

    The agent and the seed of a file are those of the sweep where no others are given.

    Raises:
        HaqError: Something cannot be read.
    """
    from haq.reports.sweep import parse_sweep

    fields, named = asked_fields(context, options, without=("max_drop", "minimise")), given(context)
    agent, seed = fields.pop("agent", agents), fields.pop("seed", seeds)
    return parse_sweep(
        budgets,
        agents if "agents" in named else str(agent),
        seeds if "seeds" in named else str(seed),
        fields,
    )
