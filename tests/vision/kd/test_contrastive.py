"""Contrastive distillation."""

import math
from collections import Counter

import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.vision.checkpoint import Checkpoint
from llmdistill.vision.config import Protocol
from llmdistill.vision.fit import accuracy, fit
from llmdistill.vision.kd.contrastive import Bank, BankDistiller, Contrastive, info_nce, log_z_of, nce_loss, placed
from tests.vision.kd.feature_lessons import (
    STUDENT,
    TEACHER,
    digits,
    drawn,
    gradient_checked,
    images,
    lesson,
    net,
    taught_teacher,
    teach,
)

LABELS = torch.tensor([0, 1, 1, 2, 0, 2, 1, 0])


def units(num, size=4, seed=0):
    return torch.nn.functional.normalize(drawn(num, size, seed=seed), dim=1)


def nce_by_definition(positive, negatives, z, num_images):
    """Eq. 18 in Python's floats."""
    values = []
    for own, others in zip(positive.tolist(), negatives.tolist(), strict=True):
        share = len(others) / num_images

        def probability(score, share=share):
            return math.exp(score) / z / (math.exp(score) / z + share)

        values.append(-math.log(probability(own)) - sum(math.log(1 - probability(other)) for other in others))
    return sum(values) / len(values)


class TestNce:
    def test_it_is_its_definition(self):
        positive, negatives = drawn(3), drawn(3, 5, seed=1)
        expected = nce_by_definition(positive, negatives, 7.5, 20)
        found = nce_loss(positive, negatives, torch.tensor(7.5, dtype=torch.float64).log(), 20)
        assert found.item() == pytest.approx(expected, rel=1e-12)

    def test_its_gradient_agrees_with_finite_differences(self):
        positive, negatives, log_z = drawn(3), drawn(3, 5, seed=1), torch.tensor(1.5, dtype=torch.float64)
        assert gradient_checked(lambda own: nce_loss(own, negatives, log_z, 20), positive)
        assert gradient_checked(lambda others: nce_loss(positive, others, log_z, 20), negatives)

    def test_it_falls_when_pairs_agree_and_when_others_do_not(self):
        positive, negatives, log_z = drawn(3), drawn(3, 5, seed=1), torch.tensor(1.5, dtype=torch.float64)
        before = nce_loss(positive, negatives, log_z, 20)
        assert nce_loss(positive + 1, negatives, log_z, 20) < before < nce_loss(positive, negatives + 1, log_z, 20)

    def test_scores_far_apart_do_not_overflow(self):
        found = nce_loss(torch.tensor([-500.0]), torch.tensor([[500.0]]), torch.tensor(0.0), 10)
        assert torch.isfinite(found) and found > 900

    def test_z_is_the_mean_of_the_exponentials_times_the_number_of_images(self):
        scores = drawn(3, 5)
        expected = sum(math.exp(score) for score in scores.flatten().tolist()) / 15 * 40
        assert log_z_of(scores, 40).exp().item() == pytest.approx(expected, rel=1e-12)


class TestInfoNce:
    def test_it_is_its_definition(self):
        student, teacher, labels = units(5), units(5, seed=1), LABELS[:5].tolist()
        one, two = student.tolist(), teacher.tolist()
        total = 0.0
        for i in range(5):
            allowed = [j for j in range(5) if j == i or labels[j] != labels[i]]
            for anchor, others in ((one, two), (two, one)):
                scores = {j: sum(a * b for a, b in zip(anchor[i], others[j], strict=True)) / 0.2 for j in allowed}
                total -= scores[i] - math.log(sum(math.exp(score) for score in scores.values()))
        found = info_nce(student, teacher, 0.2, LABELS[:5])
        assert found.item() == pytest.approx(total / 10, rel=1e-12)

    @pytest.mark.parametrize("labels", [None, LABELS[:4]])
    def test_its_gradient_agrees_with_finite_differences(self, labels):
        teacher = units(4, seed=1)
        assert gradient_checked(lambda own: info_nce(own, teacher, 0.5, labels), units(4))

    def test_it_falls_when_pairs_agree(self):
        student, teacher = units(5), units(5, seed=1)
        assert info_nce(teacher, teacher, 0.2) < info_nce((student + teacher) / 2, teacher, 0.2)
        assert info_nce((student + teacher) / 2, teacher, 0.2) < info_nce(student, teacher, 0.2)


def bank(**settings):
    return Bank(LABELS, Contrastive(**{"size": 4, "num_negatives": 6, **settings}), 0)


class TestBank:
    def test_negatives_are_of_other_classes_and_all_of_them_as_often(self):
        drawn_places = bank(num_negatives=6000).draw(LABELS)
        for label, places in zip(LABELS.tolist(), drawn_places.tolist(), strict=True):
            counts = Counter(places)
            others = {place for place, other in enumerate(LABELS.tolist()) if other != label}
            assert set(counts) == others
            expected = 6000 / len(others)
            assert all(abs(count - expected) < 6 * math.sqrt(expected) for count in counts.values())

    def test_the_number_of_negatives_is_that_of_the_paper_or_of_the_images(self):
        assert bank(num_negatives=None).num_negatives == 8
        many = torch.arange(20_000) % 10
        assert Bank(many, Contrastive(size=1), 0).num_negatives == 16_384

    def test_the_loss_is_both_directions_against_the_others_bank(self):
        found = bank().double()
        own, other, places = units(3, seed=1), units(3, seed=2), torch.tensor([5, 0, 2])
        against = found.draw(LABELS[places])
        expected = 0.0
        for anchors, kept in ((own, found.other), (other, found.own)):
            rows = torch.cat([places[:, None], against], 1).tolist()
            scores = torch.stack([kept[row] @ anchor / 0.07 for row, anchor in zip(rows, anchors, strict=True)])
            z = scores.exp().mean().item() * 8
            expected += nce_by_definition(scores[:, 0], scores[:, 1:], z, 8)
        assert found.loss(own, other, places).item() == pytest.approx(expected, rel=1e-9)

    def test_z_is_that_of_the_first_batch_for_good(self):
        found = bank()
        own, other, places = units(3, seed=1).float(), units(3, seed=2).float(), torch.tensor([5, 0, 2])
        found.loss(own, other, places)
        first = found.log_z.clone()
        found.keep(own, other, places)
        found.loss(other, own, places)
        assert torch.isfinite(first).all() and torch.equal(found.log_z, first)

    def test_embeddings_move_by_their_share_and_only_those_of_the_batch(self):
        found = bank(momentum=0.75)
        before = found.own.clone()
        new, places = units(2, seed=1).float(), torch.tensor([6, 3])
        found.keep(new, new, places)
        expected = torch.nn.functional.normalize(0.75 * before[places] + 0.25 * new, dim=1)
        assert torch.allclose(found.own[places], expected, atol=1e-6)
        rest = [0, 1, 2, 4, 5, 7]
        assert torch.equal(found.own[rest], before[rest]) and int(found.seen) == 1

    def test_what_is_drawn_depends_on_the_seed_and_the_batches_seen_alone(self):
        found, again = bank(), bank()
        first = found.draw(LABELS)
        torch.manual_seed(5)
        assert torch.equal(first, again.draw(LABELS))
        found.keep(units(1).float(), units(1).float(), torch.tensor([0]))
        assert not torch.equal(first, found.draw(LABELS))
        again.load_state_dict(found.state_dict())
        assert torch.equal(found.draw(LABELS), again.draw(LABELS))

    def test_images_of_one_class_are_refused(self):
        with pytest.raises(ConfigError, match="two classes"):
            Bank(torch.zeros(4, dtype=torch.int64), Contrastive(), 0)


def test_the_distiller_looks_labels_up_by_place():
    data, settings = digits(), Contrastive(num_negatives=20)
    distiller = BankDistiller(net(STUDENT), net(TEACHER), settings, images(), Bank(data.train.labels, settings, 0))
    places = torch.tensor([7, 250, 41])
    seen = placed(data).train.images[places]
    assert torch.equal(placed(data).train.labels[places], places) and torch.equal(seen, data.train.images[places])
    terms = distiller.terms(seen, places)
    hard = torch.nn.functional.cross_entropy(distiller.student(seen), data.train.labels[places])
    assert terms["hard"].item() == pytest.approx(hard.item(), rel=1e-5)
    assert distiller.bank.seen == 1


def test_a_bank_without_the_data_is_one_clear_line():
    with pytest.raises(ConfigError, match="set negatives: batch"):
        Contrastive().distiller(net(STUDENT), net(TEACHER), images())


def test_both_projections_learn_and_neither_is_deployed():
    method = Contrastive(negatives="batch")
    distiller = method.distiller(net(STUDENT), taught_teacher(), images())
    before = [distiller.own_projection.weight.clone(), distiller.other_projection.weight.clone()]
    seen = digits().validation
    untrained = distiller.terms(seen.images, seen.labels)["contrast"]
    lesson(Protocol(epochs=2)).fit(distiller)
    assert not torch.equal(before[0], distiller.own_projection.weight)
    assert not torch.equal(before[1], distiller.other_projection.weight)
    assert distiller.terms(seen.images, seen.labels)["contrast"] < untrained
    assert distiller.deployed().state_dict().keys() == net(STUDENT).state_dict().keys()


@pytest.mark.parametrize("negatives", ["batch", "bank"])
def test_a_student_learns_digits(negatives):
    assert accuracy(teach(Contrastive(negatives=negatives)).net, digits().test) > 0.5


def test_the_same_seed_draws_the_same_negatives():
    one, two = (teach(Contrastive(num_negatives=50), Protocol(epochs=1)) for _ in range(2))
    assert all(torch.equal(value, two.net.state_dict()[name]) for name, value in one.net.state_dict().items())


class Stopped(Exception):
    pass


def test_a_training_that_goes_on_from_its_checkpoint_ends_as_one_that_was_not_stopped(tmp_path):
    data, settings, protocol = digits(), Contrastive(num_negatives=20), Protocol(epochs=3)

    def distiller():
        torch.manual_seed(0)
        bank = Bank(data.train.labels, settings, 0)
        return BankDistiller(net(STUDENT), taught_teacher(), settings, images(), bank)

    whole, first, second = distiller(), distiller(), distiller()
    fit(whole, placed(data), protocol, 0)
    checkpoint = tmp_path / "은행.safetensors"

    def stop_in_the_second_epoch(*_):
        if int(first.bank.seen) > 5:
            raise Stopped

    with pytest.raises(Stopped):
        fit(first, placed(data), protocol, 0, stop_in_the_second_epoch, Checkpoint(checkpoint, 0))
    assert checkpoint.exists()
    fit(second, placed(data), protocol, 0, None, Checkpoint(checkpoint, 0))
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in second.state_dict().items())
