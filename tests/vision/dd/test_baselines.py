"""Baselines: each pinned to its definition, for classes of any size, with no chance but the seed's."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans

from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.dd.base import Method, Task
from llmdistill.vision.dd.baselines import ClassMean, Herding, KMeans, Random, herded
from tests.vision.dd.tasks import MLP, TINY, digits, images_of, learned_from, task
from tests.vision.images import small_data

ALL = [Random(), ClassMean(), Herding(), Herding(space="network", epochs=1), KMeans(), KMeans(centres=True)]


def named(method: Method) -> str:
    return "-".join([method.name, *map(str, method.model_dump(exclude_defaults=True).values())])


def herded_slowly(features: torch.Tensor, number: int) -> list[int]:
    """The distance of each possible mean, one after the other."""
    rows: list[int] = []
    for _ in range(number):
        left = [row for row in range(len(features)) if row not in rows]
        distances = {row: float((features[[*rows, row]].mean(0) - features.mean(0)).norm()) for row in left}
        rows.append(min(left, key=distances.__getitem__))
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_herding_is_the_greedy_choice_by_its_definition(seed: int):
    features = torch.randn(25, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert herded(features, 25).tolist() == herded_slowly(features, 25)


def test_herding_takes_the_same_images_in_whatever_order_they_stand():
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(features[order][herded(features[order], 9)], features[herded(features, 9)])


def test_herding_has_a_mean_nearer_to_the_class_than_random_images():
    train = digits().train
    means = torch.stack([train.images[train.labels == label].mean(0) for label in range(10)])
    away = {
        method.name: float((images_of(method.distillation(task(10, MLP, data=digits())))
                            .unflatten(0, (10, 10)).mean(1) - means).norm())
        for method in (Random(), Herding())
    }  # fmt: skip
    assert away["herding"] < 0.5 * away["random"]


def test_k_means_takes_of_each_of_scikit_learns_clusters_the_image_nearest_to_its_centre():
    its_task = task(ipc=4, seed=3, data=digits())
    nearest = images_of(KMeans().distillation(its_task)).unflatten(0, (10, 4))
    centres = images_of(KMeans(centres=True).distillation(its_task)).unflatten(0, (10, 4))
    train = digits().train
    for label in (0, 7):
        rows = train.images[train.labels == label].flatten(1).double().numpy()
        found = SklearnKMeans(4, random_state=3).fit(rows)
        assert torch.allclose(centres[label].flatten(1).double(), torch.from_numpy(found.cluster_centers_), atol=1e-5)
        for cluster in range(4):
            members = rows[found.labels_ == cluster]
            best = members[((members - found.cluster_centers_[cluster]) ** 2).sum(1).argmin()]
            assert torch.equal(nearest[label, cluster].flatten().double(), torch.from_numpy(best))


def uneven() -> ImageData:
    """Classes of 1, 2 (twice the same image) and 10 images, standing among each other."""
    whole = small_data(30).train
    rows = torch.tensor([0, 4, 5, 8, 4, 11, 2, 14, 17, 20, 23, 26, 29])
    part = Part(whole.images[rows], whole.labels[rows])
    return ImageData(part, small_data().validation, small_data().test, 3, torch.zeros(3), torch.ones(3))


@pytest.mark.parametrize("method", ALL, ids=named)
def test_classes_with_fewer_images_than_asked_for_give_theirs_again(method: Method):
    data = uneven()
    distillation = method.distillation(Task(data, 4, TINY, 0))
    images, labels = distillation.synthesiser()
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert images.isfinite().all()
    for label in (0, 1):
        its = data.train.images[data.train.labels == label][0]
        assert torch.allclose(images[labels == label], its, atol=1e-5)
    assert len(images[8:].detach().flatten(1).unique(dim=0)) == (1 if method.name == "class_mean" else 4)


@pytest.mark.parametrize("method", ALL, ids=named)
def test_the_seed_alone_decides(method: Method):
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        found.append(images_of(method.distillation(task(3, seed=5))))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


def test_random_images_differ_between_seeds_and_are_real_ones_of_their_class():
    one, other = (images_of(Random().distillation(task(3, seed=seed))) for seed in (0, 1))
    assert not torch.equal(one, other)
    train = small_data().train
    for label, image in zip([0] * 3 + [1] * 3 + [2] * 3, one, strict=True):
        assert (train.images[train.labels == label] == image).flatten(1).all(1).any()


def test_class_means_are_the_means_of_the_training_part():
    train = small_data().train
    images = images_of(ClassMean().distillation(task(2)))
    for label in range(3):
        assert torch.allclose(images[2 * label], train.images[train.labels == label].mean(0), atol=1e-6)


def test_on_digits_chosen_images_are_better_than_random_ones():
    found = {
        method.name: learned_from(images_of(method.distillation(task(1, MLP, data=digits()))), digits(), MLP)
        for method in (Random(), Herding(), KMeans())
    }
    assert min(found["herding"], found["k_means"]) >= found["random"] + 0.05
