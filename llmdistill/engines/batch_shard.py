"""One batch on disk: its requests, the names the server gave it, and what came back.

A shard's folder is the whole memory of it, so a crash loses nothing:

    <state_dir>/<attempt>-<nonce>/requests.jsonl  written first, as one atomic rename
                                  state.json      ids of the uploaded file and of the batch
                                  answers.jsonl   the batch is over; all that it brought
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.engines.base import Request
from llmdistill.errors import DamagedError
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import read_json, replacing, write_json

MOST_REQUESTS = 50_000
MOST_BYTES = 180_000_000
"""OpenAI takes 50,000 requests and 200 MB a batch."""

_NAME = re.compile(r"(\d{4})-[0-9a-f]{32}")


def custom_id_of(request: Request, body: Mapping[str, Any]) -> str:
    """Name of a request inside a batch: the same question has the same name in every process and attempt.

    It is a hash, because a batch allows 64 characters, and covers the body, so that an answer can never
    pass for the answer to a changed request.
    """
    text = json.dumps([request.id, body], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:40]


def batch_line(custom_id: str, body: Mapping[str, Any]) -> bytes:
    """One line of a batch's input file."""
    row = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(row, ensure_ascii=True).encode("ascii") + b"\n"


def first_lines(lines: Iterable[tuple[str, bytes]], most: int) -> list[tuple[str, bytes]]:
    """As many lines from the start as one batch may hold: at most `most`, and at least one."""
    taken: list[tuple[str, bytes]] = []
    size = 0
    for custom_id, line in lines:
        if taken and (len(taken) >= min(most, MOST_REQUESTS) or size + len(line) > MOST_BYTES):
            break
        taken.append((custom_id, line))
        size += len(line)
    return taken


@dataclass
class Shard:
    """A batch, made or to be made.

    Attributes:
        is_new: made by this process, which so knows that nobody has submitted it before.
        input_file_id: the server's name of the uploaded requests; empty until it is known.
        batch_id: the server's name of the batch; empty until it is known.
    """

    dir: Path
    custom_ids: list[str]
    is_new: bool = False
    input_file_id: str = ""
    batch_id: str = ""

    @classmethod
    def create(cls, state_dir: Path, attempt: int, lines: list[tuple[str, bytes]]) -> Shard:
        """Put the requests on disk.

        Args:
            attempt: higher than that of every earlier shard with one of these requests.
        """
        path = state_dir / f"{attempt:04d}-{secrets.token_hex(16)}"
        shard = cls(path, [custom_id for custom_id, _ in lines], is_new=True)
        with replacing(shard.input_path, sum(len(line) for _, line in lines)) as temporary:
            with open(temporary, "wb") as handle:
                handle.writelines(line for _, line in lines)
        failpoint("batch.after_input")
        return shard

    @property
    def key(self) -> str:
        """Name under which the server is told of it. Random, so that no other run's batch is taken for this one."""
        return self.dir.name

    @property
    def attempt(self) -> int:
        """Number of the attempt, the first being 1."""
        return int(self.key[:4])

    @property
    def input_path(self) -> Path:
        """The requests."""
        return self.dir / "requests.jsonl"

    @property
    def answers_path(self) -> Path:
        """Lines of the batch's output and error files."""
        return self.dir / "answers.jsonl"

    @property
    def is_fetched(self) -> bool:
        """Whether the batch is over and all it brought is on disk."""
        return self.answers_path.exists()

    def note(self, input_file_id: str = "", batch_id: str = "") -> None:
        """Keep an id durably."""
        self.input_file_id, self.batch_id = input_file_id or self.input_file_id, batch_id or self.batch_id
        write_json(self.dir / "state.json", {"input_file_id": self.input_file_id, "batch_id": self.batch_id})

    def rows(self) -> Iterator[dict[str, Any] | None]:
        """What the batch brought, line by line; None for a damaged line."""
        with open(self.answers_path, "rb") as handle:
            for line in handle:
                if line.strip():
                    yield parse_row(line)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """One line of an output file; None when it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("custom_id"), str) else None


def read_shards(state_dir: Path) -> list[Shard]:
    """All shards on disk, in the order of their attempts. What a kill left half-written is removed."""
    found = []
    for path in sorted(path for path in state_dir.iterdir() if _NAME.fullmatch(path.name)):
        if (path / "requests.jsonl").exists():
            found.append(_read(path))
        else:
            shutil.rmtree(path, ignore_errors=True)
    return found


def _read(path: Path) -> Shard:
    state_path, input_path = path / "state.json", path / "requests.jsonl"
    with open(input_path, "rb") as handle:
        rows = [parse_row(line) for line in handle]
    ids = [row["custom_id"] for row in rows if row is not None]
    if len(ids) < len(rows):
        advice = "restore the file; removing the folder asks, and pays for, its requests again"
        raise DamagedError("a line that is no request", where=input_path, do=advice)
    state = read_json(state_path) if state_path.exists() else {}
    return Shard(path, ids, False, str(state.get("input_file_id", "")), str(state.get("batch_id", "")))
