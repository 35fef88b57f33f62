"""What a search may choose: a method's settings, some of them ranges or choices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from llmdistill.config.base import Settings
from llmdistill.vision.kd.base import Method
from llmdistill.vision.kd.methods import AnyMethod

_METHOD: TypeAdapter[Any] = TypeAdapter(AnyMethod)


class Range(Settings):
    """A number from `low` to `high`, drawn evenly in its logarithm where `log`; a whole one where `integer`."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g}, which is not below high, {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range begins above 0")
        return self

    def ends(self) -> list[Any]:
        """Its two ends."""
        return [int(end) if self.integer else end for end in (self.low, self.high)]


class Choices(Settings):
    """One of several values, of whatever kind the setting is."""

    choices: Annotated[tuple[Any, ...], Field(min_length=1)]

    def ends(self) -> list[Any]:
        """All of them."""
        return list(self.choices)


Free = Range | Choices
Draw = Callable[[str, Free], Any]
"""Gives a value for what is called so."""


def drawn(value: Any, name: str, draw: Draw) -> Any:
    """Settings with a value in place of each range and each list of choices.

    Args:
        name: of the method; parameters are called by it and by their keys, with dots between.
    """
    if isinstance(value, dict):
        free = _free(value)
        if free is not None:
            return draw(name, free)
        return {key: drawn(item, f"{name}.{key}", draw) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [drawn(item, f"{name}.{number}", draw) for number, item in enumerate(value)]
    return value


def _free(value: dict[str, Any]) -> Free | None:
    if "choices" in value:
        return Choices.model_validate(value)
    return Range.model_validate(value) if {"low", "high"} & set(value) else None


def title_of(entry: dict[str, Any]) -> str:
    """What an entry of the space is called."""
    return str(entry.get("label") or entry.get("name"))


def method_of(settings: dict[str, Any]) -> Method:
    """A method of these settings.

    Raises:
        ValidationError: they are not those of a method.
    """
    return _METHOD.validate_python(settings)


def check(entry: dict[str, Any]) -> None:
    """Raise `ValueError` where a value that may be drawn cannot be a setting of the method."""
    for settings in _corners(entry):
        try:
            method_of(settings)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(part for part in problem["loc"] if isinstance(part, str)) or title_of(entry)
            raise ValueError(f"{place}: {problem['msg'].removeprefix('Value error, ')}") from None


def _corners(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings with each parameter at each of its ends in turn, and the others between theirs."""
    parameters: dict[str, Free] = {}

    def noted(name: str, free: Free) -> Any:
        parameters[name] = free
        return _middle(free)

    yield drawn(entry, title_of(entry), noted)
    for one, its in parameters.items():
        for end in its.ends():
            yield drawn(entry, title_of(entry), _at(one, end))


def _at(one: str, end: Any) -> Draw:
    return lambda name, free: end if name == one else _middle(free)


def _middle(free: Free) -> Any:
    if isinstance(free, Choices):
        return free.choices[0]
    middle = (free.low * free.high) ** 0.5 if free.log else (free.low + free.high) / 2
    return round(middle) if free.integer else middle


def from_trial(trial: Any) -> Draw:
    """Draws of an Optuna trial. Choices go by their JSON: Optuna keeps only plain values."""

    def draw(name: str, free: Free) -> Any:
        if isinstance(free, Choices):
            texts = [json.dumps(choice, sort_keys=True) for choice in free.choices]
            return json.loads(trial.suggest_categorical(name, texts))
        if free.integer:
            return trial.suggest_int(name, int(free.low), int(free.high), log=free.log)
        return trial.suggest_float(name, free.low, free.high, log=free.log)

    return draw
