"""Reading the user's prompts: bad rows are set aside with their reason, never fatal, never silent.

Lines end at a line feed and nowhere else: U+2028 or U+0085 inside a JSON string
is text. A byte order mark and carriage returns are accepted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmdistill.config import Prompts
from llmdistill.errors import InputError
from llmdistill.pipeline_file import find_file
from llmdistill.record import Message, Record, Reject, Source, record_id
from llmdistill.run.files import sha256_of

STAGE = "prompts"
_PROMPT_NAMES = ("prompt", "messages", "instruction", "question")
_REFERENCE_NAMES = ("reference", "answer", "output", "response")
_ROLES = ("system", "user", "assistant")


@dataclass
class PromptSet:
    """What a prompt file holds: prompts to generate from, prompts held out, rows set aside."""

    pool: list[Record] = field(default_factory=list)
    held_out: list[Record] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Rows read, good and bad."""
        return len(self.pool) + len(self.held_out) + len(self.rejects)


class _BadRowError(Exception):
    """A row that cannot become a record: `reason`, and a detail for the person who mends the file."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def input_hashes(settings: Prompts) -> dict[str, str]:
    """sha256 of the files that `read_prompts` would read.

    Raises:
        ConfigError: a file does not exist.
    """
    names = {"prompts.sha256": settings.path, "prompts.held_out_sha256": settings.held_out_path}
    return {key: sha256_of(find_file(name, "prompts file")) for key, name in names.items() if name}


def read_prompts(settings: Prompts) -> PromptSet:
    """Read the prompt file and hold out a part of it.

    A prompt is held out by its own hash, so the same prompts stay held out when the file grows.

    Raises:
        InputError: no row can be used.
    """
    found, seen = PromptSet(), dict[str, str]()
    held_out = _read_file(settings.held_out_path, settings, found, seen) if settings.held_out_path else []
    records = _read_file(settings.path, settings, found, seen)
    if settings.limit:
        records = records[: settings.limit]
    fraction = 0.0 if settings.held_out_path else settings.held_out
    found.held_out = held_out + [record for record in records if _is_held_out(record, fraction)]
    found.pool = [record for record in records if not _is_held_out(record, fraction)]
    if not found.pool:
        raise _nothing_usable(found, settings)
    return found


def _nothing_usable(found: PromptSet, settings: Prompts) -> InputError:
    if found.held_out and not settings.held_out_path:
        what = f"all {len(found.held_out):,} prompts are held out"
        return InputError(what, where=settings.path, do="lower prompts.held_out or give more prompts")
    reasons = ", ".join(sorted({reject.reason for reject in found.rejects})) or "the file is empty"
    first = f"; the first is {found.rejects[0].where}" if found.rejects else ""
    return InputError(f"no usable prompt ({reasons}{first})", where=settings.path, do="mend the file")


def _is_held_out(record: Record, fraction: float) -> bool:
    return int(record.id[:8], 16) < fraction * 2**32


def _read_file(name: str, settings: Prompts, found: PromptSet, seen: dict[str, str]) -> list[Record]:
    path = find_file(name, "prompts file")
    records = []
    for number, row in _rows(path, settings.max_line_bytes):
        place = f"{name}:{number}"
        try:
            if isinstance(row, _BadRowError):
                raise row
            record = _record(row, settings, key=str(number), split=path.stem)
            if record.id in seen:
                raise _BadRowError("duplicate_prompt", f"same as {seen[record.id]}")
        except _BadRowError as error:
            blank = Record(id=record_id([{"role": "row", "content": place}]), prompt=[], meta=_excerpt(row))
            found.rejects.append(Reject(blank, STAGE, error.reason, _storable(error.detail), place))
            continue
        seen[record.id] = place
        records.append(record)
    return records


def _excerpt(row: Any) -> str:
    """The bad row itself, shortened, so that the person who mends the file need not look it up."""
    if isinstance(row, _BadRowError):
        return "{}"
    return json.dumps({"row": _storable(_as_text(row)[:500])}, ensure_ascii=False)


def _as_text(value: Any) -> str:
    """Any value of a row as text; Parquet holds dates and bytes, which JSON does not know."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return str(type(value).__name__)


def _storable(text: str) -> str:
    """The text with lone surrogates, which no UTF-8 file can hold, as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _rows(path: Path, max_line_bytes: int) -> Iterator[tuple[int, Any]]:
    """(row number from 1, the row or what is wrong with it) of a .jsonl, .json or .parquet file."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet_rows(path), start=1)
    elif path.suffix == ".json":
        yield from enumerate(_json_list(path), start=1)
    elif path.suffix == ".jsonl":
        yield from _json_lines(path, max_line_bytes)
    else:
        raise InputError("unknown kind of file", where=path, do="give a .jsonl, .json or .parquet file")


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        table = pq.read_table(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"not readable as Parquet ({error})", where=path, do="mend the file") from None
    for index in range(table.num_rows):
        try:
            yield table.slice(index, 1).to_pylist()[0]
        except (ValueError, pa.ArrowException) as error:
            yield _BadRowError("unreadable_row", str(error))


def _json_list(path: Path) -> list[Any]:
    try:
        rows = _strict_json(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not readable as JSON ({error})", where=path, do="mend the file") from None
    if not isinstance(rows, list):
        raise InputError("a .json file of prompts is a list", where=path, do="use .jsonl for one object a line")
    return rows


def _json_lines(path: Path, max_line_bytes: int) -> Iterator[tuple[int, Any]]:
    with open(path, "rb") as handle:
        number = 0
        while line := handle.readline(max_line_bytes + 1):
            number += 1
            size, end = len(line), line
            while end and not end.endswith(b"\n"):
                end = handle.readline(max_line_bytes)  # read past the rest without keeping it
                size += len(end)
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if size - line.endswith(b"\n") > max_line_bytes:
                detail = f"{size:,} bytes, at most {max_line_bytes:,} (prompts.max_line_bytes)"
                yield number, _BadRowError("line_too_long", detail)
            elif line.strip():
                yield number, _parse_line(line)


def _parse_line(line: bytes) -> Any:
    try:
        return _strict_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _BadRowError("invalid_utf8", f"byte {error.start} of the line")
    except RecursionError:
        return _BadRowError("invalid_json", "nested too deep")
    except ValueError as error:
        return _BadRowError("invalid_json", str(error))


def _strict_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one that names a key twice is refused, because nobody knows which value was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:50]!r} stands there twice")
    return found


def _record(row: Any, settings: Prompts, key: str, split: str) -> Record:
    if not isinstance(row, dict):
        raise _BadRowError("not_an_object", f"a row is an object, this is {type(row).__name__}")
    prompt = _messages(row, settings.fields.prompt, settings.system)
    reference = _reference(row, settings.fields.reference)
    own_key = row.get("id")
    key = key if own_key is None else _storable(_as_text(own_key))
    source = Source(settings.dataset or split, split, key, settings.licence)
    return Record(record_id(prompt), prompt, reference=reference, source=source)


def _first_present(row: dict[str, Any], wanted: str | None, usual: tuple[str, ...]) -> Any:
    names = (wanted,) if wanted else usual
    return next((row[name] for name in names if row.get(name) is not None), None)


def _messages(row: dict[str, Any], wanted: str | None, system: str | None) -> list[Message]:
    value = _first_present(row, wanted, _PROMPT_NAMES)
    if value is None:
        names = wanted or ", ".join(_PROMPT_NAMES)
        raise _BadRowError("no_prompt", f"no field {names} among {', '.join(map(str, row))[:200]}")
    if isinstance(value, str):
        extra = row.get("input") if "instruction" in row and not wanted else None
        text = f"{value}\n\n{extra}" if isinstance(extra, str) and extra.strip() else value
        value = [{"role": "user", "content": text}]
    messages = _checked_messages(value)
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _checked_messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise _BadRowError("empty_prompt" if value == [] else "wrong_type", "a prompt is text or a list of messages")
    messages = []
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise _BadRowError("wrong_type", "a message is an object with role and content, both text")
        if message.get("role") not in _ROLES:
            raise _BadRowError("unknown_role", f"{str(message.get('role'))[:50]}; there are {', '.join(_ROLES)}")
        if _has_surrogate(message["content"]):
            raise _BadRowError("invalid_unicode", "a lone surrogate, which no UTF-8 file can hold")
        messages.append({"role": message["role"], "content": message["content"]})
    if messages[-1]["role"] != "user":
        raise _BadRowError("last_message_not_user", "the last message of a prompt is the user's")
    if not messages[-1]["content"].strip():
        raise _BadRowError("empty_prompt")
    return messages


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _reference(row: dict[str, Any], wanted: str | None) -> str | None:
    value = _first_present(row, wanted, _REFERENCE_NAMES)
    if value is None:
        return None
    text = _as_text(value)
    return None if _has_surrogate(text) else text
