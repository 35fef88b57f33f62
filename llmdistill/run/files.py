"""Writing files so that a reader sees the old one or the new one, never a half."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmdistill.errors import DamagedError, LlmdistillError, disk_error
from llmdistill.run.failpoint import failpoint

_NEARLY_FULL = 64 << 20


@contextmanager
def writing(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turn an OSError inside the block into a `DiskError` that names `path`.

    Libraries written in Rust and C++ raise errors of their own when they cannot write.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, num_bytes) from error
    except LlmdistillError:
        raise
    except Exception as error:
        number = _system_error_in(error, path)
        if number is None:
            raise
        raise disk_error(OSError(number, os.strerror(number)), path, num_bytes) from error


def _system_error_in(error: Exception, path: Path) -> int | None:
    """The system's error number behind an error of safetensors (which says it) or torch (which does not)."""
    said = re.search(r"\(os error (\d+)\)", str(error))
    if said:
        return int(said.group(1))
    if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
        return None
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return errno.ENOSPC if shutil.disk_usage(folder).free < _NEARLY_FULL else errno.EFBIG


def make_dir(path: Path) -> Path:
    """Create a directory and its parents; a `DiskError` says why it cannot be."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def sync_dir(path: Path) -> None:
    """Make renames inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it becomes `path` by one atomic rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path, num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            failpoint("files.before_replace")
            os.replace(temporary, path)
            sync_dir(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of the run directory; a damaged one is a `DamagedError`."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"not readable as JSON ({error})", where=path, do="restore or remove the file") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file atomically. The same table gives the same bytes."""
    with replacing(path, table.nbytes) as temporary:
        with pq.ParquetWriter(temporary, table.schema, compression="zstd") as writer:
            if table.num_rows:  # `datasets` refuses a file with a row group of no rows
                writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """Read one Parquet file; a torn one is a `DamagedError`."""
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        advice = "remove the stage's folder and run the same command again"
        raise DamagedError(f"not readable as Parquet ({error})", where=path, do=advice) from error


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
