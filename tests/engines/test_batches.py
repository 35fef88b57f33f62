"""Padded and packed batches: the same targets in the same order, and no example that sees another."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmdistill.engines.batches import check_packing, pack, pad, target_hidden
from llmdistill.engines.examples import Example
from llmdistill.errors import ModelError
from tests.train.following import some_examples

EXAMPLES = [*some_examples(5), Example("one token each", [7], [2])]


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def alone(model, example):
    """Hidden states at an example's targets, from the whole sequence by itself."""
    with torch.no_grad():
        hidden = model.model(torch.tensor([example.prompt + example.target])).last_hidden_state[0]
    return hidden[len(example.prompt) - 1 : -1]


@pytest.mark.parametrize("lay", [lambda examples: pad(examples, 2), pack], ids=["padded", "packed"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True])
def test_targets_are_those_of_each_example_by_itself_in_order(model, lay, attention, training):
    model.set_attn_implementation(attention)
    model.train(training)
    batch = lay(EXAMPLES)
    with torch.no_grad():
        found = target_hidden(model, batch)
    assert torch.allclose(found, torch.cat([alone(model, example) for example in EXAMPLES]), atol=1e-5)
    assert batch.labels.tolist() == [token for example in EXAMPLES for token in example.target]


@pytest.mark.parametrize("lay", [lambda examples: pad(examples, 2), pack], ids=["padded", "packed"])
def test_a_target_is_traced_back_to_its_record(lay):
    batch = lay(EXAMPLES)
    owners = [batch.record_of(target) for target in range(len(batch.labels))]
    assert owners == [example.record_id for example in EXAMPLES for _ in example.target]
    with pytest.raises(IndexError):
        batch.record_of(len(batch.labels))


def test_no_gradient_flows_from_one_packed_example_into_another(model):
    batch = pack(EXAMPLES)
    model.requires_grad_(False).train()
    embedded = model.get_input_embeddings()(batch.input_ids).requires_grad_()
    out = model.model(inputs_embeds=embedded, position_ids=batch.position_ids, use_cache=False).last_hidden_state
    length = len(EXAMPLES[0].prompt + EXAMPLES[0].target) - 1
    out[0, batch.places[batch.places >= length]].square().sum().backward()
    reached = embedded.grad[0].abs().sum(-1) > 0
    assert not reached[:length].any()
    assert reached[length:].all()


def test_a_model_that_keeps_packed_examples_apart_passes(model):
    model.train()
    check_packing(model)
    assert model.training


def test_a_model_that_lets_packed_examples_see_each_other_is_refused(model):
    # Transformers makes masks for the attention functions it knows, and leaves this one causal over the whole row.
    AttentionInterface.register("over_the_whole_row", sdpa_attention_forward)
    model.set_attn_implementation("over_the_whole_row")
    with pytest.raises(ModelError, match="see each other"):
        check_packing(model)
