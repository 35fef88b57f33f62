"""The answer is JSON that keeps to a JSON Schema."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from llmdistill.config import Verify
from llmdistill.verify.base import Verified, shown
from llmdistill.verify.pattern import compiled_pattern

_FENCED = re.compile(r"\A\s*```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```\s*\Z", re.DOTALL)
_MAX_DEPTH = 100
_MAX_DIGITS = 1000
_PATTERN_SECONDS = 1.0

Rule = Callable[[Any, Any, Any, Any], "Iterator[Any] | None"]


def verify(answer: str, reference: str, settings: Verify) -> Verified:
    """Whether the answer is JSON and valid under `settings.json_schema`, else under the reference taken as a schema.

    The whole answer must be JSON; one code fence around it is allowed. A `$ref` outside the schema is not
    fetched; a validation that takes more than `settings.timeout` seconds decides nothing.
    """
    schema = json.dumps(settings.json_schema) if settings.json_schema is not None else reference
    prepared = _validator(schema, settings.timeout)
    if isinstance(prepared, str):
        return Verified(None, f"no usable JSON Schema: {shown(prepared)}")
    fenced = _FENCED.match(answer)
    try:
        value = parse(fenced[1] if fenced else answer)
    except ValueError as error:
        return Verified(False, f"not JSON: {shown(str(error))}")
    except RecursionError:
        return Verified(None, f"nested more than {_MAX_DEPTH} deep")
    except OverflowError:
        return Verified(None, f"a number of more than {_MAX_DIGITS:,} digits")
    clock, validator = prepared
    return _checked(clock, validator, value)


def parse(text: str) -> Any:
    """Strict JSON: no NaN, no repeated keys.

    Raises:
        ValueError: it is not JSON.
        RecursionError: nested more than 100 deep.
        OverflowError: an integer of more than 1,000 digits.
    """
    if _depth(text) > _MAX_DEPTH:
        raise RecursionError
    return json.loads(text, parse_constant=_no_constant, parse_int=_integer, object_pairs_hook=_no_repeats)


def _depth(text: str) -> int:
    """Greatest number of brackets open at once outside of strings."""
    depth = deepest = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        deepest = max(deepest, depth)
    return deepest


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise OverflowError
    return int(digits)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _checked(clock: _Clock, validator: Any, value: Any) -> Verified:
    from jsonschema.exceptions import best_match

    clock.start()
    try:
        error = best_match(validator.iter_errors(value))
    except TimeoutError:
        return Verified(None, f"no result within {clock.timeout:g} s")
    except Exception as failure:  # an unresolvable $ref, an endless one: the schema's fault, not the answer's
        return Verified(None, f"the schema cannot be applied: {shown(str(failure) or type(failure).__name__)}")
    return Verified(True, "valid") if error is None else Verified(False, f"{error.json_path}: {shown(error.message)}")


@lru_cache(maxsize=64)
def _validator(schema_text: str, timeout: float) -> Any:
    """A validator, or what is wrong with the schema."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import extend, validator_for
    from referencing import Registry

    try:
        schema = parse(schema_text)
        if not isinstance(schema, dict | bool):
            return "it should be an object"
        base = validator_for(schema, default=Draft202012Validator)
        base.check_schema(schema)
    except SchemaError as error:
        return error.message
    except (ValueError, RecursionError, OverflowError) as error:
        return str(error) or "nested too deep, or a number too long"
    rules = {**base.VALIDATORS, "pattern": _pattern, "patternProperties": _pattern_properties, "uniqueItems": _unique}
    clock = _Clock(timeout)
    timed = {name: clock.bounding(rule) for name, rule in rules.items()}
    return clock, extend(base, timed)(schema, registry=Registry())


class _Clock:
    """Ends a validation that takes too long: references in a schema can double its work with every level."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._deadline = 0.0

    def start(self) -> None:
        self._deadline = time.monotonic() + self.timeout

    def bounding(self, rule: Rule) -> Rule:
        """The rule, which raises TimeoutError once the time is over."""

        def bounded(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
            if time.monotonic() > self._deadline:
                raise TimeoutError
            yield from rule(validator, value, instance, schema) or ()

        return bounded


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if isinstance(instance, str) and not _search(pattern, instance):
        yield ValidationError(f"{shown(instance)} does not match {shown(pattern)}")


def _pattern_properties(validator: Any, patterns: dict[str, Any], instance: Any, schema: Any) -> Iterator[Any]:
    for key, value in instance.items() if isinstance(instance, dict) else ():
        for pattern, subschema in patterns.items():
            if _search(pattern, key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _unique(validator: Any, wanted: bool, instance: Any, schema: Any) -> Iterator[Any]:
    """The library compares every item with every other where they cannot be sorted."""
    from jsonschema.exceptions import ValidationError

    if wanted and isinstance(instance, list) and len({_canonical(item) for item in instance}) < len(instance):
        yield ValidationError("an item occurs twice")


def _canonical(value: Any) -> str:
    """Equal JSON values as equal texts: 1 and 1.0 are one number, true is none."""
    if isinstance(value, dict):
        value = {key: _canonical(item) for key, item in value.items()}
    elif isinstance(value, list):
        value = [_canonical(item) for item in value]
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def _search(pattern: str, text: str) -> bool:
    compiled = compiled_pattern(pattern)
    if isinstance(compiled, str):
        raise ValueError(compiled)
    return compiled.search(text, timeout=_PATTERN_SECONDS) is not None
