"""Which answers are good enough: checks, verifiers, judges."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llmdistill.config.base import Execution, Fraction, NotNegative, Positive, Settings
from llmdistill.config.models import Model


class Checks(Settings):
    """Format checks; each can be turned off."""

    min_chars: int = Field(default=1, ge=0)
    truncated: bool = True
    repetition: bool = True
    language: bool = True
    refusal: bool = True
    echo: bool = True


class Juror(Settings):
    """Another judge beside the first. What is None is as for the first judge."""

    model: Model | None = None
    rubric: str | None = None
    weight: Annotated[float, Field(gt=0.0)] = 1.0


class Calibration(Settings):
    """Answers that people have judged, and the share of the kept ones that should be good.

    A row of `gold` has `prompt`, `answer`, `label` (true or false, or a score) and perhaps `reference`. With scores,
    an answer is good from `good` on. At least 10 rows, good and bad ones; `precision` holds where the share of good
    answers is that of the gold set.
    """

    gold: str
    precision: Fraction = 0.9
    good: float = 4.0


class Judge(Settings):
    """The LLM judge. Without `model`, the teacher judges.

    `pairwise` compares an answer with the reference, or with the other samples for the same prompt, in both orders:
    1 is better, 0 worse, 0.5 a tie, which it also is when the orders disagree. `likelihood` has no rubric: the score
    is the mean log-probability of the answer's tokens under the judge, in nats. `scoring` says whether the score is
    read from probabilities or from what the judge writes, in at most `max_new_tokens`; `auto` takes probabilities where
    the engine has them. `rubric` is made for the form and the scoring: judge.yaml, judge-criteria.yaml (several
    criteria), judge-written.yaml (the judge explains first), judge-pairwise.yaml. Longer answers than
    `max_answer_tokens` are cut for the judge, at four characters a token.
    A `jury` are other judges beside this one (weight 1): their scores are combined as a weighted mean, or each
    votes for or against an answer and the majority of the weights decides. `min_score` None is 3, or 0.5 in
    comparisons; `calibrated` is what `calibration` finds.
    """

    model: Model | None = None
    rubric: str = "prompts/en/judge.yaml"
    form: Literal["pointwise", "pairwise", "likelihood"] = "pointwise"
    against: Literal["reference", "samples"] = "reference"
    scoring: Literal["auto", "probabilities", "written"] = "auto"
    max_new_tokens: Positive = 256
    jury: tuple[Juror, ...] = ()
    combine: Literal["mean", "vote"] = "mean"
    min_score: float | Literal["calibrated"] | None = None
    calibration: Calibration | None = None
    max_answer_tokens: Positive = 512

    @model_validator(mode="after")
    def _calibrated_by_something(self) -> Judge:
        if self.min_score == "calibrated" and self.calibration is None:
            raise ValueError("min_score: calibrated needs filter.judge.calibration.gold, a file of judged answers")
        if self.form == "likelihood" and self.min_score is None:
            raise ValueError("form: likelihood has no usual threshold: set min_score (nats per token, below 0)")
        return self

    @property
    def fixed_min_score(self) -> float | None:
        """The threshold, None when calibration is to find it."""
        if self.min_score == "calibrated":
            return None
        return (3.0 if self.form == "pointwise" else 0.5) if self.min_score is None else self.min_score


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
