"""Who answers a prompt.

An engine is a stream of requests in and a stream of completions out, in any
order; it knows nothing of stages. `models` is the one way to find and load a model.
"""

from __future__ import annotations

from pathlib import Path

from llmdistill.config import Model
from llmdistill.engines.base import Completion, Engine, Request, Sampling
from llmdistill.engines.models import ModelSource, Served

__all__ = ["Completion", "Engine", "Request", "Sampling", "open_engine"]


def open_engine(settings: Model, source: ModelSource | Served, state_dir: Path) -> Engine:
    """The engine that the settings name, with the model loaded.

    Args:
        state_dir: where the Batch API keeps what it has submitted.
    """
    if isinstance(source, Served):
        return _open_api(settings, state_dir)
    if settings.engine == "vllm":
        from llmdistill.engines.vllm import VllmEngine

        return VllmEngine.open(settings, source)
    from llmdistill.engines.transformers import TransformersEngine

    return TransformersEngine.open(settings, source)


def _open_api(settings: Model, state_dir: Path) -> Engine:
    if settings.api.batch:
        from llmdistill.engines.batch_api import BatchEngine

        return BatchEngine.open(settings, state_dir / "batches")
    from llmdistill.engines.openai import OpenAIEngine

    return OpenAIEngine.open(settings)
