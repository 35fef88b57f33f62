"""Reading documents: chunks end where a reader would cut, nothing is lost, a bad file never stops the others."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdistill.config import Prompts
from llmdistill.errors import ConfigError, InputError
from llmdistill.generate import documents
from llmdistill.generate.documents import chunks, documents_hash, read_documents
from llmdistill.generate.prompts import input_hashes, read_prompts
from tests.tiny import REPO

DOCUMENTS = REPO / "data" / "documents"
TEXTS = st.text(st.sampled_from("ab 가각.!?\n。、e\u0301\u1112\u1161\u11ab\U0001f468\u200d\U0001f469 \t"), max_size=300)


def settings_of(path: Path, **more: object) -> Prompts:
    return Prompts(path=str(path), **more)


@pytest.mark.parametrize("path", sorted(DOCUMENTS.glob("*/*.md")), ids=lambda path: path.name)
@pytest.mark.parametrize("size", [150, 400, 1500])
def test_real_text_is_cut_after_sentences(path, size):
    found = list(chunks(path.read_text("utf-8"), size, size // 10))
    assert all(len(chunk) <= size for chunk in found)
    if size > 150:
        assert all(chunk.endswith((".", "?", "!")) for chunk in found)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(1, 60), st.integers(0, 30))
def test_chunks_lose_nothing_and_share_at_most_the_overlap(text, size, overlap):
    overlap = min(overlap, size // 2)
    place = 0
    for chunk in chunks(text, size, overlap):
        assert 0 < len(chunk) <= size
        starts = [start for start in range(max(0, place - overlap), place + 1) if text.startswith(chunk, start)]
        after = place
        while after < len(text) and text[after].isspace():
            after += 1
        starts += [start for start in range(place, after + 1) if text.startswith(chunk, start)]
        assert starts
        place = max(max(starts) + len(chunk), place)
    assert not text[place:].strip()


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(12, 60))
def test_no_chunk_ends_inside_a_character_as_people_see_it(text, size):
    bounds = {match.end() for match in regex.finditer(r"\X", text)} | {0}
    if max((len(match.group()) for match in regex.finditer(r"\X", text)), default=0) > size // 3:
        return
    start = 0
    while len(text) - start > size:
        start = documents._end(text, start, size)
        assert start in bounds


def test_a_word_longer_than_a_chunk_is_cut_between_graphemes_and_overlaps():
    syllable = "\u1112\u1161\u11ab"  # one Hangul syllable in three pieces
    found = list(chunks(syllable * 40, 50, 12))
    assert all(len(chunk) % 3 == 0 for chunk in found)
    assert len(found) == 3 and sum(map(len, found)) == 120 + 2 * 12


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "문서"
    (root / "가").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "a.txt").write_text("not read")
    (root / "가" / "꿀벌.md").write_text("꿀벌은 꿀을 모은다.", "utf-8")
    (root / "b.txt").write_bytes(b"\xef\xbb\xbfA text.\r\nTwo lines.")
    (root / "B.TXT").write_text("A text with a capital suffix.")
    (root / "copy.txt").write_text("A text.\nTwo lines.")
    (root / ".hidden.txt").write_text("x")
    (root / "cp949.txt").write_bytes("한글".encode("cp949"))
    (root / "utf16.txt").write_text("text", "utf-16")
    (root / "binary.md").write_bytes(b"a\0b")
    (root / "empty.txt").write_text(" \n")
    (root / "photo.jpg").write_bytes(b"\xff\xd8")
    (root / "broken.txt").symlink_to("nowhere")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.txt")
    with open(os.fsencode(root) + b"/bad-\xff.txt", "w") as handle:
        handle.write("x")
    with open(root / "huge.txt", "wb") as handle:
        handle.truncate(documents.MAX_BYTES + 1)
    return root


def test_every_bad_file_is_a_reject_with_its_reason_and_the_others_go_on(folder):
    records, rejects = read_documents(settings_of(folder, dataset="d", licence="CC0"))
    assert [(record.source.key, record.question) for record in records] == [
        ("B.TXT:1", "A text with a capital suffix."),
        ("b.txt:1", "A text.\nTwo lines."),
        ("가/꿀벌.md:1", "꿀벌은 꿀을 모은다."),
    ]
    assert {(record.source.dataset, record.source.licence) for record in records} == {("d", "CC0")}
    assert {reject.where: reject.reason for reject in rejects} == {
        ".git": "hidden",
        ".hidden.txt": "hidden",
        "bad-?.txt": "unreadable_name",
        "binary.md": "binary",
        "broken.txt": "unreadable",
        "copy.txt:1": "duplicate_chunk",
        "cp949.txt": "invalid_utf8",
        "empty.txt": "empty_file",
        "huge.txt": "too_large",
        "loop": "linked_folder",
        "photo.jpg": "unknown_kind",
        "pipe.txt": "not_a_file",
        "utf16.txt": "invalid_utf8",
    }


def test_the_order_does_not_depend_on_the_file_system(folder, monkeypatch):
    first = read_documents(settings_of(folder))
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: random.Random(1).sample(entries := list(scan(path)), len(entries)))
    assert read_documents(settings_of(folder)) == first


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "b.txt").write_text("other"),
        lambda root: (root / "b.txt").rename(root / "c.txt"),
        lambda root: (root / "new.txt").write_text("new"),
        lambda root: (root / "photo.jpg").unlink(),
    ],
    ids=["content", "name", "new", "gone"],
)
def test_the_hash_covers_contents_and_names(folder, change):
    before = documents_hash(settings_of(folder))
    assert documents_hash(settings_of(folder)) == before
    change(folder)
    assert documents_hash(settings_of(folder)) != before


def test_documents_are_a_pool_of_chunks_and_the_held_out_prompts_are_a_file_of_their_own():
    prompts = settings_of(DOCUMENTS / "ko", held_out_path="data/documents/questions.jsonl", held_out=0.5, limit=2)
    found = read_prompts(prompts)
    assert [record.source.key for record in found.pool] == ["한지.md:1"]
    assert len(found.held_out) == 8
    assert set(input_hashes(prompts)) == {"prompts.sha256", "prompts.held_out_sha256"}


def test_one_file_can_be_given(tmp_path):
    path = tmp_path / "글.txt"
    path.write_text("한 문장.", "utf-8")
    records, rejects = read_documents(settings_of(path))
    assert ([record.source.key for record in records], rejects) == (["글.txt:1"], [])


@pytest.mark.parametrize(("name", "error"), [("nothing", ConfigError), ("no/such", ConfigError), ("x.pdf", InputError)])
def test_a_path_that_is_no_document_is_one_line(tmp_path, monkeypatch, name, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    with pytest.raises(error):
        read_documents(Prompts(path=name))
