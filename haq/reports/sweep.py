"""Sweeps: one search after the other over budgets, agents and seeds, in one folder.

sweep.json             what was asked for
BUDGET-AGENT-SEED/     the run of each search, as ``haq.runs.folder`` has it
sweep.csv, sweep.html  all that is finished so far, written after every run
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from haq.agents import find, uniform
from haq.datasets import Data, Outline, load, outline
from haq.errors import DivergedError, HaqError, RunError
from haq.files import write_bytes, write_text
from haq.reports.comparable import UNIFORM
from haq.reports.compare import compared, comparison_csv, comparison_sections, names_in
from haq.reports.names import data_name, model_name
from haq.reports.page import render
from haq.runs.float_network import check_float, example
from haq.runs.folder import HOME, new_folder, read_json, write_job
from haq.runs.job import Job, parse_job
from haq.runs.named import reading_of
from haq.runs.plan import images_of, plan
from haq.runs.progress import OnProgress
from haq.runs.run import run, suited
from haq.runs.transforms import network_of, with_transforms


class Sweep(BaseModel):
    """What was asked for, as it is kept in ``sweep.json``.

    Attributes:
        budgets: One search each, such as "avg_weight_bits=3", beside those of the jobs.
        jobs: Agent to its job, that of the uniform reference first: all but what varies.
        seeds: Of the searches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["haq-sweep/2"] = "haq-sweep/2"
    budgets: tuple[str, ...]
    jobs: dict[str, Job]
    seeds: tuple[int, ...]

    @property
    def job(self) -> Job:
        """The job of one of the agents: what all have in common."""
        return list(self.jobs.values())[-1]


@dataclass(frozen=True)
class Planned:
    """One search of a sweep: the name of its folder, and the job."""

    name: str
    job: Job


def parse_sweep(
    budgets: Iterable[str], agents: str, seeds: str, fields: Mapping[str, Any]
) -> Sweep:
    """Return the sweep that a user asks for.

    Args:
        budgets: Each a quantity and its limits, such as "avg_weight_bits=2.25,3,4".
        agents: Names, such as "ddpg,random".
        seeds: Numbers, such as "0,1,2".
        fields: Of the job; "budgets" among them are kept by every search.

    Raises:
        HaqError: Something cannot be read.
    """
    swept = tuple(dict.fromkeys(one for text in budgets for one in _budgets(text)))
    if not swept:
        raise HaqError("a sweep needs budgets, such as --budgets avg_weight_bits=2.25,3,4")
    names = tuple(dict.fromkeys(agent.strip() for agent in agents.split(",")))
    for name in names:
        find(name)
    try:
        numbers = tuple(dict.fromkeys(int(seed) for seed in seeds.split(",")))
    except ValueError:
        raise HaqError(f"seeds {seeds!r}: write numbers with commas between them") from None
    for number in numbers:
        parse_job(seed=number)
    fixed = tuple(fields.get("budgets", ()))
    jobs = _jobs(names, {**fields, "budgets": (*fixed, swept[0]), "seed": numbers[0]})
    jobs = {name: job.model_copy(update={"budgets": fixed}) for name, job in jobs.items()}
    return Sweep(budgets=swept, jobs=jobs, seeds=numbers)


def _jobs(names: Iterable[str], fields: Mapping[str, Any]) -> dict[str, Job]:
    """Return the job of each agent and of the uniform reference.

    All are evaluated and fine-tuned alike, as suits the agent among them that asks for the most:
    else they would differ by more than by their policies. Only the number of episodes is each
    agent's own, unless it was given.
    """
    paper = bool(fields.get("paper"))
    if paper and "ddpg" not in names:
        raise HaqError(f"paper is a way to run ddpg, not {', '.join(names)}; leave one of them out")
    own = {}
    for name in names:
        alike = {**fields, "agent": name, "paper": paper and name == "ddpg"}
        own[name] = parse_job(**alike | ({"distill": False} if paper else {}))
    searching = [job for name, job in own.items() if name != UNIFORM] or list(own.values())
    most = max(searching, key=lambda job: (job.evaluation == "finetune", job.finalists))
    alike = {name: getattr(most, name) for name in ("evaluation", "finalists", "reward")}
    reference = own.get(UNIFORM) or most.model_copy(update={"agent": UNIFORM, "paper": False})
    reference = reference.model_copy(update={"episodes": uniform.EPISODES})
    jobs = {UNIFORM: reference} | {name: own[name] for name in names if name != UNIFORM}
    return {name: job.model_copy(update=alike) for name, job in jobs.items()}


def _budgets(text: str) -> list[str]:
    quantity, equals, limits = text.partition("=")
    if not equals or not all(limit.strip() for limit in limits.split(",")):
        raise HaqError(f"budgets {text!r}: write them like avg_weight_bits=2.25,3,4")
    return [f"{quantity.strip()}={limit.strip()}" for limit in limits.split(",")]


def searches(sweep: Sweep) -> list[Planned]:
    """Return the searches of a sweep in the order in which they run, the reference among them."""
    planned = []
    for budget in sweep.budgets:
        for agent, job in sweep.jobs.items():
            for seed in sweep.seeds:
                name = re.sub(r"[^\w.=-]", "-", f"{budget.replace('%', 'p')}-{agent}-{seed}")
                fields = {"budgets": (budget, *job.budgets), "seed": seed}
                planned.append(Planned(name, job.model_copy(update=fields)))
    return planned


def start(sweep: Sweep, name: str | None) -> Path:
    """Return a fresh folder for the sweep, with its ``sweep.json``, after looking at every budget.

    Raises:
        HaqError: The folder is taken, a name is unknown, or no policy meets some budget.
    """
    _check(sweep)
    quantity = "-".join(dict.fromkeys(budget.partition("=")[0] for budget in sweep.budgets))
    named = sweep.job.model_copy(update={"budgets": ("sweep", quantity), "agent": ""})
    folder = new_folder(named, name)
    write_text(folder / "sweep.json", sweep.model_dump_json(indent=2) + "\n")
    return folder


def _check(sweep: Sweep) -> None:
    """Say now, not after hours, that a search of the sweep cannot be done."""
    job = sweep.job
    reading = reading_of(job)
    about: Data | Outline | None = outline(job.data, job.size, reading)
    check_float(job)
    if about is None:  # what a function of the user's own gives is known once it was called
        about = load(job.data, job.seed, job.size, reading)
    job = suited(job, about)
    model = network_of(with_transforms(job), about)
    for budget in sweep.budgets:
        asked = job.model_copy(update={"budgets": (budget, *job.budgets)})
        plan(asked, model, images_of(about), example(about))


def find_sweep(name: str) -> Path:
    """Return the folder of an existing sweep, by its path or its name among the runs.

    Raises:
        RunError: There is no sweep there.
    """
    for folder in (Path(name), HOME / name):
        if (folder / "sweep.json").is_file():
            return folder
    raise RunError(f"no sweep at {name!r}: there is no sweep.json")


def read_sweep(folder: Path) -> Sweep:
    """Read ``sweep.json``.

    Raises:
        RunError: It is missing or damaged.
    """
    content = read_json(folder / "sweep.json")
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        raise RunError(f"{folder / 'sweep.json'} is damaged: {error.errors()[0]['msg']}") from error


def run_sweep(
    folder: Path,
    on_search: Callable[[int, int, Planned], None],
    progress: Callable[[], AbstractContextManager[OnProgress]],
) -> str:
    """Run what is left of a sweep and return "finished", or "interrupted" after Ctrl-C.

    Args:
        folder: With a ``sweep.json``.
        on_search: Called before each search that is run, with its number from 1, how many there
            are, and the search.
        progress: Opened for each search, gives what ``haq.runs.run.run`` is to call.

    Raises:
        HaqError: A search cannot be done; of those that diverge only after the others are done.
    """
    planned = searches(read_sweep(folder))
    diverged = []
    for number, search in enumerate(planned, 1):
        place = folder / search.name
        if _state(place) == "finished":
            continue
        on_search(number, len(planned), search)
        _prepare(folder, search, planned)
        try:
            with progress() as on_progress:
                state = str(run(search.job, place, on_progress)["state"])
        except DivergedError:
            diverged.append(search.name)
            continue
        except KeyboardInterrupt:
            state = "interrupted"
        write_results(folder)
        if state == "interrupted":
            return state
    write_results(folder)
    if diverged:
        raise DivergedError(f"no policy could be fine-tuned in {', '.join(diverged)}; lower --lr")
    return "finished"


def _state(place: Path) -> str | None:
    summary = place / "summary.json"
    return str(read_json(summary)["state"]) if summary.exists() else None


def _prepare(folder: Path, search: Planned, planned: Iterable[Planned]) -> None:
    """Make the run's folder, with float network, clips and sensitivities of a run of that seed.

    So a whole front is drawn from one set of sensitivities.
    """
    place = folder / search.name
    if (place / "job.json").exists():
        return
    place.mkdir(exist_ok=True)
    done = [
        other for other in planned
        if other.job.seed == search.job.seed and _state(folder / other.name) == "finished"
    ]  # fmt: skip
    if not done:
        return
    for name in ("float.safetensors", "clips.safetensors"):
        write_bytes(place / name, (folder / done[0].name / name).read_bytes())
    for other in done:
        known = folder / other.name / "sensitivity.json"
        # Whether activations are searched decides which tensors are measured.
        if known.exists() and other.job.fixed_act_bits == search.job.fixed_act_bits:
            write_bytes(place / known.name, known.read_bytes())
            break
    write_job(place, search.job)


def write_results(folder: Path) -> None:
    """Write ``sweep.csv`` and ``sweep.html`` from the runs that have finished."""
    sweep = read_sweep(folder)
    planned = searches(sweep)
    done = [
        folder / search.name for search in planned if _state(folder / search.name) == "finished"
    ]
    if not done:
        return
    rows = compared(done)
    write_text(folder / "sweep.csv", comparison_csv(rows))
    title = f"{model_name(sweep.job)}: {' '.join(_listed(sweep.budgets))}"
    agents = ", ".join(sweep.jobs)
    subtitle = (
        f"Sweep {folder.resolve().name} · {data_name(sweep.job)} · {agents} · "
        f"{len(done)} of {len(planned)} runs finished"
    )
    sections = comparison_sections(done, rows)
    write_text(folder / "sweep.html", render(title, subtitle, sections, 0, names_in(done)))


def _listed(budgets: Iterable[str]) -> list[str]:
    limits: dict[str, list[str]] = {}
    for budget in budgets:
        quantity, _, limit = budget.partition("=")
        limits.setdefault(quantity, []).append(limit)
    return [f"{quantity}={','.join(values)}" for quantity, values in limits.items()]
