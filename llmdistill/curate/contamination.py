"""Training records that hold what the student is measured on: which, of which question, and the piece that shows it.

Three measures, each over its own threshold: `overlap` of runs of tokens (see `overlap.py`) finds a question in a longer
text, `near` (Jaccard similarity of character shingles) one with small changes everywhere, `similarity` (cosine of
embeddings) one that is reworded. No threshold finds every reworded question (arXiv 2311.04850).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.config import Decontaminate, Pipeline
from llmdistill.curate.blocks import nearest
from llmdistill.curate.duplicates import near_copies_of
from llmdistill.curate.overlap import Overlap
from llmdistill.curate.shingles import signatures
from llmdistill.curate.tokens import places, tokens
from llmdistill.errors import InputError
from llmdistill.pipeline_file import find_file
from llmdistill.record import Record
from llmdistill.rows import PROMPT_NAMES, BadRowError, checked_message, first_present, no_prompt, read_rows, with_input
from llmdistill.run.digest import Parts
from llmdistill.run.files import sha256_of

HELD_OUT = "held_out"
MAX_SPAN = 200
_LEAST_RUN = 3


@dataclass(frozen=True)
class EvaluationSet:
    """Questions that the student is measured on. `where` has the record id or file:row of each."""

    name: str
    questions: list[str]
    where: list[str]


@dataclass(frozen=True)
class Contamination:
    """What a training record has of an evaluation question.

    Attributes:
        measure: near, overlap or similarity.
        value: of that measure, 0 to 1.
        span: the piece of the record that shows it, at most `MAX_SPAN` characters; others' text, as it stands there.
        field: where in the record it stands, question or reply.
        question: the evaluation question.
    """

    set: str
    where: str
    measure: str
    value: float
    span: str
    field: str
    question: str

    @property
    def detail(self) -> str:
        """One line for the reject."""
        return f"{self.value:.0%} {self.measure} with {self.where} ({self.set}) in its {self.field}: {self.span!r}"


def against_hashes(settings: Decontaminate) -> Parts:
    """Digest parts: sha256 of the files of `against`.

    Raises:
        ConfigError: one does not exist.
    """
    names = dict.fromkeys(settings.against)
    return {f"curate.decontaminate.sha256.{name}": sha256_of(find_file(name, "evaluation file")) for name in names}


def read_sets(pipeline: Pipeline, held_out: list[Record]) -> list[EvaluationSet]:
    """The run's own held-out prompts, and the files of `against`.

    Raises:
        ConfigError: a file does not exist.
        InputError: a file holds no question, or a row that is none.
    """
    settings = pipeline.curate.decontaminate
    if settings is None:
        return []
    own = EvaluationSet(HELD_OUT, [record.question for record in held_out], [record.id for record in held_out])
    names = dict.fromkeys(settings.against)
    return [own] * bool(held_out) + [_read_file(name, settings, pipeline.prompts.max_line_bytes) for name in names]


def _read_file(name: str, settings: Decontaminate, max_line_bytes: int) -> EvaluationSet:
    found = EvaluationSet(name, [], [])
    path: Path = find_file(name, "evaluation file")
    for number, row in read_rows(path, max_line_bytes):
        try:
            question = _question_of(row, settings.field)
        except BadRowError as error:
            what = f"{error.reason} ({error.detail})" if error.detail else error.reason
            do = "mend the row, or name the questions' column in curate.decontaminate.field"
            raise InputError(f"not an evaluation question: {what}", where=f"{name}:{number}", do=do) from None
        found.questions.append(question)
        found.where.append(f"{name}:{number}")
    if not any(question.strip() for question in found.questions):
        raise InputError("no evaluation question in it", where=name, do="mend curate.decontaminate.against")
    return found


def _question_of(row: Any, column: str | None) -> str:
    """What a person asks in the row: a text, or the user's messages of a conversation, one below the other."""
    if isinstance(row, BadRowError):
        raise row
    if not isinstance(row, dict):
        raise BadRowError("not_an_object", f"a row is an object, this is {type(row).__name__}")
    value = first_present(row, column, PROMPT_NAMES)
    if value is None:
        raise no_prompt(row, (column,) if column else PROMPT_NAMES)
    if isinstance(value, str):
        return with_input(value, row.get("input") if "instruction" in row and not column else None)
    if not isinstance(value, list):
        raise BadRowError("wrong_type", "a question is text or a list of messages")
    messages = [checked_message(message) for message in value]
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


@dataclass(frozen=True)
class _Found:
    """A measure of one record: the evaluation question (its index in all sets) and how much."""

    question: int
    value: float
    field: str = "question"


def contaminated(
    questions: Sequence[str],
    replies: Sequence[str],
    sets: Sequence[EvaluationSet],
    settings: Decontaminate,
    vectors: tuple[np.ndarray, list[np.ndarray]] | None = None,
    signed: Callable[[Sequence[str]], np.ndarray] = signatures,
) -> list[Contamination | None]:
    """What each training record has of an evaluation question; None for a clean one.

    Of several measures overlap is told first, then near, then similarity. A record's finding is independent of the
    order of the records, but not of the others: what many of them share is a template.

    Args:
        questions: of the records.
        replies: of the records.
        vectors: unit vectors of the records' questions [N, d] and of each set's questions, for `similarity`.
        signed: gives the MinHash signatures of texts, for `near`.
    """
    asked = [question for each in sets for question in each.questions]
    names = [(each.name, where) for each in sets for where in each.where]
    found: dict[str, list[_Found | None]] = {}
    if settings.overlap is not None:
        found["overlap"] = _overlapping(questions, replies, asked, settings)
    if settings.near is not None:
        found["near"] = _near(questions, asked, settings.near, signed)
    if settings.similarity is not None and vectors is not None:
        found["similarity"] = _similar(*vectors, settings.similarity)
    contaminations: list[Contamination | None] = [None] * len(questions)
    for row in range(len(questions)):
        for measure, matches in found.items():
            match = matches[row]
            if match and contaminations[row] is None:
                text = replies[row] if match.field == "reply" else questions[row]
                span = span_of(text, asked[match.question])
                name, where = names[match.question]
                contaminations[row] = Contamination(
                    name, where, measure, match.value, span, match.field, asked[match.question]
                )
    return contaminations


def _overlapping(
    questions: Sequence[str], replies: Sequence[str], asked: list[str], settings: Decontaminate
) -> list[_Found | None]:
    """The more contaminated of question and reply. Every text is looked at once, however many records have it."""
    threshold = settings.overlap or 0.0
    first = dict.fromkeys(questions)
    texts = list(first) + [reply for reply in dict.fromkeys(replies) if reply not in first]
    covers = Overlap(asked, settings.ngram, threshold).find(texts, len(first), threshold)
    by_text = dict(zip(texts, covers, strict=True))
    found: list[_Found | None] = []
    for question, reply in zip(questions, replies, strict=True):
        here = [(by_text[question], "question"), (by_text[reply], "reply")]
        matches = [_Found(cover.question, cover.share, field) for cover, field in here if cover]
        found.append(max(matches, key=lambda match: match.value, default=None))
    return found


def _near(
    questions: Sequence[str], asked: list[str], threshold: float, signed: Callable[[Sequence[str]], np.ndarray]
) -> list[_Found | None]:
    """Texts without a token, as empty ones or dots, equal no other."""
    rows = [row for row, question in enumerate(asked) if tokens(question)]
    texts = [text for text in dict.fromkeys(questions) if tokens(text)]
    originals = [asked[row] for row in rows]
    matches = near_copies_of(originals, texts, threshold, signed([*originals, *texts]))
    by_text = dict(zip(texts, matches, strict=True))
    found = [by_text.get(question) for question in questions]
    return [_Found(rows[match.index], match.similarity) if match else None for match in found]


def _similar(vectors: np.ndarray, of_sets: list[np.ndarray], threshold: float) -> list[_Found | None]:
    """A vector that is not finite resembles none."""
    others = [np.nan_to_num(each, posinf=0.0, neginf=0.0) for each in of_sets if len(each)]
    if not others:
        return [None] * len(vectors)
    similarity, index = nearest(np.nan_to_num(vectors, posinf=0.0, neginf=0.0), np.concatenate(others))
    pairs = zip(similarity.tolist(), index.tolist(), strict=True)
    return [_Found(question, min(1.0, value)) if value >= threshold else None for value, question in pairs]


def span_of(text: str, question: str) -> str:
    """The longest run of tokens that a text shares with a question, as it stands in the text; else how it begins."""
    traced = places(text)
    if traced is None or not traced.tokens:
        return text[:MAX_SPAN]
    match = SequenceMatcher(None, traced.tokens, tokens(question), autojunk=False).find_longest_match()
    if match.size < min(_LEAST_RUN, len(traced.tokens)):
        return text[:MAX_SPAN]
    begin, end = traced.spans[match.a][0], traced.spans[match.a + match.size - 1][1]
    return text[begin : min(end, begin + MAX_SPAN)]
