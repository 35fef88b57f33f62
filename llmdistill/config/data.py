"""Where the data come from: prompts, what is generated from them, what is chosen in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmdistill.config.base import Fraction, NotNegative, Positive, Settings
from llmdistill.config.models import Model


class Fields(Settings):
    """Names of the columns to read; None tries the usual names. `completion` is for `generate.mode: import`."""

    prompt: str | None = None
    reference: str | None = None
    completion: str | None = None


class Prompts(Settings):
    """Where prompts come from, and which part of them is held out for evaluation.

    `path` may be a folder, a .txt or a .md file for `generate.mode: synthetic_qa`: documents, which are cut into
    chunks of `chunk_chars` characters that share `chunk_overlap` with the one before. `synthetic` says that the
    prompts themselves were written by a model.
    """

    path: str
    fields: Fields = Fields()
    dataset: str | None = None
    licence: str | None = None
    system: str | None = None
    synthetic: bool = False
    held_out: Fraction = 0.1
    held_out_path: str | None = None
    limit: Positive | None = None
    max_line_bytes: Positive = 1_000_000
    chunk_chars: Positive = 4_000
    chunk_overlap: int = Field(default=200, ge=0)

    @model_validator(mode="after")
    def _chunks_go_on(self) -> Prompts:
        if self.chunk_overlap * 2 > self.chunk_chars:
            raise ValueError("chunk_overlap is at most half of chunk_chars")
        return self

    @property
    def are_documents(self) -> bool:
        """Whether `path` names texts to make questions from, and no prompts."""
        return Path(self.path).suffix not in (".jsonl", ".json", ".parquet")


class CoTeacher(Settings):
    """A teacher beside the main one. `weight` is its share of the prompts, where the main teacher's is 1."""

    model: Model
    weight: Annotated[float, Field(gt=0.0)] = 1.0


class Samples(Settings):
    """Several answers to each prompt, and which of them go on.

    `vote` keeps those that agree with the most frequent answer (self-consistency, arXiv 2203.11171), if it has at
    least `min_agreement` of the votes. `pass_rate` keeps prompts whose share of right answers lies within it; that
    and `keep_by: difficulty` need `filter.verify`. `keep` is how many answers to a prompt go on at most; by
    difficulty, a prompt that is always solved keeps one and one that is hardly ever solved keeps `keep`
    (after arXiv 2407.13690).
    """

    n: Positive = 1
    vote: bool = False
    min_agreement: Fraction = 0.0
    pass_rate: tuple[Fraction, Fraction] = (0.0, 1.0)
    keep: Positive | None = None
    keep_by: Literal["chance", "difficulty"] = "chance"

    @model_validator(mode="after")
    def _more_than_one(self) -> Samples:
        if self.pass_rate[0] > self.pass_rate[1]:
            raise ValueError("pass_rate is [lowest, highest]")
        if self.n == 1 and (self.vote or self.uses_pass_rate or self.keep):
            raise ValueError("vote, pass_rate and keep choose among several answers: set generate.samples.n")
        if self.keep_by == "difficulty" and self.keep is None:
            raise ValueError("keep_by: difficulty says how many of keep go on: set keep")
        if self.min_agreement and not self.vote:
            raise ValueError("min_agreement is for vote: true")
        return self

    @property
    def uses_pass_rate(self) -> bool:
        """Whether it matters how many of the answers are right."""
        return self.pass_rate != (0.0, 1.0) or self.keep_by == "difficulty"


class Synthesis(Settings):
    """New question-answer pairs (`mode: synthetic_qa`): `pairs` are asked for at a time.

    From seed examples: `examples` of them are shown in each of `requests` requests (None: as many requests as
    there are seeds). From documents: one request for each chunk. `template` None is the shipped one.
    """

    pairs: Positive = 3
    examples: Positive = 3
    requests: Positive | None = None
    template: str | None = None


class Evolve(Settings):
    """New variants of prompts (`mode: evolve`, after arXiv 2304.12244), which the teacher then answers.

    `keep_originals` has the given prompts answered too. `template` None is the shipped one.
    """

    kinds: tuple[Literal["deeper", "broader", "constrained"], ...] = ("deeper", "broader", "constrained")
    keep_originals: bool = True
    template: str | None = None

    @model_validator(mode="after")
    def _something_new(self) -> Evolve:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError("kinds names each kind of variant once")
        return self


class Generate(Settings):
    """What the teacher is asked, and how.

    `template` is a file of `prompts/`; None is the shipped one of the mode and the pipeline's language. `hint` shows
    the teacher the reference and asks for a rationale that leads there: of prompts that it got wrong (`failed`;
    rationalisation, arXiv 2203.14465) or of all (`always`). `fallback` is asked only what the first teacher failed.
    `imported_from` is the model whose answers `mode: import` reads.
    """

    mode: Literal["rationale", "answer", "synthetic_qa", "evolve", "import"] = "rationale"
    template: str | None = None
    hint: Literal["never", "failed", "always"] = "never"
    hint_template: str | None = None
    samples: Samples = Samples()
    co_teachers: tuple[CoTeacher, ...] = ()
    fallback: Model | None = None
    synthesis: Synthesis = Synthesis()
    evolve: Evolve = Evolve()
    imported_from: str | None = None
    max_new_tokens: Positive = 256
    temperature: NotNegative = 0.7
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    truncated: Literal["keep", "reject"] = "keep"
    unparsed: Literal["keep", "reject"] = "reject"
    shard_size: Positive = 1000

    @model_validator(mode="after")
    def _what_fits_together(self) -> Generate:
        if self.samples.n > 1 and self.temperature == 0:
            raise ValueError("several samples at temperature 0 are all the same: set generate.temperature")
        answers = self.mode in ("rationale", "answer")
        extras = {
            "samples": self.samples.n > 1,
            "hint": self.hint != "never",
            "fallback": self.fallback is not None,
            "co_teachers": bool(self.co_teachers),
        }
        wrong = [name for name, used in extras.items() if used]
        if wrong and not answers:
            raise ValueError(f"{' and '.join(wrong)} go with mode: rationale or mode: answer")
        return self
