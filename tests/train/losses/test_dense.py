"""Divergences against references written from their definitions in float64."""

from __future__ import annotations

import math
from functools import partial
from typing import get_args

import pytest
import torch

from llmdistill.config import Train
from llmdistill.train.losses.dense import (
    DIVERGENCES,
    cross_entropy,
    forward_kl,
    jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
)
from tests.train.losses.references import slow, softmax

SHARED = {"jsd": "beta", "skew_forward_kl": "skew", "skew_reverse_kl": "skew"}


def with_share(name: str, share: float):
    return partial(DIVERGENCES[name], **{SHARED[name]: share}) if name in SHARED else DIVERGENCES[name]


def two(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, *shape, dtype=dtype, generator=generator) * (1 + seed % 5)
    return one, other


def test_every_divergence_of_the_pipeline_file_is_there():
    assert set(DIVERGENCES) == set(get_args(Train.model_fields["divergence"].annotation))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("seed", range(20))
def test_a_divergence_equals_its_definition(name, seed):
    temperature, share = [0.5, 1.0, 2.0, 4.0][seed % 4], [0.1, 0.5, 0.8][seed % 3]
    student, teacher = two(seed, 3, 9)
    found = with_share(name, share)(student, teacher, temperature)
    expected = [
        temperature**2 * slow(name, softmax(p, temperature), softmax(q, temperature), share)
        for q, p in zip(student.double().tolist(), teacher.double().tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6 * max(1.0, temperature**2))


@pytest.mark.parametrize("name", sorted(set(DIVERGENCES) - {"adaptive_kl"}))
@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
def test_gradient_passes_gradcheck(name, temperature):
    student, teacher = two(0, 2, 5, dtype=torch.float64)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: with_share(name, 0.3)(logits, teacher, temperature), (student,))


def test_gradient_of_adaptive_kl_takes_its_two_weights_as_constant():
    student, teacher = two(3, 4, 9, dtype=torch.float64)
    student.requires_grad_()
    gradients = [
        torch.autograd.grad(divergence(student, teacher, 2.0).sum(), student)[0]
        for divergence in (forward_kl, reverse_kl, DIVERGENCES["adaptive_kl"])
    ]
    values = [d(student, teacher, 2.0).detach() for d in (forward_kl, reverse_kl, DIVERGENCES["adaptive_kl"])]
    share = ((values[2] - values[1]) / (values[0] - values[1]))[:, None]
    assert torch.allclose(gradients[2], share * gradients[0] + (1 - share) * gradients[1])


def test_gradient_of_forward_kl_is_hintons():
    student, teacher = two(1, 4, 9, dtype=torch.float64)
    student.requires_grad_()
    (found,) = torch.autograd.grad(forward_kl(student, teacher, 3.0).sum(), student)
    # T^2 * d/dz KL = T * (softmax(z / T) - softmax(t / T)), equation 2
    assert torch.allclose(found, 3.0 * ((student / 3.0).softmax(-1) - (teacher / 3.0).softmax(-1)))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_only_equal_distributions_have_no_distance(name):
    one, other = two(0, 6, 9)
    for temperature in (1.0, 2.0):
        assert DIVERGENCES[name](one, one, temperature).abs().max() < 1e-5
        assert DIVERGENCES[name](one + 3.0, one, temperature).abs().max() < 1e-5
        assert DIVERGENCES[name](other, one, temperature).min() > 1e-3


def test_jsd_tends_to_the_kls_by_its_teachers_share():
    student, teacher = two(0, 5, 9, dtype=torch.float64)
    nearly = {"rtol": 1e-4, "atol": 0.0}
    assert torch.allclose(jsd(student, teacher, beta=1e-7) / 1e-7, forward_kl(student, teacher), **nearly)
    assert torch.allclose(jsd(student, teacher, beta=1 - 1e-7) / 1e-7, reverse_kl(student, teacher), **nearly)
    assert torch.allclose(jsd(student, teacher, beta=0.3), jsd(teacher, student, beta=0.7))


def test_skew_kls_tend_to_the_kls_and_are_bounded():
    student, teacher = two(0, 5, 9, dtype=torch.float64)
    for skew_kl, plain in ((skew_forward_kl, forward_kl), (skew_reverse_kl, reverse_kl)):
        assert torch.allclose(skew_kl(student, teacher, skew=1e-9), plain(student, teacher), rtol=1e-6)
        assert skew_kl(1e3 * student, 1e3 * teacher, skew=0.1).max() <= -math.log(0.1) + 1e-9


def test_at_high_temperature_kl_is_the_squared_distance_of_centred_logits():
    student, teacher = two(0, 5, 9, dtype=torch.float64)
    apart = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    for divergence in (forward_kl, reverse_kl):  # Hinton et al., equation 4
        assert torch.allclose(divergence(student, teacher, 1e4), apart.square().mean(-1) / 2, rtol=1e-2)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("size", [100.0, 1e4])
def test_extreme_logits_stay_finite_with_their_gradient(name, size):
    student = torch.tensor([[size, 0.0, -size], [-size, size, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-size, size, 0.0], [-size, size, 0.0]])
    found = DIVERGENCES[name](student, teacher, 1.0)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found.isfinite().all() and gradient.isfinite().all()
    assert found[0] > 0.5 and found[1].abs() < 1e-6


def test_a_confident_wrong_student_costs_the_difference_of_the_logits():
    student, teacher = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])
    assert forward_kl(student, teacher).item() == pytest.approx(200.0, rel=1e-4)
    assert reverse_kl(student, teacher).item() == pytest.approx(200.0, rel=1e-4)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_token_impossible_for_the_teacher_has_p_0(name):
    student, teacher = two(0, 2, 5)
    teacher[:, 1] = -math.inf
    student.requires_grad_()
    found = with_share(name, 0.3)(student, teacher, 1.0)
    expected = [
        slow(name, softmax(p), softmax(q), 0.3) for q, p in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    infinite = name in ("reverse_kl", "adaptive_kl")
    assert found.isinf().all() if infinite else torch.autograd.grad(found.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_token_impossible_for_both_changes_nothing(name):
    student, teacher = two(0, 2, 5)
    expected = DIVERGENCES[name](student, teacher, 2.0)
    never = torch.full((2, 1), -math.inf)
    wider = torch.cat([student, never], -1).requires_grad_()
    found = DIVERGENCES[name](wider, torch.cat([teacher, never], -1), 2.0)
    assert torch.allclose(found, expected)
    assert torch.autograd.grad(found.sum(), wider)[0].isfinite().all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_no_gradient_reaches_the_teacher_and_bfloat16_is_summed_in_float32(name):
    student, teacher = (logits.bfloat16().requires_grad_() for logits in two(0, 4, 300))
    found = DIVERGENCES[name](student, teacher, 1.0)
    found.sum().backward()
    assert teacher.grad is None and student.grad is not None
    assert found.dtype == torch.float32
    assert torch.allclose(found, DIVERGENCES[name](student.float(), teacher.float(), 1.0))


def test_cross_entropy_equals_its_definition():
    logits, labels = torch.randn(6, 11), torch.arange(6)
    expected = [-math.log(softmax(row)[label]) for label, row in enumerate(logits.double().tolist())]
    assert cross_entropy(logits, labels).tolist() == pytest.approx(expected, rel=1e-5)
