"""Reading pairs out of replies: each reply of the corpus gives exactly the pairs listed, and nothing else."""

from __future__ import annotations

import time

import pytest

from llmdistill.generate.pairs import Piece, read_pairs
from llmdistill.templates import DocumentPairsTemplate, PairsTemplate, load_template
from tests.generate.pair_replies import REPLIES, Reply

EN, _ = load_template("prompts/en/synthetic_qa.yaml", PairsTemplate)
KO, _ = load_template("prompts/ko/synthetic_qa.yaml", PairsTemplate)
DOCUMENTS, _ = load_template("prompts/en/synthetic_qa_documents.yaml", DocumentPairsTemplate)


def read(reply: Reply, template: PairsTemplate = EN) -> list[Piece]:
    return read_pairs(reply.text, reply.prefill, reply.cut, template)


def plain(pieces: list[Piece]) -> list:
    return [piece.reason or (piece.question, piece.rationale, piece.answer) for piece in pieces]


def test_the_corpus_is_large_and_its_names_differ():
    assert len(REPLIES) >= 60
    assert len({reply.name for reply in REPLIES}) == len(REPLIES)


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply.name)
@pytest.mark.parametrize("template", [EN, KO, DOCUMENTS], ids=["en", "ko", "documents"])
def test_a_reply_gives_the_pairs_listed_and_no_others(reply, template):
    assert plain(read(reply, template)) == reply.found


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply.name)
def test_nothing_is_invented(reply):
    source = (reply.prefill + reply.text).replace("\\n", "\n").replace('\\"', '"').replace("\\u00e9", "é")
    for piece in read(reply):
        for text in (piece.question, piece.rationale or "", piece.answer):
            assert text in source


@pytest.mark.parametrize(
    "text", ["[" * 60_000, '{"pairs": [' * 8_000, "Question:" * 8_000, "*" * 60_000, "\n---" * 20_000, "[{}," * 20_000]
)
def test_hostile_replies_are_read_in_reasonable_time(text):
    started = time.monotonic()
    read_pairs("Question: a\nAnswer: b" + text, "", False, EN)
    read_pairs(text, "", True, EN)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(("template", "language"), [(EN, "en"), (KO, "ko")])
def test_the_placeholders_of_the_instructions_are_no_pairs(template, language):
    lines = {
        "en": "Question: the new task\nRationale: x\nAnswer: the final answer",
        "ko": "질문: 새 과제\n풀이: x\n정답: 최종 답",
    }
    assert plain(read_pairs(lines[language], "", False, template)) == ["leaks_template"]
