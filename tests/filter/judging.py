"""A panel asked over HTTP, in this process or, to be killed, in one of its own: `python -m tests.filter.judging`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmdistill.config import Judge, Pipeline
from llmdistill.filter.panel import Judged, Panel
from llmdistill.record import Record, record_id
from llmdistill.run.manifest import Usage
from llmdistill.run.stage import Stage
from tests.engines.loopback import Answer, Loopback, Seen, chat, serving
from tests.runs import pipeline

CONCURRENCY = 8


def record(prompt: str, answer: str = "An answer.", reference: str | None = None, sample: int = 0) -> Record:
    """One sample of a teacher's answers to a prompt."""
    messages = [{"role": "user", "content": prompt}]
    return Record(record_id(messages, sample), messages, answer=answer, reference=reference)


def model(url: str, name: str = "judge", **api: Any) -> dict[str, Any]:
    """Settings of a judge that is served."""
    usual = {"base_url": url, "max_concurrency": CONCURRENCY, "timeout": 10, "patience": 5}
    return {"model": name, "engine": "openai", "price": {"input": 1, "output": 1}, "api": {**usual, **api}}


def judged_by(run_dir: Path, judge: dict[str, Any], **sections: Any) -> Pipeline:
    """A pipeline with this judge."""
    filter_settings = pipeline(run_dir).filter.model_copy(update={"judge": Judge.model_validate(judge)})
    return pipeline(run_dir, filter=filter_settings, **sections)


def ask_and_read(
    given: Pipeline, shards: Sequence[Sequence[Record]], round_: int = 0
) -> tuple[list[list[Judged]], Usage]:
    """What the panel says about each record of each shard."""
    with Panel(given, round_) as panel:
        stage = Stage(given.run_path, "filter", panel.parts)
        panel.ask(stage, lambda: [list(shard) for shard in shards], sum(map(len, shards)))
        return [panel.read(list(shard)) for shard in shards], panel.usage(1.0)


def judge(given: Pipeline, *records: Record) -> list[Judged]:
    """What the panel says about the records of one shard."""
    return ask_and_read(given, [records])[0][0]


def asked(seen: Seen) -> str:
    """What the judge was asked."""
    return str(seen.body["messages"][-1]["content"])


def fenced(text: str) -> list[str]:
    """The texts between a question's fences, in order."""
    fence = max(re.findall(r"^`{3,}$", text, re.MULTILINE), key=len)
    return [part[1:-1] for part in re.split(rf"^{fence}$", text, flags=re.MULTILINE)[1::2]]


@contextmanager
def judging(say: Callable[[str], str]) -> Iterator[Loopback]:
    """A judge that replies to each question what `say` makes of it."""
    with serving(lambda seen: Answer(body=chat(say(asked(seen))))) as server:
        yield server


def journalled(run_dir: Path) -> list[str]:
    """Keys of all rows of the filter's journals."""
    paths = sorted((run_dir / "filter" / "journal").glob("*.jsonl"))
    return [json.loads(line)["key"] for path in paths for line in path.read_text().splitlines()]


def numbered(num: int) -> list[list[Record]]:
    """Records of four shards."""
    records = [record(f"Question {number}, what comes next?", f"Answer {number}.") for number in range(num)]
    return [records[start::4] for start in range(4)]


if __name__ == "__main__":
    settings = judged_by(Path(sys.argv[1]), {"model": model(sys.argv[2]), "scoring": "written"})
    shards, _ = ask_and_read(settings, numbered(int(sys.argv[3])))
    sys.stdout.write(json.dumps([[asdict(item) for item in shard] for shard in shards]))
