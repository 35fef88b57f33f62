"""Stored signals that were lost, damaged, made otherwise or made up: each is refused, and the message says where."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmdistill.errors import ChangedError, DamagedError, LlmdistillError
from llmdistill.signals.codec import encode
from llmdistill.signals.header import Header
from llmdistill.signals.store import HEADER, Store, Stored, shard_path, to_stored, write_shard
from tests.signals.rows import header, some_rows, some_stored, targets_of

IDS = ["first", "second", "셋째 기록", "fourth", "fifth"]
TARGETS = targets_of(IDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, header())


def write(folder: Path, wanted: Header) -> Path:
    rows = some_stored(wanted, TARGETS)
    for index in range(0, len(rows), 2):
        write_shard(folder, index // 2, wanted, rows[index : index + 2])
    return folder


def opened_and_read(folder: Path, wanted: Header | None = None) -> None:
    Store.open(folder, wanted or header()).check(TARGETS)


def refusal(folder: Path, kind: type[LlmdistillError], wanted: Header | None = None) -> str:
    """The one line with which training with a folder is refused; it says what to do."""
    with pytest.raises(kind) as caught:
        opened_and_read(folder, wanted)
    assert caught.value.do and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_shard_is_named_with_what_was_in_it(folder: Path) -> None:
    shard_path(folder, 1).unlink()
    message = refusal(folder, DamagedError)
    assert "part-00001.arrow" in message and "2 records" in message and "'셋째 기록'" in message


def test_the_last_shard_missing_is_found_out_too(folder: Path) -> None:
    shard_path(folder, 2).unlink()
    assert "part-00002.arrow" in refusal(folder, DamagedError)


def test_records_without_signals_are_counted_before_training(folder: Path) -> None:
    with pytest.raises(ChangedError, match="no signals are stored for 2 of 7 records, the first 'new'"):
        Store.open(folder).check({**TARGETS, "new": [1], "newer": [2]})
    with pytest.raises(ChangedError, match="'new'"):
        Store.open(folder).read("new", [1])


@pytest.mark.parametrize("name", IDS)
def test_a_flipped_byte_in_the_signals_names_file_and_record(folder: Path, name: str) -> None:
    store = Store.open(folder)
    number, row = store._place(name)
    payload, path = bytes(store._shards[number].payload(row)), shard_path(folder, number)
    whole = path.read_bytes()
    for at in (0, len(payload) // 2, len(payload) - 1):
        data = bytearray(whole)
        data[whole.index(payload) + at] ^= 0x10
        path.write_bytes(data)
        message = refusal(folder, DamagedError)
        assert path.name in message and repr(name) in message


def test_a_byte_flipped_anywhere_is_refused_or_changes_nothing(folder: Path) -> None:
    path = shard_path(folder, 0)
    whole, store = path.read_bytes(), Store.open(folder)
    wanted = {name: store.read(name, TARGETS[name]).log_probs for name in IDS}
    del store
    refused = 0
    for at in range(0, len(whole), 11):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.unlink()  # the old mapping keeps its own file
        path.write_bytes(data)
        try:
            opened_and_read(folder)
        except (DamagedError, ChangedError):
            refused += 1
            continue
        for name, log_probs in wanted.items():
            assert np.array_equal(Store.open(folder).read(name, TARGETS[name]).log_probs, log_probs), at
    assert refused > len(whole) / 11 / 4


def test_a_file_cut_anywhere_is_refused(folder: Path) -> None:
    path = shard_path(folder, 1)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.unlink()
        path.write_bytes(whole[:length])
        assert path.name in refusal(folder, DamagedError), length


@pytest.mark.parametrize("content", [b"", b"PAR1", b"ARROW1\0\0" + bytes(400)])
def test_a_file_that_is_no_shard_is_refused(folder: Path, content: bytes) -> None:
    shard_path(folder, 1).write_bytes(content)
    assert "part-00001.arrow" in refusal(folder, DamagedError)


DIFFERENT = {
    "teacher": ("other", "teacher is teacher in the store, other now"),
    "teacher_revision": ("f00", "the teacher's revision is local:0123456789abcdef in the store, f00 now"),
    "tokenizer_sha256": ("d" * 64, "the tokenizer is aaaaaaaa in the store, dddddddd now"),
    "chat_template_sha256": ("d" * 64, "the chat template is bbbbbbbb in the store, dddddddd now"),
    "teacher_template_sha256": ("d" * 64, "the teacher's prompt template is cccccccc in the store, dddddddd now"),
    "vocab_size": (601, "the vocabulary size is 600 in the store, 601 now"),
    "mode": ("sampled", "mode is topk in the store, sampled now"),
    "k": (5, "k is 4 in the store, 5 now"),
    "log_probs": ("float16", "the type of log-probabilities is uint8 in the store, float16 now"),
    "temperature": (2.0, "temperature is 1.0 in the store, 2.0 now"),
    "dtype": ("bfloat16", "dtype is auto in the store, bfloat16 now"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_signals_made_otherwise_are_refused_saying_what_differs(folder: Path, name: str) -> None:
    value, words = DIFFERENT[name]
    message = refusal(folder, ChangedError, header(**{name: value}))
    assert words in message and HEADER in message and message.count(" now") == 1


def test_other_draws_and_seed_are_refused_where_tokens_were_drawn(tmp_path: Path) -> None:
    write(tmp_path, header(mode="sampled"))
    message = refusal(tmp_path, ChangedError, header(mode="sampled", draws=51, seed=8))
    assert "draws is 50 in the store, 51 now; seed is 7 in the store, 8 now" in message


def test_a_shard_of_other_signals_among_them_is_refused(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", header(chat_template_sha256="e" * 64))
    shutil.copy(shard_path(other, 1), shard_path(folder, 1))
    message = refusal(folder, ChangedError)
    assert "part-00001.arrow" in message and "the chat template is eeeeeeee" in message


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "{}", '"x"', '{"version": 1}', "\x00", '{"version": 1, "k": "4"}']
)
def test_a_header_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / HEADER).write_text(text)
    assert HEADER in refusal(folder, DamagedError)


@pytest.mark.parametrize(
    "change", [{"shards": None}, {"shards": {"part-00000.arrow": 3}}, {"mode": "all"}, {"k": "4"}, {"vocab_size": None}]
)
def test_a_header_with_a_part_of_another_kind_is_refused(folder: Path, change: dict) -> None:
    path = folder / HEADER
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert HEADER in refusal(folder, DamagedError)


def test_no_header_is_refused(folder: Path) -> None:
    (folder / HEADER).unlink()
    assert "llmdistill signals" in refusal(folder, DamagedError)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_format_of_another_version_is_refused(folder: Path, version: object) -> None:
    path = folder / HEADER
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))
    assert f"format version {version!r}, this program reads version 1" in refusal(folder, DamagedError)


def test_a_record_that_is_there_twice_is_refused(folder: Path) -> None:
    shutil.copy(shard_path(folder, 0), shard_path(folder, 3))
    message = refusal(folder, DamagedError)
    assert "'first'" in message and "part-00000.arrow" in message and "part-00003.arrow" in message


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, header(), [])
    assert "no record has signals" in refusal(tmp_path, DamagedError)
    shard_path(tmp_path, 0).unlink()
    assert "part-00000.arrow" in refusal(tmp_path, DamagedError)


@pytest.mark.parametrize("change", [lambda ids: ids[:-1], lambda ids: [*ids, 5], lambda ids: []])
def test_other_numbers_of_targets_are_refused_with_the_record(folder: Path, change: object) -> None:
    ids = change(TARGETS["셋째 기록"])  # type: ignore[operator]
    with pytest.raises(
        ChangedError, match=f"{len(TARGETS['셋째 기록'])} target tokens .*'셋째 기록', it has {len(ids)}"
    ):
        Store.open(folder).check({**TARGETS, "셋째 기록": ids})


def test_other_target_tokens_of_the_same_number_are_refused_with_the_record(folder: Path) -> None:
    ids = [*TARGETS["fourth"][:-1], TARGETS["fourth"][-1] ^ 1]
    with pytest.raises(ChangedError, match="'fourth' were captured for other target tokens"):
        Store.open(folder).check({**TARGETS, "fourth": ids})


def forged(folder: Path, wanted: Header, payload: bytes) -> None:
    """A store with a record, in order but for its payload."""
    rows = [*some_stored(wanted, {"first": TARGETS["first"]}), Stored("forged", [1, 2, 3], payload)]
    write_shard(folder, 0, wanted, rows)


FORGED = {
    "token id 6[0-9][0-9] in a vocabulary of 600": lambda: encode(header(vocab_size=700), beyond(topk=True)),
    "bytes where its targets need": lambda: encode(header(k=5), some_rows(header(k=5), 3)),
    "the scale of a row": lambda: encode(header(), some_rows(header(), 3))[:-2] + b"\xff\xff",
    "the tail of a row": lambda: encode(header(), some_rows(header(), 3))[:-4] + b"\xff\xff\x00\x3c",
}


def beyond(*, topk: bool) -> object:
    rows = some_rows(header(mode="topk" if topk else "sampled"), 3)
    rows.ids[1, 0] = 650
    return rows


@pytest.mark.parametrize("message", FORGED)
def test_a_payload_with_a_right_checksum_that_is_no_distribution_is_refused(tmp_path: Path, message: str) -> None:
    forged(tmp_path, header(), FORGED[message]())
    with pytest.raises(DamagedError, match=f"part-00000.arrow: record 'forged': .*{message}"):
        Store.open(tmp_path).check({"first": TARGETS["first"], "forged": [1, 2, 3]})


def test_mass_above_1_is_refused_with_the_record(tmp_path: Path) -> None:
    wanted = header(log_probs="float32", k=2)
    payload = bytearray(encode(wanted, some_rows(wanted, 3)))
    payload[3:11] = np.log(np.array([0.9, 0.8], "<f4")).tobytes()
    forged(tmp_path, wanted, bytes(payload))
    with pytest.raises(DamagedError, match=r"record 'forged': the probabilities at target 0 have mass [12]\.\d"):
        Store.open(tmp_path).read("forged", [1, 2, 3])


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        ("not 50 draws", lambda good: bytes(7) + good[7:]),
        ("not 50 draws", lambda good: good[:6] + b"\xff" + good[7:]),
        ("bytes where its targets need", lambda good: good[:-1]),
        ("fewer bytes", lambda good: good[:9]),
        ("token id", lambda good: good[:21] + b"\xff\xff" + good[23:]),
    ],
)
def test_draws_with_a_right_checksum_that_are_none_are_refused(tmp_path: Path, message: str, payload: object) -> None:
    wanted = header(mode="sampled")
    good = encode(wanted, some_rows(wanted, 3))
    forged(tmp_path, wanted, payload(good))  # type: ignore[operator]
    with pytest.raises(DamagedError, match=f"record 'forged': .*{message}"):
        Store.open(tmp_path).read("forged", [1, 2, 3])


def test_a_record_beside_a_forged_one_is_still_read(tmp_path: Path) -> None:
    forged(tmp_path, header(), b"")
    store = Store.open(tmp_path)
    store.read("first", TARGETS["first"])
    with pytest.raises(DamagedError, match=re.escape("record 'forged'")):
        store.read_all(["first", "forged"], [TARGETS["first"], [1, 2, 3]])


def test_a_record_captured_for_fewer_positions_is_never_written() -> None:
    with pytest.raises(LlmdistillError, match="record first: 2 positions were captured for 3 target tokens"):
        to_stored(header(), {"first": [1, 2, 3]}, {"first": some_rows(header(), 2)})
