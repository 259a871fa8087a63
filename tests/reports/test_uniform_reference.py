"""What a run says of uniform bits."""

import pytest

from haq.metrics import METRICS
from haq.reports.report import report_html
from haq.reports.uniform import beats, uniform_sentence, versus_uniform
from haq.runs.folder import read_trials
from haq.runs.job import parse_job
from haq.runs.run import run

RUN = {
    "best_episode": 5, "episode_val_accuracy": 0.90,
    "best_uniform": {"weight_bits": 3, "act_bits": 8, "episode": 1, "val_accuracy": 0.88},
}  # fmt: skip
TUNED = [
    {"episode": 5, "val_accuracy": 0.90, "tuned_val_accuracy": 0.93},
    {"episode": 1, "val_accuracy": 0.88, "tuned_val_accuracy": 0.94},
]


def test_without_finalists_the_episodes_are_compared():
    assert versus_uniform(RUN)[:4] == (0.90, 0.88, False, False)
    sentence = uniform_sentence(RUN)
    assert "+2.00 points of validation accuracy (90.00% against 88.00%, as in their" in sentence
    assert "(3-bit weights, 8-bit activations; episode 1)" in sentence


def test_with_finalists_both_are_compared_after_their_epoch_also_where_we_lose():
    run = RUN | {"finalists": TUNED}
    assert versus_uniform(run)[:4] == (0.93, 0.94, True, False)
    assert "-1.00 points of validation accuracy (93.00% against 94.00%" in uniform_sentence(run)


def test_a_network_with_an_epoch_is_not_compared_with_one_without():
    assert versus_uniform(RUN | {"finalists": TUNED[:1]})[:4] == (0.90, 0.88, False, False)


def test_equal_accuracies_are_no_difference():
    run = RUN | {"episode_val_accuracy": 0.88}
    assert "no difference of validation accuracy" in uniform_sentence(run)


def test_where_uniform_bits_were_chosen_it_is_said():
    run = RUN | {"best_episode": 1, "episode_val_accuracy": 0.88}
    assert "the search found nothing better" in uniform_sentence(run)


@pytest.mark.parametrize(
    "reference, sentence",
    [
        (None, "No uniform bits keep the budgets"),
        ({"weight_bits": 3}, "Uniform bits were not tried in this run; haq sweep"),
    ],
)
def test_where_there_is_nothing_to_compare_with_it_is_said(reference, sentence):
    run = RUN | {"best_uniform": reference}
    assert versus_uniform(run) is None
    assert uniform_sentence(run).startswith(sentence)


def test_a_policy_lowered_after_the_episodes_has_the_accuracy_of_none_of_them():
    run = RUN | {"finalists": TUNED, "measured_latency": {"how": "lowered"}}
    assert versus_uniform(run) is None
    assert uniform_sentence(run).startswith("The policy was lowered after the episodes")
    other = run | {"measured_latency": {"how": "next best"}}
    assert versus_uniform(other)[:4] == (0.93, 0.94, True, False)


def row(**changes):
    known = {"weight_bits": 3, "act_bits": 8, "lowered": 0, "cost": {}, "same": False,
             "images": 100, "apart": True, "tuned": False, "own": 0.9, "uniform": 0.88,
             "interval": [0.01, 0.03]}  # fmt: skip
    return RUN | {"uniform_reference": known | changes}


def test_what_both_were_evaluated_on_at_the_end_counts_more_than_episodes():
    assert "+2.00 points (+1.00 to +3.00) of validation accuracy" in uniform_sentence(row())
    assert "images that nothing was chosen by" in uniform_sentence(row())
    chosen_on = uniform_sentence(row(apart=False, lowered=2))
    assert "on the images that the policy was chosen on" in chosen_on
    assert "3-bit weights, 8-bit activations, lowered in 2 layers" in chosen_on


@pytest.mark.parametrize(
    "changes, better",
    [
        ({}, True),
        ({"interval": [-0.03, -0.01]}, False),
        ({"interval": [-0.01, 0.05]}, None),
        ({"interval": None}, None),
        ({"same": True}, None),
    ],
)
def test_better_is_what_chance_does_not_explain(changes, better):
    assert beats(versus_uniform(row(**changes)), METRICS["top1"]) is better


def test_the_same_policy_is_said_to_be_no_better():
    assert "the search found nothing better" in uniform_sentence(row(same=True))


def test_a_run_that_does_not_know_says_nothing():
    assert uniform_sentence({"best_episode": 0, "episode_val_accuracy": 0.5}) == ""


def test_the_best_uniform_bits_are_found_among_the_trials(tmp_path):
    job = parse_job(agent="guided", budgets=["avg_weight_bits=4"], episodes=3, float_epochs=1,
                    val_images=60, train_images=64, final_epochs=0, threads=1)  # fmt: skip
    summary = run(job, tmp_path)
    found = summary["best_uniform"]
    trial = read_trials(tmp_path)[found["episode"]]
    free = [bits for name, bits in trial.policy.items() if name not in ("conv1", "linear")]
    assert {bits.weight for bits in free} == {found["weight_bits"]} and found["act_bits"] == 8
    # One bit more would be over: 3 bits in the free layers and 8 in the pinned ones are 3.51.
    assert found["weight_bits"] == 3
    assert found["val_accuracy"] == trial.accuracy
    page = report_html(tmp_path)
    assert "best uniform bits" in page


def test_uniform_bits_that_were_not_tried_are_evaluated_all_the_same(tmp_path):
    job = parse_job(agent="ilp", budgets=["avg_weight_bits=4"], float_epochs=1, val_images=60,
                    threads=1, rounding_steps=0)  # fmt: skip
    summary = run(job, tmp_path)
    assert summary["best_uniform"] == {"weight_bits": 3.0, "act_bits": 8.0}
    reference = summary["uniform_reference"]
    assert reference["cost"]["avg_weight_bits"] <= 4 and not reference["tuned"]
    low, high = reference["interval"]
    assert low <= reference["own"] - reference["uniform"] <= high
    assert "best uniform bits within the budgets" in uniform_sentence(summary)
    assert "the best uniform bits" in report_html(tmp_path)
