"""What one machine takes for a million records: seconds, peak memory and bytes of every stage.

    python -m tests.bench.one_million [--records 1000000] [--json constants.json]

Answers are imported, so no model is asked; the judge is left out. The student is a tiny real model, trained on the
few that are chosen. Each stage is a process of its own. `tests/bench/scaling.py` takes its constants from here.
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
from typing import Any

from tests.bench.rethreshold import Texts
from tests.tiny import REPO, save_tiny_model

STAGES = ("generate", "filter", "curate", "train", "evaluate", "report")
BATCH = 20_000
PIPELINE = """
name: million
run_dir: run
prompts: {{path: prompts.jsonl, held_out: 0.0001}}
generate: {{mode: import, imported_from: someone, template: prompts/en/answer.yaml, shard_size: 10000}}
teacher: {{model: {model}}}
student: {{model: {model}}}
filter: {{judge: null}}
curate: {{size: 1000}}
train: {{method: sft, epochs: 1, max_length: 192, batch_size: 16, device: cpu}}
evaluate: {{limit: 20, max_new_tokens: 8}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="where to put the figures")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="million-"))
    try:
        write_rows(folder / "prompts.jsonl", arguments.records)
        pipeline = PIPELINE.format(model=save_tiny_model(folder / "model"))
        (folder / "pipeline.yaml").write_text(pipeline)
        figures = {"records": arguments.records, "prompt_bytes": size_of(folder / "prompts.jsonl")}
        figures["stages"] = {name: run(folder, name) for name in STAGES}
    finally:
        shutil.rmtree(folder)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


def write_rows(path: Path, num: int) -> None:
    """Records of real sentences in new orders, about 600 characters each."""
    texts = Texts()
    with open(path, "w", encoding="utf-8") as handle:
        for start in range(0, num, BATCH):
            size = min(BATCH, num - start)
            columns = [texts.draw(size, number).to_pylist() for number in (2, 4)]
            for number, (prompt, reply) in enumerate(zip(*columns, strict=True), start):
                row = {"prompt": f"{number}: {prompt}", "completion": reply}
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def run(folder: Path, stage: str) -> dict[str, Any]:
    """One stage as a process; its peak memory is that of the process and of what it started."""
    command = [sys.executable, "-m", "llmdistill", stage, "pipeline.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{stage} ended with {os.waitstatus_to_exitcode(status)}")
    seconds = time.monotonic() - started
    num_bytes = sum(size_of(path) for path in (folder / "run" / stage).rglob("*") if path.is_file())
    print(
        f"{stage:10} {seconds:8.1f} s {used.ru_maxrss / 1024:8,.0f} MB {num_bytes / 1e6:8,.0f} MB on disk", flush=True
    )
    return {"seconds": seconds, "peak_bytes": used.ru_maxrss * 1024, "disk_bytes": num_bytes}


def size_of(path: Path) -> int:
    return path.stat().st_size


if __name__ == "__main__":
    main()
