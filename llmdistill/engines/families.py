"""What a model's name tells: of which family it is, how large it is, whether two names are one model.

A judge prefers answers of its own kind (arXiv 2404.13076), so one has to know whose kind an answer is. A name
that tells nothing belongs to no family.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from llmdistill.config import Model

_FAMILIES = {
    "qwen": r"qwen|(?<![a-z])(qwq|qvq)-",
    "llama": r"(?<!tiny)(?<!open)(?<!open[_-])llama(?!\.cpp)|vicuna|(?<!ko)alpaca",
    "smollm": r"smollm",
    "gemma": r"gemma",
    "openai": r"(?<![a-z])(chat)?gpt-?(\d|oss)|chatgpt|(?<![a-z])davinci-|(^|[./:])o[1-9](-(?!\d{1,2}b)|$)",
    "claude": r"claude",
    "gemini": r"gemini",
    "mistral": r"mi[sx]tral|(?<![a-z])(mini|code|dev|magi|math|vox)stral|pixtral|zephyr-7b-(alpha|beta)",
    "phi": r"(?<![a-z])phi-?\d",
    "deepseek": r"deepseek",
    "glm": r"(?<![a-z])(chat|code)?glm",
    "command": r"(?<![a-z])command(-|$)|(?<![a-z])aya-",
    "olmo": r"(?<![a-z])olmoe?(?![a-z])",
    "exaone": r"exaone",
    "solar": r"(?<![a-z])solar-|(?<![a-z])eeve-",
    "hyperclova": r"hyperclova",
    "kanana": r"kanana",
    "ax": r"(?<![a-z0-9])a\.?x-\d",
    "midm": r"(?<![a-z])mi:?dm(?![a-z])",
    "polyglot": r"polyglot",
    "granite": r"(?<![a-z])granite",
    "grok": r"(?<![a-z])grok",
    "nova": r"^(us\.|eu\.|apac\.)?amazon\.nova|^nova-(micro|lite|pro|premier)",
    "falcon": r"falcon",
    "yi": r"(?<![a-z])yi-(\d|vl|coder|large|medium|lightning)",
    "internlm": r"internlm",
    "nemotron": r"nemotron",
    "kimi": r"(?<![a-z])(kimi|moonlight)-",
    "minimax": r"minimax",
    "hunyuan": r"hunyuan",
    "ernie": r"(?<![a-z])ernie-",
    "pythia": r"pythia-",
    "bloom": r"(?<![a-z])bloomz?(-|$)",
    "tinyllama": r"tinyllama",
    "openllama": r"open[_-]?llama",
}
"""Family -> what is searched for in the last part of a model's name, in lower case."""

_TYPES = {
    "gpt2": "openai",
    "gpt_oss": "openai",
    "cohere": "command",
    "cohere2": "command",
    "chatglm": "glm",
    "mixtral": "mistral",
    "ministral": "mistral",
}
"""`model_type` of a saved model -> family, where the patterns do not find it."""

_SHARED_TYPES = ("llama",)
"""Architectures that many unrelated families use (SmolLM2, Yi, DeepSeek LLM): they tell nothing."""

_FORM = re.compile(r"[-_.](gguf|awq|gptq|fp8|mlx|bnb|int[48]|[48]-?bit|i?q\d(_[a-z0-9]+)*|w\d+a\d+)(?=[-_.]|$)")
_TAG = re.compile(r":(i?q\d\w*|fp16|bf16|latest|free)$")
_CACHED = re.compile(r"models--(.+)$")
_SIZE = re.compile(r"(?<![a-z0-9.])(?:\d+x)?(\d+(?:\.\d+)?)([mb])(?![a-z0-9])")
_UNITS = {"m": 1e6, "b": 1e9}


def families_of(name: str) -> frozenset[str]:
    """Families of a model; empty when they are not known.

    A model of one family that was trained on another's answers is of both: DeepSeek-R1-Distill-Qwen-7B.

    Args:
        name: a Hub id, a server's name for it, or a local directory. Of a directory whose own name tells nothing,
            the name of the Hub's cache or its config.json does.
    """
    found = _named(last_part(name))
    if found or not Path(name).is_dir():
        return found
    cached = next((match for part in Path(name).resolve().parts if (match := _CACHED.match(part))), None)
    return _named(last_part(cached[1].replace("--", "/"))) if cached else _saved(Path(name))


def last_part(name: str) -> str:
    """The last part of a model's name or path, in lower case, without what only says how it is stored."""
    last = name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
    return _FORM.sub("", _TAG.sub("", last))


def same_model(first: Model, second: Model) -> bool:
    """Whether two settings name one model; of directories the place counts, of other names the last part."""
    return bool(_identities(first) & _identities(second))


def num_parameters_of(name: str) -> float | None:
    """Number of parameters by the model's name (`0.5B`, `135M`), else by its files if it is a local directory.

    Raises:
        ModelError: the files are damaged.
    """
    sizes = [float(number) * _UNITS[unit] for number, unit in _SIZE.findall(last_part(name))]
    if sizes:
        return max(sizes)  # a second number is that of its active parameters, or of its context
    if not Path(name).is_dir():
        return None
    from llmdistill.engines.models import num_parameters

    return num_parameters(Path(name)) or None


def _identities(model: Model) -> set[str]:
    names = [model.model, *([model.weights] if model.weights else [])]
    return {str(Path(name).resolve()) if Path(name).is_dir() else last_part(name) for name in names}


def _named(last: str) -> frozenset[str]:
    return frozenset(family for family, pattern in _FAMILIES.items() if re.search(pattern, last))


def _saved(path: Path) -> frozenset[str]:
    """What config.json says: the name it was saved under, else its architecture."""
    try:
        values = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return frozenset()
    values = values if isinstance(values, dict) else {}
    kind = values.get("model_type")
    found = _named(last_part(str(values.get("_name_or_path") or "")))
    if found or not isinstance(kind, str) or kind in _SHARED_TYPES:
        return found
    return frozenset({_TYPES[kind]}) if kind in _TYPES else _named(kind)
