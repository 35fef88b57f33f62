"""Synthetic pairs and evolved prompts end to end: real texts, a real small model, and `kill -9` half-way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from llmdistill.config import Evolve, Filter, Generate, Model, Prompts, Synthesis
from llmdistill.curate.stage import run as curate
from llmdistill.filter.stage import run as run_filter
from llmdistill.generate.stage import read, run
from llmdistill.run.files import read_table
from tests.engines.loopback import Answer, chat, serving
from tests.runs import pipeline
from tests.tiny import REPO

TEACHER = "HuggingFaceTB/SmolLM2-135M-Instruct"
DOCUMENTS = Prompts(path="data/documents/en", chunk_chars=500, held_out_path="data/documents/questions.jsonl", limit=2)
SEEDS = Prompts(path="data/self-instruct/prompts.jsonl", limit=3, held_out=0.2)
MODES = {
    "documents": (DOCUMENTS, {"mode": "synthetic_qa", "synthesis": Synthesis(pairs=1)}),
    "seeds": (SEEDS, {"mode": "synthetic_qa", "synthesis": Synthesis(pairs=2, examples=2, requests=2)}),
    "evolve": (SEEDS, {"mode": "evolve", "evolve": Evolve(kinds=("broader",))}),
}


@pytest.mark.parametrize("name", MODES)
def test_a_real_model_writes_new_data_and_all_of_it_is_accounted_for(name, tmp_path):
    from llmdistill.engines.models import find_model
    from llmdistill.errors import ModelError

    try:
        find_model(TEACHER)
    except ModelError as error:
        pytest.skip(f"the small model cannot be had here: {error}")
    prompts, mode = MODES[name]
    generate = Generate(**mode, max_new_tokens=24, temperature=0, repetition_penalty=1.1)
    settings = pipeline(
        tmp_path / "실행", prompts=prompts, teacher=Model(model=TEACHER), generate=generate, filter=Filter(judge=None)
    )
    read(settings)
    counts = run(settings).counts
    rows = read_table(settings.run_path / "generate" / "part-00000.parquet").to_pylist()
    rejects = read_table(settings.run_path / "generate" / "rejects.parquet").to_pylist()
    assert (len(rows), len(rejects)) == (counts.kept, counts.rejected)
    texts = [row["completion"][0]["content"] for row in [*rows, *rejects] if row["completion"]]
    assert len(texts) >= 2  # the model did write, and what it wrote is there to be read
    for row in rows:
        assert row["prompt"][-1]["content"].strip() and row["completion"][0]["content"].strip()
        assert row["teacher"]["model"] == TEACHER
    if rows:
        assert run_filter(settings).counts.input == counts.kept
        curate(settings)


def reply_to(seen) -> Answer:
    """Pairs or prompts that depend on what was asked; some replies are cut off, some are nothing."""
    time.sleep(0.02)
    text = seen.body["messages"][-1]["content"]
    number = zlib.crc32(text.encode())
    if "Write only the text, after" in text:
        return Answer(body=chat(f"New prompt: Explain the matter number {number % 50}."))
    if "between the fences" not in text:
        return Answer(body=chat(f"An answer, {number}."))
    if number % 7 == 0:
        return Answer(body=chat("I cannot do that."))
    pairs = [{"question": f"What is {number % 40 + place}?", "answer": f"정답 {number}"} for place in range(2)]
    return Answer(body=chat(json.dumps({"pairs": pairs}), "length" if number % 5 == 0 else "stop"))


SETTINGS = {
    "documents": {
        "prompts": {"path": str(REPO / "data/documents"), "chunk_chars": 120, "chunk_overlap": 20},
        "generate": {"mode": "synthetic_qa", "synthesis": {"pairs": 2}},
        "evaluate": {"synthetic_only": "a test of how a run goes on"},
    },
    "evolve": {
        "prompts": {"path": "data/self-instruct/prompts.jsonl", "limit": 25, "held_out": 0.2},
        "generate": {"mode": "evolve", "evolve": {"kinds": ["deeper", "broader"]}},
    },
}


def start(folder: Path, url: str, name: str, failpoint: str = "") -> subprocess.Popen[str]:
    values = {
        "name": "x",
        "run_dir": str(folder / "run"),
        "teacher": {"model": "fake", "engine": "openai", "api": {"base_url": url, "max_concurrency": 4, "timeout": 20}},
        "student": {"keep_layers": 2},
        "filter": {"judge": None},
        **SETTINGS[name],
    }
    values["generate"] = {**values["generate"], "shard_size": 40}
    folder.mkdir(exist_ok=True)
    (folder / "x.yaml").write_text(json.dumps(values))
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "LLMDISTILL_FAILPOINT": failpoint}
    command = [sys.executable, "-m", "llmdistill", "generate", str(folder / "x.yaml")]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=-1, stderr=-1)


def finish(process: subprocess.Popen[str]) -> int:
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors, errors
    return process.returncode


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "run" / "generate").glob("*.parquet"))}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(name, tmp_path):
    with serving(reply_to) as server:
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        assert finish(start(whole, server.url, name)) == 0
        num_requests = len(server.seen)
        process = start(killed, server.url, name)
        deadline = time.monotonic() + 60
        while len(server.seen) < num_requests + 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        assert finish(process) == -9
        assert finish(start(killed, server.url, name, "stage.after_shard:2")) == 137
        asked = len(server.seen)
        assert finish(start(killed, server.url, name)) == 0
        assert finish(start(killed, server.url, name)) == 0
        assert len(server.seen) == asked  # everything was on disk
        assert asked <= 2 * num_requests + 4 + 32
    assert results(killed) == results(whole)
    counts = json.loads((killed / "run" / "generate" / "manifest.json").read_text())["counts"]
    assert counts["input"] == counts["kept"] + counts["rejected"] + counts["failed"]
    assert len([file for file in results(whole) if re.match("part-", file)]) > 1
