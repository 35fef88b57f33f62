"""10,000 real instructions, then 100 new ones: what a refresh asks and takes beside a full run over all of them.

    python -m tests.bench.refresh_scale instructions.parquet --column prompt

Teacher and judge are a server on 127.0.0.1 that answers after `--latency` seconds and counts its calls. The records of
the refresh are compared byte for byte with those of a full run over the union, for which the server answers at once.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llmdistill.errors import NotPromotedError
from tests.faults.api import fake_teacher
from tests.faults.conftest import Zygote
from tests.refresh.runs import JUDGED, SCENARIO, Lineage
from tests.refresh.test_refresh import parts
from tests.tiny import save_tiny_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("instructions", type=Path, help="Parquet file of instructions")
    parser.add_argument("--column", default="prompt")
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds until the server answers")
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
    first, asked = timed(line, "refresh", arguments.latency)
    show("first run", first, asked)
    line.write(rows, **sections)
    took, asked = timed(line, "refresh", arguments.latency)
    show("refresh", took, asked)
    show("the same again", *timed(line, "refresh", arguments.latency))
    show("all, full, no latency", *timed(line, "run", 0.0, "--set", "run_dir=whole"))
    version = line.run_dir / "refresh" / "0001"
    equal = parts(version) == parts(line.folder / "whole")
    print(f"refresh / first run: {took / first:.1%} of the time; records as in the full run, byte for byte: {equal}")


def timed(line: Lineage, command: str, latency: float, *flags: str) -> tuple[float, dict[str, int]]:
    judge = {"kind": "constant", "match": JUDGED, "delay": latency}
    line.teacher.begin(latency=latency, rules=[judge])
    started = time.monotonic()
    process = line.zygote.start(command, "pipeline.yaml", *flags, cwd=line.folder)
    result = process.wait(timeout=7200)
    assert result.code in (0, NotPromotedError.exit_code), result.stderr
    calls = line.asked()
    return time.monotonic() - started, {"teacher": calls["ok"], "judge": calls["constant"]}


def show(what: str, seconds: float, asked: dict[str, int]) -> None:
    print(f"{what:24} {seconds:8.1f} s   asked: {asked}", flush=True)


if __name__ == "__main__":
    main()
