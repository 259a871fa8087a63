"""What a job's policies are scored by: labelled images, or inputs alone."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from haq.agents import find
from haq.allocation.policy import Policy
from haq.allocation.sensitivities import objective
from haq.allocation.trials import Score
from haq.datasets import Data, Split
from haq.datasets.fingerprint import fingerprint
from haq.distillation.settings import Weight, distillation_of
from haq.errors import HaqError
from haq.metrics import METRICS, Metric
from haq.network.graph import Graph
from haq.network.inputs import Inputs
from haq.quantization.adaround import adaround, roundable
from haq.quantization.calibration import Clips
from haq.quantization.gptq import gptq, has_groups
from haq.quantization.sensitivity import IMAGES
from haq.quantization.statistics import correct, note_of_few, statistics
from haq.runs.calibration import (
    calibration_batches,
    clips_of_run,
    sensitivity_images,
    sensitivity_of_run,
)
from haq.runs.evaluator import CORRECTED_ON, Evaluator, Recipe, fine_tune
from haq.runs.job import Job
from haq.runs.judge import Judge, kept_if_better
from haq.runs.metric import metric_of_job
from haq.runs.pairs import Pairs
from haq.runs.places import Narrowing, Places, narrowing_for
from haq.runs.plan import Plan
from haq.runs.progress import OnProgress, Progress
from haq.runs.rounding import ROUNDING_BATCH, held_zeros
from haq.runs.samples import Frozen, Part, Shown
from haq.runs.scoring import Scorer, Scoring, ScoringData, scorer_for
from haq.training.scoring import score, score_answers
from haq.training.teacher import teacher_from
from haq.training.train import Step

CHECKED_ON = 64
"""Inputs on which the last step is checked: the conversion to integers."""

FEW = 32
"""Inputs below which there is nothing to divide."""

ROUNDED_ON = 1024
"""Training images from which the rounding is learned, without their labels."""

Own = Callable[[nn.Module], float]
"""The caller's own score of a network; higher is better."""


class Tested(NamedTuple):
    """What a network is worth on the test images.

    Attributes:
        score: Of all of them.
        right: Which labels it has right, (M,) truth values; None where the metric counts none.
    """

    score: Score
    right: Tensor | None


class Evaluation(NamedTuple):
    """The functions that say what a policy is worth, and what happens to the one chosen.

    Attributes:
        network: From a policy to the network that is scored in its episode.
        score: Of a network, on validation images.
        float_score: Of the network before quantization.
        finish: Makes the most of the network of a policy, in place, and returns what a summary says
            of it; it is told whether that network is fine-tuned already.
        scoring: What scores depend on, for other processes.
        places: The float networks that policies are put into.
        images: (N, ...), on which the conversion to integers is checked.
        test: Of a network, on test images, under the name of a stage; None where there are none.
        test_set: Says which images these are, as ``haq.datasets.fingerprint``; reads some of them.
        tuned: From a policy to its network after the paper's one epoch, for the finalists of a
            search whose episodes do without; None where that is what episodes score.
        sensitivity: What each choice of each layer does, for the agents that want to know.
        impatient: Whether hopeless evaluations are stopped early.
        judge: Compares finalists on other images than those of the score; None where they are
            compared by their scores.
        pairs: Networks beside the float network, for an accuracy target; None for other searches.
        notes: Sentences for the user about what is not as good as it could be.
        metric: What scores are of.
    """

    network: Callable[[Policy], fx.GraphModule]
    score: Scoring
    float_score: Score
    finish: Callable[[Policy, nn.Module, bool], Mapping[str, Any]]
    scoring: ScoringData
    places: Places
    images: Inputs
    test: Callable[[nn.Module, str], Tested] | None = None
    test_set: Callable[[], Mapping[str, Any]] | None = None
    tuned: Callable[[Policy], fx.GraphModule] | None = None
    sensitivity: Mapping[str, NDArray[Any]] | None = None
    impatient: bool = False
    judge: Judge | None = None
    pairs: Pairs | None = None
    notes: tuple[str, ...] = ()
    metric: Metric = METRICS["top1"]


def labeled(
    job: Job,
    folder: Path,
    planned: Plan,
    data: Data,
    on_progress: OnProgress,
    own: Own | None = None,
) -> Evaluation:
    """Return the evaluation on a data set: the metric, on validation inputs, of what is asked for.

    That is the network after one epoch of fine-tuning, as in the paper, or the one with corrected
    statistics; the sensitivities are measured for the agents that want to know them. With ``own``
    that is the score of a network, and nothing is tested.
    """
    graph, cheap = planned.graph, job.evaluation == "cheap"
    metric = metric_of_job(job, planned.images, own is not None)
    batches = calibration_batches(data, job.calibration_images, job.seed)
    clips = clips_of_run(job, folder, graph, batches, on_progress, planned.table.choices)
    # What verifies an accuracy target, policies are not chosen by.
    scored = data if job.max_drop is None else replace(data, val=data.train)
    recipe = recipe_of(job, metric)
    evaluator = Evaluator(graph, clips, scored, recipe, job.seed, planned.template)
    plain = evaluator.plain if cheap else None
    images = cache(partial(sensitivity_images, data, job.seed))
    narrowing = _narrowing(job, planned, images)
    scoring = ScoringData(job, clips, plain, evaluator, own=own, metric=metric, narrowing=narrowing)
    scorer = scorer_for(graph, scoring)
    judge = Judge(evaluator) if own is None and metric.name == "top1" else None
    return Evaluation(
        network=scorer.network,
        score=scorer.score,
        float_score=_own_float_score(scorer, graph) if own else evaluator.score(graph.traced),
        finish=partial(_finish_labeled, job, planned, data, judge, on_progress, scorer.places),
        scoring=scoring,
        places=scorer.places,
        images=next(calibration_batches(data, CHECKED_ON, job.seed)),
        test=None if own else partial(_test, evaluator, data, on_progress),
        test_set=None if own else partial(fingerprint, data.test),
        tuned=scorer.tuned if data.labels != "none" else None,
        sensitivity=_sensitivity(job, folder, planned, clips, images, on_progress),
        impatient=cheap,
        judge=judge,
        pairs=None if job.max_drop is None else Pairs(evaluator, data.val),
        notes=(*_notes(plain), *_notes_of_target(job, evaluator, data)),
        metric=metric,
    )


def recipe_of(job: Job, metric: Metric) -> Recipe:
    """Return how a job fine-tunes and scores."""
    distill = distillation_of(job.distill) if job.distill else None
    recipe = Recipe(
        job.train_images, job.val_images, job.lr, distill,
        agreement=job.reward == "agreement", metric=metric,
    )  # fmt: skip
    if job.paper:
        return replace(recipe, norms_images=0)
    # The job counts in steps of 64 images.
    steps = job.last_steps * 64 // ROUNDING_BATCH if job.evaluation == "cheap" else 0
    return replace(recipe, rounding_steps=steps)


def unlabeled(
    job: Job,
    folder: Path,
    planned: Plan,
    inputs: Inputs,
    on_progress: OnProgress,
    own: Own | None = None,
) -> Evaluation:
    """Return the evaluation on inputs alone: a metric without labels, or what is given.

    Nothing is fine-tuned. Statistics are corrected and the rounding is learned where the evaluation
    is the cheap one, on other inputs than those that agreement is scored on, if there are enough.
    """
    graph, cheap = planned.graph, job.evaluation == "cheap"
    learned, scored = parted(inputs) if cheap else (inputs, inputs)
    batches = iter(inputs[: job.calibration_images].split(128))
    clips = clips_of_run(job, folder, graph, batches, on_progress, planned.table.choices)
    plain = learned[:CORRECTED_ON] if cheap else None
    metric = metric_of_job(job, planned.images, own is not None)
    inputs_of = None if own else scored
    narrowing = _narrowing(job, planned, lambda: inputs[:IMAGES])
    scoring = ScoringData(
        job, clips, plain, inputs=inputs_of, own=own, metric=metric, narrowing=narrowing
    )
    scorer = scorer_for(graph, scoring)
    return Evaluation(
        network=scorer.network,
        score=scorer.score,
        float_score=_own_float_score(scorer, graph) if own else scorer.score(graph.traced),
        finish=partial(_finish_unlabeled, job, planned, learned, on_progress, scorer.places),
        scoring=scoring,
        places=scorer.places,
        images=inputs[:CHECKED_ON],
        sensitivity=_sensitivity(
            job, folder, planned, clips, lambda: inputs[:IMAGES], on_progress
        ),
        notes=(*_notes(plain), *_notes_of_parts(learned, scored, own)) if cheap else (),
        metric=metric,
    )  # fmt: skip


def _own_float_score(scorer: Scorer, graph: Graph) -> Score:
    """Return the caller's own score of the float network, which no search can do without."""
    score = scorer.score(graph.traced)
    if not math.isfinite(score.accuracy):
        raise HaqError(
            f"evaluate= gives {score.accuracy} for the float network; it must give a finite "
            "number, the higher the better"
        )
    return score


def parted(inputs: Inputs) -> tuple[Inputs, Inputs]:
    """Return the inputs to correct and learn on, and those to score on.

    Half of them each, but at most ``ROUNDED_ON`` to learn on. Fewer than twice ``FEW`` are all
    used for both.

    >>> [[len(part) for part in parted(torch.zeros(count, 1))] for count in (63, 64, 100, 5000)]
    [[63, 63], [32, 32], [50, 50], [1024, 3976]]
    """
    if len(inputs) < 2 * FEW:
        return inputs, inputs
    learned = min(ROUNDED_ON, len(inputs) // 2)
    return inputs[:learned], inputs[learned:]


def _sensitivity(
    job: Job,
    folder: Path,
    planned: Plan,
    clips: Clips,
    images: Callable[[], Inputs],
    on_progress: OnProgress,
) -> Mapping[str, NDArray[Any]] | None:
    if not find(job.agent).informed:
        return None
    measured = sensitivity_of_run(folder, planned, clips, images(), on_progress)
    return objective(measured, planned.table)


def _narrowing(job: Job, planned: Plan, images: Callable[[], Inputs]) -> Narrowing | None:
    if planned.widths is None:
        return None
    return narrowing_for(planned.graph, planned.widths, images(), job.clipping, job.per_channel)


def _notes(plain: Inputs | None) -> tuple[str, ...]:
    note = None if plain is None else note_of_few(len(plain))
    return () if note is None else (note,)


def _notes_of_target(job: Job, evaluator: Evaluator, data: Data) -> Iterator[str]:
    if job.max_drop is not None:
        yield (
            f"policies are tried on {len(evaluator.validation)} training images; all "
            f"{len(data.val)} validation images verify the one handed over"
        )


def _notes_of_parts(learned: Inputs, scored: Inputs, own: Own | None) -> Iterator[str]:
    """Yield a sentence where agreement is scored on what the network was corrected on."""
    if own is None and learned is scored:
        yield (
            "agreement is scored on the same inputs that the network is corrected on "
            f"({len(scored)}), so it is too high: {2 * FEW} or more are divided between the two"
        )


def _test(
    evaluator: Evaluator, data: Data, on_progress: OnProgress, model: nn.Module, stage: str
) -> Tested:
    """Return what a network is worth on all test images; of a quantized one, its file."""
    shown = Shown(data.test, lambda done: on_progress(Progress(stage, done, len(data.test))))
    answer = evaluator.integer_answer(model)
    metric = evaluator.recipe.metric
    reference = teacher_from(evaluator.graph.traced) if metric.needs == "reference" else None
    rights: list[Tensor] = []
    if answer is None:
        worth = score(model, shown, reference=reference, metric=metric, rights=rights)
    else:
        worth = score_answers(answer, shown, reference=reference, metric=metric, rights=rights)
    return Tested(worth, torch.cat(rights) if rights else None)


def _finish_labeled(  # noqa: PLR0913 - the last three are of the network
    job: Job, planned: Plan, data: Data, judge: Judge | None, on_progress: OnProgress,
    places: Places, policy: Policy, model: nn.Module, tuned: bool,
) -> Mapping[str, Any]:  # fmt: skip
    """Learn the rounding of a network that is not fine-tuned; then its last epochs, if any.

    Where a judge can tell, and but for the paper's way, each is taken back if it did no good.
    """
    judge, summary = None if job.paper else judge, dict[str, Any]()
    epochs = job.last_epochs if data.labels != "none" else 0
    own = places(policy).graph
    if not tuned and job.last_steps and (roundable(model) or has_groups(model)):
        generator = torch.Generator().manual_seed(job.seed)
        chosen = torch.randperm(len(data.train), generator=generator)[:ROUNDED_ON]
        train = partial(_round, job, planned, own, Part(data.train, chosen), on_progress, model)
        summary |= _trained("rounding", judge, model, train)
    if epochs:
        train = partial(
            fine_tune,
            model,
            planned.graph,
            data.train,
            epochs=epochs,
            recipe=recipe_of(job, metric_of_job(job, planned.images)),
            seed=job.seed,
            on_step=partial(_report, on_progress, "fine-tune"),
            own=own,
        )
        summary |= _trained("last_epochs", judge, model, train)
    return summary


def _trained(
    what: str, judge: Judge | None, model: nn.Module, train: Callable[[], None]
) -> dict[str, Any]:
    if judge is not None:
        return {what: kept_if_better(judge.judged, model, train) | {"apart": judge.apart}}
    train()
    return {}


def _finish_unlabeled(
    job: Job, planned: Plan, inputs: Inputs, on_progress: OnProgress, places: Places,
    policy: Policy, model: nn.Module, _tuned: bool,
) -> Mapping[str, Any]:  # fmt: skip
    chosen, own = inputs[:ROUNDED_ON], places(policy).graph
    split = Frozen(chosen, torch.zeros(len(chosen), dtype=torch.int64))
    _round(job, planned, own, split, on_progress, model)
    if job.final_epochs:
        fine_tune(
            model,
            planned.graph,
            split,
            epochs=job.final_epochs,
            recipe=_without_labels(recipe_of(job, metric_of_job(job, planned.images))),
            seed=job.seed,
            on_step=partial(_report, on_progress, "distill"),
            own=own,
        )
    return {}


def _without_labels(recipe: Recipe) -> Recipe:
    assert recipe.distill is not None  # see haq.runs.own
    return replace(recipe, distill=replace(recipe.distill, labels=Weight(0, 0)))


def _round(
    job: Job, planned: Plan, own: Graph, split: Split, on_progress: OnProgress, model: nn.Module
) -> None:
    if job.last_steps and has_groups(model):
        _round_groups(own, split, model)
    report, held = partial(_report, on_progress, "round"), held_zeros(model, own)
    adaround(model, planned.graph, split, steps=job.last_steps, seed=job.seed, on_step=report)
    if held is not None:
        held.apply()


def _round_groups(own: Graph, split: Split, model: nn.Module) -> None:
    """Round weights in groups by second order, and correct statistics for what became of them."""
    assert isinstance(model, fx.GraphModule)
    orders = torch.arange(min(len(split), CORRECTED_ON)).split(32)
    batches = [split.batch(order)[0] for order in orders]
    gptq(model, own, batches)
    first = split.batch(torch.cat(list(orders)))[0]
    correct(model, own, statistics(own, first), first)


def _report(on_progress: OnProgress, stage: str, step: Step) -> None:
    on_progress(Progress(stage, step.done, step.total, str(step)))
