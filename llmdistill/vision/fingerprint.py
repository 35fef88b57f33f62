"""What files hold, as a hash: the same data gives the same protocol hash wherever it lies, changed data another."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from llmdistill.errors import ConfigError, DamagedError
from llmdistill.run.files import sha256_of


def existing(name: str) -> Path:
    """The path, which must be there.

    Raises:
        ConfigError: there is no such file or folder.
    """
    path = Path(name)
    if not path.exists():
        raise ConfigError("there is no such file or folder", where=path, do="check data.path and data.test_path")
    return path


def visible(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, in the order of names."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def fingerprint(name: str) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files below a folder; 64 hexadecimal digits.

    Raises:
        ConfigError: there is no such file or folder.
        DamagedError: it cannot be read.
    """
    path = existing(name)
    try:
        if path.is_file():
            return _hash(path)
        digest = hashlib.sha256()
        for file in _files_below(path):
            digest.update(f"{file.relative_to(path).as_posix()}\0{_hash(file)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()
    except OSError as error:
        raise DamagedError(f"not readable ({error.strerror})", where=error.filename or path) from error


def _files_below(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path in visible(folder):
        found += _files_below(path) if path.is_dir() else [path]
    return found


def _hash(path: Path) -> str:
    state = path.stat()
    return _hash_once(path.absolute(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1 << 17)
def _hash_once(path: Path, num_bytes: int, changed: int) -> str:
    """Read a file again only where its size or time has changed."""
    return sha256_of(path)
