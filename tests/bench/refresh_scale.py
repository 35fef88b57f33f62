"""10,000 real instructions, then 100 new ones: what a refresh asks and takes beside a full run over all of them.

    python -m tests.bench.refresh_scale instructions.parquet --column prompt

Teacher and judge are a server on 127.0.0.1 that answers after `--latency` seconds and counts its calls. The records of
the refresh are compared byte for byte with those of a full run over the union, which is also what its time is
compared with.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.faults.api import fake_teacher
from tests.faults.conftest import Zygote
from tests.refresh.runs import SCENARIO, Lineage
from tests.refresh.test_refresh import parts
from tests.tiny import save_tiny_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("instructions", type=Path, help="Parquet file of instructions")
    parser.add_argument("--column", default="prompt")
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds until the server answers")
    arguments = parser.parse_args()
    texts = pq.read_table(arguments.instructions, columns=[arguments.column]).column(0).to_pylist()
    texts = list(dict.fromkeys(text.strip() for text in texts if text and text.strip()))
    folder = Path(tempfile.mkdtemp(prefix="refresh-scale-"))
    zygote = Zygote(folder)
    try:
        with fake_teacher(latency=arguments.latency, **SCENARIO) as teacher:
            line = Lineage(folder, teacher, save_tiny_model(folder / "student"), zygote)
            compare(line, texts, arguments)
    finally:
        zygote.close()
        shutil.rmtree(folder)


def compare(line: Lineage, texts: list[str], arguments: argparse.Namespace) -> None:
    rows = [{"prompt": text} for text in texts[: arguments.num + arguments.new]]
    sections: dict[str, Any] = {
        "prompts": {"held_out_path": "held_out.jsonl"},
        "curate": {"size": 500},
        "evaluate": {"limit": 50},
    }
    held_out = "".join(f'{{"prompt": "Held-out question {number}?"}}\n' for number in range(50))
    (line.folder / "held_out.jsonl").write_text(held_out)
    line.write(rows[: arguments.num], **sections)
    show("first run", *timed(line, "refresh", arguments.latency))
    line.write(rows, **sections)
    took, asked = timed(line, "refresh", arguments.latency)
    show("refresh", took, asked)
    show("the same again", *timed(line, "refresh", arguments.latency))
    whole, asked = timed(line, "run", arguments.latency, "--set", "run_dir=whole")
    show("full run over all", whole, asked)
    equal = parts(line.champion) == parts(line.folder / "whole")
    print(f"refresh / full run: {took / whole:.1%} of the time; records equal byte for byte: {equal}")


def timed(line: Lineage, command: str, latency: float, *flags: str) -> tuple[float, dict[str, int]]:
    line.teacher.begin(latency=latency, **SCENARIO)
    started = time.monotonic()
    process = line.zygote.start(command, "pipeline.yaml", *flags, cwd=line.folder)
    result = process.wait(timeout=7200)
    assert result.code == 0, result.stderr
    calls = line.asked()
    return time.monotonic() - started, {"teacher": calls["ok"], "judge": calls["constant"]}


def show(what: str, seconds: float, asked: dict[str, int]) -> None:
    print(f"{what:20} {seconds:8.1f} s   asked: {asked}", flush=True)


if __name__ == "__main__":
    main()
