"""One tree of errors; each class knows its exit code.

A message says what was wrong, where (file, row or key) and what to do next.
The command line prints it as one line; nothing else decides an exit code.
"""

from __future__ import annotations

import errno
from pathlib import Path


class LlmdistillError(Exception):
    """Base of every error that a user can meet.

    Args:
        what: what was wrong, in plain words.
        where: file, row or key it was found at.
        do: what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | Path | None = None, do: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.do = do
        super().__init__(what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" -> {self.do}" if self.do else ""
        return " ".join(f"{place}{self.what}{advice}".split())


class UsageError(LlmdistillError):
    """The command line or a file the user wrote is wrong; nothing was done."""

    exit_code = 2


class ConfigError(UsageError):
    """The pipeline file, or a `--set`, cannot be used."""


class InputError(UsageError):
    """Input data cannot be used at all (single bad rows are rejects, not errors)."""


class ModelError(UsageError):
    """A model, tokenizer or chat template cannot be found or used."""


class ChangedError(UsageError):
    """A finished or half-finished stage was made with other settings."""


class MissingExtraError(UsageError):
    """An optional package is needed; the message names the pip command."""


class StageError(LlmdistillError):
    """A stage could not finish; what it did so far is kept."""


class AccountingError(StageError):
    """Records went missing or were counted twice: input != kept + rejected + failed."""


class ServerError(StageError):
    """A server refuses every request (key, model or address are wrong); the answers so far are kept."""


class DamagedError(StageError):
    """A file of the run directory is torn or was changed by something else."""


class DiskError(StageError):
    """Writing failed: disk full, read-only, no permission."""


class RejectsError(LlmdistillError):
    """The stage finished, but nothing (or too little) was left over."""

    exit_code = 3


class BudgetError(LlmdistillError):
    """The next call could exceed the budget; the answers so far are kept."""

    exit_code = 4


class NotPromotedError(LlmdistillError):
    """A refresh is done, but its student is not good enough to take the champion's place; the champion stays."""

    exit_code = 5


class TryLaterError(LlmdistillError):
    """A server does not answer for now; the answers so far are kept."""

    exit_code = 75


class BusyError(LlmdistillError):
    """Another process works on the same run; try again later."""

    exit_code = 75


class Interrupted(BaseException):
    """A signal asked the process to stop; the run is consistent.

    Not an `Exception`: a library's `except Exception` must not swallow it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


_DISK_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space, then run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, then run the same command again"),
    errno.EFBIG: (
        "the file may not grow that large here (ulimit -f)",
        "raise the limit, then run the same command again",
    ),
    errno.EROFS: ("the file system is read-only", "choose a writable run directory with --set run_dir=..."),
    errno.EACCES: ("no permission to write here", "choose a writable run directory with --set run_dir=..."),
    errno.EPERM: ("no permission to write here", "choose a writable run directory with --set run_dir=..."),
    errno.ENOTDIR: ("a file stands where a directory is needed", "choose another run directory with --set run_dir=..."),
    errno.EEXIST: ("a file stands where a directory is needed", "choose another run directory with --set run_dir=..."),
    errno.ENAMETOOLONG: ("the path is too long for this file system", "choose a shorter name with --set name=..."),
}


def disk_error(error: OSError, path: str | Path, num_bytes: int | None = None) -> DiskError:
    """Translate an OSError met while writing `path` (needing `num_bytes`) into one clear line."""
    what, advice = _DISK_REASONS.get(error.errno or 0, (error.strerror or str(error), "see the system's message"))
    if num_bytes is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what += f" ({num_bytes:,} bytes were to be written)"
    return DiskError(what, where=path, do=advice)
