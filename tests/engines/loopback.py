"""A server on 127.0.0.1 whose replies a test writes, byte by byte if it wants to."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ids = itertools.count()


@dataclass
class Seen:
    """One request as the server saw it."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    """What the server says. A `body` that is no bytes is sent as JSON."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)

    def bytes(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Loopback:
    """The server's address, and what it has seen."""

    url: str
    seen: list[Seen]


def chat(content: Any, finish_reason: str = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion, with an id of its own as every server gives; `more` belongs to its choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason, **more}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return {"id": f"chatcmpl-{next(_ids)}", "object": "chat.completion", "choices": [choice], "usage": usage}


@contextmanager
def serving(reply: Callable[[Seen], Answer]) -> Iterator[Loopback]:
    """Serve for the duration of the block."""
    seen: list[Seen] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Seen(self.path, {name.lower(): value for name, value in self.headers.items()}, _read(data))
            seen.append(request)
            answer = reply(request)
            body = answer.bytes()
            self.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # whoever asked has gone
                pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield Loopback(f"http://127.0.0.1:{server.server_port}/v1", seen)
    finally:
        server.shutdown()
        server.server_close()


def _read(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data
