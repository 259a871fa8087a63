"""What a run says of uniform bits."""

import pytest

from haq.reports.uniform import uniform_sentence, versus_uniform

RUN = {
    "best_episode": 5, "episode_val_accuracy": 0.90,
    "best_uniform": {"episode": 1, "val_accuracy": 0.88},
}  # fmt: skip
TUNED = [
    {"episode": 5, "val_accuracy": 0.90, "tuned_val_accuracy": 0.93},
    {"episode": 1, "val_accuracy": 0.88, "tuned_val_accuracy": 0.94},
]


def test_without_finalists_the_episodes_are_compared():
    assert versus_uniform(RUN) == (0.90, 0.88, False, False)
    sentence = uniform_sentence(RUN)
    assert "+2.00 points of validation accuracy (90.00% against 88.00%, as in their" in sentence
    assert "(episode 1)" in sentence


def test_with_finalists_both_are_compared_after_their_epoch_also_where_we_lose():
    run = RUN | {"finalists": TUNED}
    assert versus_uniform(run) == (0.93, 0.94, True, False)
    assert "-1.00 points of validation accuracy (93.00% against 94.00%" in uniform_sentence(run)


def test_a_network_with_an_epoch_is_not_compared_with_one_without():
    assert versus_uniform(RUN | {"finalists": TUNED[:1]}) == (0.90, 0.88, False, False)


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


def test_a_run_that_does_not_know_says_nothing():
    assert uniform_sentence({"best_episode": 0, "episode_val_accuracy": 0.5}) == ""
