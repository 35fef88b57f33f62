"""What of an accuracy is the images', what the labels' and what the augmentation's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from llmdistill.vision.config import Net
from llmdistill.vision.dd import fairness
from llmdistill.vision.dd.evaluate import judge
from llmdistill.vision.dd.fairness import normalised, scores, treatments
from llmdistill.vision.dd.protocol import Evaluation
from tests.vision.dd.test_evaluate import set_of
from tests.vision.images import small_data

MLP = Net(arch="mlp", width=16, depth=1)
PROTOCOL = Evaluation(epochs=3, learning_rates=(0.05,), nets=3, other_nets=2)
ITS = {"own": [0.8], "hard": [0.6, 0.8], "plain": [0.7], "augmented": [0.9]}
RANDOM = {"own": [0.5], "hard": [0.5], "plain": [0.4], "augmented": [0.7]}


def test_scores_are_those_of_the_paper():
    found = scores(ITS, RANDOM, 0.95)
    assert found["hlr"] == pytest.approx(0.25) and found["ior"] == pytest.approx(0.3)
    a = 0.5 * 0.3 - 0.5 * 0.25
    b = 0.5 * 0.2 + 0.5 * 0.3
    assert found["lrs"] == pytest.approx((math.exp(a) - math.exp(-1)) / (math.exp(1) - math.exp(-1)))
    assert found["ars"] == pytest.approx((math.exp(b) - math.exp(-1)) / (math.exp(1) - math.exp(-1)))
    assert found["soft_gain"] == pytest.approx(0.1) and found["augmentation_gain"] == pytest.approx(0.2)


def test_scores_go_from_0_to_1_and_random_images_have_027():
    assert normalised(-1) == 0 and normalised(1) == pytest.approx(1)
    assert scores(RANDOM, RANDOM, 0.9)["ars"] == pytest.approx(0.269, abs=1e-3)
    assert scores(RANDOM, RANDOM, 0.9)["ior"] == 0


def test_class_labels_without_augmentation_cost_one_more_judgement(monkeypatch: pytest.MonkeyPatch):
    data, asked = small_data(), []
    monkeypatch.setattr(fairness, "judge", lambda *given: asked.append(given) or judge(*given))
    found = treatments(set_of(data), data, MLP, PROTOCOL, [0.1, 0.2])
    assert found["own"] == found["hard"] == found["plain"] == [0.1, 0.2]
    assert len(asked) == 1 and asked[0][3].augment == "dsa" and asked[0][3].nets == 2
    assert len(found["augmented"]) == 2


def test_soft_labels_are_replaced_by_the_most_probable_class(monkeypatch: pytest.MonkeyPatch):
    data, asked = small_data(), []
    soft = replace(set_of(data), labels=torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(fairness, "judge", lambda *given: asked.append(given) or judge(*given))
    augmenting = PROTOCOL.model_copy(update={"augment": "dsa"})
    found = treatments(soft, data, MLP, augmenting, [0.3])
    assert torch.equal(asked[0][0].labels, soft.labels.argmax(1)) and asked[0][3].augment == "dsa"
    assert asked[1][0] is soft and asked[1][3].augment == "none"
    assert found["own"] == found["augmented"] == [0.3] and len(found["hard"]) == len(found["plain"]) == 2
