"""Who is asked: a model, its engine, its price."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from llmdistill.config.base import Execution, Fraction, NotNegative, Positive, Settings


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
    distribution needs them, and `quantize` holds them in few bits while it does. `price` overrides the
    price table. `accept_terms` says that a person has read the model's terms where they restrict training
    on its answers.
    """

    model: str
    revision: str | None = None
    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Annotated[str, Execution] = "auto"
    batch_size: Annotated[Positive, Execution] = 16
    trust_remote_code: bool = False
    weights: str | None = None
    quantize: Literal["nf4", "int8"] | None = None
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
