"""Work in progress, one JSON line per finished piece, append-only.

A row counts as done once it is on disk. Rows are written whole and synced in
groups of at most 32 rows or half a second, so a kill costs at most one group.
On open a torn last line is cut off; a damaged line in the middle is moved to
`<name>.damaged` and its work is owed again. Only the place of each row is kept in memory.

    <folder>/<name>.jsonl                   rows of this run
    <folder>/inherited/<name>.<tag>.jsonl   rows of runs before it, read and never written (`run/inherit.py`)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import make_dir, sync_dir, write_bytes, writing
from llmdistill.run.progress import say

GROUP_ROWS = 32
GROUP_SECONDS = 0.5
INHERITED = "inherited"


class Journal:
    """Append-only rows, each a dict with a string `key`; the first row of a key wins.

    Args:
        path: the .jsonl file; created when missing, repaired when torn.

    Attributes:
        num_damaged: damaged lines that opening it has set aside.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_damaged = 0
        make_dir(path.parent)
        self._places: dict[str, int] = {}
        self._waiting: dict[str, bytes] = {}
        self._inherited = _read_only(sorted((path.parent / INHERITED).glob(f"{path.stem}.*.jsonl")))
        self._size = self._load()
        with writing(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self._file, self._size)
            sync_dir(path.parent)
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._committer = threading.Thread(target=self._commit_regularly, daemon=True)
        self._committer.start()

    def _load(self) -> int:
        """Note where every whole row lies; gives how many bytes of the file to keep."""
        if not self.path.exists():
            return 0
        offset, damaged = 0, []
        with writing(self.path), open(self.path, "rb") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                key = _key_of(line)
                if key is None:
                    damaged.append(line)
                elif key not in self:
                    self._places[key] = _place(offset, len(line))
                offset += len(line)
        return self._without(damaged, offset) if damaged else offset

    def _without(self, damaged: list[bytes], num_bytes: int) -> int:
        """Set damaged lines aside and write the file anew without them; gives its length."""
        self._set_aside(damaged)
        data = self.path.read_bytes()[:num_bytes]
        rows = [data[offset : offset + length] for offset, length in map(_whereabouts, self._places.values())]
        write_bytes(self.path, b"".join(rows))
        starts = [0, *itertools.accumulate(map(len, rows))]
        places = (_place(start, len(row)) for start, row in zip(starts, rows, strict=False))
        self._places = dict(zip(self._places, places, strict=True))
        return starts[-1]

    def _set_aside(self, lines: list[bytes]) -> None:
        copy = self.path.with_suffix(".damaged")
        with writing(copy), open(copy, "ab") as handle:
            handle.writelines(lines)
            handle.flush()
            os.fsync(handle.fileno())
        self.num_damaged = len(lines)
        count = f"{len(lines):,} damaged line{'s' if len(lines) > 1 else ''}"
        say(f"{self.path}: {count} moved to {copy.name}; what they held is done over")

    def __len__(self) -> int:
        return len(self._places) + len(self._waiting) + sum(len(part) for part in self._inherited)

    def __contains__(self, key: str) -> bool:
        return key in self._places or key in self._waiting or any(key in part for part in self._inherited)

    def __getitem__(self, key: str) -> dict[str, Any]:
        with self._lock:
            line = self._waiting.get(key)
            if line is None and key in self._places:
                offset, length = _whereabouts(self._places[key])
                line = os.pread(self._file, length, offset)
        if line is None:
            line = next((part.line(key) for part in self._inherited if key in part), None)
        if line is None:
            raise KeyError(key)
        return json.loads(line)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, in the order they were finished; those inherited come first."""
        for key in [*itertools.chain.from_iterable(self._inherited), *self._places, *self._waiting]:
            yield self[key]

    def append(self, key: str, **values: Any) -> None:
        """Add one finished piece; a second row for the same key is ignored."""
        if self._failure is not None:
            raise self._failure
        with self._lock:
            if key in self:
                return
            self._waiting[key] = json.dumps({"key": key, **values}, ensure_ascii=True).encode("ascii") + b"\n"
            if len(self._waiting) >= GROUP_ROWS:
                self.commit()

    def commit(self) -> None:
        """Write what is waiting and sync it. A failed write leaves the file at its last whole row."""
        with self._lock:
            if not self._waiting:
                return
            data = b"".join(self._waiting.values())
            try:
                with writing(self.path, len(data)):
                    _write_all(self._file, data, self._size)
                    failpoint("journal.after_write")
                    os.fsync(self._file)
                    failpoint("journal.after_sync")
            except BaseException:
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    os.ftruncate(self._file, self._size)
                raise
            for key, line in self._waiting.items():
                self._places[key] = _place(self._size, len(line))
                self._size += len(line)
            self._waiting.clear()

    def _commit_regularly(self) -> None:
        """Commit every half second, so that a slow engine leaves no row waiting."""
        while not self._closing.wait(GROUP_SECONDS):
            try:
                self.commit()
            except BaseException as error:
                self._failure = error
                return

    def close(self) -> None:
        """Commit and release the file."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._committer.join()
        try:
            self.commit()
        finally:
            os.close(self._file)
            for part in self._inherited:
                part.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Inherited:
    """Rows of another run's journal. Whatever in it is no row is passed over: its work is owed again."""

    def __init__(self, path: Path, known: Sequence[_Inherited]) -> None:
        self._places: dict[str, int] = {}
        self._file = os.open(path, os.O_RDONLY)
        offset = 0
        with open(path, "rb") as handle:
            for line in handle:
                key = _key_of(line) if line.endswith(b"\n") else None
                if key is not None and key not in self and not any(key in part for part in known):
                    self._places[key] = _place(offset, len(line))
                offset += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def line(self, key: str) -> bytes:
        """The row as it is on disk."""
        offset, length = _whereabouts(self._places[key])
        return os.pread(self._file, length, offset)

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)


def _read_only(paths: Sequence[Path]) -> Sequence[_Inherited]:
    parts: list[_Inherited] = []
    for path in paths:
        parts.append(_Inherited(path, parts))
    return parts


_LENGTH_BITS = 32


def _place(offset: int, length: int) -> int:
    """Where a row lies, as one number: with a million rows, a tuple each would be felt."""
    return offset << _LENGTH_BITS | length


def _whereabouts(place: int) -> tuple[int, int]:
    return place >> _LENGTH_BITS, place & ((1 << _LENGTH_BITS) - 1)


def row_of(line: bytes) -> dict[str, Any] | None:
    """A whole row; None when the line is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("key"), str) else None


def _key_of(line: bytes) -> str | None:
    row = row_of(line)
    return row["key"] if row else None


def _write_all(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
