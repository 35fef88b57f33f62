"""Which model the vectors come from, and what it is known by."""

from __future__ import annotations

from pathlib import Path

from llmdistill.config import Embed, Pipeline
from llmdistill.engines.models import ModelSource, find_model, fingerprint
from llmdistill.engines.resume import find_weights
from llmdistill.errors import ModelError

_HASHED = (".json", ".safetensors", ".model", ".txt")


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
    return ModelSource(name, path, f"local:{fingerprint(path, files)}")


def _hashed_files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.suffix in _HASHED and file.is_file())
