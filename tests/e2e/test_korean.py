"""The Korean recipe through every stage: Hangul prompts, templates, paths and report."""

from __future__ import annotations

import json

from tests.tiny import REPO, save_tiny_model

SMALL = (
    "student.model=null",
    "student.keep_layers=2",
    "generate.max_new_tokens=12",
    "generate.unparsed=keep",
    "filter.checks={truncated: false, repetition: false, language: false, echo: false}",
    "filter.judge.min_score=1",
    "train.epochs=1",
    "evaluate.max_new_tokens=8",
    "evaluate.repetition_penalty=1.3",
)


def test_the_korean_recipe_runs_from_prompts_to_report(cli, tmp_path):
    model = save_tiny_model(tmp_path / "model", context=4096)  # Hangul takes three tokens a letter there
    folder = tmp_path / "한국어 실험"
    folder.mkdir()
    settings = [f"teacher.model={model}", "name=한글-실행", *SMALL]
    overrides = [part for setting in settings for part in ("--set", setting)]
    done = cli("run", REPO / "pipelines" / "korean.yaml", *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr
    run_dir = folder / "data" / "runs" / "한글-실행"
    page = (run_dir / "report" / "index.html").read_text("utf-8")
    assert "한국어 학생 모델" in page
    assert 'lang="ko"' in page
    lines = (REPO / "data" / "korean" / "prompts.jsonl").read_text("utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    shown = cli("inspect", REPO / "pipelines" / "korean.yaml", *overrides, "--stage", "generate", "--json", cwd=folder)
    for row in json.loads(shown.stdout):
        assert row["prompt"][-1]["content"] in prompts
    masks = cli("inspect", REPO / "pipelines" / "korean.yaml", *overrides, "--masks", cwd=folder)
    assert masks.returncode == 0, masks.stderr
    assert "end token trained" in masks.stdout
