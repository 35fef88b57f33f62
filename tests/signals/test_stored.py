"""The stored teacher gives a batch what was captured for its records, whatever their order and however laid."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from llmdistill.engines.batches import pack, pad, target_hidden
from llmdistill.engines.examples import Example
from llmdistill.engines.models import find_model, load_model
from llmdistill.errors import ChangedError
from llmdistill.signals.codec import TopRows
from llmdistill.signals.distributions import Samples, TopK, head_of
from llmdistill.signals.store import Store, to_stored, write_shard
from llmdistill.signals.stored import StoredTeacher
from tests.signals.rows import header, some_stored, targets_of

IDS = ["하나", "둘", "셋", "넷"]
EXAMPLES = [Example(name, [1, 5, 9], ids) for name, ids in targets_of(IDS).items()]


def teacher(folder: Path, **changes: object) -> StoredTeacher:
    wanted = header(**changes)
    write_shard(folder, 0, wanted, some_stored(wanted, targets_of(IDS)))
    return StoredTeacher(Store.open(folder, wanted))


@pytest.mark.parametrize("mode", ["topk", "sampled"])
def test_a_shuffled_batch_gets_the_same_rows_padded_or_packed(tmp_path: Path, mode: str) -> None:
    stored = teacher(tmp_path, mode=mode)
    alone = {example.record_id: stored.distribution(pack([example])) for example in EXAMPLES}
    shuffled = [EXAMPLES[place] for place in (2, 0, 3, 1)]
    for batch in (pad(shuffled, 0), pack(shuffled)):
        found, start = stored.distribution(batch, None), 0
        for name, number in zip(batch.record_ids, batch.num_targets, strict=True):
            part, own = found.chunk(start, start + number), alone[name]
            for field in dataclasses.fields(own):
                one, other = getattr(part, field.name), getattr(own, field.name)
                if isinstance(one, torch.Tensor):
                    assert torch.equal(one[:, : other.shape[1]] if one.ndim > 1 else one, other)
                else:
                    assert one == other == stored.store.header.vocab_size
            start += number
        assert start == len(batch.labels)


def test_tensors_are_as_the_losses_take_them(tmp_path: Path) -> None:
    top = teacher(tmp_path / "top").distribution(pack(EXAMPLES))
    assert isinstance(top, TopK) and top.ids.dtype == torch.int64 and top.log_probs.dtype == torch.float32
    total = top.log_probs.double().exp().sum(1) + top.tail_log_prob.double().exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-6, atol=0)
    drawn = teacher(tmp_path / "drawn", mode="sampled").distribution(pack(EXAMPLES))
    assert isinstance(drawn, Samples) and drawn.ids.dtype == torch.int64 and drawn.weights.dtype == torch.float32
    torch.testing.assert_close(drawn.weights.sum(1), torch.ones(len(drawn.weights)))
    assert (drawn.ids[drawn.weights == 0] == 0).all()


def test_other_targets_than_were_captured_stop_the_training_with_the_record(tmp_path: Path) -> None:
    stored = teacher(tmp_path)
    wrong = dataclasses.replace(EXAMPLES[2], target=[*EXAMPLES[2].target, 2])
    with pytest.raises(ChangedError, match="'셋'"):
        stored.distribution(pad([EXAMPLES[0], wrong], 0))


def test_it_does_not_read_the_text(tmp_path: Path) -> None:
    assert not teacher(tmp_path).needs_batch


def test_the_whole_vocabulary_in_float32_is_the_teacher_itself(tmp_path: Path, tiny_model: Path) -> None:
    model = load_model(find_model(str(tiny_model)), "float32", "cpu")
    size = model.get_output_embeddings().weight.shape[0]
    examples = [Example(name, [1, 5, 9], ids) for name, ids in targets_of(IDS, size).items()]
    batch = pad(examples, 0)
    with torch.no_grad():
        exact = head_of(model).logits(target_hidden(model, batch)).log_softmax(-1)
    log_probs, ids = exact.sort(-1, descending=True)
    wanted = header(vocab_size=size, k=size, log_probs="float32")
    tail = torch.full((len(exact),), -torch.inf)
    parts = zip(*(tensor.split(batch.num_targets) for tensor in (ids, log_probs, tail)), strict=True)
    rows = {name: TopRows(*(t.numpy() for t in part)) for name, part in zip(batch.record_ids, parts, strict=True)}
    write_shard(tmp_path, 0, wanted, to_stored(wanted, targets_of(IDS, size), rows))
    found = StoredTeacher(Store.open(tmp_path, wanted)).distribution(batch)
    assert isinstance(found, TopK)
    assert torch.equal(torch.empty_like(exact).scatter_(1, found.ids, found.log_probs), exact)
    assert torch.isneginf(found.tail_log_prob).all()
