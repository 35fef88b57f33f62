"""Further architectures: which ones, with which norm, and what is told of those that are not there."""

from __future__ import annotations

import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.dd.across import others_of, title_of
from llmdistill.vision.dd.evaluate import judge
from llmdistill.vision.dd.protocol import Evaluation
from tests.vision.dd.test_evaluate import set_of
from tests.vision.images import small_data

COLOUR, DIGITS = (3, 32, 32), (1, 8, 8)


def test_the_default_are_the_architectures_of_the_papers_but_the_one_that_sets_are_made_for():
    found = others_of("default", Net(), COLOUR, 10)
    assert list(found.nets) == ["convnet batch", "resnet18 instance", "resnet18 batch", "vgg instance", "mlp"]
    assert not found.left_out and not found.warnings
    beside_mlp = others_of("default", Net(arch="mlp", width=7), COLOUR, 10)
    assert "convnet instance" in beside_mlp.nets and "mlp" not in beside_mlp.nets


def test_small_images_get_smaller_networks_and_group_norm_where_maps_have_one_pixel():
    found = others_of("default", Net(width=32, depth=2), DIGITS, 10)
    assert list(found.nets) == [
        "convnet batch width 32 depth 2",
        "resnet18 group width 16",
        "resnet18 batch width 16",
        "vgg group width 16",
        "mlp",
    ]


def test_a_default_that_cannot_be_is_left_out_with_the_reason():
    found = others_of("default", Net(arch="mlp"), (1, 4, 4), 10)
    assert not any(title.startswith("convnet") for title in found.nets) and "resnet18 batch width 16" in found.nets
    assert any("convnet batch is left out: images of 4 x 4 are too small" in line for line in found.warnings)


def test_skipping_warns():
    assert others_of("none", Net(), COLOUR, 10).warnings == others_of((), Net(), COLOUR, 10).warnings
    assert "cross-architecture is skipped" in others_of("none", Net(), COLOUR, 10).warnings[0]


def test_what_the_user_names_is_taken_as_it_is_or_refused():
    named = (Net(arch="resnet", depth=8), Net(arch="vgg", norm="batch", width=4))
    assert list(others_of(named, Net(), COLOUR, 10).nets.values()) == list(named)
    with pytest.raises(ConfigError, match="instance norm makes a map of one pixel zero"):
        others_of((Net(arch="vgg", norm="instance"),), Net(), DIGITS, 10)
    with pytest.raises(ConfigError, match="mlp stands there twice"):
        others_of((Net(arch="mlp"), Net(arch="mlp")), Net(), DIGITS, 10)


def test_titles_tell_apart_what_differs():
    nets = [Net(), Net(norm="batch"), Net(width=8), Net(depth=8), Net(arch="timm", timm="resnet18")]
    assert len({title_of(net) for net in nets}) == len(nets)


def test_choosing_leaves_the_global_generator_and_builds_nothing_on_a_device():
    state = torch.get_rng_state()
    others_of("default", Net(), COLOUR, 10)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_default_architecture_is_trained_on_one_image_of_each_class():
    data = small_data()
    protocol = Evaluation(epochs=1, learning_rates=(0.01,), other_nets=1).others()
    found = others_of("default", Net(width=8, depth=2), data.shape, data.num_classes)
    assert len(found.nets) == 5
    for net in found.nets.values():
        reached = judge(set_of(data, 1), data, net, protocol)
        assert len(reached.test) == 1 and reached.not_finite == 0
