"""The user's lists of records that are kept, or dropped, whatever else speaks for or against them.

A list is a text file with one entry a line, or rows (.jsonl, .json, .parquet) that have an `id` or a `prompt`. An id
names one record, a prompt all records of that prompt: its text as it is compared, without regard to case, spacing
and the form of Unicode.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.config import Curate
from llmdistill.curate.pool import Pool
from llmdistill.errors import InputError, UsageError
from llmdistill.pipeline_file import find_file
from llmdistill.rows import BadRowError, read_rows
from llmdistill.run.progress import say
from llmdistill.text import plain

_ID = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)
_ROW_FILES = (".jsonl", ".json", ".parquet")
_MAX_LINE_BYTES = 10_000_000


@dataclass(frozen=True)
class Entry:
    """One entry of a list: an id or a prompt, and where it stands."""

    text: str
    place: str
    is_id: bool

    @property
    def shown(self) -> str:
        """The entry in a message."""
        return f"{self.place} {self.text[:60]!r}"


def listed_rows(settings: Curate, pool: Pool) -> tuple[list[int], list[int]]:
    """(rows of `must_keep`, rows of `must_drop`) in ascending order; says which entries match no record.

    Raises:
        UsageError: a file cannot be read or a row of it has no entry; a record is in both lists.
    """
    keep, drop = (_found(key, name, pool) for key, name in _files(settings).items())
    both = sorted(keep.keys() & drop.keys())
    if both:
        row = both[0]
        what = f"record {pool.ids[row]} is in both lists: {keep[row].shown} and {drop[row].shown}"
        raise UsageError(what, where="curate.must_keep", do="take it out of one")
    return sorted(keep), sorted(drop)


def _files(settings: Curate) -> dict[str, str | None]:
    return {"must_keep": settings.must_keep, "must_drop": settings.must_drop}


def _found(key: str, name: str | None, pool: Pool) -> dict[int, Entry]:
    """Rows that a list names, each with the entry that does."""
    if name is None:
        return {}
    rows, missing = match(read_list(find_file(name, f"list of curate.{key}")), pool)
    if missing:
        say(f"curate.{key}: {len(missing):,} of {name} match no record; the first is {missing[0].shown}")
    return rows


def match(entries: list[Entry], pool: Pool) -> tuple[dict[int, Entry], list[Entry]]:
    """(the rows that entries name, each with the first entry that does; entries that name none)."""
    row_of = {id_: row for row, id_ in enumerate(pool.ids)}
    rows_of: dict[str, list[int]] = {}
    if not all(entry.is_id for entry in entries):
        for row, question in enumerate(pool.questions):
            rows_of.setdefault(plain(question), []).append(row)
    rows: dict[int, Entry] = {}
    missing = []
    for entry in entries:
        named = [row_of[entry.text]] if entry.is_id and entry.text in row_of else rows_of.get(plain(entry.text), [])
        for row in named:
            rows.setdefault(row, entry)
        if not named:
            missing.append(entry)
    return rows, missing


def read_list(path: Path) -> list[Entry]:
    """The entries of a list; blank lines are none.

    Raises:
        InputError: the file cannot be read, or a row has neither id nor prompt.
    """
    try:
        if path.suffix in _ROW_FILES:
            return [_entry_of(row, f"{path}:{number}") for number, row in read_rows(path, _MAX_LINE_BYTES)]
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8 text", where=f"{path}, byte {error.start}", do="mend the file") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, do="check the file") from None
    return [_entry(line.strip(), f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _entry(text: str, place: str) -> Entry:
    is_id = _ID.fullmatch(text) is not None
    return Entry(text.lower() if is_id else text, place, is_id)


def _entry_of(row: Any, place: str) -> Entry:
    """The entry of a row: its id, else its prompt (text or messages)."""
    if isinstance(row, BadRowError):
        raise InputError(f"{row.reason} {row.detail}", where=place, do="mend the row")
    if isinstance(row, str):
        return _entry(row, place)
    found = row if isinstance(row, dict) else {}
    if isinstance(found.get("id"), str) and _ID.fullmatch(found["id"]):
        return _entry(found["id"], place)
    text = _text_of(found.get("prompt"))
    if not text:
        raise InputError("a row has an id (32 hexadecimal digits) or a prompt", where=place, do="mend the row")
    return Entry(text, place, is_id=False)


def _text_of(prompt: Any) -> str:
    """Text of a prompt: as it is, or of the user's messages."""
    if isinstance(prompt, str):
        return prompt.strip()
    if not isinstance(prompt, list) or not all(isinstance(message, dict) for message in prompt):
        return ""
    texts = [message.get("content") for message in prompt if message.get("role") == "user"]
    return "\n".join(text for text in texts if isinstance(text, str)).strip()
