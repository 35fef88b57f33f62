"""One call on the wire: bounded in time, size and reach."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import time
import tracemalloc
import zlib

import pytest

from llmdistill.engines import http as module
from llmdistill.engines.endpoint import Endpoint, Secret
from llmdistill.engines.http import Http, Reply
from llmdistill.engines.retry import TransportError
from tests.engines.loopback import Answer, chat, serving

KEY = "sk-http-0123456789abcdef"
MOST = 1_000_000
ASK = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()


def call(url: str, timeout: float = 10, times: int = 1, body: bytes | None = ASK, most: int = MOST) -> list[Reply]:
    async def every() -> list[Reply]:
        async with Http(timeout, most) as http:
            return [await http.call(Endpoint(url, Secret(KEY)), "/chat/completions", body) for _ in range(times)]

    return asyncio.run(every())


def reason(url: str, **options: object) -> TransportError:
    with pytest.raises(TransportError) as caught:
        call(url, **options)  # type: ignore[arg-type]
    assert KEY not in str(caught.value)
    return caught.value


def test_a_call_brings_status_headers_and_body_and_carries_the_key():
    with serving(lambda _: Answer(418, {"a": 1}, {"X-More": "yes"})) as server:
        (reply,) = call(server.url)
    assert (reply.status, json.loads(reply.body), reply.headers["x-more"]) == (418, {"a": 1}, "yes")
    (seen,) = server.seen
    assert (seen.path, seen.headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert seen.headers["content-type"] == "application/json" and seen.body == json.loads(ASK)
    assert seen.headers["accept-encoding"] == "identity"


def test_without_a_body_it_is_a_question_for_what_is_there():
    with serving(lambda seen: Answer(200, {"method": str(seen.body)})) as server:
        (reply,) = call(server.url, body=None)
    assert reply.status == 200


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_given_back_and_nothing_is_sent_to_the_other_host(status):
    with serving(lambda _: Answer(200, chat("stolen"))) as other:
        location = {"Location": f"{other.url}/chat/completions"}
        with serving(lambda _: Answer(status, b"", location)) as server:
            (reply,) = call(server.url)
    assert reply.status == status and len(server.seen) == 1 and not other.seen


def test_a_cookie_is_not_sent_back():
    with serving(lambda _: Answer(200, chat("x"), {"Set-Cookie": "session=1"})) as server:
        call(server.url, times=3)
    assert not any("cookie" in seen.headers for seen in server.seen)


def test_a_key_that_is_repeated_is_blotted_out_of_every_body():
    for status in (200, 401, 500):
        with serving(lambda seen, status=status: Answer(status, {"error": dict(seen.headers)})) as server:
            (reply,) = call(server.url)
        assert KEY.encode() not in reply.body and b"Bearer ***" in reply.body


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_what_is_compressed_unasked_is_read_and_blotted_out_too(compress):
    data = compress(json.dumps(chat(f"the key {KEY}")).encode())
    encoding = "gzip" if compress is gzip.compress else "deflate"
    with serving(lambda _: Answer(200, data, {"Content-Encoding": encoding})) as server:
        (reply,) = call(server.url)
    assert b"the key ***" in reply.body and KEY.encode() not in reply.body


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"no gzip at all", "gzip"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-9], "gzip"),
        (b"", "gzip"),
        (b"x", "br"),
        (b"x", "gzip, gzip"),
        (gzip.compress(bytes(2 * MOST), mtime=0), "gzip"),
    ],
)
def test_compression_that_cannot_be_read_is_a_malformed_reply(data, encoding):
    with serving(lambda _: Answer(200, data, {"Content-Encoding": encoding})) as server:
        assert reason(server.url).reason == "malformed_reply"


def test_a_gzip_bomb_does_not_fill_the_memory(teacher):
    teacher.begin(rules=[{"kind": "gzip_bomb"}])
    tracemalloc.start()
    assert "decompressed" in reason(teacher.url, timeout=30, most=4 * MOST).detail
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * MOST


@pytest.mark.parametrize("kind", ["big", "endless_header"])
def test_a_reply_that_is_too_long_is_not_read_to_its_end(teacher, kind):
    teacher.begin(rules=[{"kind": kind}])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason(teacher.url, timeout=30).reason in ("malformed_reply", "connection_lost")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # kB


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_the_limit_is_kept_to_the_byte(size):
    with serving(lambda _: Answer(200, b"x" * (1000 + size))) as server:
        if size > 0:
            assert reason(server.url, most=1000).reason == "malformed_reply"
        else:
            assert len(call(server.url, most=1000)[0].body) == 1000 + size


@pytest.mark.parametrize("kind", ["hang", "drip", "slow_header"])
def test_a_call_has_a_deadline_however_the_server_lingers(teacher, kind):
    teacher.begin(rules=[{"kind": kind, "delay": 0.2}])
    started = time.monotonic()
    assert reason(teacher.url, timeout=0.6).reason == "timeout"
    assert time.monotonic() - started < 5


BROKEN = ["reset", "close", "chunks_that_stop", "fewer_bytes_than_said", "not_http", "bad_length"]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_connection_is_an_error_of_ours_that_names_no_internals(teacher, kind):
    teacher.begin(rules=[{"kind": kind}])
    assert reason(teacher.url).reason in ("connection_lost", "malformed_reply")


def test_nobody_listening_is_unreachable():
    with serving(lambda _: Answer()) as server:
        url = server.url
    assert reason(url).reason == "unreachable"


def test_a_connection_is_used_again(teacher):
    assert len(call(teacher.url, times=30)) == 30
    assert teacher.count()["num_connections"] <= 3


class TestProxy:
    @pytest.fixture(autouse=True)
    def afresh(self, monkeypatch):
        module._proxy_for.cache_clear()
        for name in ("http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield
        module._proxy_for.cache_clear()

    def test_that_of_the_environment_is_taken_for_other_machines_alone(self, monkeypatch):
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:3128")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:3129")
        assert module._proxy_for("https://example.com/v1") == "http://127.0.0.1:3128"
        assert module._proxy_for("http://127.0.0.1:8000/v1") is None
        assert module._proxy_for("http://localhost/v1") is None

    def test_hosts_that_the_environment_excepts_are_called_directly(self, monkeypatch):
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:3128")
        monkeypatch.setenv("no_proxy", "example.com")
        assert module._proxy_for("https://example.com/v1") is None

    def test_none_is_none(self):
        assert module._proxy_for("https://example.com/v1") is None
