"""Capturing: the rows are the teacher's distribution as a slow float64 softmax has it, however they were batched."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmdistill.config import Signals
from llmdistill.engines.batches import pack, pad
from llmdistill.engines.examples import Example, encode_all
from llmdistill.engines.models import find_model, load_tokenizer
from llmdistill.signals.capture import batches_of, capture, counted, draw, length_of, top
from tests.runs import answered
from tests.tiny import PROMPTS, REPO

K, DRAWS, SEED = 5, 50, 3


@pytest.fixture(scope="module")
def examples(tiny_model) -> list[Example]:
    """Real prompts, English and Korean, with targets of different lengths."""
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").splitlines()]
    korean = (REPO / "data" / "korean" / "prompts.jsonl").read_text("utf-8").splitlines()
    records = [answered(text, texts[-number][: 10 * number]) for number, text in enumerate(texts[:8], 1)]
    records += [answered(json.loads(line)["prompt"], "서울입니다. 한강이 흐릅니다.") for line in korean[:3]]
    found, _ = encode_all(records, load_tokenizer(find_model(str(tiny_model))), [2], 512)
    assert len(found) == 11
    return found


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model with weights so wide that its distributions are far from flat."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny_model)
    config.update({"tie_word_embeddings": False, "initializer_range": 0.2})
    torch.manual_seed(1)
    return LlamaForCausalLM(config).eval()


def distribution(model, example: Example, vocab_size: int, temperature: float = 1.0) -> torch.Tensor:
    """[targets, vocab_size] float64 log-probabilities, one sequence at a time, from the definition."""
    ids = torch.tensor([example.prompt + example.target])
    with torch.no_grad():
        logits = model(ids).logits[0, len(example.prompt) - 1 : -1, :vocab_size]
    return (logits.double() / temperature).log_softmax(-1)


def captured(model, examples, temperature=1.0, vocab_size=600, seed=SEED, lay=None, **settings):
    chosen = Signals(**{"k": K, "draws": DRAWS, "batch_tokens": 400, **settings})
    return dict(capture(model, examples, chosen, vocab_size, temperature, seed, lay=lay))


def padded(examples):
    return pad(examples, pad_id=2)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("vocab_size", [600, 413])
def test_the_likeliest_tokens_and_the_tail_are_those_of_a_float64_softmax(model, examples, temperature, vocab_size):
    rows = captured(model, examples, temperature, vocab_size)
    assert list(sorted(rows)) == sorted(example.record_id for example in examples)
    for example in examples:
        found = rows[example.record_id]
        wanted = distribution(model, example, vocab_size, temperature)
        values, ids = wanted.topk(K)
        assert found.ids.shape == (len(example.target), K)
        np.testing.assert_allclose(found.log_probs, values.numpy(), atol=2e-5)
        np.testing.assert_allclose(wanted.gather(1, torch.from_numpy(found.ids)), values.numpy(), atol=2e-5)
        tail = wanted.scatter(1, ids, -float("inf")).logsumexp(-1)
        np.testing.assert_allclose(found.tail_log_prob, tail.numpy(), atol=2e-5)


def test_all_tokens_leave_no_tail(model, examples):
    for rows in captured(model, examples, k=1000).values():
        assert rows.ids.shape[1] == 600
        assert np.isneginf(rows.tail_log_prob).all()
        np.testing.assert_allclose(np.exp(rows.log_probs.astype(np.float64)).sum(1), 1.0, atol=1e-5)


def test_a_tail_too_small_to_be_seen_beside_1_is_kept():
    logits = torch.zeros(1, 50_000)
    logits[0, 7] = 40.0
    _, log_probs, tail = top(logits, 1)
    assert tail.item() == pytest.approx(np.log(49_999) - 40.0, abs=1e-5)
    assert log_probs.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("width", [1, 255, 256, 1000, 2048, 5003])
@pytest.mark.parametrize("k", [1, 3, 16])
def test_looking_at_blocks_first_finds_the_same_tokens(width, k):
    logits = torch.randn(20, width, generator=torch.Generator().manual_seed(width))
    logits[3, -1] = 50.0  # the last one is in no block where the width is no multiple
    logits[4, 0] = 50.0
    values, ids = logits.double().log_softmax(-1).topk(min(k, width))
    found_ids, found, tail = top(logits.clone(), k)
    assert torch.equal(found_ids, ids)
    torch.testing.assert_close(found.double(), values, atol=1e-5, rtol=0)
    torch.testing.assert_close(tail.double().exp(), 1 - values.exp().sum(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["topk", "sampled"])
def test_padding_packing_batches_and_order_change_nothing(model, examples, mode):
    wanted = captured(model, examples, mode=mode)
    others = [
        captured(model, examples, mode=mode, lay=padded),
        captured(model, examples, mode=mode, lay=pack),
        captured(model, list(reversed(examples)), mode=mode, batch_tokens=1),
        {key: row for one in examples for key, row in captured(model, [one], mode=mode).items()},
    ]
    for other in others:
        for record_id, rows in wanted.items():
            np.testing.assert_array_equal(other[record_id].ids, rows.ids)
            if mode == "topk":
                np.testing.assert_allclose(other[record_id].log_probs, rows.log_probs, atol=1e-4)
            else:
                np.testing.assert_array_equal(other[record_id].counts, rows.counts)


def test_another_seed_and_another_record_draw_otherwise(model, examples):
    example, twin = examples[0], replace(examples[0], record_id="twin")
    one = captured(model, [example, twin], mode="sampled")
    other = captured(model, [example], mode="sampled", seed=SEED + 1)
    rows = (one[example.record_id], one["twin"], other[example.record_id])
    assert len({row.ids.tobytes() + row.counts.tobytes() for row in rows}) == 3


def test_draws_follow_the_softened_distribution(model, examples):
    """Chi-squared over cells of at least five expected draws; the seed is fixed, so this never changes its mind."""
    from scipy.stats import chi2

    temperature, draws, total, cells = 1.7, 20_000, 0.0, 0
    for example in examples[:3]:
        rows = captured(model, [example], temperature, 500, mode="sampled", draws=draws)[example.record_id]
        expected = draws * distribution(model, example, 500, temperature).exp().numpy()
        seen = np.zeros_like(expected)
        np.put_along_axis(seen, rows.ids, 0, 1)
        for row, (ids, counts) in enumerate(zip(rows.ids, rows.counts, strict=True)):
            seen[row, ids[counts > 0]] = counts[counts > 0]
        assert (seen.sum(1) == draws).all()
        for observed, wanted in zip(seen, expected, strict=True):
            large = wanted >= 5
            total += ((observed - wanted)[large] ** 2 / wanted[large]).sum()
            cells += int(large.sum()) - int(large.all())
    assert chi2.sf(total, cells) > 1e-3
    assert cells > 1000


def test_a_point_falls_on_the_token_whose_share_it_is_in():
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log()
    points = torch.tensor([[0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53]], dtype=torch.float64)
    assert draw(logits, points).tolist() == [[0, 0, 2, 2, 3, 3]]


def test_draws_are_counted():
    rows = counted(np.array([[7, 3, 7, 7], [1, 1, 1, 1], [0, 9, 0, 2]]))
    assert rows.ids.tolist() == [[3, 7, 0], [1, 0, 0], [0, 2, 9]]
    assert rows.counts.tolist() == [[1, 3, 0], [4, 0, 0], [2, 1, 1]]


def test_batches_hold_like_lengths_and_at_most_so_many_tokens(examples):
    batches = list(batches_of(examples, 300))
    assert sorted(example.record_id for batch in batches for example in batch) == sorted(
        example.record_id for example in examples
    )
    lengths = [length_of(example) for batch in batches for example in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or len(batch) * length_of(batch[0]) <= 300 for batch in batches)
    assert len(batches) > 1
