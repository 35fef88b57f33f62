"""Choosing layers and cutting a model, against slow references."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from llmdistill.engines.aligned import align
from llmdistill.errors import ModelError
from llmdistill.train.student import (
    block_influence,
    by_block_influence,
    choose_layers,
    contiguous,
    hidden_states,
    uniform,
    with_layers,
)


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def batch():
    rows = [[5, 9, 33, 12, 8], [7, 7, 40]]
    return align(rows, [[], []], pad_id=2)


def cosine(first, second):
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


def test_uniform_keeps_both_ends_and_equal_gaps():
    assert uniform([torch.zeros(1)] * 31, 10) == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    assert uniform([torch.zeros(1)] * 5, 4) == [0, 1, 2, 3]
    assert uniform([torch.zeros(1)] * 5, 1) == [0]


def test_hidden_states_are_what_each_layer_reads_and_writes(model, batch):
    states = hidden_states(model, batch)
    with torch.no_grad():
        x = model.model.embed_tokens(torch.tensor([[7, 7, 40]]))
        positions = model.model.rotary_emb(x, torch.arange(3)[None])
        mask = torch.full((1, 1, 3, 3), -1e9).triu(1)
        expected = [x[0]]
        for layer in model.model.layers:
            x = layer(x, attention_mask=mask, position_embeddings=positions)
            expected.append(x[0])
    assert len(states) == 5
    for found, wanted in zip(states, expected, strict=True):
        assert torch.allclose(found[5:], wanted, atol=1e-5)


def test_block_influence_equals_its_definition(model, batch):
    states = hidden_states(model, batch)
    for layer, found in enumerate(block_influence(states)):
        pairs = zip(states[layer].tolist(), states[layer + 1].tolist(), strict=True)
        similarities = [cosine(before, after) for before, after in pairs]
        assert found == pytest.approx(1 - sum(similarities) / len(similarities), abs=1e-6)
    kept = by_block_influence(states, 2)
    influence = block_influence(states)
    assert sorted(kept, key=lambda layer: -influence[layer]) == sorted(range(4), key=lambda n: -influence[n])[:2]


def test_the_contiguous_cut_is_the_run_that_turns_least(model, batch):
    states = hidden_states(model, batch)
    for keep in (1, 2, 3):
        cut = 4 - keep
        angles = []
        for start in range(keep + 1):
            pairs = zip(states[start].tolist(), states[start + cut].tolist(), strict=True)
            turned = [math.acos(max(-1.0, min(1.0, cosine(a, b)))) / math.pi for a, b in pairs]
            angles.append(sum(turned) / len(turned))
        start = angles.index(min(angles))
        assert contiguous(states, keep) == [n for n in range(4) if not start <= n < start + cut]


@pytest.mark.parametrize("layers", [[0, 1, 2, 3], [0, 3], [1, 2, 3], [2]])
def test_a_cut_model_computes_what_the_whole_one_computes_without_those_layers(model, batch, layers):
    student = with_layers(model, layers)
    shortened = copy.deepcopy(model)
    shortened.model.layers = nn.ModuleList([shortened.model.layers[layer] for layer in layers])
    with torch.no_grad():
        found = student(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        expected = shortened(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    assert torch.equal(found, expected)
    assert student.config.num_hidden_layers == len(layers)


def test_a_cut_model_generates_and_opens_again(model, tmp_path):
    student = with_layers(model, [0, 3])
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    assert (
        again.generate(ids, max_new_tokens=4, do_sample=False).tolist()
        == student.generate(ids, max_new_tokens=4, do_sample=False).tolist()
    )


def test_keeping_more_layers_than_there_are_is_refused(model, batch):
    with pytest.raises(ModelError, match="keep_layers is 5, but the teacher has 4"):
        choose_layers(model, 5, "uniform", batch)
