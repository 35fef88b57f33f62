"""Real solutions with published labels, from a file of answers to a student: imported, verified, curated, exported."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmdistill.curate.stage import run as run_curate
from llmdistill.export.data import records_of, write_file
from llmdistill.filter.stage import run as run_filter
from llmdistill.generate.stage import read as read_prompts
from llmdistill.generate.stage import run as run_generate
from llmdistill.pipeline_file import load_pipeline
from llmdistill.run.files import read_table
from llmdistill.run.manifest import Manifest
from tests.bench.verifier_agreement import EXPLAINED, LEAST, MODELS
from tests.tiny import REPO, save_tiny_model
from tests.verify.test_agreement import WHOLE

SHIPPED = REPO / "data" / "gsm8k" / "model-solutions-first-200.jsonl"
VERDICTS = {"kept": True, "wrong_answer": False, "unverifiable": None}
"""What an outcome says of an answer. The others say nothing about it being right; undecided is never the label."""


@dataclass(frozen=True)
class Fate:
    """What became of one solution, and whether the publishers say that it is right."""

    key: str
    stage: str
    outcome: str
    is_correct: bool

    @property
    def agrees(self) -> bool:
        return VERDICTS[self.outcome] is self.is_correct


def converted(folder: Path) -> Path:
    """The published file with one row a solution."""
    path = folder / "solutions.jsonl"
    with open(path, "w", encoding="utf-8") as handle:
        for number, line in enumerate(WHOLE.read_text("utf-8").splitlines()):
            row = json.loads(line)
            for model in MODELS:
                made = {
                    "id": f"{number}/{model}",
                    "prompt": row["question"],
                    "completion": row[model]["solution"],
                    "reference": row["ground_truth"],
                    "model": model,
                }
                handle.write(json.dumps(made, ensure_ascii=False) + "\n")
    return path


def labels() -> dict[str, bool]:
    rows = [json.loads(line) for line in WHOLE.read_text("utf-8").splitlines()]
    return {f"{number}/{model}": row[model]["is_correct"] for number, row in enumerate(rows) for model in MODELS}


def fates(run_dir: Path, label_of: dict[str, bool]) -> list[Fate]:
    """What became of every imported solution."""
    found = []
    for stage in ("prompts", "generate", "filter"):
        for row in read_table(run_dir / stage / "rejects.parquet").to_pylist():
            line = row["reject"]["where"].rpartition(":")[2]  # rows that never became a record have no key
            key = row["source"]["key"] or list(label_of)[int(line) - 1]
            found.append(Fate(key, stage, row["reject"]["reason"], label_of[key]))
    for part in sorted((run_dir / "filter").glob("part-*.parquet")):
        keys = [source["key"] for source in read_table(part).column("source").to_pylist()]
        found += [Fate(key, "filter", "kept", label_of[key]) for key in keys]
    return found


def run_data_stages(settings: list[str]) -> tuple[Path, dict[str, Manifest]]:
    """Import, generate, filter and curate with the shipped pipeline."""
    pipeline = load_pipeline(str(REPO / "pipelines" / "import.yaml"), settings)
    stages = {"prompts": read_prompts, "generate": run_generate, "filter": run_filter, "curate": run_curate}
    return pipeline.run_path, {name: stage(pipeline) for name, stage in stages.items()}


@pytest.mark.skipif(not WHOLE.exists(), reason="the whole file of published solutions is not here")
def test_of_5276_real_solutions_at_least_995_in_1000_are_kept_or_dropped_as_published(tmp_path):
    settings = [f"prompts.path={converted(tmp_path)}", "prompts.held_out=0", f"run_dir={tmp_path / 'run'}"]
    run_dir, manifests = run_data_stages(settings)
    found = fates(run_dir, labels())
    before = [fate for fate in found if fate.outcome not in VERDICTS]
    judged = [fate for fate in found if fate.outcome in VERDICTS]
    print(*(f"{name}: {manifest.counts}" for name, manifest in manifests.items()), sep="\n")
    print(*sorted(Counter((fate.stage, fate.outcome, fate.is_correct) for fate in found).items()), sep="\n")
    print("not judged:", *before, sep="\n")
    assert len(found) == len({fate.key for fate in found}) == 5276
    assert len(before) <= 25 and {fate.outcome for fate in before if fate.is_correct} <= {"duplicate_answer"}
    assert sum(fate.agrees for fate in judged) >= LEAST * len(judged)
    assert {fate.key for fate in judged if not fate.agrees} <= set(EXPLAINED)
    assert not [fate for fate in found if fate.outcome == "kept" and not fate.is_correct]
    kept = manifests["filter"].counts.kept
    assert manifests["curate"].counts.input == kept > 1900
    exported = tmp_path / "train.parquet"
    assert (
        write_file(records_of(run_dir, "curate", "messages"), "messages", exported) == manifests["curate"].counts.kept
    )
    prompts = Counter(turns[0]["content"] for turns in read_table(exported).column("messages").to_pylist())
    assert max(prompts.values()) > 1, "samples of one prompt are no copies of each other"


SMALL = (
    "prompts.limit=60",
    "train.max_length=2048",
    "evaluate.limit=2",
    "evaluate.max_new_tokens=4",
)


def test_the_shipped_recipe_runs_from_answers_to_a_report_without_asking_a_teacher_for_any(cli, tmp_path):
    model = save_tiny_model(tmp_path / "model", num_layers=2, context=2048)
    overrides = [f"teacher.model={model}", f"student.model={model}", *SMALL]
    flags = [part for override in overrides for part in ("--set", override)]
    recipe = REPO / "pipelines" / "import.yaml"
    done = cli("run", recipe, *flags)
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "data" / "runs" / "import"
    assert not (run_dir / "generate" / "journal").exists()
    rows = [row for part in (run_dir / "curate").glob("part-*") for row in read_table(part).to_pylist()]
    label_of = {row["id"]: row["is_correct"] for row in map(json.loads, SHIPPED.read_text("utf-8").splitlines())}
    assert len(rows) > 10 and all(label_of[row["source"]["key"]] for row in rows)
    assert {row["teacher"]["model"] for row in rows} == {"175b_finetuning", "175b_verification"}
    exported = cli("export", recipe, *flags, "--format", "sharegpt", "--to", "out/학습.jsonl")
    assert exported.returncode == 0, exported.stderr
    assert len((tmp_path / "out" / "학습.jsonl").read_text("utf-8").splitlines()) == len(rows)
