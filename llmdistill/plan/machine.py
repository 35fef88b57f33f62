"""How large the models are and how fast this machine multiplies: what times are estimated from."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.config import Model, Pipeline
from llmdistill.engines.models import ModelSource, local_copy, num_parameters
from llmdistill.errors import ModelError
from llmdistill.signals.vocabulary import output_rows, teacher_here

DECODE_EFFICIENCY = 0.25
FORWARD_EFFICIENCY = 0.6
"""Shares of the measured matrix rate that batched decoding and forward passes reached on CPUs."""


def is_remote(settings: Model | None) -> bool:
    """Whether a model is asked over an API."""
    return settings is not None and settings.engine == "openai"


def needs_weights(pipeline: Pipeline) -> bool:
    """Whether the teacher's weights are needed here: to ask it, to cut a student out of it, or for its distribution."""
    return pipeline.needs_teacher_weights or not is_remote(pipeline.teacher)


def weights_name(settings: Model) -> str:
    """Where a model's weights are to be had."""
    return settings.weights or settings.model


def local_weights(pipeline: Pipeline) -> ModelSource | None:
    """The teacher's weights if they are needed and on this machine; nothing is fetched."""
    return teacher_here(pipeline.teacher) if needs_weights(pipeline) else None


@dataclass(frozen=True)
class Sizes:
    """Parameters of teacher and student (None when the model is not here yet), and this machine's FLOP/s.

    Attributes:
        vocabulary: ids that both models have, as far as it is known.
    """

    teacher: int | None
    student: int | None
    flops: float | None
    vocabulary: int | None = None

    @classmethod
    def of(cls, teacher: ModelSource | None, pipeline: Pipeline) -> Sizes:
        """Sizes of the models on this machine.

        Raises:
            ModelError: a model's files are damaged, or it has too few layers.
        """
        count = num_parameters(teacher.path) if teacher else None
        student, source = None, None
        if pipeline.student.model:
            source = local_copy(pipeline.student.model, pipeline.student.revision)
            student = num_parameters(source.path) if source else None
        elif teacher and count and pipeline.student.keep_layers:
            student = _share_kept(teacher.path, count, pipeline.student.keep_layers)
        vocabulary = _shared_ids([source for source in (teacher, source) if source]) if pipeline.signals else None
        return cls(count, student, _matrix_rate() if count or student else None, vocabulary)

    def seconds(self, tokens: int, parameters: int | None, efficiency: float, passes: float = 1.0) -> float | None:
        """Time to push tokens through a model: 2 FLOP per parameter and token, `passes` times."""
        if parameters is None or self.flops is None:
            return None
        return 2.0 * tokens * parameters * passes / (self.flops * efficiency)


def _shared_ids(sources: Sequence[ModelSource]) -> int | None:
    """Size of the smaller vocabulary of the models that are here."""
    return min(map(output_rows, sources), default=None)


def _share_kept(path: Path, parameters: int, keep: int) -> int:
    """Parameters that stay when a model keeps some of its layers."""
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text("utf-8"))
        embeddings = config["vocab_size"] * config["hidden_size"] * (1 if config.get("tie_word_embeddings") else 2)
        num_layers = config["num_hidden_layers"]
    except (ValueError, KeyError, TypeError):
        message = "config.json names no vocab_size, hidden_size and num_hidden_layers"
        raise ModelError(message, where=path, do="use a causal language model, or set student.model") from None
    if keep > num_layers:
        message = f"student.keep_layers is {keep}, but the teacher has {num_layers} layers"
        raise ModelError(message, where=path, do="set a smaller student.keep_layers")
    return embeddings + (parameters - embeddings) * keep // num_layers


def _matrix_rate() -> float | None:
    """FLOP/s of this machine in the precision a model would use; None on a GPU, where decoding is bound by memory."""
    import torch

    from llmdistill.engines.models import choose_device, choose_dtype

    device = choose_device("auto")
    if device != "cpu":
        return None
    left = torch.randn(512, 1024).to(choose_dtype("auto", device))
    right = torch.randn(1024, 1024).to(left.dtype)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        left @ right
        count += 1
    return 2 * 512 * 1024 * 1024 * count / (time.perf_counter() - started)
