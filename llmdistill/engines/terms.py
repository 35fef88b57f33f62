"""What a model's licence or terms say on training other models with its answers.

Not legal advice. The table is dated and short; a family that is not in it is unknown, and its terms are for the
user to read.
"""

from __future__ import annotations

import datetime
import functools
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from llmdistill.config import Model, Settings
from llmdistill.engines.endpoint import base_urls
from llmdistill.errors import ConfigError

UNKNOWN = "unknown: read its terms"

_TABLE = Path(__file__).with_name("terms.yaml")
_SEVERITY = ("allows", "conditions", "forbids")


class Terms(Settings):
    """One family's terms on training other models with the answers; not legal advice.

    Attributes:
        restricts: whether training another model is forbidden (wholly or for those that compete),
            allowed under conditions, or not limited.
        hosts: servers whose terms these are, whichever model they serve.
        models: regular expressions, searched for in the last part of a model's name.
        as_of: the day the text at `url` was read.
    """

    family: str
    restricts: Literal["forbids", "conditions", "allows"]
    summary: str
    url: str
    as_of: datetime.date
    hosts: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    @property
    def needs_consent(self) -> bool:
        """Whether a person has to say that the terms were read."""
        return self.restricts != "allows"


def terms_of(settings: Model) -> Terms | None:
    """Terms that hold for a model's answers, None when they are not known.

    A provider's own server goes before the model's name; of several servers the strictest counts.
    """
    hosts = _hosts(settings) if settings.engine == "openai" else []
    found = [terms for terms in map(_terms_at, hosts) if terms]
    if found:
        return max(found, key=lambda terms: _SEVERITY.index(terms.restricts))
    names = [settings.model, *([settings.weights] if settings.weights else [])]
    return next((terms for terms in map(_terms_named, names) if terms), None)


def check_terms(settings: Model, key: str = "teacher") -> None:
    """Refuse a model whose terms restrict training, until the pipeline file says that they were read.

    Not legal advice: unknown terms pass, and so does whoever sets the switch.

    Args:
        key: where the model stands in the pipeline file.

    Raises:
        ConfigError: the terms forbid it or set conditions, and `accept_terms` is not set.
    """
    terms = terms_of(settings)
    if terms is None or not terms.needs_consent or settings.accept_terms:
        return
    verb = "restrict" if terms.restricts == "forbids" else "set conditions on"
    what = f"the terms of {terms.family} {verb} training on its answers: {terms.summary}"
    advice = f"read {terms.url} (summary of {terms.as_of}); if you may go on, add {key}.accept_terms: true"
    raise ConfigError(what, where=f"{key}.model ({settings.model})", do=advice)


def _hosts(settings: Model) -> list[str]:
    hosts = []
    for url in base_urls(settings.api):
        try:
            hosts.append(urlsplit(url).hostname or "")
        except ValueError:  # whoever opens the connection says what is wrong with it
            continue
    return hosts


def _terms_at(host: str) -> Terms | None:
    for terms in _table():
        if any(host == own or (own.startswith(".") and host.endswith(own)) for own in terms.hosts):
            return terms
    return None


def _terms_named(name: str) -> Terms | None:
    last = name.rstrip("/").rpartition("/")[2].lower()
    for terms in _table():
        if any(re.search(pattern, last) for pattern in terms.models):
            return terms
    return None


@functools.cache
def _table() -> tuple[Terms, ...]:
    values: Any = yaml.load(_TABLE.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return tuple(Terms.model_validate(entry) for entry in values["terms"])
