"""Metrics: examples by hand, and what every metric of the table promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import HaqError, ModelError
from haq.metrics import METRICS, OWN, metric_of, named
from haq.metrics.metric import signed
from haq.training.aligned import aligned, rows_of
from haq.training.scoring import check_metric, score_answers

every_metric = pytest.mark.parametrize("name", METRICS)

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.5], [0.0, 0.0, 9.0]])
LABELS = torch.tensor([0, 1, 2, 2])


def sums(name, answer, labels=LABELS, reference=None, mask=None):
    return METRICS[name].sums(answer, labels, reference, mask)


def value(name, *args, **more):
    return METRICS[name].value(sums(name, *args, **more))


# --- by hand ---------------------------------------------------------------------------------


def test_accuracy_by_hand():
    assert value("top1", LOGITS) == 0.75


def test_the_first_five_of_six_leave_one_out():
    logits = torch.eye(6)[:2] + torch.arange(6.0).flip(0) / 100  # the last class is the sixth
    assert value("top5", logits, torch.tensor([5, 0])) == 0.5


def test_cosine_by_hand():
    own, other = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 3.0]])
    assert value("cosine", own, reference=other) == pytest.approx(0.5)


def test_tokens_that_are_masked_do_not_count_for_the_cosine():
    own, other = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    other[:, :2] = own[:, :2]
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    assert value("cosine", own, reference=other, mask=mask) == pytest.approx(1.0)
    assert value("cosine", own, reference=other) < 0.999


def test_perplexity_of_equal_chances_is_the_number_of_tokens():
    assert value("perplexity", torch.zeros(4, 7), torch.tensor([0, 3, 6, 6])) == pytest.approx(7.0)


def test_mean_iou_by_hand():
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 1])]
    labels = torch.tensor([0, 1, 1, 1])  # class 0: 1 of 2, class 1: 2 of 3, class 2 nowhere
    assert value("miou", logits, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_agreement_by_hand():
    assert value("agreement", LOGITS, reference=LOGITS.roll(2, 0)) == 0.5


# --- what every metric promises --------------------------------------------------------------


@every_metric
def test_a_perfect_answer_has_the_best_score(name):
    metric, right = METRICS[name], torch.eye(6)[torch.tensor([0, 1, 2, 5])] * 50
    labels = torch.tensor([0, 1, 2, 5])
    perfect = metric.value(metric.sums(right, labels, right, None))
    noise = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    worse = metric.value(metric.sums(right.flip(1) + noise, labels, right, None))
    assert metric.score(perfect) >= metric.score(worse)
    assert (perfect >= worse) == metric.higher or perfect == worse


@every_metric
def test_sums_of_parts_are_those_of_the_whole(name):
    metric, reference = METRICS[name], LOGITS.flip(0)
    logits, labels = LOGITS.repeat(1, 3), LABELS
    reference = reference.repeat(1, 3)
    whole = metric.sums(logits, labels, reference, None)
    parts = [metric.sums(logits[at], labels[at], reference[at], None)
             for at in (slice(0, 1), slice(1, 4))]  # fmt: skip
    assert metric.value(parts[0] + parts[1]) == pytest.approx(metric.value(whole))


@every_metric
@given(score=st.floats(-20, 0))
def test_a_score_comes_back_from_its_value(name, score):
    metric = METRICS[name]
    assert metric.score(metric.of_score(score)) == pytest.approx(score, abs=1e-9)


@every_metric
def test_values_and_differences_are_text_with_one_unit(name):
    metric = METRICS[name]
    assert (metric.unit in metric.text(0.5)) and "accuracy" not in metric.text(0.5)
    assert metric.difference(0.75, 0.5).startswith("+")
    assert metric.difference(0.5, 0.75).startswith("-")
    assert not any(digit in metric.difference(0.5, 0.5) for digit in "123456789")


@every_metric
def test_fields_are_called_by_the_metric(name):
    metric = METRICS[name]
    assert metric.key("final_test") == f"final_test_{metric.word}"
    assert ("accuracy" in metric.word) == (name in ("top1", "top5"))
    assert metric_of({"metric": name}) is metric


@every_metric
def test_answers_that_do_not_fit_are_refused_in_one_sentence(name):
    with pytest.raises(ModelError) as refused:
        check_metric(METRICS[name], torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
        pytest.skip("takes any answer")
    assert f"metric {name} needs" in str(refused.value) and "\n" not in str(refused.value)


def test_one_class_too_few_for_the_first_five():
    labels = torch.zeros(2, dtype=torch.int64)
    check_metric(METRICS["top5"], torch.zeros(2, 6), labels)
    with pytest.raises(ModelError, match="more than 5 classes"):
        check_metric(METRICS["top5"], torch.zeros(2, 5), labels)


def test_perplexity_is_of_tokens_and_mean_iou_of_pixels():
    with pytest.raises(ModelError, match="next token"):
        check_metric(METRICS["perplexity"], torch.zeros(2, 9), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ModelError, match="every pixel"):
        check_metric(METRICS["miou"], torch.zeros(2, 9), torch.zeros(2, dtype=torch.int64))
    check_metric(METRICS["perplexity"], torch.zeros(2, 3, 9), torch.zeros(2, 3).long())
    check_metric(METRICS["miou"], torch.zeros(2, 9, 4, 4), torch.zeros(2, 8, 8).long())


def test_unknown_names_say_what_was_meant():
    with pytest.raises(HaqError, match="unknown metric 'top-1'; did you mean 'top1'"):
        named("top-1")
    assert named("evaluate") is OWN


def test_older_summaries_speak_of_accuracy():
    assert metric_of({}) is METRICS["top1"]


# --- shares ----------------------------------------------------------------------------------


@given(count=st.integers(1, 10**6), right=st.floats(0, 1))
def test_an_interval_holds_its_share(count, right):
    share = round(right * count) / count
    low, high = METRICS["top1"].interval(share, count)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1


def test_what_has_no_interval_says_none():
    assert METRICS["perplexity"].interval(3.0, 10) is None
    assert METRICS["miou"].interval(0.5, 10) is None


def test_zero_has_no_sign():
    assert signed(-0.0001, 2) == "0.00" and signed(-0.01, 2) == "-0.01"


# --- labels and logits -----------------------------------------------------------------------


def test_tokens_and_pixels_that_do_not_count_are_left_out():
    tokens, labels = torch.randn(2, 3, 5), torch.tensor([[1, -100, 2], [0, 4, -100]])
    rows, counted = aligned(tokens, labels)
    assert rows.shape == (4, 5) and counted.tolist() == [1, 2, 0, 4]
    assert torch.equal(rows[1], tokens[0, 2])
    pixels, masks = torch.randn(1, 3, 2, 2), torch.tensor([[[0, 1], [-100, 2]]])
    rows, counted = aligned(pixels, masks)
    assert torch.equal(rows[2], pixels[0, :, 1, 1]) and counted.tolist() == [0, 1, 2]


def test_logits_of_fewer_pixels_are_brought_to_the_size_of_the_labels():
    rows, labels = aligned(torch.zeros(1, 3, 2, 2), torch.zeros(1, 8, 8, dtype=torch.int64))
    assert rows.shape == (64, 3) and len(labels) == 64


def test_rows_of_tokens_and_pixels():
    assert rows_of(torch.zeros(2, 3, 5)).shape == (6, 5)
    assert rows_of(torch.zeros(2, 5, 3, 3)).shape == (18, 5)
    assert rows_of(torch.zeros(2, 5)).shape == (2, 5)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ModelError, match="gives a tensor of 2x3x4 and the labels are 2"):
        aligned(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))


class Split:
    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def batch(self, index, generator=None):
        return self.inputs[index], self.labels[index]


def test_the_score_of_perplexity_is_minus_its_logarithm_and_its_loss_the_mean():
    logits, labels = torch.randn(6, 3, 5), torch.randint(5, (6, 3))
    score = score_answers(lambda x: x, Split(logits, labels), batch=4,
                          metric=METRICS["perplexity"])  # fmt: skip
    mean = float(torch.nn.functional.cross_entropy(logits.view(-1, 5), labels.view(-1)))
    assert score.accuracy == pytest.approx(-mean, abs=1e-5)
    assert score.loss == pytest.approx(mean, abs=1e-5)
    assert METRICS["perplexity"].of_score(score.accuracy) == pytest.approx(math.exp(mean), rel=1e-4)
