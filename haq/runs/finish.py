"""After the last episode: choose the policy to hand over and make the most of its network."""

import hashlib
import time
from typing import Any, NamedTuple

from safetensors.torch import load
from torch import Tensor, fx

from haq.agents import find
from haq.allocation.policy import Policy
from haq.allocation.trials import Score, Trial, best, rank
from haq.models.weights import packed
from haq.quantization.convert import convert_and_check
from haq.quantization.fake_quant import quantize
from haq.runs.accuracy_target import reach
from haq.runs.coded_size import kept, summary_fields
from haq.runs.confirm import confirmed
from haq.runs.evaluation import Evaluation
from haq.runs.executors import Request
from haq.runs.folder import read_json, write_json
from haq.runs.judge import Judged, best_tuned
from haq.runs.scoring import score_key
from haq.runs.state import Key, Search, policy_key, save_network
from haq.runs.tested import drop_record, packed_bits, unpacked_bits, write_tested
from haq.runs.uniform_reference import uniform_reference
from haq.runs.winner import measured_winner
from haq.training.numerics import in_channels_last


def finish(search: Search) -> tuple[Trial, dict[str, Any]]:
    """Choose a trial, make the most of its network, keep that and score it on the test images.

    The test images are for the float network and for the one handed over; the network that scored
    in an episode is tested only where episodes fine-tune, as those of the paper.

    Returns:
        The trial, and what the summary says of all this.
    """
    started = time.perf_counter()
    evaluation, metric = search.evaluation, search.evaluation.metric
    summary: dict[str, Any] = {}
    rights: dict[str, Tensor] = {}
    if evaluation.test:
        assert evaluation.test_set is not None
        summary["test_set"] = evaluation.test_set()
        summary[metric.key("float_test")] = metric.of_score(_float_test(search, rights))
    tuned: dict[Key, Judged] = {}
    if search.job.max_drop is None:
        top, model, more = _finished(search, tuned)
    else:
        top, model, more = reach(search)
    summary |= more
    summary["uniform_reference"] = uniform_reference(
        search.job, search.planned, evaluation, top.policy, tuned, search.on_progress
    )
    summary |= summary_fields(search, top, model)
    if evaluation.test:
        tested = evaluation.test(model, "test")
        value = metric.of_score(tested.score.accuracy)
        summary[metric.key("final_test")] = value
        if tested.right is not None:
            rights["final"] = tested.right
        interval = metric.interval(value, summary["test_set"]["images"])
        if interval is not None:
            summary["final_test_interval"] = list(interval)
        if {"float", "final"} <= set(rights):
            summary["test_drop"] = drop_record(rights["float"], rights["final"])
            write_tested(search.folder, rights)
    chain = evaluation.places.chain(top.policy)
    save_network(search.folder, top.policy, packed(model), chain)
    return top, summary | {"finish_seconds": round(time.perf_counter() - started, 1)}


def _finished(
    search: Search, tuned_networks: dict[Key, Judged]
) -> tuple[Trial, fx.GraphModule, dict[str, Any]]:
    """Return the trial that was chosen, its finished network and its summary.

    ``tuned_networks`` gets what the fine-tuned ones of finalists do with the judge's images.
    """
    evaluation, metric = search.evaluation, search.evaluation.metric
    top, model, tuned, summary = _chosen(search, tuned_networks)
    if evaluation.test and evaluation.tuned is None:
        tested = evaluation.test(model, "test episode")
        summary[metric.key("episode_test")] = metric.of_score(tested.score.accuracy)
    summary |= evaluation.finish(top.policy, model, tuned)
    model.cpu()  # where its file computes: exact sums of integers
    convert_and_check(model, search.planned.graph.traced, evaluation.images)
    summary[metric.key("final_val")] = metric.of_score(evaluation.score(model).accuracy)
    return top, model, summary


def _float_test(search: Search, rights: dict[str, Tensor]) -> float:
    """Return the float network's accuracy on the test images, worked out once for a run.

    ``rights`` gets which labels it has right, where the metric counts any.
    """
    floats, file = search.planned.graph.traced, search.folder / "float_test.json"
    weights = hashlib.sha256(packed(floats)).hexdigest()
    known = read_json(file) if file.exists() else {}
    if known.get("weights") != weights:
        assert search.evaluation.test is not None
        tested = search.evaluation.test(floats, "test float")
        known = {"weights": weights, "accuracy": tested.score.accuracy}
        if tested.right is not None:
            known["right"] = packed_bits(tested.right)
        write_json(file, known)
    if "right" in known:
        rights["float"] = unpacked_bits(known["right"])
    return float(known["accuracy"])


def _chosen(
    search: Search, tuned_networks: dict[Key, Judged]
) -> tuple[Trial, fx.GraphModule, bool, dict[str, Any]]:
    """Return the trial to hand over, its network, whether that is fine-tuned, and its summary."""
    planned, evaluation, trials = search.planned, search.evaluation, search.trials
    summary: dict[str, Any] = {}
    top, weights, tuned = best(trials), None, evaluation.tuned is None
    confirmation = confirmed(search)
    if confirmation is not None:
        top, summary["confirmed"] = confirmation
    if evaluation.tuned is not None and search.job.finalists:
        top, weights, summary["finalists"] = _play_off(
            search, tuned_networks, top if confirmation is not None else None
        )
        tuned = weights is not None
    network = evaluation.tuned if evaluation.tuned and tuned else evaluation.network

    def evaluate(policy: Policy) -> Score:
        return evaluation.score(network(policy))

    measured, latency = measured_winner(
        search.folder, planned, trials, top, evaluate, search.on_progress
    )
    if weights is None or measured is not top:
        model = network(measured.policy)
    else:
        model = _restored(evaluation, top.policy, weights)
    measured, model = kept(search, measured, model, network)
    return measured, model, tuned, summary | latency


def _restored(evaluation: Evaluation, policy: Policy, weights: bytes) -> fx.GraphModule:
    place = evaluation.places(policy)
    model = quantize(place.graph, policy, place.clips)
    model.load_state_dict(load(weights))
    # As training left it: the layout decides in which order sums are taken.
    return in_channels_last(model)


class _Entrant(NamedTuple):
    """A network that may be handed over; without weights it is the one of its episode."""

    trial: Trial
    weights: bytes | None
    score: Score


def _play_off(
    search: Search, tuned_networks: dict[Key, Judged], confirmed: Trial | None
) -> tuple[Trial, bytes | None, list[dict[str, Any]]]:
    """Fine-tune the networks of the best trials; return the best, its weights, and all scores.

    Beside them stands the best network of the episodes, the one that was confirmed if any was:
    without weights where fine-tuning made none better than that. How they are compared says
    ``haq.runs.judge``; their scores where it cannot.
    """
    finalists, judge = _finalists(search, confirmed), search.evaluation.judge
    metric = search.evaluation.metric
    top = confirmed or min(finalists, key=lambda trial: (-trial.accuracy, rank(trial)))
    untuned = _Entrant(top, None, Score(top.accuracy, top.loss))
    # Weights come back only from networks that are to be compared.
    least = untuned.score if judge is None else None
    pending = [search.executor.submit(Request(t.policy, "tuned", least=least)) for t in finalists]
    entrants = [untuned]
    for trial, waited_for in zip(finalists, pending, strict=True):
        result = waited_for()
        if result.score is not None:
            entrants.append(_Entrant(trial, result.weights, result.score))
    rows = [
        {
            "episode": trial.episode, metric.key("val"): metric.of_score(trial.accuracy),
            metric.key("tuned_val"): metric.of_score(score.accuracy), "tuned_val_loss": score.loss,
        }
        for trial, _, score in entrants[1:]
    ]  # fmt: skip
    if judge is None:
        # Of equals the first: the network of the episode.
        best_one = max(entrants, key=lambda entrant: score_key(entrant.score, "metric"))
    else:
        judged = [judge.judged(_network(search, entrant)) for entrant in entrants]
        best_one = entrants[best_tuned(judged)]
        for entrant, one in zip(entrants[1:], judged[1:], strict=True):
            tuned_networks[policy_key(entrant.trial.policy)] = one
        for row, one in zip(rows, judged[1:], strict=True):
            row |= {"judged_accuracy": one.accuracy, "judged_divergence": one.divergence,
                    "judged_apart": judge.apart}  # fmt: skip
    return best_one.trial, best_one.weights, rows


def _network(search: Search, entrant: _Entrant) -> fx.GraphModule:
    evaluation = search.evaluation
    if entrant.weights is None:
        return evaluation.network(entrant.trial.policy)
    return _restored(evaluation, entrant.trial.policy, entrant.weights)


def _finalists(search: Search, confirmed: Trial | None) -> list[Trial]:
    """Return the best trials of different policies, the one that was confirmed first.

    The known answers that an agent begins with always take part.
    """
    job, trials = search.job, search.trials
    first = [] if confirmed is None else [confirmed]
    ranked: dict[Key, Trial] = {}
    for trial in [*first, *sorted(trials, key=rank)]:
        ranked.setdefault(policy_key(trial.policy), trial)
    finalists = list(ranked.values())[: job.finalists]
    for known in trials[: find(job.agent).references]:
        if not any(trial.policy == known.policy for trial in finalists):
            finalists.append(known)
    return finalists
