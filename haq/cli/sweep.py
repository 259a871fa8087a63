"""``haq sweep``: searches under several budgets, one after the other, and their front."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from haq.cli.ignored import check_used
from haq.cli.options import HARDWARE, RUN, SEARCH, check_alone, given, option, with_options_of
from haq.cli.search import job_fields, search_command

if TYPE_CHECKING:
    from haq.reports.sweep import Planned


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
    from haq.reports.sweep import find_sweep, parse_sweep, run_sweep, start

    if resume is not None:
        check_alone(context)
        folder = find_sweep(resume)
    else:
        sweep = parse_sweep(budgets or (), agents, seeds, job_fields(options))
        check_used(given(context), sweep.job)
        folder = start(sweep, out)

    def on_search(number: int, count: int, search: "Planned") -> None:
        typer.echo(f"{number} of {count}: {search.name}", err=True)

    try:
        state = run_sweep(folder, on_search, progress)
    except KeyboardInterrupt:
        state = "interrupted"
    if state == "interrupted":
        typer.echo(f"haq: interrupted; go on with: haq sweep --resume {folder}", err=True)
        raise typer.Exit(130)
    typer.echo(f"{folder / 'sweep.html'}\n{folder / 'sweep.csv'}")
