"""The hot path: JSON bodies posted over a pool of connections, each call with a deadline.

aiohttp, because at thousands of calls a second the `openai` client's own work is what takes the time
(tests/bench/bench_engines.py). Replies are bounded in size, redirects are not followed, a key that a
server repeats is blotted out before anyone sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import aiohttp

from llmdistill.engines.endpoint import Endpoint, is_loopback
from llmdistill.engines.retry import TransportError

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection

_CONNECT_SECONDS = 30.0
_LARGE_BYTES, _LARGE_AT_ONCE = 1_000_000, 4
"""Only so many replies longer than that are read at a time, so that they fit into memory however many are in flight."""

_ID_WITHIN = 1000
_OWN_ID = re.compile(rb'"id"\s*:\s*"[^"]')
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Request(aiohttp.ClientRequest):
    """Is not sent over a connection on which something came unasked: that would be taken for its reply."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Send it, or close a connection that has something to read already."""
        if conn.protocol is not None and conn.protocol.should_close:
            conn.close()
            raise aiohttp.ClientConnectionError("a reply that nobody asked for")
        return await super().send(conn)


class _Response(aiohttp.ClientResponse):
    """Knows the connection it came over."""

    came_over: ResponseHandler | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        self.came_over = connection.protocol
        return await super().start(connection)


class Http:
    """Connections to the endpoints of one engine. Use inside an event loop, as a context manager.

    Args:
        timeout: seconds for a whole call, connecting and reading included.
        max_reply_bytes: a longer reply is an error.
    """

    def __init__(self, timeout: float, max_reply_bytes: int) -> None:
        self._max = max_reply_bytes
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._last_body: WeakKeyDictionary[ResponseHandler, int] = WeakKeyDictionary()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, _CONNECT_SECONDS)),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            auto_decompress=False,
            request_class=_Request,
            response_class=_Response,
        )

    async def __aenter__(self) -> Http:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._session.close()

    async def call(self, endpoint: Endpoint, path: str, body: bytes | None = None) -> Reply:
        """Post a body to `endpoint.url + path`, or get it when there is no body.

        Raises:
            TransportError: no whole reply came back in time.
        """
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                endpoint.url + path,
                data=body,
                headers=endpoint.headers(),
                allow_redirects=False,
                proxy=_proxy_for(endpoint.url),
            ) as response:
                data = await self._body_of(response)
                self._check_new(response, data)
                clean = endpoint.key.scrub(data) if endpoint.key else data
                return Reply(response.status, response.headers, clean)
        except TimeoutError:
            raise TransportError("timeout", "no whole reply within the deadline") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise TransportError("no_access", str(error.certificate_error)) from error.certificate_error
        except aiohttp.ClientConnectorError as error:
            raise TransportError(
                "unreachable", f"{endpoint.host}: {error.os_error.strerror or error.os_error}"
            ) from None
        except aiohttp.ClientResponseError:
            raise TransportError("malformed_reply", "this is not HTTP") from None
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise TransportError("connection_lost", type(error).__name__) from None

    async def _body_of(self, response: aiohttp.ClientResponse) -> bytes:
        """The body. One that breaks off after "200 OK" may have been charged for, unlike a lost connection."""
        try:
            return await self._read(response)
        except aiohttp.ClientPayloadError:
            reason = "malformed_reply" if response.status == 200 else "connection_lost"
            raise TransportError(reason, "the reply breaks off") from None

    def _check_new(self, response: aiohttp.ClientResponse, data: bytes) -> None:
        """A server that sends a reply twice would have its copy taken for the reply to the next request.

        Replies without an id of their own may be equal and yet be two.
        """
        connection = response.came_over if isinstance(response, _Response) else None
        if connection is None or response.status != 200:
            return
        if self._last_body.get(connection) == hash(data) and _OWN_ID.search(data, 0, _ID_WITHIN):
            connection.close()
            raise TransportError("malformed_reply", "the reply to the request before, again")
        self._last_body[connection] = hash(data)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """The body, as long as it is not too long."""
        if (response.content_length or 0) > self._max:
            raise self._too_long()
        parts, size = [], 0
        async with contextlib.AsyncExitStack() as stack:
            async for part in response.content.iter_any():
                if size <= _LARGE_BYTES < size + len(part):
                    await stack.enter_async_context(self._large)
                size += len(part)
                if size > self._max:
                    raise self._too_long()
                parts.append(part)
        data = b"".join(parts)
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        return data if encoding in ("identity", "") else self._inflate(data, encoding)

    def _too_long(self) -> TransportError:
        """Not kept in a variable of who raises it: the cycle would keep the parts alive until the next collection."""
        return TransportError("malformed_reply", f"a reply of more than {self._max:,} bytes")

    def _inflate(self, data: bytes, encoding: str) -> bytes:
        """Decompress what a server compressed unasked, bounded, so that a small reply cannot fill the memory."""
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise TransportError("malformed_reply", "a content encoding that was not asked for")
        inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            found = inflater.decompress(data, self._max + 1)
        except zlib.error:
            raise TransportError("malformed_reply", "damaged compression") from None
        if len(found) > self._max or not inflater.eof:
            what = f"more than {self._max:,} bytes when decompressed" if len(found) > self._max else "cut compression"
            raise TransportError("malformed_reply", what)
        return found


@functools.cache
def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this address; none for this machine itself."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies_environment()
    if is_loopback(host) or not proxies or urllib.request.proxy_bypass(host):
        return None
    return proxies.get(parts.scheme)
