"""Reading a pipeline file: YAML in, a frozen `Pipeline` out, every mistake one line with its place."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from llmdistill.config import Pipeline
from llmdistill.errors import ConfigError

File = TypeVar("File", bound=BaseModel)

_PACKAGE = Path(__file__).resolve().parent
_HIDDEN = "***"
_KEY = re.compile(
    r"\b(?:(?:sk|pk|rk|hf|gsk|xai|nvapi|ghp|glpat)[-_](?:\w{1,8}-)*|AIza|AKIA|eyJ)(?=[A-Za-z]*\d)[A-Za-z0-9]{16,}[\w.-]*"
)
_SECRET_NAME = re.compile(
    r"\b(api_key_env|base_url|secret|token)\b|key$|passw|credential|authorization|(access|auth|api|bearer|secret|hf)[_-]",
    re.IGNORECASE,
)


def shipped_root() -> Path:
    """Folder that holds the `prompts/`, `pipelines/` and `data/` that come with llmdistill."""
    packed = _PACKAGE / "_shipped"
    return packed if packed.is_dir() else _PACKAGE.parent


def find_file(name: str, what: str) -> Path:
    """Find a file that a pipeline names: from the working directory, else among those shipped.

    Raises:
        ConfigError: there is no such file; names the nearest one there is.
    """
    roots = (Path(), shipped_root())
    try:
        for root in roots:
            if (root / name).is_file():
                return root / name
        names = [str(path.relative_to(root)) for root in roots for path in _files_in((root / name).parent)]
    except (OSError, ValueError) as error:
        raise ConfigError(f"this {what} cannot be opened ({_first_words(error)})", where=name) from None
    raise ConfigError(f"there is no such {what}", where=name, do=_nearest(name, names) or "check the path")


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def _first_words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def load_pipeline(name: str, overrides: Sequence[str] = ()) -> Pipeline:
    """Read and validate a pipeline file, see `load_as`."""
    return load_as(Pipeline, name, overrides)


def load_as(model: type[File], name: str, overrides: Sequence[str] = ()) -> File:
    """Read and validate a file of settings, with `a.b=c` overrides laid over it.

    Raises:
        ConfigError: with file and line, or the override, that is wrong.
    """
    path = find_file(name, "pipeline file")
    values, lines = _read_yaml(path)
    for override in overrides:
        _apply(values, override)
    _refuse_secrets(values, (), lambda keys: _place(keys, path, lines, overrides), set())
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _first_problem(error, model, path, lines, overrides) from None


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The file's values, and the line of every key."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 (byte {error.start})", where=path, do="save the file as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = without_keys(f"not valid YAML: {error.problem}")
        raise ConfigError(what, where=f"{path}:{line}", do="mend the line") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is a date that does not exist
        raise ConfigError(without_keys(f"not valid YAML: {error}"), where=path, do="mend the file") from None
    except RecursionError:
        raise ConfigError("not usable YAML: nested too deep", where=path, do="mend the file") from None
    except OSError as error:
        raise ConfigError(f"cannot be read ({_first_words(error)})", where=path) from None
    if not isinstance(values, dict):
        raise ConfigError("a pipeline file is a mapping of keys to values", where=path, do="see llmdistill init")
    return values, dict(_key_lines(node, path, (), set()))


def _key_lines(
    node: Any, path: Path, prefix: tuple[str, ...], visited: set[int]
) -> Iterable[tuple[tuple[str, ...], int]]:
    if not isinstance(node, yaml.MappingNode) or id(node) in visited:  # an anchor may hold itself
        return
    visited.add(id(node))
    seen: set[str] = set()
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in seen:
            raise ConfigError(
                f"the key {without_keys(key)} stands here twice", where=f"{path}:{line}", do="remove one of them"
            )
        seen.add(key)
        yield (*prefix, key), line
        yield from _key_lines(value_node, path, (*prefix, key), visited)


def without_keys(text: str) -> str:
    """Text in which what looks like an API key is blotted out."""
    return _KEY.sub(_HIDDEN, text)


def _refuse_secrets(
    value: Any, keys: tuple[str, ...], place_of: Callable[[tuple[str, ...]], str], visited: set[int]
) -> None:
    """Raise `ConfigError` for a value that holds a secret: it would be written into the run directory."""
    if isinstance(value, dict) and id(value) not in visited:  # an anchor may hold itself
        visited.add(id(value))
        for key, inner in value.items():
            _refuse_secrets(inner, (*keys, str(key)), place_of, visited)
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and _is_secret(keys, text):
            what = f"{without_keys('.'.join(keys))} holds a key, or what looks like one; a key stands in no file"
            advice = "put it into an environment variable, and the variable's name into api.api_key_env"
            raise ConfigError(what, where=place_of(keys), do=advice)


def _is_secret(keys: tuple[str, ...], text: str) -> bool:
    if keys[-1:] == ("base_url",) and re.search("[@?#]", text):
        return True
    return bool(_KEY.search(text)) or ("extra" in keys and _may_hold_secret(keys))


def _may_hold_secret(keys: Iterable[str]) -> bool:
    return any(_SECRET_NAME.search(key) for key in keys)


def _shown_override(override: str) -> str:
    """An override without what could be a secret in it."""
    key, equals, value = override.partition("=")
    inner = re.findall(r"([\w-]+)['\"]?\s*:", value)
    hidden = equals and _may_hold_secret([*key.strip().split("."), *inner])
    return "--set " + (f"{without_keys(key)}={_HIDDEN}" if hidden else without_keys(override))


def _apply(values: dict[str, Any], override: str) -> None:
    """Lay `a.b=c` over the values; c is read as YAML."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError("an override is written a.b=c", where=_shown_override(override), do="--set train.epochs=2")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    section = values
    for name in names[:-1]:
        inner = section.get(name)
        if not isinstance(inner, dict):
            inner = section[name] = {}
        section = inner
    section[names[-1]] = value


def _first_problem(
    error: ValidationError,
    model: type[BaseModel],
    path: Path,
    lines: dict[tuple[str, ...], int],
    overrides: Sequence[str],
) -> ConfigError:
    """The first thing pydantic found wrong, as one line; how many more there are is said too."""
    problems = error.errors(include_url=False)
    problem = problems[0]
    keys = _keys_of(problem, model)
    name = ".".join(keys) or "the file"
    if problem["type"] == "extra_forbidden":
        what = f"unknown key {without_keys(name)}"
        advice = _nearest_key(keys, model) or "see llmdistill init for the keys there are"
    elif problem["type"] == "missing":
        what, advice = f"the key {name} is missing", "add it"
    else:
        shown = _HIDDEN if _may_hold_secret(keys) else _shown(problem.get("input"))
        what = f"{name} is {shown}, but {_reason(problem)}"
        advice = "change the value"
    if len(problems) > 1:
        advice += f" (and {len(problems) - 1} more to mend)"
    return ConfigError(what, where=_place(keys, path, lines, overrides), do=advice)


def _keys_of(problem: Any, model: type[BaseModel]) -> tuple[str, ...]:
    """The keys that lead to a problem, without what pydantic adds about the branches of a union."""
    keys = tuple(part for part in problem["loc"] if isinstance(part, str))
    while problem["type"] != "extra_forbidden" and keys and ".".join(keys) not in all_keys(model):
        keys = keys[:-1]
    return keys


def _place(keys: tuple[str, ...], path: Path, lines: dict[tuple[str, ...], int], overrides: Sequence[str]) -> str:
    for override in reversed(overrides):
        names = tuple(override.partition("=")[0].strip().split("."))
        if names[: len(keys)] == keys or keys[: len(names)] == names:
            return _shown_override(override)
    for length in range(len(keys), 0, -1):
        if keys[:length] in lines:
            return f"{path}:{lines[keys[:length]]}"
    return str(path)


def _shown(value: Any) -> str:
    text = reprlib.repr(value)  # bounded, however deep the value is
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(problem: Any) -> str:
    text = problem["msg"].removeprefix("Value error, ")
    return text.replace("Input should be", "it should be").replace("Input should", "it should")


def _nearest_key(keys: tuple[str, ...], model: type[BaseModel]) -> str | None:
    """Where an unknown key belongs, else the nearest one of its own section, else of all."""
    dotted = {key.split(".")[-1]: key for key in reversed(all_keys(model))}
    if keys[-1] in dotted:
        return f"did you mean {dotted[keys[-1]]}?"
    section: type[BaseModel] | None = model
    for key in keys[:-1]:
        field = section.model_fields.get(key) if section else None
        section = _model_of(field.annotation) if field else None
    if section:
        close = difflib.get_close_matches(keys[-1], list(section.model_fields), n=1, cutoff=0.5)
        if close:
            return f"did you mean {'.'.join((*keys[:-1], close[0]))}?"
    close = difflib.get_close_matches(keys[-1], list(dotted), n=1, cutoff=0.5)
    return f"did you mean {dotted[close[0]]}?" if close else None


def all_keys(section: type[BaseModel] = Pipeline, prefix: str = "") -> list[str]:
    """Every key a pipeline file may hold, dotted."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        inner = _model_of(field.annotation)
        if inner:
            keys.extend(all_keys(inner, f"{prefix}{name}."))
    return keys


def _nearest(name: str, names: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else None


def _model_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
