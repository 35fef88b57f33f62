"""Which of the good answers are chosen to train on, and how copies and test questions are kept out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llmdistill.config.base import Execution, Fraction, Positive, Seed, Settings


class Decontaminate(Settings):
    """Training records that resemble an evaluation set are dropped: the run's own held-out prompts, and `against`.

    `against` names files of prompts (JSONL, JSON, Parquet); `field` is their column, None tries the usual names. A
    record is contaminated when at least `overlap` of an evaluation question stands, in runs of `ngram` words, in its
    question or its reply (half as many again where most characters are a word of their own: Chinese, Japanese, Thai,
    Hangul); runs that many texts share count little. Or when its question is at least `near` like an evaluation
    question (Jaccard), or their embeddings have at least the cosine `similarity`. None switches a measure off.
    """

    against: tuple[str, ...] = ()
    field: str | None = None
    near: Fraction | None = 0.7
    overlap: Fraction | None = 0.5
    ngram: Positive = 5
    similarity: Fraction | None = None


class Embed(Settings):
    """How prompts become vectors.

    `tfidf` needs no model. `sentence` is any sentence-transformers model (the extra `embed`), `static` the mean of a
    model's token embeddings (no forward pass), `student` and `teacher` the mean of a language model's hidden states.
    `model` is for `sentence` and `static`: a local directory, a Hub id or a packaged name; without it `static` takes
    the student's token embeddings. The student is meant as it is before training.

    Attributes:
        max_tokens: what a prompt has beyond these is not read; `tfidf` reads all.
        batch_size: texts that go through the model at once.
        device: auto, cpu, cuda, mps, ...
    """

    method: Literal["tfidf", "static", "sentence", "student", "teacher"] = "tfidf"
    model: str | None = None
    revision: str | None = None
    max_tokens: Positive = 512
    batch_size: Annotated[Positive, Execution] = 32
    device: Annotated[str, Execution] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _method_alone(cls, value: Any) -> Any:
        """`embed: tfidf` is short for `embed: {method: tfidf}`."""
        return {"method": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _named_model(self) -> Embed:
        if self.method == "sentence" and self.model is None:
            raise ValueError("embed.method: sentence needs embed.model")
        if self.model is not None and self.method not in ("sentence", "static"):
            raise ValueError(f"embed.model is for sentence and static; {self.method} knows its own")
        if self.revision is not None and self.model is None:
            raise ValueError("embed.revision is one of embed.model, which is not given")
        return self


class Quotas(Settings):
    """How the chosen are shared out among groups of records.

    `by` is a field of the record: source.dataset, source.key, teacher.model, meta.topic, meta.pass_rate. Numbers are
    cut into `bins` of equal width. `shares` gives a group's share of `size`; groups that it does not name share the
    rest evenly. What a group has too few records for goes to the others.
    """

    by: str
    shares: dict[str, Fraction] = {}
    bins: Positive | None = None

    @model_validator(mode="after")
    def _at_most_all(self) -> Quotas:
        if sum(self.shares.values()) > 1 + 1e-9:
            raise ValueError("quotas.shares are more than 1 in all")
        return self


class Curate(Settings):
    """Which of the good answers are chosen. `size` None keeps all that are not duplicates.

    Attributes:
        near_duplicates: Jaccard similarity of questions from which the worse one is dropped.
        semantic_duplicates: cosine of their embeddings from which the worse one is dropped; for a sentence encoder
            (`tfidf` finds unlike questions that near).
        select: how `size` are chosen. `cluster` is LIMA's recipe (arXiv 2305.11206), `deita` that of arXiv 2312.15685.
        quality: how much the score counts beside diversity in k_center, facility_location and dpp: 0 not at all.
        max_similarity: `deita` passes over what has this cosine or more with a record that it has kept.
        must_keep: file of records (ids or prompts, one a line) that are kept before all others.
        must_drop: file of records that are dropped.
        seed: None takes the pipeline's.
    """

    decontaminate: Decontaminate | None = Decontaminate()
    near_duplicates: Fraction | None = 0.7
    semantic_duplicates: Fraction | None = None
    embed: Embed = Embed()
    select: Literal["random", "top_score", "cluster", "k_center", "facility_location", "dpp", "deita"] = "cluster"
    quality: Fraction = 0.5
    max_similarity: Fraction = 0.9
    size: Positive | None = None
    quotas: Quotas | None = None
    must_keep: str | None = None
    must_drop: str | None = None
    seed: Seed | None = None
    shard_size: Annotated[int, Field(ge=1)] = 10_000

    @model_validator(mode="after")
    def _quotas_of_a_size(self) -> Curate:
        if self.quotas and self.size is None:
            raise ValueError("curate.quotas share out curate.size: set it")
        return self
