"""Vectors of a sentence-transformers model (the extra `embed`). Safetensors only; no code of the model is run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmdistill.engines.models import ModelSource, choose_device, quiet_libraries
from llmdistill.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

VERSION = 1
"""Changes with what the vectors are."""

_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def require_extra() -> None:
    """Raise `MissingExtraError` unless sentence-transformers is installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        advice = "pip install 'llmdistill[embed]'"
        raise MissingExtraError("embed.method: sentence needs the package sentence-transformers", do=advice)


class SentenceVectors:
    """A model that is loaded once, on the first texts; arguments as those of `HiddenStates`."""

    def __init__(self, source: ModelSource, max_tokens: int, batch_size: int, device: str) -> None:
        self._source, self._max_tokens, self._batch_size, self._device = source, max_tokens, batch_size, device
        self._model: SentenceTransformer | None = None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [texts, d], float32. The library puts texts of like length together itself."""
        if self._model is None:
            self._model = _load(self._source, self._device)
            own = self._model.max_seq_length or self._max_tokens
            self._model.max_seq_length = min(own, self._max_tokens)
        with quiet_libraries():
            vectors = self._model.encode(list(texts), batch_size=self._batch_size, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


def _load(source: ModelSource, device: str) -> SentenceTransformer:
    """Load a model from its directory.

    Raises:
        ModelError: it wants code of its own, or has weights that are not safetensors, or cannot be loaded.
    """
    require_extra()
    from sentence_transformers import SentenceTransformer

    _check_harmless(source)
    with quiet_libraries():
        try:
            model = SentenceTransformer(
                str(source.path),
                device=choose_device(device),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"cannot be loaded ({first})", where=source.name, do="check the model's files") from error
    model.eval()
    return model


def _check_harmless(source: ModelSource) -> None:
    for module in _modules(source):
        kind = str(module.get("type"))
        if not kind.startswith("sentence_transformers."):
            raise ModelError(f"it wants code of its own to be run ({kind})", where=source.name, do="use another model")
        folder = source.path / str(module.get("path", ""))
        weights = [file for file in folder.glob("*") if file.suffix in _OTHER_WEIGHTS]
        if weights and not any(folder.glob("*.safetensors")):
            message = f"its weights are not safetensors ({weights[0].name})"
            raise ModelError(message, where=source.name, do="use another model")


def _modules(source: ModelSource) -> list[dict[str, object]]:
    """The steps that modules.json names; without that file the library averages the tokens of a plain encoder."""
    path = Path(source.path) / "modules.json"
    if not path.exists():
        return []
    try:
        modules = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"not readable as JSON ({error})", where=path, do="fetch the model again") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError("this is no list of modules", where=path, do="fetch the model again")
    return modules
