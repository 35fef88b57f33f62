"""What a model's tokens cost. A price that is not known is None, never 0."""

from __future__ import annotations

import datetime
import functools
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError

from llmdistill.config import Fraction, Model, NotNegative, Price, Settings
from llmdistill.engines.endpoint import base_urls, is_loopback
from llmdistill.errors import ConfigError

TABLE_VARIABLE = "LLMDISTILL_PRICES"
OLD_DAYS = 180
"""From this age on a price should be looked up again."""

FREE = Price(input=0.0, output=0.0)
_FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SHIPPED = Path(__file__).with_name("prices.yaml")
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")


class ListPrice(Price):
    """A price from a table: who says so, since when, and what part of it a batch costs."""

    batch: Fraction = 1.0
    source: str
    as_of: datetime.date


class _Entry(Settings):
    """US dollars per million tokens."""

    input: NotNegative
    output: NotNegative


class _Host(Settings):
    """The prices of one provider."""

    host: str = "*"
    source: str
    as_of: datetime.date
    batch: Fraction = 1.0
    models: dict[str, _Entry | None]


class _Table(Settings):
    """A price file."""

    prices: tuple[_Host, ...]


def price_of(settings: Model) -> Price | None:
    """Price of a model's tokens; None when it is not known.

    The pipeline file's own price goes first; then local engines and servers on this machine, which cost
    nothing; then the user's table, then the shipped one. Of several servers the dearest counts.

    Raises:
        ConfigError: the user's table cannot be used.
    """
    if settings.price is not None:
        return settings.price
    if settings.engine != "openai":
        return FREE
    found = [_price_at(url, settings.model) for url in base_urls(settings.api)]
    known = [price for price in found if price is not None]
    return max(known, key=lambda price: price.input + price.output) if len(known) == len(found) else None


def cost_of(price: Price, prompt_tokens: float, completion_tokens: float, batch: bool) -> float:
    """US dollars for so many tokens. A price of the pipeline file is taken as it is, for batches too."""
    part = price.batch if batch and isinstance(price, ListPrice) else 1.0
    return part * (prompt_tokens * price.input + completion_tokens * price.output) / 1e6


def age_in_days(price: Price | None, today: datetime.date | None = None) -> int | None:
    """Days since a price of a table was looked up; None for other prices."""
    if not isinstance(price, ListPrice):
        return None
    return ((today or datetime.date.today()) - price.as_of).days


def _price_at(url: str, model: str) -> Price | None:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # whoever opens the connection says what is wrong with it
        return None
    if is_loopback(host):
        return FREE
    own = _own_table()
    for table in [*([_read(own)] if own else []), _shipped_table()]:
        listed, price = _look_up(table, host, model)
        if listed:
            return price
    return None


def _look_up(table: _Table, host: str, model: str) -> tuple[bool, ListPrice | None]:
    """Whether the table knows the model, and its price: by the exact name, else by that without its date."""
    for name in dict.fromkeys([model, _SNAPSHOT.sub("", model)]):
        for entry in table.prices:
            if entry.host in (host, "*") and name in entry.models:
                price = entry.models[name]
                return True, None if price is None else _list_price(entry, price)
    return False, None


def _list_price(entry: _Host, price: _Entry) -> ListPrice:
    return ListPrice(input=price.input, output=price.output, batch=entry.batch, source=entry.source, as_of=entry.as_of)


def _own_table() -> Path | None:
    """Path of the user's table, if there is one."""
    named = os.environ.get(TABLE_VARIABLE)
    if named:
        return Path(named)
    path = Path(os.path.expanduser("~/.config/llmdistill/prices.yaml"))
    return path if path.is_file() else None


@functools.cache
def _shipped_table() -> _Table:
    return _read(_SHIPPED)


def _read(path: Path) -> _Table:
    advice = f"write it like {_SHIPPED}"
    loader = _FAST_LOADER if path == _SHIPPED else yaml.SafeLoader  # the fast one names another line in its errors
    try:
        values: Any = yaml.load(path.read_bytes().decode("utf-8-sig"), loader)
        return _Table.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ConfigError(f"{key}: {problem['msg']}", where=path, do=advice) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"not valid YAML: {error.problem}", where=f"{path}:{line}", do=advice) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"not a UTF-8 YAML file ({error})", where=path, do=advice) from None
    except OSError as error:
        what = f"this price table cannot be read ({error.strerror or error})"
        raise ConfigError(what, where=path, do=f"check ${TABLE_VARIABLE}") from None
