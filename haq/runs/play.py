"""Play the episodes of a search, write down every trial, and finish the best policy."""

from contextlib import closing
from pathlib import Path
from typing import Any

from haq.allocation.trials import best
from haq.errors import RunError
from haq.hw_profiles import Explained
from haq.runs.accuracy_target import tried
from haq.runs.coded_size import replanned
from haq.runs.episodes import episodes
from haq.runs.evaluation import Evaluation
from haq.runs.executors import Executor, executor_for
from haq.runs.finish import finish
from haq.runs.folder import drop_torn_line, read_json, read_trials
from haq.runs.job import Job
from haq.runs.pace import with_episodes
from haq.runs.plan import Plan
from haq.runs.progress import OnProgress, Progress, silent
from haq.runs.sample import save_sample
from haq.runs.scoring import Scorer
from haq.runs.state import Search, repair_network
from haq.runs.summary import write_summary


def play(
    job: Job,
    folder: Path,
    planned: Plan,
    evaluation: Evaluation,
    on_progress: OnProgress = silent,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Play the episodes left, finish the best policy and return the summary; see ``run``.

    The executor is the one the job asks for unless another is given; it is closed at the end.
    """
    planned = replanned(job, planned, evaluation.scoring.clips)
    drop_torn_line(folder)
    trials = read_trials(folder)
    _check_target(folder, planned)
    if evaluation.notes:
        on_progress(Progress("plan", 1, 1, "; ".join(evaluation.notes)))
    job = with_episodes(job, folder, planned, evaluation)
    if len(trials) == job.episodes and (folder / "summary.json").exists():
        summary = read_json(folder / "summary.json")
        if summary["state"] == "finished":
            return summary
    save_sample(folder, evaluation.images)
    repair_network(folder, evaluation, trials)
    try:
        with closing(executor or _executor(planned, evaluation)) as executor:
            search = Search(job, folder, planned, evaluation, executor, trials, on_progress)
            for _ in tried(search) if job.max_drop is not None else episodes(search):
                write_summary(folder, "running", planned, evaluation, trials, best(trials), {})
            top, more = finish(search)
        return write_summary(folder, "finished", planned, evaluation, trials, top, more)
    except KeyboardInterrupt:
        if not trials:
            raise
        repair_network(folder, evaluation, trials)
        return write_summary(folder, "interrupted", planned, evaluation, trials, best(trials), {})


def _executor(planned: Plan, evaluation: Evaluation) -> Executor:
    scorer = Scorer(evaluation.network, evaluation.score, evaluation.tuned, evaluation.places)
    return executor_for(scorer, planned.model, planned.sample, evaluation.scoring)


def _check_target(folder: Path, planned: Plan) -> None:
    """Refuse to go on with costs that changed since: a target can be a file."""
    if not (folder / "summary.json").exists() or not isinstance(planned.target, Explained):
        return
    before = read_json(folder / "summary.json").get("cost_origin")
    if before and before["version"] != planned.target.profile.version:
        raise RunError(
            f"target {planned.target.name} is another one than when run {folder} began "
            f"({before['version'][:12]}, now {planned.target.profile.version[:12]}): put the old "
            "file back, or start a new run"
        )
