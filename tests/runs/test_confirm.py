"""The answer of a search is confirmed on images that scored nothing, or the start is handed on."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from haq.allocation.policy import Bits, read_policy
from haq.allocation.trials import Trial
from haq.datasets import load
from haq.distillation.kd import divergence, divergences
from haq.runs import confirm
from haq.runs.confirm import SURE, Apart, Confirmed, entrants, images_of, nearer
from haq.runs.evaluator import Evaluator
from haq.runs.folder import read_trials
from haq.runs.job import parse_job
from haq.runs.run import run
from haq.runs.samples import Part

DIGITS = load("digits")


def trial(episode: int, bits: int, reward: float, **changes: Any) -> Trial:
    policy = {"a": Bits(bits, 8)}
    return Trial(episode, policy, {}, 0.5, -reward, reward, 0.0, **changes)


def apart(values: torch.Tensor) -> Apart:
    return Apart(values, values)


def test_those_that_scored_higher_than_every_known_answer_are_compared_again() -> None:
    trials = [trial(0, 2, -3), trial(1, 3, -2), trial(2, 4, -4)]  # ilp and two uniform ones
    trials += [trial(3, 5, -2.5), trial(4, 6, -1), trial(5, 7, -1.5), trial(6, 6, -1)]
    known, higher = entrants(trials * 4, references=3)  # 28 episodes: three are compared
    assert [one.episode for one in known] == [0, 1, 2]
    assert [one.episode for one in higher] == [4, 5]  # the policy of 6 was met in 4, 3 is below 1
    assert [one.episode for one in entrants(trials, references=3)[1]] == [4]  # of 7 episodes one


def test_a_known_answer_that_scored_best_needs_no_confirmation() -> None:
    trials = [trial(0, 2, -1), trial(1, 3, -2), trial(2, 4, -1), trial(3, 2, -1)]
    assert entrants(trials, references=2)[1] == []  # a tie is no gain
    trials[2] = replace(trials[2], accuracy=0.6)
    assert entrants(trials, references=2)[1] == []  # nor is one that is more accurate
    assert entrants(trials, references=0) == ([], [])
    assert entrants([trial(0, 2, -1, stopped=True), trial(1, 3, -2)], references=1) == ([], [])


def test_at_most_eight_are_compared_again() -> None:
    trials = [trial(0, 2, -100), *(trial(n, 2 + n, -float(n)) for n in range(1, 200))]
    assert len(entrants(trials, references=1)[1]) == 8


@pytest.mark.parametrize(
    "episodes, scored, there, sizes",
    [
        (60, 2500, 45_000, (2500, 10_000)),
        (8, 2500, 45_000, (2500, 5000)),  # a quarter of eight times 2 500, for either of two
        (60, 1000, 1250, (250, 1000)),  # all that there are
        (60, 200, 312, (62, 250)),
        (60, 200, 311, None),  # 249 cannot decide
        (60, 50, 45_000, None),
    ],
)
def test_images_are_as_many_as_a_quarter_of_the_search_pays_for(
    episodes: int, scored: int, there: int, sizes: tuple[int, int] | None
) -> None:
    assert images_of(episodes, scored, there) == sizes


def test_chance_is_no_gain_and_a_gain_beyond_it_is() -> None:
    start, lead = torch.ones(100), torch.tensor([1.0, -1.0] * 50)  # a spread of 1.005, 10 errors
    gain = SURE * float(lead.std()) / 10
    assert not nearer(apart(start), apart(start - lead - 0.99 * gain))
    assert nearer(apart(start), apart(start - lead - 1.01 * gain))
    assert not nearer(apart(start), apart(start - lead + 1.01 * gain))
    assert not nearer(apart(start), apart(start))


def test_what_is_nearer_softened_alone_is_not_accepted() -> None:
    start = torch.ones(100)
    assert nearer(Apart(start, start), Apart(start, 0.5 * start))
    assert not nearer(Apart(start, start), Apart(1.01 * start, 0.5 * start))


def test_the_luckiest_of_many_equals_is_seldom_accepted() -> None:
    draw = torch.Generator().manual_seed(0)
    accepted = 0
    for _ in range(200):
        start, *others = torch.rand(31, 2000, generator=draw)
        luckiest = min(others, key=lambda one: float(one[:1000].mean()))
        accepted += nearer(apart(start[1000:]), apart(luckiest[1000:]))
    assert accepted <= 20  # 5 % of 200 are expected


def decided(
    monkeypatch: pytest.MonkeyPatch, known: list[float], challengers: list[float]
) -> Confirmed:
    """Return what is decided where policies are so far from the float network everywhere."""
    far = dict(enumerate([*known, *challengers]))
    noise = torch.linspace(-0.01, 0.01, 400)

    def measured(self: Any, trials: list[Trial], images: int, rows: Any, what: str) -> Any:
        for one in trials:
            rows.setdefault(one.episode, {})[what] = far[one.episode]
        return {
            one.episode: apart(far[one.episode] + noise * (-1) ** one.episode) for one in trials
        }

    comparison = object.__new__(confirm._Comparison)
    comparison.first = comparison.last = torch.zeros(400)  # type: ignore[assignment]
    comparison.evaluator = type("", (), {"validation": torch.zeros(400)})()  # type: ignore
    monkeypatch.setattr(confirm._Comparison, "_apart", measured)
    both = [trial(n, 2 + n, -value) for n, value in far.items()]
    return comparison.decided(both[: len(known)], both[len(known) :])


def test_the_nearest_challenger_is_handed_on_where_it_beats_every_known_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = decided(monkeypatch, [1.0, 1.2], [0.9, 0.8, 0.95])
    assert answer.trial.episode == 3 and answer.summary["accepted"]
    assert answer.summary["start"] == 0


def test_else_the_nearest_known_answer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # Their scores were better, or they would not be challengers.
    answer = decided(monkeypatch, [1.0, 0.7], [0.9, 0.8])
    assert answer.trial.episode == 1 and not answer.summary["accepted"]
    assert decided(monkeypatch, [1.0, 0.7], [0.9]).trial.episode == 1
    assert decided(monkeypatch, [0.7, 1.0], [0.9]).trial.episode == 0


def test_the_images_that_decide_have_compared_nothing() -> None:
    evaluator: Any = SimpleNamespace(others=Part(DIGITS.train, torch.arange(100).flip(0)))
    search: Any = None
    comparison = confirm._Comparison(search, evaluator, (20, 50))
    assert comparison.first.chosen.tolist() == list(range(99, 79, -1))
    assert comparison.last.chosen.tolist() == list(range(79, 29, -1))


def test_they_are_training_images_each_once_in_an_order_of_the_seed() -> None:
    def others(seed: int) -> Part:
        evaluator = object.__new__(Evaluator)
        evaluator.data, evaluator.seed = DIGITS, seed
        return evaluator.others

    one, other = others(0), others(1)
    assert one.split is DIGITS.train
    assert sorted(one.chosen.tolist()) == list(range(len(DIGITS.train)))
    assert one.chosen.tolist() != other.chosen.tolist() and one.chosen[0] != 0


GUIDED: dict[str, Any] = {
    "model": "digits_mlp", "data": "digits", "agent": "trust", "episodes": 16, "float_epochs": 4,
    "val_images": 120, "train_images": 200, "rounding_steps": 0, "final_epochs": 0,
    "budgets": ["bops=25%w8a8"], "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("confirmed")
    return folder, run(parse_job(**GUIDED, finalists=0), folder)


def test_a_search_hands_on_what_was_confirmed(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = searched
    trials = read_trials(folder)
    known, challengers = entrants(trials, references=3)
    assert ("confirmed" in summary) == bool(challengers)
    if not challengers:  # on another machine
        assert summary["best_episode"] in {one.episode for one in known}
        return
    said = summary["confirmed"]
    assert summary["best_episode"] == said["episode"]
    assert read_policy(folder / "policy.json") == trials[said["episode"]].policy
    assert said["episode"] == (said["challenger"] if said["accepted"] else said["start"])
    assert said["start"] < 3 and said["challenger"] in {one.episode for one in challengers}
    decided = {row["episode"]: row["decided"] for row in said["rows"] if "decided" in row}
    assert decided[said["episode"]] == min(
        value for episode, value in decided.items() if episode < 3 or said["accepted"]
    )


def test_episodes_score_the_divergence_at_a_temperature_of_2() -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 50, 10, generator=draw)
    by_hand = 4 * sum(
        float((p * (p / q).log()).sum())
        for p, q in zip((other / 2).softmax(1), (one / 2).softmax(1), strict=True)
    )
    assert float(divergences(one, other, 2.0).sum()) == pytest.approx(by_hand, rel=1e-5)
    mean = float(divergences(one, other, 2.0).mean())
    assert float(divergence(one, other, 2.0)) == pytest.approx(mean, rel=1e-5)


def test_no_more_images_are_compared_than_their_answers_can_be_kept_of() -> None:
    def there(answers: torch.Tensor | None) -> int:
        evaluator: Any = SimpleNamespace(answers=answers, others=range(1000))
        return confirm._there(evaluator)

    assert there(torch.zeros(2, 10)) == 1000
    assert there(torch.zeros(2, 2**10, 2**7)) == 2**9  # of pixels or of tokens: 2**26 values
    assert there(None) == 0  # too many even for the images of an episode


def test_a_known_answer_that_gives_no_number_costs_no_run_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = decided(monkeypatch, [float("nan"), 1.0], [0.9, 0.8])
    assert answer.trial.episode in {0, 1} and not answer.summary["accepted"]


def test_the_last_word_is_on_images_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Any]] = []

    def measured(self: Any, trials: list[Trial], images: Any, rows: Any, what: str) -> Any:
        seen.append((what, images))
        return {one.episode: apart(torch.arange(3.0) + one.episode) for one in trials}

    comparison: Any = object.__new__(confirm._Comparison)
    comparison.first, comparison.last = range(30), range(90)
    comparison.evaluator = SimpleNamespace(validation=range(10))
    monkeypatch.setattr(confirm._Comparison, "_apart", measured)
    comparison.decided([trial(0, 2, -3)], [trial(1, 3, -2), trial(2, 4, -1)])
    assert seen == [("compared", range(30)), ("decided", range(90))]


def test_the_few_are_ranked_by_all_images_so_far() -> None:
    comparison: Any = object.__new__(confirm._Comparison)
    comparison.first, comparison.evaluator = range(30), SimpleNamespace(validation=range(10))
    # 10 images at 2.0, 30 at 1.0
    assert comparison._both(trial(0, 2, -2.0), apart(torch.ones(30))) == pytest.approx(1.25)
