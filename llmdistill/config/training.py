"""The student, how it learns, and how it is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmdistill.config.base import Execution, Fraction, NotNegative, Positive, Seed, Settings


class Student(Settings):
    """A smaller pretrained model, or the teacher with a subset of its layers."""

    model: str | None = None
    revision: str | None = None
    keep_layers: Positive | None = None
    layer_rule: Literal["uniform", "contiguous", "block_influence"] = "block_influence"

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        if (self.model is None) == (self.keep_layers is None):
            raise ValueError("give either student.model or student.keep_layers")
        return self


class Lora(Settings):
    """Low-rank adapters instead of full training (arXiv 2106.09685)."""

    r: Positive = 16
    alpha: Positive = 32
    dropout: Fraction = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


class Train(Settings):
    """How the student learns. `kd` mixes soft_weight * KL(teacher || student) with hard_weight * CE.

    `seed` None takes the pipeline's.
    """

    method: Literal["sft", "kd"] = "kd"
    lora: Lora | None = None
    soft_weight: NotNegative = 1.0
    hard_weight: NotNegative = 0.1
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    epochs: Annotated[float, Field(gt=0.0)] = 3.0
    learning_rate: Annotated[float, Field(gt=0.0)] = 3e-4
    warmup_ratio: Fraction = 0.05
    weight_decay: NotNegative = 0.0
    batch_size: Positive = 4
    gradient_accumulation: Positive = 1
    max_length: Positive = 1024
    seed: Seed | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Annotated[str, Execution] = "auto"
    save_steps: Annotated[Positive, Execution] = 50
    keep_checkpoints: Annotated[Positive, Execution] = 2

    @model_validator(mode="after")
    def _some_loss(self) -> Train:
        if self.method == "kd" and self.soft_weight + self.hard_weight == 0:
            raise ValueError("soft_weight and hard_weight are both 0: there is nothing to learn from")
        return self


class Evaluate(Settings):
    """How student, untrained student and teacher are compared on held-out prompts.

    `synthetic_only` is the reason, in words, for measuring on prompts that a model wrote: without real ones a
    model that only gets better at its own kind of text is not found out (arXiv 2305.17493).
    """

    limit: Positive | None = None
    synthetic_only: Annotated[str | None, Execution] = Field(default=None, min_length=10)
    max_new_tokens: Positive = 128
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0


class Budget(Settings):
    """What a run may spend in all, every stage and every process of it. None is no limit.

    `max_cost` in US dollars; `max_tokens` counts those read and those written.
    """

    max_cost: NotNegative | None = None
    max_tokens: int | None = Field(default=None, ge=0)


class Report(Settings):
    """What the report shows."""

    title: str | None = None
    samples: Positive = 8
