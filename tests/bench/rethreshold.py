"""How long does another threshold take on a million judged records, and how much memory?

    python -m tests.bench.rethreshold [--records 1000000] [--folder DIR]

Builds a run of records with about 600 characters of English and Korean text and the judge's word on each, filters
it, changes the threshold, and prints seconds and peak memory of the real `llmdistill filter` command.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmdistill.filter.judged import JUDGED_SCHEMA
from llmdistill.filter.panel import Panel
from llmdistill.filter.stage import settings_of, store_of
from llmdistill.pipeline_file import load_pipeline
from llmdistill.record import REJECT_SCHEMA, SCHEMA
from llmdistill.run.files import write_table
from llmdistill.run.manifest import Counts, Usage
from llmdistill.run.stage import REJECTS, Stage, begin, part_path
from tests.tiny import REPO

SHARD = 1000
THRESHOLDS = (3.0, 3.5)
TEXTS = ("data/self-instruct/prompts.jsonl", "data/korean/prompts.jsonl")
PIPELINE = """
name: rethreshold
run_dir: {folder}/run
prompts: {{path: {folder}/prompts.jsonl}}
teacher: {{model: teacher, engine: openai, api: {{base_url: "http://127.0.0.1:9/v1"}}}}
student: {{model: {folder}/model}}
filter: {{judge: {{rubric: prompts/en/judge.yaml}}}}
"""


class Texts:
    """Sentences of real prompts and answers, and new texts made of them."""

    def __init__(self) -> None:
        rows = [json.loads(line) for name in TEXTS for line in (REPO / name).read_text("utf-8").splitlines()]
        texts = [str(value) for row in rows for value in (row["prompt"], row.get("reference") or "")]
        found = {part.strip() for text in texts for part in re.split(r"(?<=[.?!다])\s+|\n", text)}
        self.sentences = pa.array(sorted(part for part in found if 30 < len(part) < 160))
        self.rng = np.random.default_rng(0)

    def draw(self, number: int, sentences: int) -> pa.Array:
        """Texts of so many sentences each."""
        picks = self.rng.integers(len(self.sentences), size=(sentences, number))
        return pc.binary_join_element_wise(*(self.sentences.take(pa.array(row)) for row in picks), " ")


def answers(texts: Texts, first: int) -> pa.Table:
    """One shard of `generate`."""
    prompt, answer = texts.draw(SHARD, 2), texts.draw(SHARD, 7)
    columns = {
        "id": pa.array([f"{number:032x}" for number in range(first, first + SHARD)]),
        "prompt": messages("user", prompt),
        "completion": messages("assistant", answer),
        "rationale": pa.nulls(SHARD, pa.string()),
        "answer": answer,
        "reference": pa.nulls(SHARD, pa.string()),
        "source": same_struct("source", dataset="self-instruct", split="train", key="7", licence="apache-2.0"),
        "teacher": same_struct("teacher", model="teacher", finish_reason="stop", prompt_tokens=60, cost=0.0),
        "verdicts": pa.array([[]] * SHARD, SCHEMA.field("verdicts").type),
        "selection": pa.nulls(SHARD, SCHEMA.field("selection").type),
        "meta": pa.repeat("{}", SHARD),
    }
    return pa.table(columns, schema=SCHEMA)


def messages(role: str, texts: pa.Array) -> pa.Array:
    kind = SCHEMA.field("prompt").type
    values = pa.StructArray.from_arrays([pa.repeat(role, SHARD), texts], fields=list(kind.value_type))
    return pa.ListArray.from_arrays(pa.array(range(SHARD + 1), pa.int32()), values, type=kind)


def same_struct(name: str, **values: object) -> pa.Array:
    return pa.array([values] * SHARD, SCHEMA.field(name).type)


def judged(texts: Texts, ids: pa.ChunkedArray) -> pa.Table:
    """What a judge said about a shard: scores from 1 to 5, a hundredth of them failed."""
    scores = pa.array(texts.rng.uniform(1, 5, SHARD), mask=texts.rng.random(SHARD) < 0.01)
    outcome = pc.if_else(pc.is_null(scores), "no_mass", "parsed")
    kind = SCHEMA.field("verdicts").type
    each = pa.array(range(SHARD + 1), pa.int32())
    parts = [pa.repeat("teacher", SHARD), pa.repeat("0123456789abcdef", SHARD), scores, outcome]
    verdict = pa.StructArray.from_arrays([*parts, pa.nulls(SHARD, pa.string())], fields=list(kind.value_type))
    columns = [
        ids,
        pa.array([[]] * SHARD, kind),
        pa.ListArray.from_arrays(each, verdict, type=kind),
        pa.ListArray.from_arrays(each, scores),
        outcome,
        pa.nulls(SHARD, pa.string()),
        pa.nulls(SHARD, pa.string()),
    ]
    return pa.table(columns, schema=JUDGED_SCHEMA)


def build(folder: Path, num_records: int) -> Path:
    """A run whose answers are judged, but not filtered yet; gives its pipeline file."""
    path = folder / "pipeline.yaml"
    path.write_text(PIPELINE.format(folder=folder))
    (folder / "prompts.jsonl").write_text('{"prompt": "?"}\n')
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    pipeline, texts = load_pipeline(str(path), []), Texts()
    stage = begin(pipeline.run_path, "generate", {})
    assert isinstance(stage, Stage)
    for index in range(num_records // SHARD):
        write_table(part_path(stage.dir, index), answers(texts, index * SHARD))
    write_table(stage.dir / REJECTS, REJECT_SCHEMA.empty_table())
    stage.finish(Counts(num_records, num_records, 0))
    with Panel(pipeline) as panel:
        filtering = Stage(pipeline.run_path, "filter", settings_of(pipeline, None, panel))
        store = store_of(filtering, panel)
    for index in range(num_records // SHARD):
        ids = pa.chunked_array([[f"{number:032x}" for number in range(index * SHARD, (index + 1) * SHARD)]])
        write_table(part_path(store.dir, index), judged(texts, ids))
    store.finish(Usage())
    return path


def filter_with(path: Path, threshold: float) -> tuple[float, float]:
    """Seconds and peak memory (MB) of the command."""
    command = [sys.executable, "-m", "llmdistill", "filter", str(path), "--set", f"filter.judge.min_score={threshold}"]
    started = time.perf_counter()
    subprocess.run(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, check=True)
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = build(Path(name), options.records)
        for threshold in THRESHOLDS:
            seconds, peak = filter_with(path, threshold)
            print(f"{options.records:,} records, threshold {threshold}: {seconds:.1f} s, at most {peak:,.0f} MB")


if __name__ == "__main__":
    main()
