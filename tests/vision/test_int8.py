"""int8 layers against their definition in integers, and whole networks against float."""

import copy

import pytest
import torch
from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision import int8
from llmdistill.vision.attacks import fgsm_attack, robust_accuracy
from llmdistill.vision.config import Net
from llmdistill.vision.fit import accuracy
from llmdistill.vision.int8 import calibrate, converted, fake_quantised, fold_norms, freeze_ranges
from tests.vision.kd.lessons import digits, trained

NETS = [
    Net(arch="convnet", width=8, depth=2, norm="batch"),
    Net(arch="convnet", width=8, depth=2),
    Net(arch="resnet", width=4, depth=8),
    Net(arch="mlp", width=32),
]
LAYERS = [
    nn.Conv2d(3, 8, 3, padding=1),
    nn.Conv2d(4, 8, 3, stride=2, bias=False),
    nn.Conv2d(8, 8, 3, groups=8, padding=2, dilation=2),
    nn.Conv2d(5, 7, (1, 3), padding=(0, 1)),
    nn.Linear(11, 5),
    nn.Linear(6, 9, bias=False),
]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantised(net: nn.Module, images: torch.Tensor) -> nn.Module:
    fake = fake_quantised(net)
    calibrate(fake, [images])
    return fake.eval()


def inputs_of(layer: nn.Module) -> torch.Tensor:
    return drawn(5, layer.in_features) if isinstance(layer, nn.Linear) else drawn(5, layer.in_channels, 9, 8)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
class TestLayer:
    def test_it_is_integer_arithmetic_between_two_scales(self, layer):
        x = inputs_of(layer)
        net = converted(quantised(nn.Sequential(layer), x))
        made = net[0]
        integers = (x / made.input_scale).round() + made.input_zero
        integers = (integers.clamp(0, 255) - made.input_zero).double()
        exact = copy.deepcopy(layer).double()
        exact.weight.data, exact.bias = made.weight.double(), None
        sums = exact(integers).movedim(1, -1) * (made.weight_scale.double() * float(made.input_scale))
        expected = (sums + (0 if layer.bias is None else layer.bias.double())).movedim(-1, 1)
        assert torch.allclose(net(x).double(), expected, atol=1e-4)

    def test_training_sees_what_it_will_compute(self, layer):
        x = inputs_of(layer)
        fake = quantised(nn.Sequential(layer), x)
        assert torch.allclose(fake(x), converted(fake)(x), atol=1e-4)

    def test_its_weights_are_the_nearest_of_255_with_a_scale_for_each_channel(self, layer):
        made = converted(quantised(nn.Sequential(layer), inputs_of(layer)))[0]
        assert made.weight.dtype == torch.int8 and made.weight.flatten(1).abs().amax(1).eq(127).all()
        steps = made.weight_scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        assert ((made.weight * steps - layer.weight).abs() <= steps / 2 + 1e-7).all()

    def test_without_kernels_it_gives_the_same(self, layer, monkeypatch):
        x = inputs_of(layer)
        net = converted(quantised(nn.Sequential(layer), x))
        with_kernels = net(x)
        monkeypatch.setattr(int8, "has_kernels", lambda: False)
        assert torch.allclose(net(x), with_kernels, atol=1e-4)


@pytest.mark.parametrize("settings", NETS, ids=str)
class TestNetwork:
    def test_it_tells_digits_almost_as_well_as_in_float(self, settings):
        net = trained(settings)
        in_int8 = converted(quantised(net, digits().train.images[:300]))
        assert accuracy(in_int8, digits().test) > accuracy(net, digits().test) - 0.02

    def test_every_convolution_and_linear_layer_computes_in_int8(self, settings):
        net = converted(quantised(trained(settings), digits().train.images[:50]))
        kinds = [type(module) for module in net.modules()]
        assert not {nn.Conv2d, nn.Linear, nn.BatchNorm2d} & set(kinds)
        before = [type(module) for module in trained(settings).modules()]
        assert sum(issubclass(kind, int8._Int8) for kind in kinds) == before.count(nn.Conv2d) + before.count(nn.Linear)

    def test_it_has_as_many_weights_as_before_apart_from_folded_norms(self, settings):
        folded = copy.deepcopy(trained(settings))
        fold_norms(folded)
        net = converted(quantised(trained(settings), digits().train.images[:50]))
        numbers = [sum(weight.numel() for weight in one.parameters()) for one in (net, folded)]
        assert numbers[0] == numbers[1]

    def test_folding_norms_changes_no_logit(self, settings):
        net = copy.deepcopy(trained(settings))
        fold_norms(net)
        images = digits().test.images[:50]
        assert torch.allclose(net(images), trained(settings)(images), atol=1e-4)

    def test_the_original_is_left_alone(self, settings):
        before = copy.deepcopy(trained(settings).state_dict())
        converted(quantised(trained(settings), digits().train.images[:50]))
        assert all(torch.equal(value, before[name]) for name, value in trained(settings).state_dict().items())

    def test_a_copy_computes_the_same(self, settings):
        images = digits().test.images[:20]
        net = converted(quantised(trained(settings), images))
        logits = net(images)
        assert torch.equal(copy.deepcopy(net)(images), logits)


def test_other_weights_are_used_once_they_are_loaded():
    x = drawn(5, 3, 8, 8)
    one, other = (converted(quantised(nn.Sequential(copy.deepcopy(layer)), x)) for layer in (LAYERS[0], LAYERS[0]))
    with torch.no_grad():
        other[0].weight.copy_(torch.flip(other[0].weight, [0]))
    before = one(x)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(x), other(x)) and not torch.equal(one(x), before)


def test_the_gradient_passes_inside_of_the_range_and_stops_outside():
    fake = quantised(nn.Sequential(nn.Linear(3, 2)), torch.tensor([[-1.0, 0.0, 1.0]]))
    x = torch.tensor([[0.5, 3.0, -3.0]], requires_grad=True)
    fake(x).sum().backward()
    assert x.grad[0, 0] != 0 and x.grad[0, 1:].eq(0).all()
    assert fake[0].layer.weight.grad.abs().min() > 0


def test_zero_is_exact_and_both_ends_are_inside_whatever_the_range():
    for low, high in ((-1.0, 0.37), (0.2, 5.0), (-3.0, -2.0)):
        fake = quantised(nn.Sequential(nn.Linear(2, 4)), torch.tensor([[low, high]]))
        ends = torch.tensor([low, high])
        assert fake[0].inputs(torch.zeros(1)).eq(0).all()
        assert torch.allclose(fake[0].inputs(ends), ends, atol=float(fake[0].inputs.scale_and_zero()[0]))


def test_ranges_follow_batches_in_training_until_they_are_frozen():
    fake = fake_quantised(nn.Sequential(nn.Linear(2, 2)))
    fake(torch.tensor([[-1.0, 1.0]]))
    assert (float(fake[0].inputs.low), float(fake[0].inputs.high)) == (-1, 1)
    fake(torch.tensor([[-2.0, 1.0]]))
    assert float(fake[0].inputs.low) == pytest.approx(-1.1)
    freeze_ranges(fake, True)
    fake(torch.tensor([[-9.0, 9.0]]))
    freeze_ranges(fake, False)
    fake.eval()(torch.tensor([[-9.0, 9.0]]))
    assert float(fake[0].inputs.low) == pytest.approx(-1.1) and float(fake[0].inputs.high) == 1


def test_a_norm_that_reads_what_others_read_too_is_not_folded():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    net = Both().eval()
    net.norm.running_mean += 1
    folded = copy.deepcopy(net)
    fold_norms(folded)
    assert isinstance(folded.norm, nn.BatchNorm2d)
    assert torch.equal(folded(drawn(1, 1, 2, 2)), net(drawn(1, 1, 2, 2)))


def test_a_layer_in_two_places_stays_one_layer():
    shared = nn.Linear(4, 4)
    net = converted(quantised(nn.Sequential(shared, nn.Tanh(), shared), drawn(8, 4)))
    assert net[0] is net[2] and isinstance(net[0], int8.Int8Linear)


def test_a_network_whose_calls_depend_on_its_input_is_quantised_without_folding():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    net = Branching(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = drawn(2, 1, 5, 5)
    made = converted(quantised(net, x))
    assert isinstance(made[0], int8.Int8Conv2d) and isinstance(made[1], nn.BatchNorm2d)
    assert torch.allclose(made(x), net(x), atol=0.1)


def test_an_int8_network_can_be_attacked():
    settings = NETS[0]
    net = converted(quantised(trained(settings), digits().train.images[:300]))
    attack = fgsm_attack(0.15)
    robust = robust_accuracy(net, digits().test, digits(), attack)
    assert robust == pytest.approx(robust_accuracy(trained(settings), digits().test, digits(), attack), abs=0.1)
    assert robust < accuracy(net, digits().test) - 0.1


def test_a_network_without_layers_for_int8_is_one_clear_line():
    with pytest.raises(ConfigError, match="no 2d convolution or linear layer"):
        fake_quantised(nn.Sequential(nn.Flatten()))
