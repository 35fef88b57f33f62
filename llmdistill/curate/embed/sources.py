"""Which model the vectors come from, and what it is known by."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from llmdistill.config import Embed, Pipeline
from llmdistill.engines.models import ModelSource, find_model
from llmdistill.engines.resume import find_weights
from llmdistill.errors import ModelError

_HASHED = (".json", ".safetensors", ".model", ".txt")
_END_BYTES = 1 << 20


def find_source(settings: Embed, pipeline: Pipeline) -> ModelSource | None:
    """The model that `settings` name; None for a method that needs none.

    The student is meant before it is trained; where it is cut from the teacher, the teacher stands for it.

    Raises:
        ModelError: it is nowhere to be had.
    """
    if settings.method == "tfidf":
        return None
    if settings.model is not None:
        return _find_embedder(settings.model, settings.revision)
    student = pipeline.student
    if settings.method == "teacher" or student.model is None:
        return find_weights(pipeline.teacher)
    return find_model(student.model, student.revision)


def _find_embedder(name: str, revision: str | None) -> ModelSource:
    """Embedding models keep weights in folders of their own, and a static one may have no config.json."""
    path = Path(name)
    if not path.is_dir():
        return find_model(name, revision)
    files = _hashed_files(path)
    if not any(file.suffix == ".safetensors" for file in files):
        raise ModelError("this directory holds no weights in safetensors files", where=name, do="use another model")
    return ModelSource(name, path, f"local:{_fingerprint(path, files)}")


def _hashed_files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.suffix in _HASHED and file.is_file())


def _fingerprint(path: Path, files: list[Path]) -> str:
    """Hash of the names, the sizes and both ends of the files."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}:{size}:".encode())
        with open(file, "rb") as handle:
            digest.update(handle.read(_END_BYTES))
            handle.seek(max(0, size - _END_BYTES), os.SEEK_SET)
            digest.update(handle.read())
    return digest.hexdigest()[:16]
