"""Losses against references written from their definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch

from llmdistill.train.losses.dense import cross_entropy, forward_kl


def softmax(logits: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(logit / temperature) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def slow_forward_kl(student: list[float], teacher: list[float], temperature: float) -> float:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return temperature**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("seed", range(100))
def test_forward_kl_equals_its_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    temperature = [0.5, 1.0, 2.0, 4.0][seed % 4]
    student, teacher = torch.randn(2, 3, 7, generator=generator) * (1 + seed % 5)
    found = forward_kl(student, teacher, temperature)
    expected = [
        slow_forward_kl(own, other, temperature)
        for own, other in zip(student.double().tolist(), teacher.double().tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
def test_gradient_of_forward_kl_passes_gradcheck(temperature):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 5, dtype=torch.float64, generator=generator)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        p = (teacher / temperature).softmax(-1)
        return temperature**2 * (p * (p.log() - (logits / temperature).log_softmax(-1))).sum(-1)

    assert torch.autograd.gradcheck(loss, (student,))
    (expected,) = torch.autograd.grad(loss(student).sum(), student)
    single = student.detach().float().requires_grad_()
    (found,) = torch.autograd.grad(forward_kl(single, teacher.float(), temperature).sum(), single)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-6)
    # T^2 * d/dz KL = T * (softmax(z / T) - softmax(t / T)), Hinton et al. equation 2
    by_hand = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    assert torch.allclose(expected, by_hand)


def test_equal_logits_have_no_distance_and_shifted_ones_neither():
    logits = torch.randn(4, 9)
    assert forward_kl(logits, logits).abs().max() < 1e-6
    assert forward_kl(logits + 3.0, logits, 2.0).abs().max() < 1e-5


def test_a_confident_wrong_student_costs_much_and_stays_finite():
    student, teacher = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])
    assert forward_kl(student, teacher).item() == pytest.approx(200.0, rel=1e-4)


def test_cross_entropy_equals_its_definition():
    logits, labels = torch.randn(6, 11), torch.arange(6)
    expected = [-math.log(softmax(row, 1.0)[label]) for label, row in enumerate(logits.double().tolist())]
    assert cross_entropy(logits, labels).tolist() == pytest.approx(expected, rel=1e-5)

