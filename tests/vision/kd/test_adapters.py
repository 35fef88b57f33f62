"""Layers of two networks side by side."""

import pytest
import torch
from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.kd.adapters import as_map, embedding, example_maps, layer_pairs, pooled, same_depth, unit
from llmdistill.vision.kd.attention import Attention
from llmdistill.vision.kd.contrastive import Contrastive
from llmdistill.vision.kd.feature import Feature
from llmdistill.vision.kd.fitnets import FitNets
from llmdistill.vision.kd.relational import Relational
from tests.vision.kd.feature_lessons import STUDENT, TEACHER, images, net

METHODS = [Feature(), FitNets(joint=True), Attention(), Relational(), Contrastive(negatives="batch")]


class Tokens(nn.Module):
    """Image rows as a sequence, and beside it a layer whose output is no tensor and one that is never called."""

    def __init__(self):
        super().__init__()
        self.embed, self.classifier, self.빈층 = nn.Linear(8, 5), nn.Linear(5, 10), nn.Linear(2, 2)
        self.lstm = nn.LSTM(5, 5, batch_first=True)

    def forward(self, pixels):
        tokens = self.embed(pixels[:, 0])
        self.lstm(tokens)
        return self.classifier(tokens.mean(1))


def test_default_pairs_have_the_same_relative_depth():
    assert same_depth("ab", "abcd") == [("a", "b"), ("b", "d")]
    assert same_depth("abc", "abcde") == [("a", "b"), ("b", "c"), ("c", "e")]
    assert same_depth("abcd", "ab") == [("b", "a"), ("d", "b")]
    assert layer_pairs(net(STUDENT), net(TEACHER)) == [("blocks.0", "blocks.1"), ("blocks.1", "blocks.2")]


@pytest.mark.parametrize("student", range(1, 9))
@pytest.mark.parametrize("teacher", range(1, 9))
def test_default_pairs_go_down_both_networks_and_end_at_both_ends(student, teacher):
    pairs = same_depth([f"{n}" for n in range(student)], [f"{n}" for n in range(teacher)])
    assert len(pairs) == min(student, teacher)
    for side in range(2):
        places = [int(pair[side]) for pair in pairs]
        assert places == sorted(set(places))
    assert pairs[-1] == (str(student - 1), str(teacher - 1))


@pytest.mark.parametrize("given, whose", [([("blocks.9", "blocks.0")], "student"), ([("blocks.0", "블록")], "teacher")])
def test_an_unknown_layer_is_named_with_the_layers_there_are(given, whose):
    with pytest.raises(ConfigError) as error:
        layer_pairs(net(STUDENT), net(TEACHER), given)
    assert whose in str(error.value) and "blocks.0, blocks.1" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_without_blocks_needs_layers_and_gets_its_own_listed():
    with pytest.raises(ConfigError, match="the student has no blocks.*embed, classifier"):
        layer_pairs(Tokens(), net(TEACHER))


def test_no_teacher_is_one_clear_line():
    with pytest.raises(ConfigError, match="needs a teacher"):
        Feature().distiller(net(STUDENT), None, images())


@pytest.mark.parametrize("name", ["lstm", "빈층"])
def test_a_layer_without_a_feature_is_named(name):
    with pytest.raises(ConfigError, match=f"the layer {name} gives no feature"):
        example_maps(Tokens(), net(TEACHER), [(name, "blocks.0")], images())


def test_a_sequence_does_not_match_a_map():
    with pytest.raises(ConfigError, match="embed gives 8 x 5 and blocks.0 gives 8 x 8 x 8: a sequence"):
        example_maps(Tokens(), net(TEACHER), [("embed", "blocks.0")], images())


def test_a_sequence_becomes_a_column_and_a_vector_one_place():
    tokens, vectors = torch.randn(2, 3, 4), torch.randn(2, 4)
    assert torch.equal(as_map(tokens)[1, :, 2, 0], tokens[1, 2])
    assert torch.equal(as_map(vectors)[1, :, 0, 0], vectors[1])
    ((own, other),) = example_maps(Tokens(), net(Net(arch="mlp", width=6)), [("embed", "blocks.0")], images())
    assert own.shape == (6, 5, 8, 1) and other.shape == (6, 6, 1, 1)


def test_pooling_averages_the_larger_map():
    feature = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pooled(feature, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled(feature, (4, 4)) is feature


def test_an_embedding_has_at_most_4_x_4_places():
    feature = torch.randn(2, 3, 8, 2)
    expected = torch.nn.functional.avg_pool2d(feature, (2, 1)).flatten(1)
    assert torch.allclose(embedding(feature), expected)
    assert torch.equal(embedding(feature[:, :, :4]), feature[:, :, :4].flatten(1))


def test_a_unit_vector_of_zero_is_zero_and_passes_no_gradient():
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    found = unit(vectors)
    assert found.tolist() == [[0.0, 0.0], pytest.approx([0.6, 0.8])]
    found.sum().backward()
    assert vectors.grad[0].tolist() == [0.0, 0.0] and vectors.grad[1].abs().sum() > 0


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
class TestEveryMethod:
    def test_looking_at_an_example_leaves_the_networks_as_they_were(self, method):
        student, teacher = net(Net(arch="resnet", width=4, depth=8)), net(TEACHER)
        student.blocks[0].eval()
        before = {name: value.clone() for name, value in student.state_dict().items()}
        modes = [module.training for module in student.modules()]
        method.distiller(student, teacher, images())
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
        assert [module.training for module in student.modules()] == modes

    def test_nothing_flows_into_the_teacher(self, method):
        student, teacher = net(STUDENT), net(TEACHER)
        distiller = method.distiller(student, teacher, images()).train()
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        look = distiller.look(images())
        assert not any(other.requires_grad for _, other in look.maps) and not look.teacher_logits.requires_grad
        assert all(own.requires_grad for own, _ in look.maps)
        torch.stack(list(distiller.terms(images(), torch.arange(6)).values())).sum().backward()
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())

    def test_what_is_deployed_is_the_student_alone(self, method):
        student = net(STUDENT)
        distiller = method.distiller(student, net(TEACHER), images())
        assert distiller.deployed() is student
        assert not [hook for module in student.modules() for hook in module._forward_hooks]

    def test_maps_of_zeros_and_a_batch_of_one_give_numbers(self, method):
        student, teacher = net(STUDENT), net(TEACHER)
        with torch.no_grad():
            for parameter in [*student.blocks.parameters(), *teacher.blocks.parameters()]:
                parameter.zero_()
        distiller = method.distiller(student, teacher, images())
        for num in (1, 2, 6):
            terms = distiller.terms(images(num), torch.arange(num))
            loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            assert torch.isfinite(loss), terms
            found = [parameter.grad for parameter in distiller.trained() if parameter.grad is not None]
            assert found and all(torch.isfinite(gradient).all() for gradient in found)

    def test_the_soft_term_is_added_where_it_has_a_weight(self, method):
        with_soft = method.model_copy(update={"soft_weight": 0.5, "hard_weight": 0.25})
        distiller = with_soft.distiller(net(STUDENT), net(TEACHER), images())
        torch.manual_seed(0)
        terms = distiller.terms(images(), torch.arange(6))
        look = distiller.look(images())
        p, q = ((logits / 4).softmax(-1) for logits in (look.teacher_logits, look.student_logits))
        soft = 16 * (p * (p / q).log()).sum(-1).mean()
        assert terms["soft"].item() == pytest.approx(0.5 * soft.item(), rel=1e-4)
        hard = nn.functional.cross_entropy(look.student_logits, torch.arange(6))
        assert terms["hard"].item() == pytest.approx(0.25 * hard.item(), rel=1e-5)
