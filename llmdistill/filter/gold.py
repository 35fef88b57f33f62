"""The gold set: answers that people have judged. It is small and made by hand, so a bad row stops everything."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.config import Calibration, Judge
from llmdistill.errors import InputError
from llmdistill.filter.agreement import Floats
from llmdistill.pipeline_file import find_file
from llmdistill.record import Message, Record, Source, record_id
from llmdistill.run.files import sha256_of

MIN_ROWS = 10
_FIELDS = "a row has prompt, answer and label, and perhaps reference and rationale"
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Gold:
    """Judged answers, in the order of the file.

    Attributes:
        labels: [rows] the scores people gave; 1 and 0 for true and false.
        good: [rows] 1 where the answer is good, else 0.
        are_scores: whether the labels are scores.
    """

    records: list[Record]
    labels: Floats
    good: Floats
    are_scores: bool
    sha256: str


def read_gold(settings: Calibration, judge: Judge) -> Gold:
    """Read `settings.gold`, a .jsonl file.

    Raises:
        ConfigError: there is no such file.
        InputError: a row is wrong (named as file:row), or there are too few rows, or all are good, or none is.
    """
    path = find_file(settings.gold, "gold file")
    if path.suffix != ".jsonl":
        raise InputError("a gold set is a .jsonl file", where=settings.gold, do=_FIELDS)
    rows = _rows(path, settings.gold)
    records, labels = _records(rows, settings.gold, judge), [row["label"] for _, row in rows]
    are_scores = any(not isinstance(label, bool) for label in labels)
    values = np.array(labels, dtype=np.float64)
    good = (values >= (settings.good if are_scores else 1)).astype(np.float64)
    _check_enough(good, are_scores, settings)
    return Gold(records, values, good, are_scores, sha256_of(path))


def _check_enough(good: Floats, are_scores: bool, settings: Calibration) -> None:
    if len(good) < MIN_ROWS:
        what = f"{len(good)} judged answers are too few to calibrate a judge"
        raise InputError(what, where=settings.gold, do=f"judge at least {MIN_ROWS}, better 50 or more")
    if 0 < good.sum() < len(good):
        return
    which = "good" if good.all() else "bad"
    advice = f"add {'bad' if good.all() else 'good'} ones"
    if are_scores:
        which += f" (filter.judge.calibration.good is {settings.good:g})"
        advice += ", write labels as true and false, or set filter.judge.calibration.good"
    raise InputError(f"all {len(good)} judged answers are {which}", where=settings.gold, do=advice)


def _rows(path: Path, name: str) -> list[tuple[str, dict[str, Any]]]:
    """(file:row, row) of every line that is not blank, with labels of one kind."""
    found: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            place = f"{name}:{number}"
            row = _parse(line, place)
            _check_label(row.get("label"), place, found[0][1]["label"] if found else None)
            found.append((place, row))
    return found


def _parse(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start})", where=place, do="save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})", where=place, do="write one object a line") from None
    if not isinstance(row, dict):
        raise InputError(f"a row is an object, this is {type(row).__name__}", where=place, do=_FIELDS)
    return row


def _check_label(label: Any, place: str, first: Any) -> None:
    if not isinstance(label, bool | int | float) or not _is_finite(label):
        what = "no label" if label is None else f"label is {_shown(label)}"
        raise InputError(what, where=place, do="a label is true, false or a number, without quotes")
    if first is not None and isinstance(label, bool) != isinstance(first, bool):
        what = f"label is {_shown(label)}, but the first row's is {_shown(first)}"
        raise InputError(what, where=place, do="label all rows with true and false, or all with scores")


def _is_finite(label: float) -> bool:
    try:
        return math.isfinite(label)
    except OverflowError:  # JSON knows whole numbers beyond any float
        return False


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _records(rows: list[tuple[str, dict[str, Any]]], name: str, judge: Judge) -> list[Record]:
    """One record for each row; each has what the judge compares it with."""
    records: list[Record] = []
    seen: dict[str, str] = {}
    for place, row in rows:
        record = _record(row, name, place)
        if record.id in seen:
            advice = "remove one of them: a judged answer counts once"
            raise InputError(f"same prompt and answer as {seen[record.id]}", where=place, do=advice)
        seen[record.id] = place
        records.append(record)
    if judge.form == "pairwise":
        _check_opponents(records, list(seen.values()), judge.against)
    return records


def _check_opponents(records: list[Record], places: list[str], against: str) -> None:
    answers = Counter(record_id(record.prompt) for record in records)
    for record, place in zip(records, places, strict=True):
        if against == "reference" and not record.reference:
            raise InputError("no reference, which the judge compares answers with", where=place, do="add reference")
        if against == "samples" and answers[record_id(record.prompt)] == 1:
            advice = "add another answer to the same prompt, or remove the row"
            raise InputError("no other answer to the prompt, which the judge compares with", where=place, do=advice)


def _record(row: dict[str, Any], name: str, place: str) -> Record:
    prompt = _prompt(row.get("prompt"), place)
    answer, reference, rationale = (_text(row, field, place) for field in ("answer", "reference", "rationale"))
    if answer is None:
        raise InputError("no answer", where=place, do=_FIELDS)
    reply: Message = {"role": "assistant", "content": f"{rationale}\n\n{answer}" if rationale else answer}
    id_ = record_id([*prompt, reply])
    source = Source(dataset=Path(name).stem, key=place.rpartition(":")[2])
    return Record(id_, prompt, [reply], rationale=rationale, answer=answer, reference=reference, source=source)


def _text(row: dict[str, Any], field: str, place: str) -> str | None:
    value = row.get(field)
    if field == "reference" and isinstance(value, int | float) and not isinstance(value, bool):
        value = json.dumps(value)
    if value is not None and not _is_text(value):
        raise InputError(f"{field} is {_shown(value)}", where=place, do=f"{field} is text")
    return value


def _is_text(value: Any) -> bool:
    """Text that a UTF-8 file can hold."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _prompt(value: Any, place: str) -> list[Message]:
    advice = "prompt is text, or a list of messages with role and content that ends with the user's"
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise InputError("no prompt" if value is None else f"prompt is {_shown(value)}", where=place, do=advice)
    for message in value:
        whole = isinstance(message, dict) and message.get("role") in _ROLES and _is_text(message.get("content"))
        if not whole:
            raise InputError(f"{_shown(message)} is no message", where=place, do=advice)
    if value[-1]["role"] != "user" or not value[-1]["content"].strip():
        raise InputError("the prompt is empty or does not end with the user's message", where=place, do=advice)
    return [{"role": message["role"], "content": message["content"]} for message in value]
