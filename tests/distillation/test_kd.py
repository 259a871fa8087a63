import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haq.distillation.kd import distillation_loss

STUDENT = torch.tensor([[1, 2, 3], [1, 0, -1]], dtype=torch.float64)
TEACHER = torch.tensor([[3, 1, 0], [0, 0, 2]], dtype=torch.float64)


def exactly(value):
    return pytest.approx(value, abs=1e-9, rel=0)


@pytest.mark.parametrize(
    "temperature, expected",
    [
        (1, 1.553818180926),
        (2, 1.810967174470),
        (4, 1.840000481387),
        (20, 1.797073741970),
        (1000, 1.778193846669),
    ],
)
def test_the_loss_by_hand(temperature, expected):
    assert distillation_loss(STUDENT, TEACHER, temperature).item() == exactly(expected)


def test_at_high_temperature_it_is_the_distance_of_centred_logits():
    # Half the mean square of the differences, less their mean: (114 / 9 + 78 / 9) / 2 images
    # / 3 classes / 2.
    assert distillation_loss(STUDENT, TEACHER, 1e5).item() == pytest.approx(16 / 9, abs=1e-4)


def test_the_gradient_by_hand():
    student = STUDENT.clone().requires_grad_()
    distillation_loss(student, TEACHER).backward()
    expected = [
        [-0.453498101326, 0.069479744142, 0.384018357184],
        [0.290320665097, 0.104854433477, -0.395175098574],
    ]
    torch.testing.assert_close(
        student.grad, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_no_gradient_reaches_the_teacher():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    distillation_loss(student, teacher).backward()
    assert teacher.grad is None and student.grad is not None


def test_half_precision_logits_are_widened_first():
    for dtype in (torch.bfloat16, torch.float16):
        loss = distillation_loss(STUDENT.to(dtype), TEACHER.to(dtype))  # small integers are exact
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(1.840000481387, abs=1e-5)


@given(
    logits=st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=1, max_size=5),
    temperature=st.floats(0.5, 50),
    shift=st.floats(-5, 5),
)
def test_who_agrees_with_the_teacher_has_nothing_to_learn(logits, temperature, shift):
    teacher = torch.tensor(logits, dtype=torch.float64)
    student = (teacher + shift).requires_grad_()
    loss = distillation_loss(student, teacher, temperature)
    loss.backward()
    assert abs(loss.item()) < 1e-9
    assert student.grad.abs().max() < 1e-9


@given(
    student=st.lists(st.floats(-30, 30), min_size=3, max_size=3),
    teacher=st.lists(st.floats(-30, 30), min_size=3, max_size=3),
)
def test_the_loss_is_never_negative(student, teacher):
    pair = (torch.tensor([z], dtype=torch.float64) for z in (student, teacher))
    assert distillation_loss(*pair).item() > -1e-9
