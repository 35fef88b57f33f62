"""Work in progress, one JSON line per finished piece, append-only.

A row counts as done once it is on disk. Rows are written whole and synced in
groups of at most 32 rows or half a second, so a kill costs at most one group.
On open a torn last line is cut off; a damaged line in the middle is moved to
`<name>.damaged` and its work is owed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import make_dir, sync_dir, write_bytes, writing
from llmdistill.run.progress import say

GROUP_ROWS = 32
GROUP_SECONDS = 0.5


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
        self._rows, good_bytes = self._load()
        with writing(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            os.ftruncate(self._file, good_bytes)
            sync_dir(path.parent)
        self._size = good_bytes
        self._waiting: list[bytes] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._committer = threading.Thread(target=self._commit_regularly, daemon=True)
        self._committer.start()

    def _load(self) -> tuple[dict[str, dict[str, Any]], int]:
        """Rows on disk by key, and how many bytes of the file to keep."""
        rows: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return rows, 0
        with writing(self.path):
            data = self.path.read_bytes()
        good = data[: data.rfind(b"\n") + 1]
        whole, damaged = [], []
        for line in (line + b"\n" for line in good.split(b"\n")[:-1]):
            row = _parse(line)
            if row is None:
                damaged.append(line)
            else:
                whole.append(line)
                rows.setdefault(row["key"], row)
        if damaged:
            self._set_aside(damaged)
            good = b"".join(whole)
            write_bytes(self.path, good)
        return rows, len(good)

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
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._rows[key]

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, in the order they were finished."""
        yield from self._rows.values()

    def append(self, key: str, **values: Any) -> None:
        """Add one finished piece; a second row for the same key is ignored."""
        if self._failure is not None:
            raise self._failure
        with self._lock:
            if key in self._rows:
                return
            row = {"key": key, **values}
            self._rows[key] = row
            self._waiting.append(json.dumps(row, ensure_ascii=True).encode("ascii") + b"\n")
            if len(self._waiting) >= GROUP_ROWS:
                self.commit()

    def commit(self) -> None:
        """Write what is waiting and sync it. A failed write leaves the file at its last whole row."""
        with self._lock:
            if not self._waiting:
                return
            data = b"".join(self._waiting)
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
            self._size += len(data)
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

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("key"), str) else None


def _write_all(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
