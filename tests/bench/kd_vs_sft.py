"""KD against SFT on the same data, steps and seeds; prints the table of the README.

    llmdistill run pipelines/quickstart.yaml
    python -m tests.bench.kd_vs_sft pipelines/quickstart.yaml --seeds 0 1 2 --set curate.size=64 --set evaluate.limit=16

The pipeline must have been run; its answers, judgements and held-out answers of the teacher are
used again. Each training is a run of its own beside it, about a gigabyte; finished ones are only read.
"""

from __future__ import annotations

import argparse
import shutil
from statistics import mean, stdev

from llmdistill.pipeline_file import load_pipeline
from llmdistill.stages import run_stages

UPSTREAM = ("prompts", "generate", "filter", "curate")
ASKED_ALREADY = "evaluate/journal"
"""The teacher's answers to the held-out prompts are the same for every student."""
COLUMNS = ("teacher_text_kl", "teacher_text_top1", "teacher_text_ce", "human_text_kl", "human_text_ce")


def table_of(file: str, overrides: list[str], method: str, seed: int) -> dict:
    """The comparison after training by one method under one seed."""
    base = load_pipeline(file).run_path
    run_dir = base.with_name(f"{base.name}-{method}-{seed}")
    for folder in (*UPSTREAM, ASKED_ALREADY):
        if not (run_dir / folder).exists():
            shutil.copytree(base / folder, run_dir / folder)
    changed = [f"run_dir={run_dir}", f"train.method={method}", f"train.seed={seed}"]
    manifests = run_stages(load_pipeline(file, [*overrides, *changed]), [*UPSTREAM, "train", "evaluate"])
    return manifests["evaluate"].metrics["table"]


def row(name: str, tables: list[dict], role: str) -> str:
    """One line of the table: mean and standard deviation over the seeds."""
    cells = []
    for column in COLUMNS:
        values = [table[role][column]["mean"] for table in tables]
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{mean(values):.3f}{spread}")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Train and evaluate under every method and seed, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pipeline")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["sft", "kd"])
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    tables = {
        method: [table_of(options.pipeline, options.set, method, seed) for seed in options.seeds]
        for method in options.methods
    }
    print("| | " + " | ".join(COLUMNS) + " |\n" + "|---" * (1 + len(COLUMNS)) + "|")
    print(row("untrained", next(iter(tables.values()))[:1], "untrained"))
    for method, found in tables.items():
        print(row(method, found, "student"))


if __name__ == "__main__":
    main()
