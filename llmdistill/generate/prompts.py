"""Reading the user's prompts: bad rows are set aside with their reason, never fatal, never silent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmdistill.config import Prompts
from llmdistill.errors import InputError
from llmdistill.generate.documents import documents_hash, read_documents
from llmdistill.pipeline_file import find_file
from llmdistill.record import Record, Reject, Source, record_id
from llmdistill.rows import REFERENCE_NAMES, BadRowError, as_text, prompt_of, read_rows, reference_of, storable
from llmdistill.run.files import sha256_of

STAGE = "prompts"

RecordOf = Callable[[dict[str, Any], Source, str], Record]
"""Makes a record of a row, given where it comes from and its place (file:row); raises `BadRowError`."""


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


def input_hashes(settings: Prompts) -> dict[str, str]:
    """sha256 of the files that `read_prompts` would read.

    Raises:
        ConfigError: a file does not exist.
    """
    names = {"prompts.sha256": settings.path, "prompts.held_out_sha256": settings.held_out_path}
    if settings.are_documents:
        del names["prompts.sha256"]
    hashes = {key: sha256_of(find_file(name, "prompts file")) for key, name in names.items() if name}
    return {"prompts.sha256": documents_hash(settings), **hashes} if settings.are_documents else hashes


def read_prompts(settings: Prompts) -> PromptSet:
    """Read the prompt file and hold out a part of it, or read documents, of which nothing is held out.

    A prompt is held out by its own hash, so the same prompts stay held out when the file grows.

    Raises:
        InputError: no row can be used.
    """
    found, record_of = PromptSet(), _Unseen(settings).record
    held_out = read_file(settings.held_out_path, settings, found, record_of) if settings.held_out_path else []
    if settings.are_documents:
        records, rejects = read_documents(settings)
        found.rejects += rejects
    else:
        records = read_file(settings.path, settings, found, record_of)
    records = records[: settings.limit]
    fraction = 0.0 if settings.held_out_path or settings.are_documents else settings.held_out
    found.held_out = held_out + [record for record in records if is_held_out(record.id, fraction)]
    found.pool = [record for record in records if not is_held_out(record.id, fraction)]
    check_usable(found, settings)
    return found


def check_usable(found: PromptSet, settings: Prompts) -> None:
    """Raise `InputError` if there is nothing to generate from."""
    if found.pool:
        return
    if found.held_out and not settings.held_out_path:
        what = f"all {len(found.held_out):,} prompts are held out"
        raise InputError(what, where=settings.path, do="lower prompts.held_out or give more prompts")
    reasons = ", ".join(sorted({reject.reason for reject in found.rejects})) or "the file is empty"
    first = f"; the first is {found.rejects[0].where}" if found.rejects else ""
    raise InputError(f"no usable prompt ({reasons}{first})", where=settings.path, do="mend the file")


def is_held_out(id_: str, fraction: float) -> bool:
    """Whether a prompt is among the `fraction` that is held out; its id alone decides."""
    return int(id_[:8], 16) < fraction * 2**32


def read_file(name: str, settings: Prompts, found: PromptSet, record_of: RecordOf) -> list[Record]:
    """Records of a file's good rows; the bad ones are added to the rejects of `found`."""
    path = find_file(name, "prompts file")
    records = []
    for number, row in read_rows(path, settings.max_line_bytes):
        place = f"{name}:{number}"
        try:
            if isinstance(row, BadRowError):
                raise row
            if not isinstance(row, dict):
                raise BadRowError("not_an_object", f"a row is an object, this is {type(row).__name__}")
            own_key = row.get("id")
            key = str(number) if own_key is None else storable(as_text(own_key))
            source = Source(settings.dataset or path.stem, path.stem, key, settings.licence)
            records.append(record_of(row, source, place))
        except BadRowError as error:
            blank = Record(id=record_id([{"role": "row", "content": place}]), prompt=[], meta=_excerpt(row))
            found.rejects.append(Reject(blank, STAGE, error.reason, storable(error.detail), place))
    return records


def _excerpt(row: Any) -> str:
    """The bad row itself, shortened, so that the person who mends the file need not look it up."""
    if isinstance(row, BadRowError):
        return "{}"
    return json.dumps({"row": storable(as_text(row)[:500])}, ensure_ascii=False)


class _Unseen:
    """Makes records of rows, each prompt once. `seen` has the place where it was first, by record id."""

    def __init__(self, settings: Prompts) -> None:
        self.settings = settings
        self.seen: dict[str, str] = {}

    def record(self, row: dict[str, Any], source: Source, place: str) -> Record:
        """The record of a row."""
        prompt = prompt_of(row, self.settings.fields.prompt, self.settings.system)
        reference = reference_of(row, self.settings.fields.reference, REFERENCE_NAMES)
        record = Record(record_id(prompt), prompt, reference=reference, source=source)
        if record.id in self.seen:
            raise BadRowError("duplicate_prompt", f"same as {self.seen[record.id]}")
        self.seen[record.id] = place
        return record
