"""What can be asked of a distillation, and what is refused in one sentence."""

import pytest

from haq.distillation.losses import LOSSES
from haq.distillation.settings import (
    NAMES,
    OF_FEATURES,
    Weight,
    distillation_of,
    read_distillation,
)
from haq.errors import HaqError
from haq.runs.job import JobError, parse_job


def settings(asked):
    return distillation_of(read_distillation(asked))


def test_every_loss_can_be_asked_for():
    assert tuple(LOSSES) == NAMES


def test_a_text_is_the_mapping_that_it_reads_like():
    text = "kd:0.9..0.3+hint:1+temperature:2+taps:layer1,layer2=layer4+through-quantizer"
    assert read_distillation(text) == {
        "kd": [0.9, 0.3], "hint": 1.0, "temperature": 2.0, "taps": ["layer1", "layer2=layer4"],
        "through_quantizer": True,
    }  # fmt: skip
    assert read_distillation(read_distillation(text)) == read_distillation(text)
    assert read_distillation("none") == read_distillation(False) == {}
    assert read_distillation(True) == {"kd": 0.9}


@pytest.mark.parametrize(
    "asked, labels",
    [
        ("kd:0.9", (0.1, 0.1)),
        ("hint:1", (1, 1)),
        ("kd:1+hint:5", (0, 0)),
        ("kd:0.9..0.3", (0.1, 0.7)),
        ("kd:0.9+labels:2", (2, 2)),
    ],
)
def test_labels_have_what_kd_leaves_them(asked, labels):
    assert settings(asked).labels == pytest.approx(labels)


def test_a_weight_goes_from_its_first_value_to_its_last():
    weight = Weight(0.9, 0.3)
    assert [weight.at(share) for share in (0, 0.5, 1)] == pytest.approx([0.9, 0.6, 0.3])


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ("hints:0.9", "unknown distillation 'hints'; did you mean 'hint'"),
        ("kd:much", "distill kd:much: write a number, or FIRST..LAST"),
        ("kd:-1", "distill kd:-1.0: a weight is a finite number, 0 or more"),
        ("kd:inf", "distill kd:inf: a weight"),
        ("kd:nan", "distill kd:nan: a weight"),
        ("kd:0", "no loss has a weight; give one such as kd:0.9, or none"),
        ("labels:1", "no loss has a weight"),
        ("", "unknown distillation ''"),
        ("kd:1+kd:2", "kd stands there twice"),
        ("kd:1+temperature:0", "temperature:0.0: a temperature is a finite number above 0"),
        ("kd:1+feedback:0.5", "feedback: it reaches a teacher in co-study"),
        ("kd:0.9+co-study:2", "co_study:2.0: it is a share, from 0 to 1"),
        ("kd:0.9+co-study:0.6+self-study:0.6", "are more than the whole training"),
        ("hint:1+co-study:0.5", "give kd too"),
        ("kd:1+self-study:0.5", "without labels nothing can be studied alone"),
        ("kd:0.9+co-study:0.5+route:a.safetensors", "leave co_study or route out"),
        ("kd:0.9+regressor:1", "regressor stands alone"),
        ("hint:1+temperature:2", "temperature: it softens the answers of kd; give kd too"),
        ("kd:1+taps:conv1", "distill taps: it is of features; give a loss of them (hint,"),
        ("gradient+regressor", "distill regressor: it is of features"),
        ("kd+hint:0+through-quantizer", "distill through_quantizer: it is of features"),
        ("hint+taps:conv1,conv2,conv1", "distill taps: conv1 stands there twice"),
        ("kd:0.9+temperature", "distill temperature: write temperature:VALUE"),
        ({"kd": True}, "distill kd:True: a weight"),
        ({"kd": [1, 2, 3]}, "distill kd:1..2..3: a weight"),
        ({"kd": 1, "taps": []}, "give names"),
        ({"kd": 1, "regressor": 1}, "distill regressor:1: give true or false"),
    ],
)
def test_what_cannot_be_is_refused(asked, sentence):
    with pytest.raises(HaqError) as error:
        settings(asked)
    assert sentence in str(error.value)


def test_a_job_has_the_mapping_and_names_the_field_that_is_wrong():
    assert parse_job().distill == {"kd": 0.9}
    assert parse_job(distill="kd:0.5+hint:1").distill == {"kd": 0.5, "hint": 1.0}
    assert parse_job(distill=False).distill == {}
    for wrong in ("kt:1", 3):
        with pytest.raises(JobError) as error:
            parse_job(distill=wrong)
        assert error.value.field == "distill"


def test_losses_of_features_are_those_that_compare_them():
    features = ("taps", "last tap", "embedding")
    compared = {name for name, loss in LOSSES.items() if loss.compared in features}
    assert compared == set(OF_FEATURES)
