"""Replies that no server should give, as the bytes on the wire. Each is a function of the right reply."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

Reply = dict[str, Any]
BIG = 50 << 20
"""Bytes of the reply that is too big."""
BOMB = 1 << 30
"""Bytes that the compressed reply unpacks to."""


def http(body: bytes, status: str = "200 OK", content_type: str = "application/json", *more: str) -> bytes:
    """A whole HTTP response; `more` are header lines, which may replace the content's length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", *more]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in more):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def with_choice(reply: Reply, **changes: Any) -> bytes:
    choice = {**reply["choices"][0], **changes}
    return http(as_json({**reply, "choices": [choice]}))


def with_message(reply: Reply, **changes: Any) -> bytes:
    return with_choice(reply, message={**reply["choices"][0]["message"], **changes})


def with_usage(reply: Reply, usage: Any) -> bytes:
    return http(as_json({**reply, "usage": usage}))


def text_of(reply: Reply) -> str:
    return reply["choices"][0]["message"]["content"]


def truncated_json(reply: Reply) -> bytes:
    body = as_json(reply)
    return http(body[: len(body) // 2])


def invalid_utf8(reply: Reply) -> bytes:
    return http(as_json(reply).replace(text_of(reply).encode(), b"caf\xe9 \xff\xfe"))


def duplicate_keys(reply: Reply) -> bytes:
    return http(b'{"choices": [], ' + as_json(reply)[1:])


def nested(_: Reply) -> bytes:
    return http(b'{"choices":' + b"[" * 10_000 + b"]" * 10_000 + b"}")


def nan(reply: Reply) -> bytes:
    usage = {"prompt_tokens": float("nan"), "completion_tokens": float("inf"), "total_tokens": 1e400}
    return with_usage(reply, usage)


def huge_integers(reply: Reply) -> bytes:
    number = "9" * 5000
    body = as_json({**reply, "usage": {"prompt_tokens": "#", "completion_tokens": "#"}}).decode()
    return http(body.replace('"#"', number).encode())


@cache
def _big() -> bytes:
    return http(b'{"choices": [{"message": {"content": "' + b"x" * BIG + b'"}}]}')


@cache
def _big_in_chunks() -> bytes:
    """Without its length said before."""
    body = b'{"choices": [{"message": {"content": "' + b"x" * BIG + b'"}}]}'
    chunks = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    return http(chunks, "200 OK", "application/json", "Transfer-Encoding: chunked")


@cache
def _bomb() -> bytes:
    """Blocks that end in a full flush may be repeated, so a gigabyte takes no time to pack."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(b" " * (1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    head = b"\x1f\x8b\x08" + bytes(7)
    body = head + block * (BOMB >> 24) + packer.flush(zlib.Z_FINISH) + struct.pack("<II", 0, BOMB & 0xFFFFFFFF)
    return http(body, "200 OK", "application/json", "Content-Encoding: gzip")


def gzip_truncated(reply: Reply) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = packer.compress(as_json(reply)) + packer.flush()
    return http(body[: len(body) // 2], "200 OK", "application/json", "Content-Encoding: gzip")


def chunks_that_stop(reply: Reply) -> bytes:
    body = as_json(reply)[:20]
    chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n"
    return http(chunk, "200 OK", "application/json", "Transfer-Encoding: chunked")


def fewer_bytes_than_said(reply: Reply) -> bytes:
    body = as_json(reply)
    return http(body[:-10], "200 OK", "application/json", f"Content-Length: {len(body)}")


def events(reply: Reply) -> bytes:
    return http(b"data: " + as_json(reply) + b"\n\ndata: [DONE]\n\n", "200 OK", "text/event-stream")


CLOSES = {"chunks_that_stop", "fewer_bytes_than_said", "not_http", "endless_header", "bad_length"}
"""After these the server closes the connection: there is nothing more to wait for."""

SHAPES: dict[str, Callable[[Reply], bytes]] = {
    "truncated_json": truncated_json,
    "html": lambda _: http(b"<html><h1>502 Bad Gateway</h1></html>", "200 OK", "text/html"),
    "empty_body": lambda _: http(b""),
    "a_list": lambda _: http(b"[]"),
    "error_inside": lambda _: http(as_json({"error": {"message": "the model is overloaded", "code": 502}})),
    "no_choices": lambda reply: http(as_json({key: reply[key] for key in reply if key != "choices"})),
    "empty_choices": lambda reply: http(as_json({**reply, "choices": []})),
    "null_choice": lambda reply: http(as_json({**reply, "choices": [None]})),
    "choices_an_object": lambda reply: http(as_json({**reply, "choices": reply["choices"][0]})),
    "two_choices": lambda reply: http(as_json({**reply, "choices": reply["choices"] * 2})),
    "null_message": lambda reply: with_choice(reply, message=None),
    "null_content": lambda reply: with_message(reply, content=None),
    "content_a_number": lambda reply: with_message(reply, content=5),
    "content_in_parts": lambda reply: with_message(reply, content=[{"type": "text", "text": text_of(reply)}]),
    "big": lambda _: _big(),
    "big_in_chunks": lambda _: _big_in_chunks(),
    "gzip_bomb": lambda _: _bomb(),
    "gzip_truncated": gzip_truncated,
    "gzip_that_is_none": lambda reply: http(as_json(reply), "200 OK", "application/json", "Content-Encoding: gzip"),
    "invalid_utf8": invalid_utf8,
    "nested": nested,
    "chunks_that_stop": chunks_that_stop,
    "fewer_bytes_than_said": fewer_bytes_than_said,
    "events": events,
    "not_http": lambda _: b"SSH-2.0-OpenSSH_9.6\r\n",
    "endless_header": lambda _: b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 2_000_000 + b"\r\n\r\n",
    "bad_length": lambda reply: http(as_json(reply), "200 OK", "application/json", "Content-Length: -5"),
    "lone_surrogate": lambda reply: with_message(reply, content=f"{text_of(reply)} \ud800"),
    "nul": lambda reply: with_message(reply, content=f"{text_of(reply)} \0"),
    "wrong_content_type": lambda reply: http(as_json(reply), "200 OK", "text/plain; charset=latin-1"),
    "no_usage": lambda reply: with_usage(reply, None),
    "negative_usage": lambda reply: with_usage(reply, {"prompt_tokens": -7, "completion_tokens": -7}),
    "usage_a_text": lambda reply: with_usage(reply, "many"),
    "usage_of_texts": lambda reply: with_usage(reply, {"prompt_tokens": "12", "completion_tokens": [3]}),
    "huge_integers": huge_integers,
    "nan": nan,
    "duplicate_keys": duplicate_keys,
    "length": lambda reply: with_choice(reply, finish_reason="length"),
    "content_filter": lambda reply: with_choice(reply, finish_reason="content_filter"),
    "unknown_finish": lambda reply: with_choice(reply, finish_reason="banana"),
    "finish_an_object": lambda reply: with_choice(reply, finish_reason={"why": "stop"}),
    "refusal": lambda reply: with_message(reply, content=None, refusal="I cannot help with that."),
}
