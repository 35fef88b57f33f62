"""Where a served model is asked, and with which key.

A key comes from an environment variable and lives in a `Secret`, which shows as `***`.
It is sent over https, or over http to this machine only, and to the configured address only.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmdistill.config import Api, Model
from llmdistill.errors import ConfigError

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
_SHOWN = "***"
_SHORTEST_KEY = 12


class Secret:
    """A value that must not be shown. Only `reveal` gives it."""

    __slots__ = ("_escaped", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        forms = (rf"(?:\\?{re.escape(c)}|\\u00{ord(c):02x})" for c in value)
        self._escaped = re.compile("".join(forms).encode("latin-1", "replace"), re.IGNORECASE)

    def reveal(self) -> str:
        """The value itself, for the one header it belongs into."""
        return self._value

    def scrub(self, data: bytes) -> bytes:
        """Data from outside, with the value replaced wherever a server repeats it, also with JSON's escapes.

        What is as short as a word of a text ("EMPTY", "ollama") is no key, but what servers without keys are given.
        """
        if len(self._value) < _SHORTEST_KEY:
            return data
        # The escaped form first: the plain one would leave half of its last escape behind.
        for form in (json.dumps(self._value)[1:-1], self._value):
            data = data.replace(form.encode(), _SHOWN.encode())
        return self._escaped.sub(_SHOWN.encode(), data) if b"\\u00" in data or b"\\/" in data else data

    def __repr__(self) -> str:
        return _SHOWN

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a secret is not to be written anywhere")


@dataclass(frozen=True)
class Endpoint:
    """One server: its address (without a slash at the end) and its key, if it wants one."""

    url: str
    key: Secret | None = None

    @property
    def host(self) -> str:
        """Host name, for messages."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own server, which names some parameters its own way."""
        return self.host == urlsplit(OPENAI_URL).hostname

    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        return {"Authorization": f"Bearer {self.key.reveal()}"} if self.key else {}


def base_urls(api: Api) -> list[str]:
    """Addresses that the settings name, in their order, usable or not."""
    named = api.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    return [url.rstrip("/") for url in ([named] if isinstance(named, str) else named)]


def usable_urls(api: Api) -> list[str]:
    """The same addresses.

    Raises:
        ConfigError: one cannot be used.
    """
    found = base_urls(api)
    for url in found:
        _check_url(url)
    return found


def endpoints_of(settings: Model) -> list[Endpoint]:
    """Servers that answer for a model.

    Raises:
        ConfigError: an address cannot be used, a key is missing or would be sent where it must not go.
    """
    found = [Endpoint(url, _key_for(url, settings.api)) for url in usable_urls(settings.api)]
    for endpoint in found:
        _check_key(endpoint)
    return found


def _key_for(url: str, api: Api) -> Secret | None:
    own = urlsplit(url).hostname == urlsplit(OPENAI_URL).hostname
    name = api.api_key_env or (OPENAI_KEY if own else None)
    if name is None:
        return None
    value = os.environ.get(name, "").strip()
    if not value:
        advice = f"export {name}=..., or set api.api_key_env to the variable that holds the key"
        raise ConfigError(f"no key: the environment variable {name} is not set", where=_place(url), do=advice)
    if not value.isascii() or not value.isprintable():
        raise ConfigError(f"the key in {name} holds characters that no key has", where=_place(url), do=f"mend {name}")
    return Secret(value)


def _check_url(url: str) -> None:
    where = _place(url)
    try:
        parts = urlsplit(url)
        num = parts.port
    except ValueError:
        raise ConfigError("this is no address", where=where, do="mend api.base_url") from None
    if num == 0 or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("a base URL starts with https:// or http://", where=where, do="mend api.base_url")
    if "@" in parts.netloc or parts.query or parts.fragment:
        advice = "put the key into an environment variable and its name into api.api_key_env"
        raise ConfigError("a base URL holds no user, password or query", where=where, do=advice)
    if _is_link_local(parts.hostname):
        raise ConfigError("this address serves a machine's own metadata, not a model", where=where)


def _check_key(endpoint: Endpoint) -> None:
    parts, where = urlsplit(endpoint.url), _place(endpoint.url)
    if endpoint.key and parts.scheme == "http" and not is_loopback(endpoint.host):
        advice = "use https, or leave api.api_key_env out"
        raise ConfigError("a key is not sent over plain http to another machine", where=where, do=advice)


def _place(url: str) -> str:
    """The setting and the host; the rest of an address may hold a secret."""
    try:
        return f"api.base_url ({urlsplit(url).hostname or 'no host'})"
    except ValueError:
        return "api.base_url"


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_link_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        return False
