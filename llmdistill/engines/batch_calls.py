"""The calls to a provider's Files and Batch API, each under the one retry policy.

The `openai` package builds the requests; its own retries are off, it follows no redirect, and what it makes
of a reply is not used: replies are read as untrusted JSON, bounded in time and size, with the key blotted out.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import httpx2
from openai import APIError, APIStatusError, OpenAI
from openai._legacy_response import LegacyAPIResponse

from llmdistill.config import Model
from llmdistill.engines.batch_shard import parse_row
from llmdistill.engines.chat import MalformedReply, parse_reply
from llmdistill.engines.endpoint import Endpoint, is_loopback
from llmdistill.engines.retry import Backoff, Verdict, classify, retry_after
from llmdistill.errors import LlmdistillError, ServerError, TryLaterError
from llmdistill.run.files import replacing

T = TypeVar("T")

_PAGE = 100
_SLOWEST = 50_000
"""Bytes per second; a reply that comes more slowly has only `api.timeout` in all."""

SEARCH_WAITS = (0.0, 1.0, 2.0, 4.0)
"""Seconds before each look for a batch that may have been made: a server may still be making it."""

_DOWNLOADS = 3
_OVER = {"completed", "failed", "expired", "cancelled"}
_ID = re.compile(r"[A-Za-z0-9_.:=~-]{1,200}")


class QueueFull(Exception):
    """The server takes no more batches for now."""


@dataclass(frozen=True)
class BatchState:
    """What the server says of a batch.

    Attributes:
        status: "completed", "failed", "expired" or "cancelled" when it is over.
        problem: why it failed, in the server's words, and the code it has for that.
    """

    status: str
    file_ids: tuple[str, ...] = ()
    num_answered: int = 0
    num_failed: int = 0
    problem: str = ""
    problem_code: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.status in _OVER


class BatchCalls:
    """Files and batches of one server."""

    def __init__(self, settings: Model, endpoint: Endpoint) -> None:
        self.api, self.model, self.endpoint = settings.api, settings.model, endpoint
        self._client = _client(endpoint, settings.api.timeout, settings.api.max_reply_bytes)
        self._backoff = Backoff()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def find_file(self, name: str) -> str | None:
        """Id of an uploaded file, if there is one of that name."""
        files = self._client.files.with_raw_response

        def page(after: dict[str, str]) -> LegacyAPIResponse[Any]:
            return files.list(purpose="batch", limit=_PAGE, **after)  # type: ignore[arg-type]

        return self._call(lambda: next((row["id"] for row in self._all(page) if row.get("filename") == name), None))

    def upload(self, path: Path, name: str) -> str:
        """Send a file; gives its id. A call that failed may have left the file there, so that is looked for first."""

        def send() -> str:
            with open(path, "rb") as handle:
                reply = self._client.files.with_raw_response.create(file=(name, handle), purpose="batch")
            return _id_of(self._json(reply))

        return self._call(send, lambda: self.find_file(name))

    def create(self, key: str, file_id: str, others_run: bool) -> str:
        """Make a batch; gives its id.

        A call that failed may have made it all the same, so before another one the server is searched for the key.

        Args:
            others_run: whether there is another batch to wait for when the server takes no more.

        Raises:
            QueueFull: another batch has to end first.
        """

        def make() -> str:
            reply = self._client.batches.with_raw_response.create(
                completion_window="24h",
                endpoint="/v1/chat/completions",
                input_file_id=file_id,
                metadata={"llmdistill": key},
            )
            return _id_of(self._json(reply))

        return self._call(make, lambda: self._search_batch(key), has_alternative=others_run)

    def find_batches(self, keys: set[str]) -> dict[str, str]:
        """Ids of the batches that were made for these keys, by key; without those that were not made (yet)."""
        return self._call(lambda: self._find_batches(keys))

    def _search_batch(self, key: str) -> str | None:
        for wait in SEARCH_WAITS:
            time.sleep(wait)
            found = self.find_batches({key})
            if found:
                return found[key]
        return None

    def _find_batches(self, keys: set[str]) -> dict[str, str]:
        batches, found = self._client.batches.with_raw_response, {}

        def page(after: dict[str, str]) -> LegacyAPIResponse[Any]:
            return batches.list(limit=_PAGE, **after)  # type: ignore[arg-type]

        for row in self._all(page):
            metadata = row.get("metadata")
            key = metadata.get("llmdistill") if isinstance(metadata, dict) else None
            if key in keys:
                found[key] = str(row["id"])
                if len(found) == len(keys):
                    break
        return found

    def state(self, batch_id: str, advice: str) -> BatchState:
        """How far a batch is. `advice` is for when the server does not know it."""
        retrieve = self._client.batches.with_raw_response.retrieve
        return self._call(lambda: _state_of(self._json(retrieve(batch_id))), advice=advice)

    def download(self, file_ids: Sequence[str], path: Path, num_lines: int, advice: str) -> None:
        """Put the lines of these files into one, atomically.

        Args:
            num_lines: lines there should be; with fewer, the files are fetched again a few times.
        """
        with replacing(path) as temporary, open(temporary, "wb") as handle:
            for attempt in range(_DOWNLOADS):
                handle.seek(0)
                found = sum(self._call(_copying(self, file_id, handle), advice=advice) for file_id in file_ids)
                if found >= num_lines:
                    return
                time.sleep(self._backoff.delay(attempt))

    def copy(self, file_id: str, handle: IO[bytes], start: int) -> int:
        """Write a file's lines from this place on; gives the number of those that are whole."""
        handle.seek(start)
        handle.truncate()
        count = 0
        with self._client.files.with_streaming_response.content(file_id) as response:
            for line in _lines(response.iter_bytes(1 << 16), self.api.max_reply_bytes):
                handle.write(self._scrub(line) + b"\n")
                count += parse_row(line) is not None
        handle.flush()
        return count

    def _all(self, page: Callable[[dict[str, str]], LegacyAPIResponse[Any]]) -> Iterator[dict[str, Any]]:
        """Every object of a paginated listing. A server that ignores the cursor is not asked for ever."""
        after: dict[str, str] = {}
        seen: set[str] = set()
        while True:
            listing = self._json(page(after))
            rows = listing.get("data")
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise MalformedReply("no listing")
            ids = [_id_of(row) for row in rows]
            if not set(ids) - seen:
                return
            yield from rows
            if listing.get("has_more") is False:
                return
            seen |= set(ids)
            after = {"after": ids[-1]}

    def _json(self, reply: LegacyAPIResponse[Any]) -> dict[str, Any]:
        found = parse_reply(self._scrub(reply.content))
        if not isinstance(found, dict):
            raise MalformedReply("not a JSON object")
        return found

    def _scrub(self, data: bytes) -> bytes:
        return self.endpoint.key.scrub(data) if self.endpoint.key else data

    def _call(
        self,
        call: Callable[[], T],
        recover: Callable[[], T | None] | None = None,
        has_alternative: bool = False,
        advice: str | None = None,
    ) -> T:
        """Make a call until it succeeds.

        Args:
            recover: finds out whether a call that seemed to fail had its effect; gives the result if so.
            has_alternative: whether there is something better to do than to wait out a rate limit.

        Raises:
            QueueFull: there is a rate limit and something better to do.
            ServerError: the server refuses it.
            TryLaterError: it did not succeed for `api.patience` seconds, or is not to be made for long.
        """
        started, attempt = time.monotonic(), 0
        while True:
            try:
                return call()
            except Exception as error:
                verdict, asked = self._judge(error)
            limited = verdict.reason == "rate_limit"
            if limited and has_alternative:
                raise QueueFull
            if verdict.kind != "retry":
                raise self._refusal(verdict, advice)
            self._wait(verdict, asked, started, attempt)
            found = recover() if recover and not limited else None
            if found is not None:
                return found
            attempt += 1

    def _judge(self, error: Exception) -> tuple[Verdict, float | None]:
        """What a failed call means, and how long the server asks to wait. What is no failed call is raised again."""
        if isinstance(error, APIStatusError):
            verdict = classify(error.status_code, self._scrub(error.response.content))
            return verdict, retry_after(error.response.headers, time.time())
        if isinstance(error, MalformedReply):
            return Verdict("retry", "malformed_reply", str(error)), None
        if isinstance(error, APIError | httpx2.HTTPError):
            cause = error.__cause__ if isinstance(error, APIError) and error.__cause__ else error
            timed_out = isinstance(cause, httpx2.TimeoutException)
            return classify(None, error=TimeoutError("no whole reply in time") if timed_out else cause), None
        raise error

    def _wait(self, verdict: Verdict, asked: float | None, started: float, attempt: int) -> None:
        advice = "run the same command again later; it goes on where it stopped"
        if asked is not None and asked > self.api.max_retry_after:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + asked))
            raise TryLaterError(f"the server asks to wait until {when}", where=self.endpoint.host, do=advice)
        silent = time.monotonic() - started
        if silent > self.api.patience:
            reason = f"{verdict.reason.replace('_', ' ')}: {verdict.detail}"
            raise TryLaterError(f"no answer for {silent:,.0f} s ({reason})", where=self.endpoint.host, do=advice)
        time.sleep((asked or 0.0) + self._backoff.delay(attempt))

    def _refusal(self, verdict: Verdict, advice: str | None) -> LlmdistillError:
        advice = (
            advice or "check the key, api.base_url, and whether this server has a Batch API (else api.batch: false)"
        )
        return ServerError(f"the server refuses the batch: {verdict.detail}", where=self.endpoint.host, do=advice)


def _copying(calls: BatchCalls, file_id: str, handle: IO[bytes]) -> Callable[[], int]:
    """A copy that starts over at the same place when it is repeated."""
    start = handle.tell()
    return lambda: calls.copy(file_id, handle, start)


def _lines(chunks: Iterator[bytes], most: int) -> Iterator[bytes]:
    """Lines without their ends; one of more than `most` bytes becomes a damaged line."""
    rest, too_long = b"", False
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield b"{}" if too_long else line
            too_long = False
        if len(rest) > most:
            rest, too_long = b"", True
    if rest or too_long:
        yield b"{}" if too_long else rest


def _id_of(row: dict[str, Any]) -> str:
    found = row.get("id")
    if not isinstance(found, str) or not _ID.fullmatch(found):
        raise MalformedReply("no id")
    return found


def _state_of(row: dict[str, Any]) -> BatchState:
    status, counts = row.get("status"), row.get("request_counts")
    if not isinstance(status, str):
        raise MalformedReply("a batch without a status")
    answered, failed = (_count(counts, name) for name in ("completed", "failed"))
    ids = tuple(_id_of({"id": row[name]}) for name in ("output_file_id", "error_file_id") if row.get(name))
    return BatchState(status, ids, answered, failed, *_problem_of(row))


def _count(counts: object, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0


def _problem_of(row: dict[str, Any]) -> tuple[str, str]:
    errors = row.get("errors")
    listed = errors.get("data") if isinstance(errors, dict) else None
    first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
    return " ".join(str(first.get("message") or "").split())[:300], str(first.get("code") or "")


def _client(endpoint: Endpoint, timeout: float, max_reply_bytes: int) -> OpenAI:
    """The package's client, bound to one address and one key whatever else the environment holds."""

    def without_key(request: httpx2.Request) -> None:
        del request.headers["Authorization"]

    key = endpoint.key.reveal() if endpoint.key else "none"
    http_client = httpx2.Client(
        follow_redirects=False,
        trust_env=not is_loopback(endpoint.host),
        timeout=timeout,
        event_hooks={
            "request": [] if endpoint.key else [without_key],
            "response": [lambda response: _bound(response, timeout, max_reply_bytes)],
        },
    )
    return OpenAI(
        api_key=key,
        admin_api_key="",
        base_url=endpoint.url,
        timeout=timeout,
        max_retries=0,
        default_headers={"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"},
        http_client=http_client,
    )


class _Bounded(httpx2.SyncByteStream):
    """A reply's body with a bound to its time and its size. A file may be long, and then has more time."""

    def __init__(self, response: httpx2.Response, timeout: float, max_bytes: int) -> None:
        assert isinstance(response.stream, httpx2.SyncByteStream)
        is_file = response.request.url.path.endswith("/content") and response.status_code == 200
        self._bytes_per_second = _SLOWEST if is_file else math.inf
        self._most = math.inf if is_file else max_bytes
        self._inner, self._timeout, self._started = response.stream, timeout, time.monotonic()

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._inner:
            size += len(chunk)
            if time.monotonic() - self._started > self._timeout + size / self._bytes_per_second:
                raise httpx2.ReadTimeout("no whole reply in time")
            if size > self._most:
                raise httpx2.RemoteProtocolError(f"a reply of more than {self._most:,} bytes")
            yield chunk

    def close(self) -> None:
        """Give the connection back."""
        self._inner.close()


def _bound(response: httpx2.Response, timeout: float, max_bytes: int) -> None:
    """Bound a reply that is about to be read."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx2.RemoteProtocolError("a compressed reply that was not asked for")
    response.stream = _Bounded(response, timeout, max_bytes)
