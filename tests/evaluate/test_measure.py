"""The numbers of the comparison against definitions in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmdistill.evaluate.measure import distances, weigh


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


@pytest.mark.parametrize("seed", range(20))
def test_distances_equal_their_definitions(seed):
    generator = torch.Generator().manual_seed(seed)
    own, teacher = torch.randn(2, 6, 8, generator=generator) * 3
    labels = torch.randint(0, 8, (6,), generator=generator)
    found = distances(own, teacher, labels)
    kl = top1 = ce = 0.0
    for mine, theirs, label in zip(own.double().tolist(), teacher.double().tolist(), labels.tolist(), strict=True):
        q, p = log_softmax(mine), log_softmax(theirs)
        kl += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
        top1 += mine.index(max(mine)) == theirs.index(max(theirs))
        ce -= q[label]
    assert found == pytest.approx({"kl": kl, "top1": top1, "ce": ce, "tokens": 6.0}, rel=1e-5)


def test_a_model_has_no_distance_to_itself():
    logits = torch.randn(5, 9)
    found = distances(logits, logits, torch.zeros(5, dtype=torch.long))
    assert found["kl"] == pytest.approx(0.0, abs=1e-5)
    assert found["top1"] == 5


def test_a_padded_vocabulary_is_cut_to_the_shared_ids():
    own, teacher = torch.randn(4, 9), torch.randn(4, 12)
    labels = torch.tensor([0, 3, 8, 1])
    assert distances(own, teacher, labels)["kl"] == pytest.approx(
        distances(own, teacher[:, :9], labels)["kl"], rel=1e-6
    )


def test_means_are_over_tokens_and_intervals_over_records():
    generator = np.random.default_rng(0)
    rows = [{"kl": float(n * generator.exponential()), "tokens": float(n)} for n in generator.integers(5, 50, 200)]
    found = weigh(rows, "kl")
    assert found["mean"] == pytest.approx(sum(r["kl"] for r in rows) / sum(r["tokens"] for r in rows))
    ratios = np.array([row["kl"] / row["tokens"] for row in rows])
    weights = np.array([row["tokens"] for row in rows])
    error = np.sqrt(np.sum((weights * (ratios - found["mean"])) ** 2)) / weights.sum()
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert weigh([], "kl") is None
