"""A provider's Files and Batch API on loopback: a process of its own, whose memory survives the client's kills.

An answer is the hash of the request's body, so that a lost, doubled or swapped answer is seen. Every batch
made is appended to a log. What goes wrong is set by `POST /control` and consumed in order.
Prints its port, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

KEY = "sk-test-key-0123456789"
MOST_PER_PAGE = 3
"""Listings come in pages this short, so that whoever does not turn pages is caught."""


def answer_to(body: dict[str, Any]) -> str:
    """What this teacher says to a request."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def completion(body: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer_to(body)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    return {"id": "c", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}


class Server:
    """State of the provider.

    Settings (`POST /control`; with `log`, the file to write to, everything begins anew):
        seconds: [least, most] a batch takes.
        calls: {"create": [...], "upload": [...], "retrieve": [...], "list": [...], "content": [...]}: what happens to
            the next calls of that kind: "ok", "<status>" (before any effect), "<status>:after" (the effect takes
            place), "reset", "reset:after", "late" (reset now, the effect takes place two seconds later), "redirect",
            "echo:<status>" (an error that repeats the key), "garbage", "cut" (a file without its last bytes),
            "slow" (a byte now and then), "huge", "gzip".
        outcomes: how the next batches end: "completed", "expired", "cancelled" (each with half of the answers),
            "failed" (with none), "turned away".
        lines: {text in a request: what becomes of its line}: "429", "500", "400", "too_long", "401", "error",
            "empty", "damaged", "missing", "twice", "unknown".
        listed: 1 for newest first, -1 for oldest first.
        most_running: batches that run side by side; more are turned away with 429.
    """

    def __init__(self, log: Path) -> None:
        self.log = open(log, "a")  # noqa: SIM115
        self.settings: dict[str, Any] = {"seconds": [0.05, 0.3]}
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.numbers = itertools.count(1)
        self.rng = random.Random(1)
        self.num_calls: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.headers: list[str | None] = []

    def bodies(self, file_id: str) -> list[tuple[str, dict[str, Any]]]:
        rows = [json.loads(line) for line in self.contents[file_id].splitlines()]
        assert all(row["method"] == "POST" and row["url"] == "/v1/chat/completions" for row in rows)
        assert len({row["custom_id"] for row in rows}) == len(rows)
        assert all(len(row["custom_id"]) <= 64 for row in rows)
        return [(row["custom_id"], row["body"]) for row in rows]

    def add_file(self, name: str, data: bytes, purpose: str) -> dict[str, Any]:
        id_ = f"file-{next(self.numbers)}"
        self.contents[id_] = data
        self.files[id_] = {"id": id_, "object": "file", "bytes": len(data), "filename": name, "purpose": purpose}
        self.files[id_] |= {"created_at": int(time.time()), "status": "processed"}
        return self.files[id_]

    def add_batch(self, order: dict[str, Any]) -> dict[str, Any]:
        id_ = f"batch_{next(self.numbers)}"
        requests = self.bodies(order["input_file_id"])
        for _, body in requests:
            self.log.write(f"{id_} {order['metadata']['llmdistill']} {answer_to(body)}\n")
        self.log.flush()
        outcomes = self.settings.get("outcomes") or ["completed"]
        outcome = outcomes.pop(0)
        counts = {"total": len(requests), "completed": 0, "failed": 0}
        self.batches[id_] = {"id": id_, "object": "batch", "status": "in_progress", "request_counts": counts, **order}
        self.batches[id_] |= {"created_at": int(time.time()), "output_file_id": None, "error_file_id": None}
        seconds = self.rng.uniform(*self.settings["seconds"])
        asyncio.get_running_loop().call_later(seconds, self.end, self.batches[id_], requests, outcome)
        return self.batches[id_]

    def end(self, batch: dict[str, Any], requests: list[tuple[str, dict[str, Any]]], outcome: str) -> None:
        """Write a batch's files, in an order of their own."""
        batch["status"] = {"turned away": "failed"}.get(outcome, outcome)
        if outcome in ("failed", "turned away"):
            code, said = ("token_limit_exceeded", f"Enqueued token limit reached, {KEY}")
            if outcome == "failed":
                code, said = "server_error", "it broke"
            batch["errors"] = {"object": "list", "data": [{"code": code, "message": said, "line": None}]}
            return
        self.rng.shuffle(requests)
        good, bad = [], []
        for number, (custom_id, body) in enumerate(requests):
            if outcome != "completed" and number % 2:
                error = {"code": f"batch_{outcome}", "message": "This request could not be executed."}
                bad.append(json.dumps({"id": "r", "custom_id": custom_id, "response": None, "error": error}))
            else:
                self.put_line(custom_id, body, good, bad)
        batch["request_counts"] |= {"completed": len(good), "failed": len(bad)}
        for name, lines in (("output", good), ("error", bad)):
            if lines:
                data = ("\n".join(lines) + "\n").encode()
                batch[f"{name}_file_id"] = self.add_file(f"{name}.jsonl", data, "batch_output")["id"]

    def put_line(self, custom_id: str, body: dict[str, Any], good: list[str], bad: list[str]) -> None:
        text = json.dumps(body["messages"])
        fates = self.settings.get("lines", {})
        fate = next((fates[part] for part in fates if part in text), "ok")
        if isinstance(fate, list):  # one fate an attempt
            fate = fate.pop(0) if fate else "ok"

        def line(status: int, reply: Any, id_: str = custom_id) -> str:
            response = {"status_code": status, "request_id": "q", "body": reply}
            return json.dumps({"id": "r", "custom_id": id_, "response": response, "error": None})

        def error(status: int, message: str) -> str:
            return line(status, {"error": {"message": message, "type": "x", "code": None}})

        whole = line(200, completion(body))
        if fate.isdigit():
            bad.append(error(int(fate), f"no {KEY} for you"))
        elif fate == "too_long":
            bad.append(error(400, "This model's maximum context length is 128 tokens."))
        elif fate == "error":
            bad.append(json.dumps({"id": "r", "custom_id": custom_id, "response": None, "error": {"code": "x"}}))
        elif fate == "empty":
            good.append(line(200, {"choices": []}))
        elif fate == "damaged":
            good.append(whole[: len(whole) // 2])
        elif fate == "unknown":
            good.append(line(200, completion(body), "never-heard-of"))
        elif fate == "twice":
            good += [whole, line(200, completion({**body, "model": "another"}))]
        elif fate != "missing":
            good.append(whole)
        self.answered[answer_to(body)] += fate in ("ok", "twice")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Routes:
    """The endpoints, and the faults around them."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def app(self) -> web.Application:
        app = web.Application(client_max_size=300 << 20)
        app.add_routes(
            [
                web.post("/v1/files", self.faulty("upload", self.upload)),
                web.get("/v1/files", self.faulty("list", self.list_files)),
                web.get("/v1/files/{id}/content", self.faulty("content", self.content)),
                web.delete("/v1/files/{id}", self.faulty("delete", self.delete)),
                web.post("/v1/batches", self.faulty("create", self.create)),
                web.get("/v1/batches", self.faulty("list", self.list_batches)),
                web.get("/v1/batches/{id}", self.faulty("retrieve", self.retrieve)),
                web.post("/v1/batches/{id}/cancel", self.faulty("cancel", self.cancel)),
                web.route("*", "/stolen", self.stolen),
                web.post("/control", self.control),
                web.get("/control", self.report),
                web.get("/calls", self.calls),
            ]
        )
        return app

    def faulty(self, kind: str, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.server.num_calls[kind] += 1
            self.server.headers.append(request.headers.get("Authorization"))
            if self.server.settings.get("key", True) and self.server.headers[-1] != f"Bearer {KEY}":
                return problem(401, f"wrong key: {self.server.headers[-1]}")
            planned = self.server.settings.get("calls", {}).get(kind)
            what, _, when = (planned.pop(0) if planned else "ok").partition(":")
            if what == "ok":
                return await handler(request)
            if what == "late":
                await request.read()
                asyncio.get_running_loop().call_later(2.0, lambda: asyncio.ensure_future(handler(request)))
            if when == "after":
                await handler(request)
            return await self.slow(request) if what == "slow" else self.faulted(request, what, when)

        return handle

    async def slow(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.1)
        return response

    def faulted(self, request: web.Request, what: str, when: str) -> web.StreamResponse:
        if what in ("reset", "late"):
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if what == "redirect":
            return web.Response(status=307, headers={"Location": str(request.url.origin() / "stolen")})
        if what == "garbage":
            return web.Response(text="<html>", content_type="text/html")
        if what == "echo":
            return problem(int(when), f"do not use {KEY}, it is {request.headers.get('Authorization')}")
        if what == "huge":
            return web.Response(body=b" " * 5_000_000, content_type="application/json")
        if what == "gzip":
            data = gzip.compress(b" " * 50_000_000)
            return web.Response(body=data, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})
        if what == "cut":
            return web.Response(body=self.server.contents[request.match_info["id"]][:-40])
        return problem(int(what), "not now")

    async def upload(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        field = form["file"]
        assert isinstance(field, web.FileField) and form["purpose"] == "batch"
        return web.json_response(self.server.add_file(field.filename, field.file.read(), "batch"))

    async def content(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self.server.contents[request.match_info["id"]])

    async def delete(self, request: web.Request) -> web.StreamResponse:
        del self.server.contents[request.match_info["id"]]
        return web.json_response({"id": request.match_info["id"], "deleted": True})

    async def create(self, request: web.Request) -> web.StreamResponse:
        running = sum(batch["status"] == "in_progress" for batch in self.server.batches.values())
        if running >= self.server.settings.get("most_running", 1000):
            return problem(429, "too many batches")
        return web.json_response(self.server.add_batch(await request.json()))

    async def retrieve(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches.get(request.match_info["id"])
        return problem(404, "no such batch") if batch is None else web.json_response(batch)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        self.server.batches[request.match_info["id"]]["status"] = "cancelled"
        return await self.retrieve(request)

    async def list_files(self, request: web.Request) -> web.StreamResponse:
        return page(list(self.server.files.values()), request)

    async def list_batches(self, request: web.Request) -> web.StreamResponse:
        return page(list(self.server.batches.values())[:: self.server.settings.get("listed", 1)], request)

    async def stolen(self, request: web.Request) -> web.StreamResponse:
        self.server.num_calls["stolen"] += 1
        return problem(403, "")

    async def control(self, request: web.Request) -> web.StreamResponse:
        order = await request.json()
        if "log" in order:
            self.server = Server(Path(order.pop("log")))
        self.server.settings |= order
        return web.json_response({})

    async def calls(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self.server.num_calls.total())

    async def report(self, request: web.Request) -> web.StreamResponse:
        server = self.server
        found = {"calls": server.num_calls, "answered": server.answered, "headers": server.headers}
        return web.json_response({**found, "batches": list(server.batches.values()), "files": len(server.files)})


def problem(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "x", "code": None}}, status=status)


def page(rows: list[dict[str, Any]], request: web.Request) -> web.Response:
    """A page of a listing, newest first."""
    rows = rows[::-1]
    ids = [row["id"] for row in rows]
    start = ids.index(request.query["after"]) + 1 if "after" in request.query else 0
    found = rows[start : start + min(MOST_PER_PAGE, int(request.query.get("limit", 20)))]
    more = start + len(found) < len(rows)
    return web.json_response({"object": "list", "data": found, "has_more": more})


async def serve() -> None:
    runner = web.AppRunner(Routes(Server(Path(os.devnull))).app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
