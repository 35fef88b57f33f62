"""Deep mutual learning: the formula, peers that move by their own loss alone, and a training."""

import copy

import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.mutual import Mutual, MutualDistiller, mutual_losses, redrawn
from tests.vision.kd.lessons import SMALL, built, digits, divergence, drawn, lesson, softmax, taught, weights

NET = Net(arch="mlp", width=32, depth=1)


def peers(number: int) -> list[torch.nn.Module]:
    return [built(SMALL, seed) for seed in range(number)]


class TestLoss:
    @pytest.mark.parametrize(("number", "temperature"), [(2, 1.0), (3, 1.0), (4, 2.5)])
    def test_it_is_the_mean_divergence_from_the_other_peers(self, number, temperature):
        logits = [drawn(seed, 3, 5) for seed in range(number)]
        for i, found in enumerate(mutual_losses(logits, temperature)):
            others = [j for j in range(number) if j != i]
            rows = [
                divergence(softmax(logits[j][n].tolist(), temperature), softmax(logits[i][n].tolist(), temperature))
                for j in others
                for n in range(3)
            ]
            assert float(found) == pytest.approx(temperature**2 * sum(rows) / len(rows), rel=1e-12)

    def test_its_gradient_agrees_with_finite_differences(self):
        others = [drawn(1, 3, 5), drawn(2, 3, 5)]
        own = drawn(0, 3, 5).requires_grad_()
        assert torch.autograd.gradcheck(lambda logits: mutual_losses([logits, *others])[0], own)

    def test_it_is_zero_only_where_all_peers_agree(self):
        same = drawn(0, 3, 5)
        assert all(loss.abs() < 1e-12 for loss in mutual_losses([same, same + 7.0, same]))
        assert all(loss > 1e-3 for loss in mutual_losses([same, 2 * same]))


class TestPeers:
    @pytest.mark.parametrize("i", range(3))
    def test_the_loss_of_one_peer_moves_no_other(self, i):
        nets = peers(3)
        loss = mutual_losses([net(digits().train.images[:8]) for net in nets])[i]
        for j, net in enumerate(nets):
            found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
            assert all(gradient is None for gradient in found) == (i != j)

    def test_a_step_moves_each_peer_by_what_the_others_said_before_it(self):
        batch = digits().train
        images, labels = batch.images[:16], batch.labels[:16]
        settings = Mutual(num_peers=3, weight=0.7)
        together = MutualDistiller(peers(3), settings)
        apart = [copy.deepcopy(net) for net in together.peers()]
        said = [net(images).detach() for net in apart]
        optimiser = torch.optim.SGD(together.trained(), lr=0.1)
        torch.stack(list(together.terms(images, labels).values())).sum().backward()
        optimiser.step()
        for i, net in enumerate(apart):
            logits = [net(images) if i == j else said[j] for j in range(3)]
            loss = torch.nn.functional.cross_entropy(logits[i], labels) + 0.7 * mutual_losses(logits)[i]
            loss.backward()
            torch.optim.SGD(net.parameters(), lr=0.1).step()
            assert torch.allclose(weights(net), weights(together.peers()[i]), atol=1e-6)

    def test_peers_begin_with_weights_of_their_own_and_all_are_trained(self):
        seen = []

        def keep(distiller, data, protocol):
            seen.append([weights(peer) for peer in distiller.peers()])
            assert len(list(distiller.trained())) == sum(len(list(peer.parameters())) for peer in distiller.peers())
            return train(distiller, data, protocol)

        given = lesson(Protocol(epochs=1))
        train = given.train
        object.__setattr__(given, "train", keep)
        taught(Mutual(num_peers=3), None, given)
        one, two, three = seen[0]
        assert not torch.equal(one, two) and not torch.equal(two, three) and not torch.equal(one, three)

    def test_peers_of_a_users_own_module_are_copies_drawn_anew(self):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
        before = weights(net)
        found = Mutual().teach(net, None, lesson(Protocol(epochs=2), student=None))
        assert found.net is net and not torch.equal(weights(net), before)
        other = redrawn(net)
        assert all((a != b).any() for a, b in zip(net.parameters(), other.parameters(), strict=True))

    def test_a_module_that_cannot_draw_its_weights_is_named(self):
        class 단순(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(64, 10))

        with pytest.raises(ConfigError, match="단순 has weights and no reset_parameters"):
            redrawn(torch.nn.Sequential(torch.nn.Flatten(), 단순()))

    def test_peers_may_be_another_network(self):
        found = taught(Mutual(peer=Net(arch="mlp", width=16, depth=1)), None, lesson(Protocol(epochs=1)))
        assert type(found.net).__name__ == "ConvNet" and len(found.measures) == 2


def test_a_training_gives_the_first_peer_and_reports_all():
    given = lesson(Protocol(epochs=6), NET)
    found = taught(Mutual(num_peers=3), None, given, NET)
    assert list(found.measures) == ["validation_peer_1", "validation_peer_2", "validation_peer_3"]
    assert all(value > 0.8 for value in found.measures.values())
    assert found.measures["validation_peer_1"] == accuracy(found.net, digits().validation)
    again = taught(Mutual(num_peers=3), None, given, NET)
    assert torch.equal(weights(found.net), weights(again.net))


def test_a_pipeline_file_knows_it():
    values = {"name": "m", "student": {"arch": "mlp"}, "teacher": {"arch": "mlp"}}
    pipeline = KdPipeline.model_validate({**values, "methods": [{"name": "mutual", "num_peers": 4}]})
    assert pipeline.methods[0] == Mutual(num_peers=4)
