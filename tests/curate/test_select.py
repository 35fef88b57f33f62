"""Each selection method against a slow reference written from its definition, and on inputs without a clear choice."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from llmdistill.curate.embed import tfidf, unit
from llmdistill.curate.select import METHODS, cluster, random, top_score


def instance(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Up to 12 unit vectors, some of them equal, with few distinct scores, so that ties are common."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 13))
    vectors = rng.normal(size=(rows, 3))
    vectors[rng.integers(0, rows, size=rows // 3)] = vectors[0]
    scores = rng.integers(1, 4, size=rows).astype(float)
    return unit(vectors), scores, int(rng.integers(1, rows + 1))


INSTANCES = [instance(seed) for seed in range(200)]


def test_top_score_is_the_best_by_score_then_row():
    for vectors, scores, size in INSTANCES:
        reference = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:size]
        assert top_score(vectors, scores, size, 0).chosen == reference


def test_random_is_uniform_without_replacement():
    counts = np.zeros(6)
    for seed in range(3000):
        chosen = random(np.zeros((6, 1)), np.zeros(6), 2, seed).chosen
        assert len(set(chosen)) == 2
        counts[chosen] += 1
    assert np.abs(counts / 3000 - 2 / 6).max() < 0.04  # 4.6 standard deviations


def test_cluster_takes_the_best_row_of_every_cluster_then_the_best_of_the_rest():
    for vectors, scores, size in INSTANCES:
        choice = cluster(vectors, scores, size, 0)
        labels = np.array(choice.clusters)
        centres = {label: vectors[labels == label].mean(0) for label in set(labels.tolist())}
        distance = [float(np.linalg.norm(vectors[row] - centres[label])) for row, label in enumerate(labels)]

        def better(row: int, other: int, scores=scores, distance=distance) -> bool:
            if scores[row] != scores[other]:
                return bool(scores[row] > scores[other])
            if abs(distance[row] - distance[other]) > 1e-9:
                return distance[row] < distance[other]
            return True  # as near as floating point tells: either may win

        assert len(choice.chosen) == len(set(choice.chosen)) == size
        if size == len(vectors):
            continue
        num_clusters = len(centres)
        first, rest = choice.chosen[:num_clusters], choice.chosen[num_clusters:]
        assert sorted(labels[first]) == sorted(centres)
        for row in first:
            assert all(better(row, other) for other in np.flatnonzero(labels == labels[row]))
        left = set(range(len(vectors))) - set(choice.chosen)
        assert all(better(row, other) for row in rest for other in left)
        assert [scores[row] for row in first] == sorted((scores[row] for row in first), reverse=True)


def test_cluster_labels_are_a_fixed_point_of_k_means():
    for vectors, scores, size in INSTANCES:
        if size == len(vectors):
            continue
        labels = np.array(cluster(vectors, scores, size, 0).clusters)
        centres = np.array([vectors[labels == label].mean(0) for label in range(labels.max() + 1)])
        distances = np.linalg.norm(vectors[:, None] - centres[None], axis=-1)
        assert np.all(distances[np.arange(len(labels)), labels] <= distances.min(1) + 1e-6)


def test_separated_groups_are_each_represented_by_their_best():
    vectors = np.repeat(np.eye(3), 4, axis=0) + np.random.default_rng(0).normal(0, 0.01, (12, 3))
    scores = np.array([1, 5, 2, 3, 4, 1, 2, 3, 1, 2, 3, 3.5])
    assert cluster(vectors, scores, 3, 0).chosen == [1, 4, 11]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(
    "vectors",
    [np.zeros((6, 3)), np.ones((6, 3)), np.eye(6), np.zeros((1, 3)), np.repeat(np.eye(2), 3, axis=0)],
    ids=["zero vectors", "all identical", "all distinct", "one row", "two groups"],
)
@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_inputs_without_a_clear_choice_give_a_defined_one(method, vectors, size):
    size = min(size, len(vectors))
    choices = [method(vectors, np.full(len(vectors), 3.0), size, 0) for _ in range(2)]
    assert choices[0] == choices[1]
    assert len(set(choices[0].chosen)) == size
    assert set(choices[0].chosen) <= set(range(len(vectors)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "texts",
    [["x"], ["x", "y"], ["same text"] * 5, ["???", "!"], ["가", "나", "다"], ["\u200b", "a"], ["a" * 100_000, "b"]],
    ids=["one", "two", "same", "punctuation", "Korean", "invisible", "long"],
)
def test_tfidf_gives_unit_vectors_without_a_warning(texts):
    vectors = tfidf(texts, seed=0)
    assert vectors.shape[0] == len(texts)
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.all((np.abs(lengths - 1) < 1e-9) | (lengths == 0))


def test_a_zero_vector_stays_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unit(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [[0.0, 0.0], [0.6, 0.8]]


def test_tfidf_puts_korean_prompts_of_one_topic_together():
    texts = ["김치찌개를 끓이는 방법", "김치찌개 끓이기에 필요한 재료", "주식에 투자하는 방법", "주식 투자의 위험"]
    texts += [f"다른 이야기 {number}번입니다" for number in range(4)]
    vectors = tfidf(texts, seed=0)
    similar = vectors @ vectors.T
    assert similar[0, 1] > similar[0, 2] and similar[2, 3] > similar[2, 1]
