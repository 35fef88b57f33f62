"""Attacks against their definitions, and accuracy under them."""

import copy

import pytest
import torch

from llmdistill.vision.attacks import Attack, Pixels, attacked, fgsm_attack, robust_accuracy
from llmdistill.vision.config import Net
from llmdistill.vision.data import Part
from llmdistill.vision.fit import accuracy
from llmdistill.vision.measures import measures_of
from llmdistill.vision.models import evaluating
from tests.vision.kd.lessons import digits, trained

BATCH = Net(arch="convnet", width=8, depth=2, norm="batch")
EPS = 0.1
ATTACKS = [fgsm_attack(EPS), Attack(eps=EPS, step=0.04, steps=7), Attack(eps=EPS, step=0.3, steps=2)]


def pixels() -> Pixels:
    return Pixels(digits().mean, digits().std)


def found_by(attack: Attack, net: torch.nn.Module, part: Part, seed: int = 0) -> torch.Tensor:
    return attacked(net, part.images, part.labels, pixels(), attack, torch.Generator().manual_seed(seed))


def some() -> Part:
    return Part(digits().test.images[:100], digits().test.labels[:100])


def loss(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with evaluating(net), torch.no_grad():
        return float(torch.nn.functional.cross_entropy(net(images), labels))


@pytest.mark.parametrize("attack", ATTACKS)
class TestEveryAttack:
    def test_it_stays_within_eps_and_in_the_range_of_pixels(self, attack):
        clean, found = (
            pixels().of(some().images),
            found_by(attack, trained(BATCH), some()) * digits().std + digits().mean,
        )
        assert (found - clean).abs().max() <= EPS + 1e-5
        assert found.min() >= -1e-5 and found.max() <= 1 + 1e-5
        assert (found - clean).abs().max() > 0.9 * EPS

    def test_it_raises_the_loss_more_than_noise_of_the_same_size(self, attack):
        part, net = some(), trained(BATCH)
        signs = torch.randn(part.images.shape, generator=torch.Generator().manual_seed(0)).sign()
        noisy = pixels().normalised((pixels().of(part.images) + EPS * signs).clamp(0, 1))
        before, noise = (loss(net, images, part.labels) for images in (part.images, noisy))
        assert loss(net, found_by(attack, net, part), part.labels) > max(before, noise) + 0.1

    def test_the_network_is_left_as_it_was(self, attack):
        net = copy.deepcopy(trained(BATCH)).train()
        net.blocks[0].eval()
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
        found_by(attack, net, some())
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert [module.training for module in net.modules()] == modes
        assert all(bool((parameter.grad == 1).all()) for parameter in net.parameters())


def test_fgsm_is_its_formula_and_one_step_of_pgd_without_random_start():
    part, net = some(), trained(BATCH)
    clean = pixels().of(part.images).requires_grad_(True)
    torch.nn.functional.cross_entropy(net(pixels().normalised(clean)), part.labels).backward()
    expected = (clean.detach() + EPS * clean.grad.sign()).clamp(0, 1)
    one_step = Attack(eps=EPS, step=EPS, steps=1, random_start=False)
    for attack in (fgsm_attack(EPS), one_step):
        assert torch.allclose(pixels().of(found_by(attack, net, part)), expected, atol=1e-5)


def test_more_steps_find_a_higher_loss_than_one():
    part, net = some(), trained(BATCH)
    one, ten = (found_by(attack, net, part) for attack in (fgsm_attack(EPS), Attack(eps=EPS, step=EPS / 4, steps=10)))
    assert loss(net, ten, part.labels) > loss(net, one, part.labels)


def test_eps_0_changes_nothing_but_the_clipping():
    found = found_by(Attack(eps=0.0, step=0.1, steps=3), trained(BATCH), some())
    assert torch.allclose(found, some().images, atol=1e-5)


def test_the_random_start_comes_from_the_generator():
    attack = Attack(eps=EPS, step=1e-6, steps=1)
    first, again, other = (found_by(attack, trained(BATCH), some(), seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_robust_accuracy_falls_with_eps_from_the_clean_one_and_is_the_same_again():
    net, part = trained(BATCH), digits().test
    attacks = [Attack(eps=eps, step=max(eps / 4, 1e-9), steps=5) for eps in (0.0, 0.05, 0.1, 0.3)]
    found = [robust_accuracy(net, part, digits(), attack, batch_size=150) for attack in attacks]
    assert found[0] == pytest.approx(accuracy(net, part))
    assert found == sorted(found, reverse=True) and found[0] > found[-1] + 0.3
    assert robust_accuracy(net, part, digits(), attacks[1], batch_size=150) == found[1]


def test_measures_by_name_are_those_of_the_attacks():
    net, attack = trained(BATCH), Attack(eps=EPS, step=EPS / 4, steps=5)
    found = measures_of(net, digits(), ["fgsm", "pgd"], attack)
    assert found["pgd"] <= found["fgsm"] < accuracy(net, digits().test)
    assert found["fgsm"] == robust_accuracy(net, digits().test, digits(), fgsm_attack(EPS))
