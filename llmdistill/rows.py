"""Rows of the user's files: JSON Lines, JSON or Parquet. A row that cannot be read is told apart, never fatal.

Lines end at a line feed and nowhere else: U+2028 or U+0085 inside a JSON string
is text. A byte order mark and carriage returns are accepted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmdistill.errors import InputError
from llmdistill.record import Message

PROMPT_NAMES = ("prompt", "messages", "instruction", "question")
REFERENCE_NAMES = ("reference", "answer", "output", "response")
ROLES = ("system", "user", "assistant")


class BadRowError(Exception):
    """A row that cannot become a record: `reason`, and a detail for the person who mends the file."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def read_rows(path: Path, max_line_bytes: int) -> Iterator[tuple[int, Any]]:
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
            yield BadRowError("unreadable_row", str(error))


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
                yield number, BadRowError("line_too_long", detail)
            elif line.strip():
                yield number, _parse_line(line)


def _parse_line(line: bytes) -> Any:
    try:
        return _strict_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRowError("invalid_utf8", f"byte {error.start} of the line")
    except RecursionError:
        return BadRowError("invalid_json", "nested too deep")
    except ValueError as error:
        return BadRowError("invalid_json", str(error))


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


def as_text(value: Any) -> str:
    """Any value of a row as text; Parquet holds dates and bytes, which JSON does not know."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return str(type(value).__name__)


def storable(text: str) -> str:
    """The text with lone surrogates, which no UTF-8 file can hold, as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def has_surrogate(text: str) -> bool:
    """Whether the text has a lone surrogate, which no UTF-8 file can hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def first_present(row: dict[str, Any], wanted: str | None, usual: tuple[str, ...]) -> Any:
    """The value of the wanted column, or of the first usual one that has a value."""
    names = (wanted,) if wanted else usual
    return next((row[name] for name in names if row.get(name) is not None), None)


def prompt_of(row: dict[str, Any], wanted: str | None, system: str | None) -> list[Message]:
    """The messages of a row's prompt.

    Args:
        wanted: the column it is in; None tries the usual ones.
        system: system message of a prompt that has none.
    """
    value = first_present(row, wanted, PROMPT_NAMES)
    if value is None:
        raise no_prompt(row, (wanted,) if wanted else PROMPT_NAMES)
    if isinstance(value, str):
        extra = row.get("input") if "instruction" in row and not wanted else None
        value = [{"role": "user", "content": with_input(value, extra)}]
    return checked_prompt(value, system)


def with_input(instruction: str, extra: Any) -> str:
    """An instruction with its input, if it has one, as Alpaca keeps them."""
    return f"{instruction}\n\n{extra}" if isinstance(extra, str) and extra.strip() else instruction


def no_prompt(row: dict[str, Any], names: tuple[str, ...]) -> BadRowError:
    """What is wrong with a row that has none of these columns."""
    return BadRowError("no_prompt", f"no field {', '.join(names)} among {', '.join(map(str, row))[:200]}")


def checked_prompt(value: Any, system: str | None) -> list[Message]:
    """A row's messages as a prompt: the user's is the last."""
    if not isinstance(value, list) or not value:
        raise BadRowError("empty_prompt" if value == [] else "wrong_type", "a prompt is text or a list of messages")
    messages = [checked_message(message) for message in value]
    if messages[-1]["role"] != "user":
        raise BadRowError("last_message_not_user", "the last message of a prompt is the user's")
    if not messages[-1]["content"].strip():
        raise BadRowError("empty_prompt")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def checked_message(message: Any) -> Message:
    """One message of a row, without what is not its role or content."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise BadRowError("wrong_type", "a message is an object with role and content, both text")
    if message.get("role") not in ROLES:
        raise BadRowError("unknown_role", f"{str(message.get('role'))[:50]}; there are {', '.join(ROLES)}")
    if has_surrogate(message["content"]):
        raise BadRowError("invalid_unicode", "a lone surrogate, which no UTF-8 file can hold")
    return {"role": message["role"], "content": message["content"]}


def reference_of(row: dict[str, Any], wanted: str | None, usual: tuple[str, ...]) -> str | None:
    """A row's gold answer as text, if it has one."""
    value = first_present(row, wanted, usual)
    if value is None:
        return None
    text = as_text(value)
    return None if has_surrogate(text) else text
