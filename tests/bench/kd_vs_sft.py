"""KD against SFT on the same data, steps and seeds; prints the table of the README.

    python -m tests.bench.kd_vs_sft pipelines/quickstart.yaml --seeds 0 1 2

The data is generated, filtered and curated once; only `train` and `evaluate` are repeated.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import mean, stdev

from llmdistill.pipeline_file import load_pipeline
from llmdistill.stages import run_stages

UPSTREAM = ("prompts", "generate", "filter", "curate")
COLUMNS = ("teacher_text_kl", "teacher_text_top1", "teacher_text_ce", "human_text_kl", "human_text_ce")


def table_of(file: str, overrides: list[str], method: str, seed: int) -> dict:
    """The comparison after training by one method under one seed."""
    base = load_pipeline(file, overrides).run_path
    run_dir = base.with_name(f"{base.name}-{method}-{seed}")
    for stage in UPSTREAM:
        shutil.copytree(base / stage, run_dir / stage, dirs_exist_ok=True)
    changed = [f"run_dir={run_dir}", f"train.method={method}", f"train.seed={seed}"]
    manifests = run_stages(load_pipeline(file, [*overrides, *changed]), [*UPSTREAM, "train", "evaluate"])
    for folder in ("train/student", "train/untrained"):
        for weights in Path(run_dir, folder).glob("*.safetensors"):
            weights.unlink()  # half a gigabyte each; the numbers stay
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
    """Run both methods under every seed and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pipeline")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    run_stages(load_pipeline(options.pipeline, options.set), UPSTREAM)
    tables: dict[str, list[dict]] = {"sft": [], "kd": []}
    for seed in options.seeds:
        for method, found in tables.items():
            found.append(table_of(options.pipeline, options.set, method, seed))
            print(row(f"{method} {seed}", found[-1:], "student"), flush=True)
    print("| | " + " | ".join(COLUMNS) + " |\n|---" * 1 + "|---" * len(COLUMNS) + "|")
    print(row("untrained", tables["kd"][:1], "untrained"))
    print(row("SFT", tables["sft"], "student"))
    print(row("KD", tables["kd"], "student"))


if __name__ == "__main__":
    main()
