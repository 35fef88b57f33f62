"""Files of networks in every form, and their speed."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llmdistill.errors import ConfigError, DamagedError, DiskError
from llmdistill.vision.attacks import Attack
from llmdistill.vision.config import Net
from llmdistill.vision.deploy import beside, latencies, load_net, num_bytes, save_net
from llmdistill.vision.int8 import calibrate, converted, fake_quantised
from llmdistill.vision.measures import MEASURES, measures_of
from llmdistill.vision.models import build
from llmdistill.vision.pruning import channels_of, chosen, take_out
from tests.vision.kd.lessons import built, digits

NETS = [
    Net(arch="convnet", width=16, depth=2),
    Net(arch="resnet", width=8, depth=8),
    Net(arch="vgg", width=4),
    Net(arch="mlp", width=32),
]


def net_of(settings: Net) -> nn.Module:
    return built(settings).eval()


def fresh(settings: Net) -> nn.Module:
    return built(settings, 9)


def in_int8(net: nn.Module) -> nn.Module:
    fake = fake_quantised(net)
    calibrate(fake, [digits().train.images[:100]])
    return converted(fake)


def pruned(settings: Net) -> nn.Module:
    net = net_of(settings)
    for channels, kept in chosen(net, 0.5, {channels.name: len(channels) for channels in channels_of(net)}):
        take_out(channels, kept)
    return net.eval()


@pytest.mark.parametrize("settings", NETS, ids=str)
class TestFile:
    @pytest.mark.parametrize("form", ["float", "int8", "pruned", "pruned int8"])
    def test_a_network_comes_back_in_the_form_it_was_saved_in(self, settings, form, tmp_path):
        net = pruned(settings) if "pruned" in form else net_of(settings)
        net = in_int8(net) if "int8" in form else net
        save_net(net, tmp_path / "학생" / "net.safetensors")
        back = load_net(fresh(settings), tmp_path / "학생" / "net.safetensors")
        images = digits().test.images[:40]
        with torch.no_grad():
            assert torch.equal(back(images), net(images))

    def test_its_size_is_what_is_on_disk(self, settings, tmp_path):
        save_net(net_of(settings), tmp_path / "net")
        assert num_bytes(net_of(settings)) == (tmp_path / "net").stat().st_size

    def test_int8_is_saved_as_int8(self, settings, tmp_path):
        save_net(in_int8(net_of(settings)), tmp_path / "net")
        tensors = load_file(tmp_path / "net").values()
        assert not [tensor for tensor in tensors if tensor.dim() > 1 and tensor.dtype != torch.int8]


def test_an_int8_file_is_a_quarter_of_the_float_one():
    net = build(Net(arch="convnet", width=64), (3, 32, 32), 10, 0).eval()
    fake = fake_quantised(net)
    calibrate(fake, [torch.randn(4, 3, 32, 32)])
    assert 0.25 <= num_bytes(converted(fake)) / num_bytes(net) < 0.29


def test_half_of_the_channels_are_a_quarter_of_the_file():
    net, smaller = net_of(NETS[2]), pruned(NETS[2])
    assert 0.25 < num_bytes(smaller) / num_bytes(net) < 0.4


class TestBadFile:
    def test_a_torn_one_is_named(self, tmp_path):
        save_net(net_of(NETS[0]), tmp_path / "net")
        (tmp_path / "net").write_bytes((tmp_path / "net").read_bytes()[:-9])
        with pytest.raises(DamagedError, match="net: not readable"):
            load_net(fresh(NETS[0]), tmp_path / "net")

    @pytest.mark.parametrize("other", [NETS[1], Net(arch="convnet", width=16, depth=3), NETS[3]], ids=str)
    def test_one_of_another_network_is_named(self, other, tmp_path):
        save_net(net_of(NETS[0]), tmp_path / "net")
        with pytest.raises(DamagedError, match="another network"):
            load_net(fresh(other), tmp_path / "net")

    def test_one_of_a_wider_network_is_named(self, tmp_path):
        save_net(net_of(NETS[0]), tmp_path / "net")
        with pytest.raises(DamagedError, match="another network"):
            load_net(fresh(Net(arch="convnet", width=8, depth=2)), tmp_path / "net")

    def test_nothing_is_left_where_it_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DiskError):
            save_net(net_of(NETS[0]), tmp_path / "file" / "net")
        assert [path.name for path in tmp_path.rglob("*")] == ["file"]


class Sleeping(nn.Module):
    """Takes a given time, in milliseconds, for each image."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.milliseconds, self.batches = milliseconds, []
        self.weight = nn.Parameter(torch.zeros(1000))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        from time import sleep

        assert not torch.is_grad_enabled() and not self.training
        self.batches.append(len(images))
        sleep(self.milliseconds * len(images) / 1000)
        return images


def test_latency_is_the_time_of_a_batch_in_evaluation_mode():
    slow, fast = Sleeping(5.0), Sleeping(0.0)
    found = latencies([slow, fast], torch.zeros(3, 1, 2, 2), batch=4, runs=5)
    assert 20 <= found[0] and found[1] < found[0]
    assert slow.batches == [4] * 6 and slow.training


def test_size_and_speed_stand_beside_the_original():
    found = beside(Sleeping(0.1), Sleeping(1.0), torch.zeros(2, 1, 2, 2))
    assert found["bytes_ratio"] == 1 and found["bytes"] > 4000
    assert found["latency_64_ratio"] < 0.5 and found["latency_64"] >= 6.4


def test_every_measure_has_its_name_and_others_are_refused():
    net = net_of(NETS[3])
    found = measures_of(net, digits(), MEASURES, Attack(steps=2))
    assert set(found) == {*MEASURES, "latency_64"} and all(value > 0 for value in found.values())
    assert found["bytes"] == num_bytes(net)
    assert measures_of(net, digits(), [], Attack()) == {}
    with pytest.raises(ConfigError, match="no measure 'speed'"):
        measures_of(net, digits(), ["speed"], Attack())
