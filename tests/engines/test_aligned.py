"""Aligned batches give the logits that a plain forward over one row gives."""

from __future__ import annotations

import random

import torch
from transformers import AutoModelForCausalLM

from llmdistill.engines.aligned import IGNORED, align, target_logits


def test_logits_of_mixed_lengths_equal_those_of_single_rows(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    draw = random.Random(0)
    prompts = [[draw.randrange(3, 500) for _ in range(length)] for length in (1, 4, 17, 9)]
    targets = [[draw.randrange(3, 500) for _ in range(length)] for length in (6, 1, 3, 11)]
    batch = align(prompts, targets, pad_id=2)
    with torch.no_grad():
        logits = target_logits(model, batch)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            plain = model(torch.tensor([prompt + target])).logits[0]
            expected = plain[len(prompt) - 1 : len(prompt) - 1 + len(target)]
            assert torch.allclose(logits[row, : len(target)], expected, atol=1e-9)
    assert batch.num_targets == sum(map(len, targets))


def test_labels_are_the_targets_and_nothing_else():
    batch = align([[5, 6], [7]], [[1, 2, 2], [3]], pad_id=2)
    assert batch.labels.tolist() == [[1, 2, 2], [3, IGNORED, IGNORED]]
    assert batch.input_ids.tolist() == [[5, 6, 1, 2], [2, 7, 3, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 0]]
