"""Speed of the engine over servers, journal on, against the ideal and against bare clients, in one run.

    python -m tests.bench.bench_engines

The client runs on one core, the loopback server on another. `--quick` does a tenth of everything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmdistill.config import Api, Budget, Model
from llmdistill.engines.base import Request, Sampling
from llmdistill.engines.models import Served
from llmdistill.engines.resume import LazyEngine, ask
from llmdistill.run.journal import Journal
from tests.faults.api import FakeTeacher

SECONDS, IN_FLIGHT, SHORT = 2.0, 1000, 0.001
QUESTION = "Natalia sold clips to 48 of her friends in April, and then half as many in May. How many in all?"


def requests(count: int) -> Iterator[Request]:
    for number in range(count):
        yield Request(f"{number:032x}", [{"role": "user", "content": f"{QUESTION} ({number})"}], Sampling(64))


def resident_mb() -> float:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def engine(url: str, count: int, in_flight: int) -> dict[str, float]:
    """The way `llmdistill generate` asks: engine, retry layer, limits, journal."""
    api = Api(base_url=url, max_concurrency=in_flight)
    early: list[float] = []

    def watched() -> Iterator[Request]:
        for number, request in enumerate(requests(count)):
            if number == count // 10:
                early.append(resident_mb())
            yield request

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Model(model="fake", engine="openai", api=api)
        lazy = LazyEngine(settings, Served("fake", "x"), folder, folder, Budget())
        with Journal(folder / "journal.jsonl") as journal:
            failed = ask(watched(), journal, lazy, "bench", count)
            assert not failed and len(journal) == count
    return {"early_mb": early[0], "late_mb": resident_mb()}


def bare_aiohttp(url: str, count: int, in_flight: int) -> dict[str, float]:
    import aiohttp

    async def one(session: aiohttp.ClientSession, request: Request) -> None:
        body = {"model": "fake", "messages": request.messages, "max_tokens": 64}
        async with session.post(f"{url}/chat/completions", json=body) as reply:
            assert (await reply.json())["choices"]

    async def work() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await _in_flight(requests(count), in_flight, lambda request: one(session, request))

    asyncio.run(work())
    return {}


def openai_client(url: str, count: int, in_flight: int) -> dict[str, float]:
    from openai import AsyncOpenAI

    async def work() -> None:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def one(request: Request) -> None:
                messages: Any = request.messages
                reply = await client.chat.completions.create(model="fake", messages=messages, max_tokens=64)
                assert reply.choices

            await _in_flight(requests(count), in_flight, one)

    asyncio.run(work())
    return {}


async def _in_flight(items: Iterator[Request], in_flight: int, work: Any) -> None:
    async def worker() -> None:
        for item in items:
            await work(item)

    await asyncio.gather(*(worker() for _ in range(in_flight)))


CLIENTS = {"engine": engine, "aiohttp": bare_aiohttp, "openai": openai_client}


def measure(name: str, url: str, count: int, in_flight: int) -> dict[str, float]:
    """One client in a process of its own, on one core."""
    command = [sys.executable, "-m", "tests.bench.bench_engines", "--client", name, url, str(count), str(in_flight)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def be_client(name: str, url: str, count: str, in_flight: str) -> None:
    os.sched_setaffinity(0, {0})
    CLIENTS[name](url, 64, min(64, int(in_flight)))
    started, cpu = time.perf_counter(), time.process_time()
    found = CLIENTS[name](url, int(count), int(in_flight))
    seconds = time.perf_counter() - started
    rates = {"rate": int(count) / seconds, "cpu_ms": (time.process_time() - cpu) * 1000 / int(count)}
    print(json.dumps({**rates, **found}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", nargs=4)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.client:
        be_client(*options.client)
        return
    size = 10 if options.quick else 1
    teacher = FakeTeacher(latency=SECONDS, keep_log=False)
    os.sched_setaffinity(teacher.process.pid, {1})
    slow = measure("engine", teacher.url, 40_000 // size, IN_FLIGHT)
    ideal = IN_FLIGHT / SECONDS
    print(f"2 s latency, 1,000 in flight: {slow['rate']:,.0f} records/s, {slow['rate'] / ideal:.1%} of the ideal")
    teacher.begin(latency=SHORT, keep_log=False)
    rows = {name: measure(name, teacher.url, count // size, 64) for name, count in COUNTS}
    for name, row in rows.items():
        ratio = row["rate"] / rows["openai"]["rate"]
        print(f"1 ms latency, {name}: {row['rate']:,.0f} records/s, {row['cpu_ms']:.2f} ms of CPU, {ratio:.1f}x")
    long = measure("engine", teacher.url, 200_000 // size, 64)
    early, late = (f"{long[key]:,.0f} MB" for key in ("early_mb", "late_mb"))
    print(f"memory after {20_000 // size:,}: {early}; after {200_000 // size:,}: {late}")
    teacher.close()


COUNTS = (("openai", 3_000), ("aiohttp", 20_000), ("engine", 20_000))

if __name__ == "__main__":
    main()
