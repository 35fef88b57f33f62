"""The whole of curation by the command: real instructions from text to the chosen ones, with the split of time.

    python -m tests.bench.bench_curate --recipe --pool FILE.parquet [--student DIR] [--sentence DIR] [--size 1000]

The instructions and their answers come in by `generate.mode: import`, nobody judges, and `curate` chooses among all.
Every setting begins with an empty cache; the last one is run again with another threshold.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PIPELINE = """
name: recipe
run_dir: {folder}/run
prompts: {{path: {pool}, fields: {{prompt: prompt, completion: completion}}, held_out: 0}}
generate: {{mode: import, imported_from: a dataset, template: prompts/en/answer.yaml}}
teacher: {{model: "{student}"}}
student: {{model: "{student}"}}
filter: {{judge: null}}
curate:
  size: {size}
  semantic_duplicates: 0.95
  decontaminate: {{against: [data/gsm8k/test-first-200.jsonl]}}
"""


def recipe(options: argparse.Namespace) -> None:
    """Print the split of time of every setting."""
    if options.pool is None:
        raise SystemExit("--recipe needs --pool FILE")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        text = PIPELINE.format(folder=folder, pool=options.pool.resolve(), student=options.student, size=options.size)
        (folder / "pipeline.yaml").write_text(text)
        for command in ("generate", "filter"):
            seconds, peak = run(folder, command)
            print(f"{command}: {seconds:.1f} s, at most {peak:,.0f} MB, {told(folder, command)}", flush=True)
        print("\n| setting | seconds | peak MB | steps | became of them |\n|---|---|---|---|---|")
        for label, settings in settings_of(options).items():
            shutil.rmtree(folder / "run" / "curate", ignore_errors=True)
            row(folder, label, settings)
        row(folder, "the same, near_duplicates 0.8", {**settings, "near_duplicates": 0.8})
        row(folder, "the same, other size", {**settings, "size": 2 * options.size})


def settings_of(options: argparse.Namespace) -> dict[str, dict[str, object]]:
    """What is measured: label -> settings of curate."""
    found: dict[str, dict[str, object]] = {
        "tfidf, cluster": {"embed": "tfidf", "select": "cluster"},
        "static, k_center": {"embed": "static", "select": "k_center"},
        "static, facility_location": {"embed": "static", "select": "facility_location"},
    }
    if options.sentence:
        sentence = json.dumps({"method": "sentence", "model": options.sentence, "max_tokens": 128})
        found["sentence, facility_location"] = {"embed": sentence, "select": "facility_location"}
    return found


def row(folder: Path, label: str, settings: dict[str, object]) -> None:
    """Curate once and print what it took."""
    assignments = [part for key, value in settings.items() for part in ("--set", f"curate.{key}={value}")]
    seconds, peak = run(folder, "curate", *assignments)
    steps = json.loads((folder / "run/curate/manifest.json").read_text())["metrics"]["seconds"]
    split = ", ".join(f"{name} {took:.1f}" for name, took in steps.items())
    rest = seconds - sum(steps.values())
    print(
        f"| {label} | {seconds:.1f} | {peak:,.0f} | {split}, rest {rest:.1f} | {told(folder, 'curate')} |", flush=True
    )


def told(folder: Path, stage: str) -> str:
    """What became of the records of a stage."""
    counts = json.loads((folder / "run" / stage / "manifest.json").read_text())["counts"]
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts["reasons"].items())
    return f"{counts['input']:,} in, {counts['kept']:,} kept; {reasons}"


def run(folder: Path, command: str, *more: str) -> tuple[float, float]:
    """Seconds and peak memory (MB) of one command of the product."""
    whole = [sys.executable, "-m", "llmdistill", command, str(folder / "pipeline.yaml"), *more]
    started = time.perf_counter()
    with (folder / "log.txt").open("wb") as log:
        env = {**os.environ, "PYTHONPATH": str(REPO)}
        process = subprocess.Popen(whole, cwd=REPO, env=env, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit((folder / "log.txt").read_text("utf-8", "replace")[-2000:])
    return time.perf_counter() - started, usage.ru_maxrss / 1024
