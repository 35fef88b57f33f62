"""A teacher known at a few tokens: what is exact, what is unbiased, and what is not."""

from __future__ import annotations

import math

import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.signals.distributions import Samples, TopK
from llmdistill.train.losses.dense import DIVERGENCES, forward_kl, reverse_kl
from llmdistill.train.losses.sparse import check_sampled, sampled_cross_entropy, top_k_divergence
from tests.train.losses.references import draw, slow, softmax, top_k

TEMPERATURES = (0.5, 1.0, 2.0)


def two(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, *shape, dtype=dtype, generator=generator)
    return student.requires_grad_(), teacher


def with_gradient(found: torch.Tensor, student: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return found.detach(), torch.autograd.grad(found.sum(), student)[0]


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_tokens_are_the_full_distribution(name, temperature, dtype):
    student, teacher = two(0, 4, 13, dtype=dtype)
    known = top_k(teacher, 13, temperature)
    # What rounding leaves over is not a tail: there is no token to have it.
    known = TopK(known.ids, known.log_probs, torch.tensor([-math.inf, -16.0, -15.0, -math.inf], dtype=dtype))
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-9}
    one = with_gradient(top_k_divergence(student, known, DIVERGENCES[name], temperature), student)
    other = with_gradient(DIVERGENCES[name](student, teacher, temperature), student)
    assert all(torch.allclose(a, b, **tolerance) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_others_are_one_event(name, temperature):
    student, teacher = two(1, 3, 13)
    known = top_k(teacher, 4, temperature)
    found = top_k_divergence(student, known, DIVERGENCES[name], temperature)
    for row, ids in enumerate(known.ids.tolist()):
        p, q = (softmax(logits[row].tolist(), temperature) for logits in (teacher, student))
        events = [[values[token] for token in ids] for values in (p, q)]
        both = [[*event, 1 - math.fsum(event)] for event in events]
        expected = temperature**2 * slow(name, *both, 0.5 if name == "jsd" else 0.1)
        assert found[row].item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", sorted(set(DIVERGENCES) - {"adaptive_kl"}))
def test_gradient_passes_gradcheck(name):
    student, teacher = two(2, 2, 7)
    known = top_k(teacher, 3, 2.0)
    assert torch.autograd.gradcheck(lambda logits: top_k_divergence(logits, known, DIVERGENCES[name], 2.0), (student,))


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "tvd", "skew_forward_kl", "skew_reverse_kl"])
def test_it_is_never_more_than_the_full_divergence(name):
    student, teacher = two(3, 50, 30)
    parts = [top_k_divergence(student, top_k(teacher, k), DIVERGENCES[name]) for k in (1, 5, 20)]
    for less, more in zip(parts, [*parts[1:], DIVERGENCES[name](student, teacher)], strict=True):
        assert (less <= more + 1e-9).all()


def test_a_small_tail_of_the_student_is_exact_in_float32():
    student = torch.tensor([[30.0, 29.0, 0.0, -1.0, -3.0]])
    teacher = TopK(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]]).log(), torch.tensor([0.25]).log())
    found = top_k_divergence(student, teacher, forward_kl).item()
    p, q = [0.5, 0.25, 0.25], softmax(student[0].tolist())
    assert q[2] + q[3] + q[4] < 1e-12  # 1 minus the others would be 0 here
    assert found == pytest.approx(slow("forward_kl", p, [*q[:2], math.fsum(q[2:])], 0.0), rel=1e-6)


def test_a_row_with_fewer_tokens_is_as_if_it_had_no_fillers():
    student, teacher = two(4, 1, 9)
    short = top_k(teacher, 3)
    filler = torch.tensor([[int(short.ids[0, 1]), 0]])  # a filler's id may be a token of the row as well
    nothing = torch.full((1, 2), -math.inf, dtype=torch.float64)
    padded = TopK(torch.cat([short.ids, filler], -1), torch.cat([short.log_probs, nothing], -1), short.tail_log_prob)
    for divergence in DIVERGENCES.values():
        one = with_gradient(top_k_divergence(student, short, divergence), student)
        other = with_gradient(top_k_divergence(student, padded, divergence), student)
        assert all(torch.allclose(a, b) for a, b in zip(one, other, strict=True))


def test_a_sure_teacher_has_no_infinite_divergence():
    student, _ = two(5, 1, 9, dtype=torch.float32)
    sure = TopK(torch.tensor([[3, 4]]), torch.tensor([[0.0, -40.0]]), torch.tensor([-math.inf]))
    for name, divergence in DIVERGENCES.items():
        found, gradient = with_gradient(top_k_divergence(student, sure, divergence), student)
        assert found.isfinite().all() and gradient.isfinite().all(), name
    assert top_k_divergence(student, sure, reverse_kl) > 1


def test_cross_entropy_with_the_whole_distribution_is_kl_and_entropy():
    student, teacher = two(6, 4, 9)
    p = (teacher / 2.0).softmax(-1)
    ids = torch.arange(9).expand(4, 9)
    found, gradient = with_gradient(sampled_cross_entropy(student, Samples(ids, p), 2.0), student)
    expected, wanted = with_gradient(forward_kl(student, teacher, 2.0), student)
    assert torch.allclose(found, expected - 4.0 * (p * p.log()).sum(-1))
    assert torch.allclose(gradient, wanted)


def renormalised(student: torch.Tensor, teacher: TopK) -> torch.Tensor:
    """The wrong way: the k likeliest as if they were all, for the student over the whole vocabulary."""
    p = teacher.log_probs.softmax(-1)
    return (p * (p.log() - student.log_softmax(-1).gather(-1, teacher.ids))).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_from_draws_is_unbiased_and_that_of_renormalised_top_k_is_not(temperature):
    torch.manual_seed(0)
    student, teacher = two(7, 1, 20)
    (wanted,) = torch.autograd.grad(forward_kl(student, teacher, temperature).sum(), student)
    times = 4000
    many = student.detach().expand(times, -1).clone().requires_grad_()
    drawn = draw(teacher.expand(times, -1), 12, temperature)
    (each,) = torch.autograd.grad(sampled_cross_entropy(many, drawn, temperature).sum(), many)
    error = each.std(0) / math.sqrt(times)
    assert ((each.mean(0) - wanted[0]).abs() < 4.5 * error + 1e-12).all()

    known = top_k(teacher, 5, temperature)
    (wrong,) = torch.autograd.grad(temperature**2 * renormalised(student / temperature, known).sum(), student)
    assert ((wrong[0] - wanted[0]).abs() / error).max() > 20
    # With the tail the k tokens themselves have the right gradient.
    (right,) = torch.autograd.grad(top_k_divergence(student, known, forward_kl, temperature).sum(), student)
    assert torch.allclose(right.gather(-1, known.ids), wanted.gather(-1, known.ids))


@pytest.mark.parametrize("name", sorted(set(DIVERGENCES) - {"forward_kl"}))
def test_a_divergence_that_draws_cannot_estimate_is_refused(name):
    check_sampled("forward_kl")
    with pytest.raises(ConfigError, match=f"{name} cannot be estimated without bias.*signals.mode: topk"):
        check_sampled(name)
