"""Prompt files: what a model is asked, and how its reply is read.

A template is YAML with a `user` text and, if wanted, a `system` text. The only
thing it can do is name a value, `{{ prompt }}`. Substitution is a single pass:
a value that contains `{{ answer }}` stays as it is, and nothing is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, ValidationError

from llmdistill.config import Settings
from llmdistill.errors import ConfigError
from llmdistill.pipeline_file import find_file
from llmdistill.record import Message
from llmdistill.run.files import sha256_of

_NAME = re.compile(r"\{\{\s*(\w+)\s*\}\}")

AnyTemplate = TypeVar("AnyTemplate", bound="Template")


class Template(Settings):
    """A prompt file. `prefill` is text that the model's reply is made to begin with (local engines)."""

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


class Rubric(Template):
    """How the judge is asked. `scores` are the choices it has, worst first, each with its number."""

    scores: dict[str, float] = Field(min_length=2)


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
        ConfigError: no such file, or not a template of this kind.
    """
    path = find_file(name, "prompt file")
    return _parse(path, kind), sha256_of(path)


def _parse(path: Path, kind: type[AnyTemplate]) -> AnyTemplate:
    try:
        values: Any = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
        return kind.model_validate(values)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"not a UTF-8 YAML file ({' '.join(str(error).split())})", where=path) from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ConfigError(f"{key}: {problem['msg']}", where=path, do="see the shipped prompt files") from None
