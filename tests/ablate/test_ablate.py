"""`llmdistill ablate` from end to end: killed and resumed, nothing trained twice, equal sets, the same numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmdistill.pipeline_file import load_pipeline
from llmdistill.run.files import read_table
from llmdistill.run.stage import num_records, read_records
from llmdistill.stages import run_stages
from tests.ablate.conftest import SEEDS, SIZE, Ablation, new_ablation
from tests.faults.same import plain

KILLED = 137
WALK = (
    ("files.before_replace:2", 0, 0),
    ("ablate.before_measurement:1", 0, 0),
    ("train.after_step:2", 0, 0),
    ("stage.before_manifest:1", 0, 0),
    ("ablate.after_training:1", 1, 0),
    ("ablate.after_record:2", 1, 0),
    ("train.before_complete:1", 1, 1),
    ("ablate.after_training:2", 3, 2),
)
"""Where the process is killed in turn; how many students are trained and measured then."""

NO_STEP = "train.after_step:1"
"""Kills a process that trains at all."""


def num_done(ablation: Ablation) -> tuple[int, int]:
    trials = ablation.trials() if ablation.dir.exists() else []
    trained = [trial for trial in trials if (trial / "train" / "manifest.json").exists()]
    measured = [trial for trial in trials if list((trial / "measure").glob("*.json"))]
    return len(trained), len(measured)


def students(ablation: Ablation) -> dict[str, int]:
    """When the weights of every finished student were written."""
    return {
        trial.name: (trial / "train" / "student" / "model.safetensors").stat().st_mtime_ns
        for trial in (ablation.trials() if ablation.dir.exists() else [])
        if (trial / "train" / "manifest.json").exists()
    }


def test_killed_wherever_it_is_it_goes_on_trains_nothing_twice_and_ends_the_same(zygote, model, tmp_path, undisturbed):
    ablation = new_ablation(zygote, tmp_path, model)
    before: dict[str, int] = {}
    for failpoint, trained, measured in WALK:
        result = ablation.do(failpoint=failpoint)
        assert result.code == KILLED, f"{failpoint} was not met: {result.stderr}"
        assert num_done(ablation) == (trained, measured), failpoint
        now = students(ablation)
        assert {name: now[name] for name in before} == before, "a student was trained again"
        before = now
    ablation.do().ok()
    assert {name: students(ablation)[name] for name in before} == before
    wanted = undisturbed.table()
    assert plain(ablation.table()) == plain(wanted)
    assert wanted["finished"] == wanted["planned"] == 4


def test_the_same_command_again_trains_nothing_and_shows_the_same(finished):
    again = finished.do("--json", failpoint=NO_STEP).ok()
    assert json.loads(again.stdout) == finished.table()
    assert again.stderr.count("measured already") == 4


def test_every_variant_has_as_many_records_and_the_same_untrained_student(undisturbed):
    table = undisturbed.table()
    assert {row["chosen"] for row in table["rows"] if row["seeds"]} == {SIZE}
    assert not any(row["note"] for row in table["rows"]) and table["held_out"] >= 4
    trials = undisturbed.trials()
    assert len(trials) == 2 * len(SEEDS)
    weights = {(trial / "train" / "untrained" / "model.safetensors").read_bytes() for trial in trials}
    assert len(weights) == 1
    chosen = {
        trial.name: {record.id for record in read_records(trial / "curate" / "part-00000.parquet")} for trial in trials
    }
    assert all(len(ids) == SIZE for ids in chosen.values())
    assert chosen["random-0"] != chosen["random-1"] != chosen["무리-1"]


def test_a_trial_is_a_run_of_its_own_that_holds_no_copy_and_no_journal(undisturbed, monkeypatch):
    monkeypatch.chdir(undisturbed.folder)
    trial = undisturbed.trials()[0]
    for stage in ("prompts", "generate", "filter"):
        files = [path for path in (trial / stage).iterdir()]
        assert not (trial / stage / "journal").exists() and (trial / stage / "manifest.json").exists()
        assert all(path.stat().st_ino == (trial.parents[1] / stage / path.name).stat().st_ino for path in files)
    pipeline = load_pipeline(str(trial / "config.json"))
    names = ["prompts", "generate", "filter", "curate", "train"]
    before = {name: (trial / name / "manifest.json").stat().st_mtime_ns for name in names}
    run_stages(pipeline, names)
    assert {name: (trial / name / "manifest.json").stat().st_mtime_ns for name in names} == before


def test_where_no_hard_link_can_be_stages_are_copied(undisturbed, tmp_path, monkeypatch):
    from llmdistill.ablate.folders import share_stages

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    run_dir = undisturbed.folder / "run"
    (tmp_path / "filter").mkdir()
    (tmp_path / "filter" / "part-00007.parquet").write_bytes(b"of another time")
    share_stages(run_dir, tmp_path)
    assert read_table(tmp_path / "filter" / "part-00000.parquet") == read_table(
        run_dir / "filter" / "part-00000.parquet"
    )
    assert num_records(tmp_path, "filter") == num_records(run_dir, "filter")


def test_the_numbers_are_those_of_evaluate_on_any_text_and_measuring_another_one_trains_nothing(finished, monkeypatch):
    monkeypatch.chdir(finished.folder)
    tables = {}
    for trial in finished.trials()[::3]:
        pipeline = load_pipeline(str(trial / "config.json"))
        tables[trial.name] = run_stages(pipeline, ["evaluate"])["evaluate"].metrics["table"]
    for measure in ("human_text_ce", "teacher_text_kl"):
        table = json.loads(finished.do("--json", "--set", f"ablation.measure={measure}", failpoint=NO_STEP).ok().stdout)
        rows = {row["variant"]: row for row in table["rows"]}
        for name, found in tables.items():
            variant, _, seed = name.rpartition("-")
            row = rows[variant]
            value = row["by_seed"][row["seeds"].index(int(seed))]
            assert value == pytest.approx(found["student"][measure]["mean"], rel=1e-5)
            assert rows["untrained"]["mean"] == pytest.approx(found["untrained"][measure]["mean"], rel=1e-5)


def test_without_keep_students_weights_go_once_they_are_measured_and_are_not_missed(finished):
    finished.values["ablation"]["keep_students"] = False
    before = finished.table()
    assert finished.do(failpoint=NO_STEP).ok()
    left = [path for trial in finished.trials() for path in (trial / "train").rglob("*.safetensors")]
    assert left == []
    assert finished.do(failpoint=NO_STEP).ok() and finished.table() == before


def test_a_changed_setting_does_over_what_it_changes_and_going_back_costs_nothing(finished):
    before, old = students(finished), finished.table()
    finished.values["ablation"]["vary"]["무리"]["train.learning_rate"] = 0.002
    changed = finished.do().ok()
    assert changed.stderr.count("measured already") == 2
    now = students(finished)
    assert {name for name in now if now[name] != before[name]} == {"무리-0", "무리-1"}
    assert finished.table() != old
    del finished.values["ablation"]["vary"]["무리"]["train.learning_rate"]
    finished.do(failpoint=NO_STEP).ok()
    assert finished.table() == old


def test_more_seeds_train_only_those(finished):
    finished.values["ablation"] |= {"seeds": [*SEEDS, 2], "vary": {"random": {"curate.select": "random"}}}
    more = finished.do().ok()
    assert more.stderr.count("measured already") == 2 and more.stderr.count("training ") == 3
    assert len(finished.table()["rows"][0]["seeds"] or finished.table()["rows"][1]["seeds"]) == 3


def test_a_pool_that_is_too_small_is_said_in_the_table(finished):
    finished.values["curate"]["size"] = 1000
    finished.values["ablation"] |= {"seeds": [0], "vary": {"random": {"curate.select": "random"}}}
    shown = finished.do().ok().stdout
    assert "of 1,000 wanted" in shown and "one seed" in shown


def test_held_out_prompts_without_references_are_one_line_before_anything_is_trained(zygote, model, tmp_path):
    ablation = new_ablation(zygote, tmp_path, model)
    pool = Path(ablation.values["prompts"]["path"])
    rows = [json.loads(line) for line in pool.read_text("utf-8").splitlines()]
    pool.write_text("\n".join(json.dumps({"prompt": row["prompt"], "completion": row["reference"]}) for row in rows))
    ablation.values["prompts"]["fields"] = {}
    result = ablation.do()
    assert result.code == 2 and "no held-out prompt's reference to measure on" in result.error
    assert not ablation.dir.exists()


def test_a_filter_that_kept_nothing_is_said_as_that(zygote, model, tmp_path):
    ablation = new_ablation(zygote, tmp_path, model)
    ablation.values["filter"]["judge"] = {"form": "likelihood", "min_score": 0.0}  # a log-probability is below it
    result = ablation.do()
    assert result.code == 3
    assert result.error.endswith("filter kept no record -> lower filter.judge.min_score")
