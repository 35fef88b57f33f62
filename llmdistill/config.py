"""The pipeline file: frozen models, one per stage; unknown keys are refused.

Every default of the product is in this file. Fields marked `Execution` change
how fast a result is reached but not the result, so they stay out of a stage's digest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator, model_validator


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


class Price(Settings):
    """US dollars per million tokens."""

    input: NotNegative
    output: NotNegative


class Vllm(Settings):
    """Settings passed to vLLM as they are; None leaves vLLM's own default."""

    tensor_parallel_size: Annotated[Positive, Execution] = 1
    data_parallel_size: Annotated[Positive, Execution] = 1
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    max_model_len: Positive | None = None
    gpu_memory_utilization: Annotated[Fraction | None, Execution] = None
    max_num_seqs: Annotated[Positive | None, Execution] = None
    max_num_batched_tokens: Annotated[Positive | None, Execution] = None
    enforce_eager: Annotated[bool, Execution] = False


class Api(Settings):
    """A server that speaks OpenAI's chat completions.

    `base_url` None takes $OPENAI_BASE_URL, else OpenAI's own; several are replicas of one model.
    `api_key_env` names an environment variable; None takes OPENAI_API_KEY for OpenAI's own server and
    sends no key elsewhere. `extra` is laid over each request's body; a null removes a key.
    Seconds: `timeout` for one call, `max_retry_after` the longest wait a server may ask for,
    `patience` how long to go on without a single answer.
    """

    base_url: Annotated[str | tuple[str, ...] | None, Execution] = None
    api_key_env: Annotated[str | None, Execution] = None
    batch: Annotated[bool, Execution] = False
    batch_requests: Annotated[Positive, Execution] = 10_000
    poll_seconds: Annotated[Positive, Execution] = 60
    prefill: bool = False
    token_ids: Annotated[bool, Execution] = False
    extra: dict[str, JsonValue] = {}
    max_concurrency: Annotated[Positive, Execution] = 32
    requests_per_minute: Annotated[Positive | None, Execution] = None
    tokens_per_minute: Annotated[Positive | None, Execution] = None
    timeout: Annotated[float, Field(gt=0.0), Execution] = 300.0
    max_retry_after: Annotated[NotNegative, Execution] = 120.0
    patience: Annotated[NotNegative, Execution] = 600.0
    max_reply_bytes: Annotated[Positive, Execution] = 16_000_000

    @field_validator("base_url")
    @classmethod
    def _not_empty(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value is not None and not all(value if isinstance(value, tuple) else [value]):
            raise ValueError("an empty address would mean OpenAI's: leave the key out for that")
        if value == ():
            raise ValueError("it names no address")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", value):
            raise ValueError("it should be the name of an environment variable (capitals), never the key itself")
        return value

    @model_validator(mode="after")
    def _one_place_for_batches(self) -> Api:
        if self.batch and isinstance(self.base_url, tuple) and len(self.base_url) > 1:
            raise ValueError("batches go to one server: give a single api.base_url")
        return self


class Model(Settings):
    """A language model, by local directory, Hub id, the name of one shipped in a package, or a server's name for it.

    `weights` says where the weights of a served model are to be had; training on the teacher's
    distribution needs them. `price` overrides the price table. `accept_terms` says that a person has
    read the model's terms where they restrict training on its answers.
    """

    model: str
    revision: str | None = None
    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Annotated[str, Execution] = "auto"
    batch_size: Annotated[Positive, Execution] = 16
    trust_remote_code: bool = False
    weights: str | None = None
    vllm: Vllm = Vllm()
    api: Api = Api()
    price: Annotated[Price | None, Execution] = None
    accept_terms: Annotated[bool, Execution] = False

    @model_validator(mode="after")
    def _pinned_remote_code(self) -> Model:
        if self.trust_remote_code and not self.revision:
            raise ValueError("trust_remote_code needs a pinned revision")
        return self

    @property
    def can_prefill(self) -> bool:
        """Whether the engine can make an answer begin with given text."""
        return self.engine != "openai" or (self.api.prefill and not self.api.batch)


class Generate(Settings):
    """How the teacher is asked. `template` is a file of `prompts/`."""

    template: str = "prompts/en/rationale.yaml"
    max_new_tokens: Positive = 256
    temperature: NotNegative = 0.7
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    truncated: Literal["keep", "reject"] = "keep"
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


class Verify(Settings):
    """Checks against the reference, without a model.

    `undecided` says what becomes of a record that cannot be decided. `choices` are the texts of a multiple-choice
    question's options where the prompts do not list them; `json_schema` and `pattern` stand for the references
    where one is meant for all records. `tolerance` is relative. `cpu_seconds` and `memory_mb` (MiB) limit a
    Python test; `allow_unconfined` runs tests even where the system cannot shut them in. `timeout` in seconds.
    """

    kind: Literal["math", "choice", "exact", "text", "json", "regex", "python"]
    undecided: Literal["keep", "reject"] = "reject"
    tolerance: NotNegative = 1e-6
    choices: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    pattern: str | None = None
    cpu_seconds: Positive = 5
    memory_mb: Positive = 512
    allow_unconfined: bool = False
    timeout: Annotated[float, Field(gt=0.0), Execution] = 10.0

    @model_validator(mode="after")
    def _rules_of_their_kind(self) -> Verify:
        for name, kind in (("choices", "choice"), ("json_schema", "json"), ("pattern", "regex")):
            if getattr(self, name) and self.kind != kind:
                raise ValueError(f"{name} is for kind: {kind}")
        return self

    @property
    def has_rule(self) -> bool:
        """Whether one rule stands for every record's reference."""
        return self.json_schema is not None or self.pattern is not None


class Filter(Settings):
    """Which answers are good enough."""

    checks: Checks = Checks()
    verify: Verify | None = None
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
    budget: Budget = Budget()

    @property
    def run_path(self) -> Path:
        """The run directory."""
        return Path(self.run_dir) if self.run_dir else Path("data") / "runs" / self.name

    @property
    def needs_teacher_weights(self) -> bool:
        """Whether the student is made of the teacher, or learns its distribution."""
        return self.train.method == "kd" or self.student.keep_layers is not None

    @property
    def has_teacher_weights(self) -> bool:
        """Whether the teacher's weights are to be had, or must be."""
        return self.teacher.engine != "openai" or self.teacher.weights is not None or self.needs_teacher_weights

    @property
    def train_seed(self) -> int:
        """Seed of the training order and of new weights."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def judge_model(self) -> Model | None:
        """Who judges: the configured model, else the teacher; None when judging is off."""
        return None if self.filter.judge is None else self.filter.judge.model or self.teacher
