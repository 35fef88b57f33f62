"""One process at a time on a run. The kernel frees the lock when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmdistill.errors import BusyError
from llmdistill.run.files import make_dir, writing


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory, or raise `BusyError` at once naming the process that holds it."""
    make_dir(run_dir)
    path = run_dir / ".lock"
    with writing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
            advice = "wait for it to finish, or give this run another name with --set name=..."
            raise BusyError(f"process {holder} is working on this run", where=run_dir, do=advice) from error
        with writing(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode("ascii"), 0)
        yield
    finally:
        os.close(handle)
