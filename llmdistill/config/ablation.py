"""Which settings are compared with each other, by training the same student under each of them."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from llmdistill.config.base import Execution, Seed, Settings

_NAME = re.compile(r"\w[\w.+=-]{0,59}")
_SECTIONS = ("curate", "signals", "train")
_KEYS = tuple(f"{section}." for section in _SECTIONS)
_SEEDS = ("curate.seed", "train.seed")

UNTRAINED = "untrained"
"""Name of the row of the student before training."""


def _flat(changes: dict[Any, Any]) -> dict[Any, Any]:
    flat: dict[Any, Any] = {}
    for key, value in changes.items():
        if key in _SECTIONS and isinstance(value, dict) and value:
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


class Ablation(Settings):
    """The same student trained under each variant of the settings and each seed, and measured on held-out prompts.

    Attributes:
        vary: variants by name; each is overrides of keys of `curate`, `signals` and `train`, dotted:
            `{curate.select: random}`; `{signals: null}` has the teacher in memory.
        baseline: the variant that the others are compared with.
        seeds: each stands for curate.seed and train.seed of one training of every variant.
        measure: what is tabulated. On `human_text`, the references of the held-out prompts, or on `teacher_text`, the
            teacher's answers to them: cross-entropy (`ce`), KL divergence from the teacher (`kl`), both in nats per
            token, or how often the student has the teacher's likeliest token (`top1`).
        keep_students: keep the weights of every trained student; else they go once they are measured.
    """

    vary: dict[str, dict[str, JsonValue]]
    baseline: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    measure: Literal[
        "human_text_ce", "human_text_kl", "human_text_top1", "teacher_text_ce", "teacher_text_kl", "teacher_text_top1"
    ] = "human_text_ce"
    keep_students: Annotated[bool, Execution] = False

    @field_validator("vary", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        """`{curate: {select: random}}`, which is also what `--set` makes, is `{curate.select: random}`."""
        if not isinstance(value, dict):
            return value
        return {name: _flat(changes) if isinstance(changes, dict) else changes for name, changes in value.items()}

    @field_validator("vary")
    @classmethod
    def _usable_names(cls, value: dict[str, dict[str, JsonValue]]) -> dict[str, dict[str, JsonValue]]:
        """Names become folders, which not every system tells apart by case or by how Hangul is composed."""
        seen: dict[str, str] = {}
        for name in value:
            folder = unicodedata.normalize("NFC", name).casefold()
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name[:60]!r} is no name: letters, digits and . _ + = - (60 at most)")
            if folder == UNTRAINED:
                raise ValueError(f"{name} is what the student before training is called")
            if folder in seen:
                raise ValueError(f"{seen[folder]} and {name} would be one folder on some systems")
            seen[folder] = name
        return value

    @field_validator("vary")
    @classmethod
    def _later_stages_only(cls, value: dict[str, dict[str, JsonValue]]) -> dict[str, dict[str, JsonValue]]:
        for name, changes in value.items():
            for key in changes:
                if key in _SEEDS:
                    raise ValueError(f"{name} sets {key}, which ablation.seeds does")
                if key != "signals" and not key.startswith(_KEYS):
                    raise ValueError(
                        f"{name} sets {key}; a variant changes keys of curate, signals and train only, "
                        "because all variants start from the same answers and the same student"
                    )
        return value

    @model_validator(mode="after")
    def _whole(self) -> Ablation:
        if self.baseline not in self.vary:
            raise ValueError(f"baseline {self.baseline!r} is none of the variants: {', '.join(self.vary) or 'none'}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands in seeds twice")
        return self

    @property
    def num_trainings(self) -> int:
        """How many students are trained in all."""
        return len(self.vary) * len(self.seeds)

    @property
    def kind(self) -> str:
        """The text measured on: `human_text` or `teacher_text`."""
        return self.measure.rpartition("_")[0]

    @property
    def sum_name(self) -> str:
        """What is summed over its tokens: `ce`, `kl` or `top1`."""
        return self.measure.rpartition("_")[2]

    @property
    def needs_answers(self) -> bool:
        """Whether the teacher's answers to the held-out prompts are measured on."""
        return self.kind == "teacher_text"

    @property
    def needs_teacher(self) -> bool:
        """Whether the student is compared with the teacher's distribution, which takes its weights."""
        return self.sum_name != "ce"
