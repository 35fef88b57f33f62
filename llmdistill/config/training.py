"""The student, how it learns, and how it is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmdistill.config.base import Execution, Fraction, NotNegative, Positive, Seed, Settings


class Student(Settings):
    """A smaller pretrained model, or the teacher with a subset of its layers.

    `quantize` keeps the weights in few bits and trains only adapters beside them (QLoRA, arXiv 2305.14314).
    """

    model: str | None = None
    revision: str | None = None
    keep_layers: Positive | None = None
    layer_rule: Literal["uniform", "contiguous", "block_influence"] = "block_influence"
    quantize: Literal["nf4", "int8"] | None = None

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


class Signals(Settings):
    """The teacher's distribution, stored before training; without this section the teacher is in memory then.

    `topk` keeps the `k` likeliest tokens of each position and the mass of the rest; `sampled` keeps `draws` tokens
    drawn from the teacher, which is unbiased (arXiv 2503.16870). `log_probs` is how a stored log-probability is
    rounded. `shard_records` records are captured at a time, `batch_tokens` tokens are read in one forward pass.
    """

    mode: Literal["topk", "sampled"] = "topk"
    k: Positive = 32
    draws: Annotated[int, Field(ge=1, le=65_535)] = 50
    log_probs: Literal["uint8", "float16", "float32"] = "uint8"
    engine: Literal["transformers", "vllm"] = "transformers"
    seed: Seed | None = None
    batch_tokens: Annotated[Positive, Execution] = 4096
    shard_records: Annotated[Positive, Execution] = 256


class Train(Settings):
    """How the student learns.

    `sft` trains on the teacher's text. `kd` mixes soft_weight * `divergence` from the teacher's distribution with
    hard_weight * cross-entropy. `on_policy` trains on the student's own answers, which the teacher scores.
    `jsd_beta` is the teacher's share in the mixture of `jsd`, `skew` the share of a skew KL's first distribution
    (`skew_forward_kl`: the teacher's) that is mixed into its second.
    `cross_tokenizer: uld` compares models of different vocabularies by their sorted probabilities (arXiv 2402.12030).
    `packing` lays the examples of a batch end to end instead of padding them; none sees another.
    `batch_size` * `gradient_accumulation` examples are one step of all `num_processes` together, whose number does not
    change the result; `accelerate` is a configuration file of Accelerate for them, None is DDP. They are on
    `num_nodes` machines, which meet at `main_address` (host:port of the first) and share the run directory; `plan`
    prints what to start on each. `seed` None takes the pipeline's.
    """

    method: Literal["sft", "kd", "on_policy"] = "kd"
    lora: Lora | None = None
    divergence: Literal[
        "forward_kl", "reverse_kl", "jsd", "tvd", "skew_forward_kl", "skew_reverse_kl", "adaptive_kl"
    ] = "forward_kl"
    jsd_beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    skew: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    soft_weight: NotNegative = 1.0
    hard_weight: NotNegative = 0.1
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    cross_tokenizer: Literal["refuse", "uld"] = "refuse"
    epochs: Annotated[float, Field(gt=0.0)] = 3.0
    learning_rate: Annotated[float, Field(gt=0.0)] = 3e-4
    warmup_ratio: Fraction = 0.05
    weight_decay: NotNegative = 0.0
    batch_size: Positive = 4
    gradient_accumulation: Positive = 1
    max_length: Positive = 1024
    max_new_tokens: Positive = 128
    packing: bool = False
    seed: Seed | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Annotated[str, Execution] = "auto"
    gradient_checkpointing: Annotated[bool, Execution] = False
    num_processes: Annotated[Positive, Execution] = 1
    num_nodes: Annotated[Positive, Execution] = 1
    main_address: Annotated[str | None, Execution] = None
    accelerate: Annotated[str | None, Execution] = None
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
