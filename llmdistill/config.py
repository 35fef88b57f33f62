"""The pipeline file: frozen models, one per stage; unknown keys are refused.

Every default of the product is in this file. Fields marked `Execution` change
how fast a result is reached but not the result, so they stay out of a stage's digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class _OutsideDigest:
    """Marker for fields that do not change a stage's result."""


Execution = _OutsideDigest()
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Settings(BaseModel):
    """Base of all sections: frozen, no unknown keys, no switch where a number is due, no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, which would pass for the number 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("it is not a switch")
        return value

    def digest_view(self) -> dict[str, Any]:
        """The section's values that change a result, as plain data."""
        view: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            if Execution in info.metadata:
                continue
            value = getattr(self, name)
            view[name] = value.digest_view() if isinstance(value, Settings) else value
        return view


class Fields(Settings):
    """Names of the columns to read; None tries the usual names."""

    prompt: str | None = None
    reference: str | None = None


class Prompts(Settings):
    """Where prompts come from, and which part of them is held out for evaluation."""

    path: str
    fields: Fields = Fields()
    dataset: str | None = None
    licence: str | None = None
    system: str | None = None
    held_out: Fraction = 0.1
    held_out_path: str | None = None
    limit: Positive | None = None
    max_line_bytes: Positive = 1_000_000


class Model(Settings):
    """A language model, by local directory, Hub id, or the name of one shipped in a package."""

    model: str
    revision: str | None = None
    engine: Literal["transformers"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Annotated[str, Execution] = "auto"
    batch_size: Annotated[Positive, Execution] = 16
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _pinned_remote_code(self) -> Model:
        if self.trust_remote_code and not self.revision:
            raise ValueError("trust_remote_code needs a pinned revision")
        return self


class Generate(Settings):
    """How the teacher is asked. `template` is a file of `prompts/`."""

    template: str = "prompts/en/rationale.yaml"
    max_new_tokens: Positive = 256
    temperature: NotNegative = 0.7
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    unparsed: Literal["keep", "reject"] = "reject"
    shard_size: Positive = 1000


class Checks(Settings):
    """Format checks; each can be turned off."""

    min_chars: int = Field(default=1, ge=0)
    truncated: bool = True
    repetition: bool = True
    language: bool = True
    refusal: bool = True
    echo: bool = True


class Judge(Settings):
    """The LLM judge. Without `model`, the teacher judges."""

    model: Model | None = None
    rubric: str = "prompts/en/judge.yaml"
    min_score: float = 3.0
    max_answer_tokens: Positive = 512


class Filter(Settings):
    """Which answers are good enough."""

    checks: Checks = Checks()
    judge: Judge | None = Judge()


class Curate(Settings):
    """Which of the good answers are chosen. `size` None keeps all that are not duplicates."""

    near_duplicates: Fraction | None = 0.7
    near_held_out: Fraction | None = 0.7
    embed: Literal["tfidf", "teacher"] = "tfidf"
    select: Literal["cluster", "top_score", "random"] = "cluster"
    size: Positive | None = None
    shard_size: Positive = 10_000


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
    """How student, untrained student and teacher are compared on held-out prompts."""

    limit: Positive | None = None
    max_new_tokens: Positive = 128
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0


class Report(Settings):
    """What the report shows."""

    title: str | None = None
    samples: Positive = 8


class Pipeline(Settings):
    """One goal: from prompts to a measured student."""

    name: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f.][^/\\\x00-\x1f]*$", max_length=100)]
    language: Literal["en", "ko"] = "en"
    seed: Seed = 0
    run_dir: str | None = None
    prompts: Prompts
    teacher: Model
    student: Student
    generate: Generate = Generate()
    filter: Filter = Filter()
    curate: Curate = Curate()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()

    @property
    def run_path(self) -> Path:
        """The run directory."""
        return Path(self.run_dir) if self.run_dir else Path("data") / "runs" / self.name

    @property
    def train_seed(self) -> int:
        """Seed of the training order and of new weights."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def judge_model(self) -> Model | None:
        """Who judges: the configured model, else the teacher; None when judging is off."""
        return None if self.filter.judge is None else self.filter.judge.model or self.teacher
