"""Folders on a disk or an object store that all machines reach, through fsspec.

    <address>/<name>/...         the files of a folder
    <address>/<name>/done.json   written last: the names of the files and their sha256

A folder without a whole `done.json`, or with a file that is not what it says, is not there.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.errors import ConfigError, MissingExtraError, StageError
from llmdistill.run.files import make_dir, sha256_of

DONE = "done.json"


@dataclass(frozen=True)
class Storage:
    """A place that fsspec knows, by its address (a path, file://, s3://, gs://, ...)."""

    address: str

    def put(self, folder: Path, name: str, only: str = "") -> None:
        """Copy a folder there; it is there whole or not at all.

        Args:
            only: a folder in it, beside which nothing is copied.

        Raises:
            StageError: it cannot be written.
        """
        files = sorted(path for path in (folder / only).rglob("*") if path.is_file())
        hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
        with self._reaching() as (system, root):
            system.makedirs(f"{root}/{name}", exist_ok=True)
            for file in hashes:
                target = f"{root}/{name}/{file}"
                system.makedirs(target.rpartition("/")[0], exist_ok=True)
                system.put_file(str(folder / file), target)
            system.pipe_file(f"{root}/{name}/{DONE}", json.dumps({"files": hashes}).encode("utf-8"))

    def fetch(self, name: str, folder: Path) -> bool:
        """Copy a folder from there; False when it is not there whole."""
        with self._reaching() as (system, root):
            hashes = _said(system, f"{root}/{name}/{DONE}")
            if hashes is None:
                return False
            for file, digest in hashes.items():
                target = folder / file
                make_dir(target.parent)
                try:
                    system.get_file(f"{root}/{name}/{file}", str(target))
                except FileNotFoundError:
                    return False
                if sha256_of(target) != digest:
                    return False
        return True

    def remove(self, name: str) -> None:
        """Remove a folder, if it is there. Its `done.json` goes first."""
        with self._reaching() as (system, root):
            for path in (f"{root}/{name}/{DONE}", f"{root}/{name}"):
                if system.exists(path):
                    system.rm(path, recursive=True)

    def check(self) -> None:
        """Raise an error of one line when the place cannot be used."""
        with tempfile.TemporaryDirectory() as folder:
            self.put(Path(folder), ".llmdistill")
        self.remove(".llmdistill")

    def _reaching(self) -> _Reaching:
        return _Reaching(self.address)


class _Reaching:
    """The file system and the path in it; what goes wrong with them becomes one line."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __enter__(self) -> tuple[Any, str]:
        import fsspec

        try:
            system, root = fsspec.url_to_fs(self.address)
        except ImportError as error:
            raise MissingExtraError(str(error), where="run.storage", do="install that package too") from None
        except ValueError as error:
            raise ConfigError(
                str(error), where="run.storage", do="give a path, or an address that fsspec knows"
            ) from None
        return system, str(root).rstrip("/")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        # Object stores raise errors of their own, which share no base class.
        if isinstance(error, Exception) and not isinstance(error, StageError):
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            advice = "check run.storage and what it needs to be reached, then run the same command again"
            raise StageError(f"the storage cannot be used ({first})", where=self.address, do=advice) from error


def _said(system: Any, path: str) -> dict[str, str] | None:
    """Names and hashes that a `done.json` holds; None when there is none, or half of one."""
    try:
        found = json.loads(system.cat_file(path))["files"]
        return {str(name): str(digest) for name, digest in found.items() if _is_inside(str(name))}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_inside(name: str) -> bool:
    """Whether a name stays inside its folder."""
    return not name.startswith("/") and ".." not in name.split("/")
