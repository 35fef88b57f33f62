"""Who answers a prompt.

An engine is a stream of requests in and a stream of completions out, in any
order; it knows nothing of stages. `models` is the one way to find and load a model.
"""

from __future__ import annotations

from llmdistill.config import Model
from llmdistill.engines.base import Completion, Engine, Request, Sampling
from llmdistill.engines.models import ModelSource

__all__ = ["Completion", "Engine", "Request", "Sampling", "open_engine"]


def open_engine(settings: Model, source: ModelSource) -> Engine:
    """The engine that the settings name, with the model loaded."""
    from llmdistill.engines.transformers import TransformersEngine

    engines = {"transformers": TransformersEngine}
    return engines[settings.engine].open(settings, source)
