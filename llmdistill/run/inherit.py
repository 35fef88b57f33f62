"""What one run knows, given to another: answers, verdicts, vectors and signatures, each found again by its content.

Journals are append-only and pieces of a cache are never changed, so both are hard links where the file system has
them: nothing is copied, and either run may be removed. What was inherited is read and never written.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmdistill.run.files import make_dir, replacing, writing
from llmdistill.run.journal import INHERITED

JOURNALS = ("generate", "filter", "evaluate")
"""Stages whose journals are keyed by what was asked."""

_CACHE = Path("curate") / "journal"
_OWN = re.compile(r"[0-9a-f]{16}\.jsonl")
_MANY = 16
"""From so many files of one journal on they are put together."""


def inherit(from_dir: Path, to_dir: Path, tag: str) -> None:
    """Let the run directory `to_dir` find what `from_dir` knows. Doing it again adds what is new.

    Args:
        tag: names the run it comes from; rows of two runs with one tag take each other's place.

    Raises:
        DiskError: a file cannot be written.
    """
    for stage in JOURNALS:
        for source, name in _journals(from_dir / stage / "journal", tag):
            _link(source, to_dir / stage / "journal" / INHERITED / name)
        _put_together(to_dir / stage / "journal" / INHERITED, tag)
    inherit_cache(from_dir, to_dir)


def inherit_cache(from_dir: Path, to_dir: Path) -> None:
    """Only the vectors and signatures that curation has kept; what is there stays."""
    for path in sorted((from_dir / _CACHE).rglob("*.npy")):
        _link(path, to_dir / _CACHE / path.relative_to(from_dir / _CACHE))


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where there can be none (another file system, too many links)."""
    make_dir(target.parent)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _journals(folder: Path, tag: str) -> Iterator[tuple[Path, str]]:
    """A folder's own journals and those it has inherited, each with the name it is inherited by."""
    for path in sorted(folder.glob("*.jsonl")):
        if _OWN.fullmatch(path.name):
            yield path, f"{path.stem}.{tag}.jsonl"
    for path in sorted((folder / INHERITED).glob("*.jsonl")):
        yield path, path.name


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    with writing(target):
        target.unlink(missing_ok=True)
        link(source, target)


def _put_together(folder: Path, tag: str) -> None:
    """Make one file of many that belong to one journal; the sooner ones first, as they would be read."""
    stems = {path.name.split(".")[0] for path in folder.glob("*.jsonl")}
    for stem in sorted(stems):
        paths = sorted(folder.glob(f"{stem}.*.jsonl"))
        if len(paths) < _MANY:
            continue
        with replacing(folder / f"{stem}.{tag}-all.jsonl") as temporary, open(temporary, "wb") as whole:
            for path in paths:
                with open(path, "rb") as part:
                    shutil.copyfileobj(part, whole)
                whole.write(b"\n")  # a torn last row must not take the next one with it
        for path in paths:
            if path.name != f"{stem}.{tag}-all.jsonl":
                path.unlink()
