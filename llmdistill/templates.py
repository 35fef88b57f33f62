"""Prompt files: what a model is asked, and how its reply is read.

A template is YAML with a `user` text and, if wanted, a `system` text. The only
thing it can do is name a value, `{{ prompt }}`. Substitution is a single pass:
a value that contains `{{ answer }}` stays as it is, and nothing is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from llmdistill.config import Settings
from llmdistill.errors import ConfigError
from llmdistill.pipeline_file import find_file
from llmdistill.record import Message
from llmdistill.run.files import sha256_of
from llmdistill.text import plain

_NAME = re.compile(r"\{\{\s*(\w+)\s*\}\}")

ASKED_AGAIN = "Your reply must end with one line that holds the verdict and nothing else, in the form asked for above."

AnyTemplate = TypeVar("AnyTemplate", bound="Template")


class Template(Settings):
    """A prompt file. `prefill` is text that the reply is made to begin with, by engines that can do that."""

    values: ClassVar[tuple[str, ...]] = ("prompt",)
    """Names of the values there are; the first one must be in the text."""

    user: str
    system: str | None = None
    prefill: str = ""

    def messages(self, **values: str) -> list[Message]:
        """The chat messages to send."""
        parts = [("system", self.system), ("user", self.user)]
        return [{"role": role, "content": substitute(text, values)} for role, text in parts if text]


class TeacherTemplate(Template):
    """How the teacher is asked. Without `answer_marker` the whole reply is the answer."""

    rationale_marker: str | None = None
    answer_marker: str | None = None

    def ask(self, prompt: list[Message]) -> list[Message]:
        """What the teacher is sent for a prompt: the template around its last message, earlier ones as they are."""
        *earlier, last = prompt
        return earlier + self.messages(prompt=last["content"])


class HintTemplate(TeacherTemplate):
    """How the teacher is asked for a rationale that leads to the known answer.

    `leaks` are phrases that cite the hint, which a rationale of its own would not have.
    """

    values: ClassVar[tuple[str, ...]] = ("prompt", "reference")

    leaks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _the_reference_is_shown(self) -> HintTemplate:
        if "reference" not in _NAME.findall(f"{self.system}{self.user}"):
            raise ValueError("a hint names {{ reference }}")
        return self

    def ask_with(self, prompt: list[Message], reference: str) -> list[Message]:
        """What the teacher is sent for a prompt whose answer it is told."""
        *earlier, last = prompt
        return earlier + self.messages(prompt=last["content"], reference=reference)

    def cited(self, rationale: str, question: str) -> str | None:
        """The phrase by which a rationale cites the hint, unless it is the question's own."""
        said, asked = plain(rationale), plain(question)
        for phrase in self.leaks:
            words = re.compile(rf"(?<![a-z0-9]){re.escape(plain(phrase))}(?![a-z0-9])")
            if words.search(said) and not words.search(asked):
                return phrase
        return None


class Criterion(Settings):
    """One thing that answers are judged by; its weight counts against the other criteria's."""

    text: str
    weight: float = Field(default=1.0, gt=0.0)


class Rubric(Template):
    """How the judge is asked. `scores` are the choices it has, worst first, each with its number.

    With `criteria` each one is a request of its own, whose text `{{ criterion }}` names; the score is their weighted
    mean. `again` is added to the question when the judge's reply could not be read and it is asked once more.
    """

    values: ClassVar[tuple[str, ...]] = ("answer", "prompt", "rationale", "reference", "criterion", "fence")

    scores: dict[str, float] = Field(min_length=2)
    criteria: dict[str, Criterion] = {}
    again: str = Field(default=ASKED_AGAIN, min_length=1)

    @model_validator(mode="after")
    def _criteria_are_named(self) -> Rubric:
        if ("criterion" in _NAME.findall(f"{self.system}{self.user}")) != bool(self.criteria):
            raise ValueError("criteria and {{ criterion }} go together: the text names what criteria lists")
        return self


class PairsTemplate(Template):
    """How a model is asked for new question-answer pairs. The markers begin a pair's parts in a plain reply."""

    values: ClassVar[tuple[str, ...]] = ("examples", "pairs")

    question_marker: str = Field(min_length=1)
    answer_marker: str = Field(min_length=1)
    rationale_marker: str | None = Field(default=None, min_length=1)


class DocumentPairsTemplate(PairsTemplate):
    """How a model is asked for question-answer pairs about a text."""

    values: ClassVar[tuple[str, ...]] = ("document", "pairs", "fence")


class EvolveTemplate(Template):
    """How a model is asked for a variant of a prompt.

    `kinds` has the instruction for each kind of variant. `prompt_marker` begins the new prompt in the reply.
    `leaks` are words of the instruction, which a new prompt of its own would not have.
    """

    values: ClassVar[tuple[str, ...]] = ("prompt", "instruction", "fence")

    kinds: dict[str, str] = Field(min_length=1)
    prompt_marker: str = Field(min_length=1)
    leaks: tuple[str, ...] = ()


def fence_for(*texts: str) -> str:
    """A run of backticks longer than any in the texts, so that no text can close the fence."""
    longest = max((len(run) for text in texts for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Replace every `{{ name }}` by its value, in one pass.

    Raises:
        ConfigError: the text names a value that is not given.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in values:
            known = ", ".join(sorted(values))
            raise ConfigError(f"the template names {{{{ {name} }}}}, which does not exist", do=f"there are: {known}")
        return values[name]

    return _NAME.sub(value_of, text).strip()


def load_template(name: str, kind: type[AnyTemplate]) -> tuple[AnyTemplate, str]:
    """Read a prompt file; gives the template and the sha256 of the file.

    Raises:
        ConfigError: no such file, not a template of this kind, or it names a value that does not exist.
    """
    path = find_file(name, "prompt file")
    template = _parse(path, kind)
    try:
        template.messages(**dict.fromkeys(kind.values, ""))
    except ConfigError as error:
        raise ConfigError(error.what, where=path, do=error.do) from None
    if kind.values[0] not in _NAME.findall(f"{template.system}{template.user}"):
        raise ConfigError(f"the template does not name {{{{ {kind.values[0]} }}}}", where=path, do="add it to user")
    return template, sha256_of(path)


def _parse(path: Path, kind: type[AnyTemplate]) -> AnyTemplate:
    try:
        values: Any = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ConfigError(f"{key}: {problem['msg']}", where=path, do="see the shipped prompt files") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not a UTF-8 YAML file ({' '.join(str(error).split())})", where=path) from None
