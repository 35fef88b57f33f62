"""Values of records by a dotted name: `score`, `source.dataset`, `meta.topic`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from llmdistill.errors import UsageError
from llmdistill.record import Record, from_row

COMPUTED = ("score", "question", "reply")


def value_of(item: Mapping[str, Any] | Record, name: str) -> Any:
    """A value by its dotted name; `score` is the last verdict's, `question` and `reply` the texts of prompt and answer.

    Args:
        item: a record, or a row of a stage's file.
        name: names joined by dots. Below `meta` any name may stand; None where this record has no such key.

    Raises:
        UsageError: there is no such field.
    """
    if name in COMPUTED:
        return getattr(item if isinstance(item, Record) else from_row(item), name)
    first, _, rest = name.partition(".")
    value = _member(item, first, name, item)
    if first == "meta" and rest:
        return _meta_value(value, rest)
    for key in rest.split(".") if rest else ():
        if value is None:
            return None
        value = _member(value, key, name, item)
    return value


def _member(value: Any, key: str, name: str, item: Mapping[str, Any] | Record) -> Any:
    if isinstance(value, Mapping) and key in value:
        return value[key]
    if is_dataclass(value) and key in {found.name for found in fields(value)}:
        return getattr(value, key)
    known = [*item] if isinstance(item, Mapping) else [found.name for found in fields(item)]
    raise UsageError(f"records have no field {name}", do=f"there are {', '.join([*known, *COMPUTED])}")


def _meta_value(text: str | None, name: str) -> Any:
    value = json.loads(text or "{}")
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def names_with_value(record: Record) -> Iterator[str]:
    """Dotted names of the single values that this record has: text, numbers and switches."""
    if record.score is not None:
        yield "score"
    for name in ("source", "teacher"):
        part = getattr(record, name)
        for found in fields(part) if part else ():
            if getattr(part, found.name) is not None:
                yield f"{name}.{found.name}"
    yield from _scalars("meta", json.loads(record.meta))


def _scalars(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _scalars(f"{name}.{key}", inner)
    elif isinstance(value, str | int | float):
        yield name
