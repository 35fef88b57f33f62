"""Does filtering run at the engine's rate? The whole stage, journal on, against bare calls of the same requests.

    python -m tests.bench.judge_rate [--rounds 5]

The engines are warm. Stage and bare calls take turns; the table has the median records per second of each. The
served judges answer after 20 ms, which leaves nothing to hide behind, and after 200 ms; each is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llmdistill.config import Api, Filter, Judge, Model, Pipeline
from llmdistill.engines import resume
from llmdistill.engines.base import Completion, Engine, Request
from llmdistill.filter import stage as filter_stage
from llmdistill.filter.judge import judge_request
from llmdistill.record import Record
from llmdistill.templates import Rubric, load_template
from tests.bench.rethreshold import Texts
from tests.runs import answered, finish_stage, pipeline
from tests.tiny import save_tiny_model

LATENCIES = (0.02, 0.2)
"""Seconds that a served judge takes: hardly any, and as long as a fast real one."""

SHARD = 1000
WARM_UP = 64


class Warm:
    """An engine that stays open from one stage to the next."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.status = engine, engine.status

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        return self.engine.complete(requests)

    def close(self) -> None:
        pass


def records(number: int) -> list[Record]:
    """Answers of about 300 characters, some of them Korean, to different questions."""
    texts = Texts()
    questions, answers = (texts.draw(number, sentences).to_pylist() for sentences in (1, 4))
    pairs = enumerate(zip(questions, answers, strict=True))
    return [answered(f"{question} ({index})", answer) for index, (question, answer) in pairs]


def settings(folder: Path, model: Model) -> Pipeline:
    """A pipeline whose filter only judges."""
    off = {"truncated": False, "repetition": False, "language": False, "refusal": False, "echo": False, "min_chars": 0}
    judge = Filter.model_validate({"judge": Judge(model=model, min_score=1), "checks": off})
    return pipeline(folder, filter=judge)


def stage_seconds(model: Model, given: list[Record]) -> float:
    with tempfile.TemporaryDirectory() as name:
        shards = [given[start : start + SHARD] for start in range(0, len(given), SHARD)]
        finish_stage(Path(name), "generate", shards)
        started = time.perf_counter()
        made = filter_stage.run(settings(Path(name), model))
        seconds = time.perf_counter() - started
        assert made.counts.kept == made.usage.requests == len(given), made.counts
    return seconds


def bare_seconds(engine: Engine, model: Model, given: list[Record]) -> float:
    rubric, _ = load_template("prompts/en/judge.yaml", Rubric)
    rubric = rubric if model.can_prefill else rubric.model_copy(update={"prefill": ""})
    requests = [judge_request(record, rubric, 2048) for record in given]
    started = time.perf_counter()
    assert sum(1 for _ in engine.complete(iter(requests))) == len(requests)
    return time.perf_counter() - started


def compare(name: str, model: Model, number: int, rounds: int) -> None:
    """One row of the table."""
    given = records(number)
    with tempfile.TemporaryDirectory() as folder:
        engine = resume.open_engine(model, resume.find(model), Path(folder))
        resume.open_engine = lambda *_: Warm(engine)  # type: ignore[assignment]
        bare_seconds(engine, model, given[:WARM_UP])
        stage_seconds(model, given[:WARM_UP])
        pairs = [(bare_seconds(engine, model, given), stage_seconds(model, given)) for _ in range(rounds)]
        engine.close()
    bare, stage = (number / statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    print(f"| {name} | {bare:,.0f} | {stage:,.0f} | {stage / bare:.1%} |", flush=True)


def serve(latency: float) -> None:
    """A judge that gives every answer a 4."""
    from aiohttp import web

    message = {"role": "assistant", "content": "4"}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    async def reply(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(latency)
        return web.json_response({**body, "usage": {"prompt_tokens": 200, "completion_tokens": 1}})

    async def main() -> None:
        server = web.Application(client_max_size=1 << 24)
        server.router.add_post("/v1/chat/completions", reply)
        runner = web.AppRunner(server, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(main())


def served(number: int, rounds: int, latency: float) -> None:
    command = [sys.executable, "-m", "tests.bench.judge_rate", "--serve", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        port = int(server.stdout.readline())
        api: dict[str, Any] = {"base_url": f"http://127.0.0.1:{port}/v1"}
        model = Model(model="judge", engine="openai", api=Api(**api))
        compare(f"server, {latency * 1000:.0f} ms, {model.api.max_concurrency} at once", model, number, rounds)
        server.stdin.close()


def local(number: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save_tiny_model(Path(folder), context=4096)
        compare("transformers, tiny model", Model(model=str(path), device="cpu"), number, rounds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--served", type=int, default=4000, help="records for the served judge")
    parser.add_argument("--local", type=int, default=400, help="records for the local judge")
    parser.add_argument("--serve", type=float, metavar="SECONDS", help="be the served judge")
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    really_open = resume.open_engine
    print("| judge | bare calls, records/s | filter, records/s | ratio |\n| --- | --- | --- | --- |", flush=True)
    local(options.local, options.rounds)
    for latency in LATENCIES:
        resume.open_engine = really_open
        served(options.served, options.rounds, latency)


if __name__ == "__main__":
    main()
