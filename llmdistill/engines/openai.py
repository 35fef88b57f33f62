"""Engine over servers that speak OpenAI's chat completions: OpenAI, vLLM, SGLang, Ollama, llama.cpp, gateways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator

from llmdistill.config import Model
from llmdistill.engines.base import Completion, Request
from llmdistill.engines.chat import MalformedReply, parse_reply
from llmdistill.engines.endpoint import Endpoint, endpoints_of
from llmdistill.engines.http import Http
from llmdistill.engines.retry import TransportError, classify
from llmdistill.engines.session import GRACE_SECONDS, Session, refusal
from llmdistill.errors import Interrupted, ServerError, TryLaterError


class OpenAIEngine:
    """Engine over one or several servers of the same model."""

    def __init__(self, settings: Model, endpoints: list[Endpoint]) -> None:
        self.settings, self.endpoints = settings, endpoints
        self._session: Session | None = None

    @classmethod
    def open(cls, settings: Model) -> OpenAIEngine:
        """Check addresses and keys; nothing is sent yet."""
        return cls(settings, endpoints_of(settings))

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Stream answers as they arrive.

        Raises:
            ServerError: the server refuses every request (key, model or address are wrong).
            TryLaterError: no answer for `api.patience` seconds, or asked to wait longer than `api.max_retry_after`.
        """
        session = self._session = Session(self.settings, self.endpoints, iter(requests))
        session.start()
        try:
            yield from session.answers()
        except Interrupted:
            session.stop_asking()
            yield from session.answers(until=time.monotonic() + GRACE_SECONDS)
            raise
        finally:
            session.close()
        if session.problem is not None:
            raise session.problem

    def status(self) -> str:
        """Calls in flight and rate-limit hits."""
        return self._session.status() if self._session else ""

    def close(self) -> None:
        """Connections live no longer than a `complete`."""


def served_models(settings: Model, timeout: float = 10.0) -> dict[str, list[str]]:
    """Names of the models that each server says it has, by host.

    Raises:
        ConfigError, ServerError, TryLaterError: address, key or server are not in order.
    """

    async def look() -> dict[str, list[str]]:
        async with Http(timeout, settings.api.max_reply_bytes) as http:
            return {endpoint.url: await _models_at(http, endpoint, settings) for endpoint in endpoints_of(settings)}

    return asyncio.run(look())


async def _models_at(http: Http, endpoint: Endpoint, settings: Model) -> list[str]:
    try:
        reply = await http.call(endpoint, "/models")
    except TransportError as error:
        raise TryLaterError(f"no answer ({error})", where=endpoint.host, do="start the server") from None
    if reply.status != 200:
        verdict = classify(reply.status, reply.body)
        raise refusal(verdict, endpoint, settings)
    try:
        found = parse_reply(reply.body)
        return [str(model["id"]) for model in found["data"]]
    except (MalformedReply, KeyError, TypeError):
        raise ServerError("this is no list of models", where=endpoint.host, do="check api.base_url") from None
