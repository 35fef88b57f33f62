"""Draws a pool of short instructions, and held-out ones like them, for `llmdistill ablate`.

    python -m tests.bench.curation_pool t0-instructions.parquet pool/

The rows (`template`, `prompt`, `completion`) are of the T0 collection as in github.com/yizhongw/self-instruct: tasks
over some 280 templates, with many rows that are nearly alike. Their texts are of public data sets under licences of
their own, so they are not shipped. A prompt that stands there twice is drawn once at most; of those drawn, rows with
long answers are left out.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

END = "<|endoftext|>"


def usable(path: Path, max_chars: int) -> list[dict[str, str]]:
    """Rows with a short prompt and an answer, each prompt once, in an order of their own."""
    rows = {}
    for row in pq.read_table(path).to_pylist():
        prompt, completion = row["prompt"].strip(), row["completion"].removesuffix(END).strip()
        if prompt and completion and len(prompt) <= max_chars:
            rows.setdefault(prompt, {"template": row["template"], "prompt": prompt, "completion": completion})
    return [rows[prompt] for prompt in sorted(rows)]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """One JSON object a line; the completion is the reference too."""
    lines = [json.dumps({**row, "reference": row["completion"]}, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{path}: {len(rows):,} rows of {len(Counter(row['template'] for row in rows))} templates")


def main() -> None:
    """Draw both files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=120)
    parser.add_argument("--max-chars", type=int, default=300)
    parser.add_argument("--max-answer", type=int, default=200, help="characters; a story would outweigh 99 answers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = usable(options.source, options.max_chars)
    drawn = random.Random(options.seed).sample(rows, options.size + options.held_out)
    held_out, pool = drawn[: options.held_out], drawn[options.held_out :]
    options.folder.mkdir(parents=True, exist_ok=True)
    write(options.folder / "held-out.jsonl", [row for row in held_out if len(row["completion"]) <= options.max_answer])
    write(options.folder / "pool.jsonl", [row for row in pool if len(row["completion"]) <= options.max_answer])


if __name__ == "__main__":
    main()
