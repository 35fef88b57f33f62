"""The distance of distributions over different vocabularies, against references written from its definition."""

from __future__ import annotations

import math

import pytest
import torch

from llmdistill.signals.distributions import Head, Matched
from llmdistill.train.losses.uld import uld, uld_of_matches


def probabilities(logits: list[float], temperature: float) -> list[float]:
    top = max(logits)
    exponentials = [math.exp((logit - top) / temperature) for logit in logits]
    return [value / math.fsum(exponentials) for value in exponentials]


def slow_uld(student: list[float], teacher: list[float], temperature: float) -> float:
    p, q = (sorted(probabilities(logits, temperature), reverse=True) for logits in (student, teacher))
    size = max(len(p), len(q))
    p, q = (values + [0.0] * (size - len(values)) for values in (p, q))
    return math.fsum(abs(a - b) for a, b in zip(p, q, strict=True))


def slow_gradient(student: list[float], teacher: list[float], temperature: float) -> list[float]:
    """By the chain rule: d|a - b|/da of each ranked probability, then through the softmax."""
    p, q = probabilities(student, temperature), sorted(probabilities(teacher, temperature), reverse=True)
    ranks = {token: rank for rank, token in enumerate(sorted(range(len(p)), key=lambda token: -p[token]))}
    others = q + [0.0] * len(p)
    signs = [math.copysign(1.0, p[token] - others[ranks[token]]) for token in range(len(p))]
    mean = math.fsum(value * sign for value, sign in zip(p, signs, strict=True))
    return [value * (sign - mean) / temperature for value, sign in zip(p, signs, strict=True)]


def random_logits(seed: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(5, 9), (9, 5), (7, 7)][seed % 3]
    student, teacher = (torch.randn(4, size, generator=generator, dtype=torch.float64) for size in sizes)
    return student * (1 + seed % 4), teacher * (1 + seed % 5), [0.5, 1.0, 3.0][seed % 3]


@pytest.mark.parametrize("seed", range(30))
def test_value_and_gradient_equal_their_definition_whichever_vocabulary_is_larger(seed):
    student, teacher, temperature = random_logits(seed)
    student.requires_grad_()
    found = uld(student, teacher, temperature)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    rows = list(zip(student.tolist(), teacher.tolist(), strict=True))
    assert found.tolist() == pytest.approx([slow_uld(*row, temperature) for row in rows], rel=1e-12)
    for own, row in zip(gradient.tolist(), rows, strict=True):
        assert own == pytest.approx(slow_gradient(*row, temperature), rel=1e-9, abs=1e-14)


def test_the_gradient_passes_gradcheck():
    student, teacher, temperature = random_logits(1)
    assert torch.autograd.gradcheck(lambda logits: uld(logits, teacher, temperature), (student.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_computed_in_single_precision(dtype):
    student, teacher, _ = random_logits(5)
    single = student.to(dtype), teacher.to(dtype)
    found = uld(*single)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), uld(single[0].double(), single[1].double()), atol=1e-6)


def test_it_does_not_know_which_token_is_which_and_padding_costs_nothing():
    student, teacher, _ = random_logits(2)
    shuffled = teacher[:, torch.randperm(7, generator=torch.Generator().manual_seed(0))]
    assert torch.allclose(uld(student, teacher), uld(student, shuffled))
    assert uld(teacher, shuffled).abs().max() < 1e-12
    padded = torch.nn.functional.pad(teacher, (0, 4), value=-math.inf)
    assert torch.allclose(uld(student, padded), uld(student, teacher))


def test_it_is_between_nothing_and_two():
    certain = torch.tensor([[300.0, 0.0, 0.0, 0.0]])
    assert uld(certain, torch.zeros(1, 50_000)).item() == pytest.approx(2.0, abs=1e-3)
    assert uld(certain, torch.tensor([[0.0, 0.0, 300.0]])).item() == 0.0


def matched(rows: list[int], seed: int = 0) -> Matched:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(11, 3, generator=generator)
    return Matched(torch.randn(len(rows), 3, generator=generator), Head(weight), torch.tensor(rows))


def test_targets_without_a_partner_have_no_distance_and_no_gradient():
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    teacher = matched([1, 4])
    found = uld_of_matches(logits, teacher, 2.0)
    expected = uld(logits[[1, 4]], teacher.logits(), 2.0)
    assert torch.equal(found[[1, 4]], expected) and found[[0, 2, 3, 5]].abs().max() == 0
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient[[0, 2, 3, 5]].abs().max() == 0 and gradient[[1, 4]].abs().min() > 0


def test_chunks_give_what_the_whole_gives_even_those_without_a_match():
    logits = torch.randn(9, 8, generator=torch.Generator().manual_seed(1))
    teacher = matched([0, 1, 2, 7, 8])
    whole = uld_of_matches(logits, teacher)
    for size in (1, 2, 4, 9):
        parts = [
            uld_of_matches(logits[at : at + size], teacher.chunk(at, min(at + size, 9))) for at in range(0, 9, size)
        ]
        assert torch.allclose(torch.cat(parts), whole)
