"""The one Record that flows through every stage, and its Arrow schema.

A stage adds fields; it never deletes or rewrites another stage's. `prompt` and
`completion` are TRL's conversational prompt-completion format, so every stage's
Parquet output can be given to `SFTTrainer` as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 2

Message = dict[str, str]

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", _MESSAGES),
        pa.field("completion", _MESSAGES),
        pa.field("rationale", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("reference", pa.string()),
        pa.field(
            "source",
            pa.struct([(name, pa.string()) for name in ("dataset", "split", "key", "licence")]),
        ),
        pa.field(
            "teacher",
            pa.struct(
                [
                    ("model", pa.string()),
                    ("revision", pa.string()),
                    ("sampling_digest", pa.string()),
                    ("finish_reason", pa.string()),
                    ("prompt_tokens", pa.int64()),
                    ("completion_tokens", pa.int64()),
                    ("cost", pa.float64()),
                ]
            ),
        ),
        pa.field(
            "verdicts",
            pa.list_(
                pa.struct(
                    [
                        ("judge", pa.string()),
                        ("rubric_hash", pa.string()),
                        ("score", pa.float64()),
                        ("outcome", pa.string()),
                        ("criterion", pa.string()),
                    ]
                )
            ),
        ),
        pa.field(
            "selection",
            pa.struct(
                [
                    ("kept", pa.bool_()),
                    ("reason", pa.string()),
                    ("duplicate_of", pa.string()),
                    ("cluster", pa.int64()),
                    ("rank", pa.int64()),
                ]
            ),
        ),
        pa.field("meta", pa.string()),
    ],
    metadata={"llmdistill.schema_version": str(SCHEMA_VERSION)},
)

REJECT_SCHEMA = SCHEMA.append(
    pa.field("reject", pa.struct([(name, pa.string()) for name in ("stage", "reason", "detail", "where")]))
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a prompt came from, and under which licence."""

    dataset: str | None = None
    split: str | None = None
    key: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """Who answered, how it was sampled, and what it took. `cost` is in US dollars, None when unknown."""

    model: str
    revision: str | None
    sampling_digest: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judge's word on one record.

    `score` is None unless `outcome` is "parsed", or "flipped": a comparison whose winner changed with the order of
    the answers, which is a tie. `criterion` is what was judged, where a rubric has several criteria.
    """

    judge: str
    rubric_hash: str
    score: float | None
    outcome: str
    criterion: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Why curation kept or dropped a record."""

    kept: bool
    reason: str
    duplicate_of: str | None = None
    cluster: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One row: one prompt and one teacher answer to it. See DESIGN section 3 for the fields."""

    id: str
    prompt: list[Message]
    completion: list[Message] = field(default_factory=list)
    rationale: str | None = None
    answer: str | None = None
    reference: str | None = None
    source: Source = field(default_factory=Source)
    teacher: TeacherInfo | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    selection: Selection | None = None
    meta: str = "{}"

    @property
    def question(self) -> str:
        """Text of the prompt's user messages, one below the other."""
        return "\n".join(message["content"] for message in self.prompt if message["role"] == "user")

    @property
    def reply(self) -> str:
        """Text the student is to learn: the assistant's message."""
        return self.completion[-1]["content"] if self.completion else ""

    @property
    def score(self) -> float | None:
        """Score of the last verdict, which sums up those before it; None when it failed, or is a verifier's."""
        return self.verdicts[-1].score if self.verdicts else None

    def with_meta(self, **values: Any) -> Record:
        """A copy whose `meta` has `values` added; other keys stay."""
        return replace(self, meta=json.dumps({**json.loads(self.meta), **values}, ensure_ascii=False, sort_keys=True))


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that a stage dropped, and why. `where` is file:row for rows that never became a record."""

    record: Record
    stage: str
    reason: str
    detail: str = ""
    where: str = ""


def record_id(prompt: list[Message], sample: int = 0) -> str:
    """Content hash of the prompt's messages and the sample index: 32 hexadecimal digits.

    The same prompt is the same record in every run, wherever it was read from.
    """
    text = json.dumps([[m["role"], m["content"]] for m in prompt] + [sample], ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def to_row(record: Record) -> dict[str, Any]:
    """The record as plain Python values, in the order of `SCHEMA`."""
    return asdict(record)


def from_row(row: Mapping[str, Any]) -> Record:
    """Build a Record from one row of a stage's Parquet file (extra columns are ignored)."""
    teacher, selection = row.get("teacher"), row.get("selection")
    return Record(
        id=row["id"],
        prompt=list(row["prompt"] or []),
        completion=list(row.get("completion") or []),
        rationale=row.get("rationale"),
        answer=row.get("answer"),
        reference=row.get("reference"),
        source=Source(**(row.get("source") or {})),
        teacher=TeacherInfo(**teacher) if teacher else None,
        verdicts=[Verdict(**verdict) for verdict in row.get("verdicts") or []],
        selection=Selection(**selection) if selection else None,
        meta=row.get("meta") or "{}",
    )


def to_table(records: Iterable[Record]) -> pa.Table:
    """Arrow table of records under `SCHEMA`."""
    return pa.Table.from_pylist([to_row(record) for record in records], schema=SCHEMA)


def rejects_to_table(rejects: Iterable[Reject]) -> pa.Table:
    """Arrow table of rejects under `REJECT_SCHEMA`: the record as it was, and the reason."""
    rows = []
    for item in rejects:
        reason = {"stage": item.stage, "reason": item.reason, "detail": item.detail, "where": item.where}
        rows.append({**to_row(item.record), "reject": reason})
    return pa.Table.from_pylist(rows, schema=REJECT_SCHEMA)
