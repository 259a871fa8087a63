"""The losses of features: worked values, gradients, and what they do not see."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from haq.distillation.attention import attention_loss
from haq.distillation.hints import hint_loss
from haq.distillation.input_gradient import input_gradient, input_gradient_loss
from haq.distillation.joint import imitation_loss, joint_loss
from haq.distillation.losses import LOSSES
from haq.distillation.relational import angle_loss, distance_loss
from haq.distillation.route import anchor_at
from haq.distillation.similarity import similarity_loss

STUDENT = torch.tensor([[1, 2, 3], [1, 0, -1]], dtype=torch.float64)
TEACHER = torch.tensor([[3, 1, 0], [0, 0, 2]], dtype=torch.float64)
LABELS = torch.tensor([2, 0])


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def exactly(value):
    return pytest.approx(value, abs=1e-9, rel=0)


def same(value, expected):
    torch.testing.assert_close(value, f64(expected), atol=1e-9, rtol=0)


def test_hints_by_hand():
    features = torch.arange(8, dtype=torch.float64).view(1, 2, 2, 2)
    teacher = torch.ones_like(features)
    teacher[:, 1] = 2
    # Squares of -1 0 1 2 and of 2 3 4 5: 6 + 54 over 8 values.
    assert hint_loss(features, teacher).item() == exactly(7.5)


ATTENTION = f64([[[[1, 0], [0, 0]], [[0, 2], [0, 0]]]]), f64([[[[1, 1], [0, 0]]] * 2])


def test_attention_by_hand():
    assert attention_loss(*ATTENTION).item() == exactly(0.071253537144)
    # The paper's length of the difference, of which this is the square over four positions.
    assert (4 * attention_loss(*ATTENTION).item()) ** 0.5 == exactly(0.533867163792)


def test_a_dead_map_has_no_attention_and_a_finite_gradient():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = attention_loss(student, torch.zeros(2, 5, 4, 4))
    loss.backward()
    assert loss.item() == 0 and student.grad.isfinite().all()


def test_maps_of_two_sizes_are_pooled_to_the_smaller():
    large = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    small = functional.adaptive_avg_pool2d(large, 4)
    assert attention_loss(large, small).item() == attention_loss(small, large).item() == 0


def test_input_gradients_by_hand():
    images = f64([[1, 2]]).requires_grad_()
    weights = torch.eye(2, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0])
    mine = input_gradient(images @ weights.T, labels, images, create_graph=True)
    its = input_gradient(images @ f64([[2, 0], [0, 1]]).T, labels, images, create_graph=False)
    same(mine.detach(), [[-0.731058578630, 0.731058578630]])
    same(its, [[-1, 0.5]])
    loss = input_gradient_loss(mine, its)
    assert loss.item() == exactly(0.062858777444)
    (gradient,) = torch.autograd.grad(loss, weights)
    # Worked out from q = 1 / (1 + 1 / e), the teacher's error of the wrong class, in 40 digits.
    same(gradient, [[-0.189163714294, -0.154020918118], [0.189163714294, 0.154020918118]])


SIMILAR = f64([[1, 0], [0, 1], [1, 1]]), f64([[1, 0], [0, 2], [2, 2]])


def test_similarity_by_hand():
    assert similarity_loss(*SIMILAR).item() == exactly(0.015857514431)
    assert similarity_loss(SIMILAR[0], 7 * SIMILAR[1]).item() == exactly(0.015857514431)


RELATED = f64([[0, 0], [3, 4], [6, 0]]), f64([[0, 0], [1, 0], [0, 1]])


def test_relations_by_hand():
    distance, angle = distance_loss(*RELATED).item(), angle_loss(*RELATED).item()
    assert distance == exactly(0.017471598156)
    assert angle == exactly(0.020514520930)
    assert 25 * distance + 50 * angle == exactly(1.462516000402)
    assert distance_loss(10 * RELATED[0], RELATED[1]).item() == exactly(0.017471598156)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss])
def test_embeddings_that_are_one_point_give_no_nan(loss):
    student = torch.ones(4, 3, requires_grad=True)
    value = loss(student, torch.ones(4, 3))
    value.backward()
    assert value.item() == 0 and student.grad.isfinite().all()


def test_joint_training_by_hand():
    expected = {
        0: [[0.421897367, 0.057097600, -0.478994967], [-0.446746511, 0.053253489, 0.393493021]],
        1: [[0.463710631, 0.034207610, -0.497918240], [-0.491492198, 0.035134547, 0.456357650]],
    }
    for feedback in (0, 1, 0.25):
        teacher = TEACHER.clone().requires_grad_()
        loss = joint_loss(STUDENT, teacher, LABELS, feedback=feedback)
        loss.backward()
        assert loss.item() == exactly(3.982867290231)
        mix = feedback * f64(expected[1]) + (1 - feedback) * f64(expected[0])
        torch.testing.assert_close(teacher.grad, mix, atol=1e-9, rtol=0)


def test_imitation_is_distillation_and_the_teachers_entropy():
    # The cross-entropy form at a temperature of 4, worked out with the other values.
    assert imitation_loss(STUDENT, TEACHER, 4).item() == exactly(18.772606616595)


def test_the_route_gives_each_state_its_epochs():
    assert [anchor_at(epoch, 3, 3) for epoch in range(3)] == [0, 1, 2]
    assert {anchor_at(epoch, 7, 1) for epoch in range(7)} == {0}
    with pytest.raises(ValueError, match="4 states of a teacher do not go into 3 epochs"):
        anchor_at(0, 3, 4)


every_loss = pytest.mark.parametrize("name", LOSSES)


def features(name, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (6, 5) if LOSSES[name].compared in ("logits", "embedding") else (6, 3, 4, 4)
    return torch.randn(shape, generator=generator, dtype=dtype)


@every_loss
def test_who_is_its_own_teacher_has_nothing_to_learn(name):
    student = features(name, 0).requires_grad_()
    loss = LOSSES[name].function(student, student.detach().clone())
    loss.backward()
    assert abs(loss.item()) < 1e-12 and student.grad.abs().max() < 1e-9


@every_loss
@given(seed=st.integers(1, 1000))
def test_a_loss_is_positive_and_no_gradient_reaches_the_teacher(name, seed):
    student, teacher = features(name, 0).requires_grad_(), features(name, seed).requires_grad_()
    loss = LOSSES[name].function(student, teacher)
    loss.backward()
    assert loss.dim() == 0 and loss.item() > 0
    assert teacher.grad is None and student.grad.isfinite().all()


@every_loss
def test_half_precision_is_widened_first(name):
    if LOSSES[name].compared == "input gradient":
        return  # the gradients come wide
    student, teacher = features(name, 0, torch.bfloat16), features(name, 1, torch.bfloat16)
    loss = LOSSES[name].function(student, teacher)
    assert loss.dtype == torch.float32
    expected = LOSSES[name].function(student.double(), teacher.double()).item()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
