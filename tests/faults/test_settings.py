"""Changed settings: what is done over, what is refused, and what is never paid for twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.conftest import STAGES, Run
from tests.faults.same import assert_same_results

NO_ANSWER = "engine.after_answer:1"
"""Kills the process at the first answer of any engine: a command that ends well asked for none."""


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("setting", ["teacher.batch_size=7", "train.save_steps=3", "report.samples=3"])
def test_a_setting_that_changes_no_result_does_no_stage_over(finished: Run, setting: str) -> None:
    result = finished.do("run", setting, failpoint=NO_ANSWER).ok()
    assert result.stderr.count("done already") == len(STAGES) - 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("generate.max_new_tokens=8", "generate.max_new_tokens: 20 -> 8"),
        ("generate.temperature=0.5", "generate.temperature: 0.0 -> 0.5"),
        ("seed=7", "generate.seed: 0 -> 7"),
        ("teacher.dtype=bfloat16", "teacher.dtype: float32 -> bfloat16"),
    ],
)
def test_a_changed_setting_of_the_teacher_is_refused_naming_old_and_new(finished: Run, setting: str, said: str) -> None:
    before = bytes_of(finished.dir / "generate")
    result = finished.do("generate", setting, failpoint=NO_ANSWER)
    assert result.code == 2 and said in result.error and "--fresh" in result.error
    assert bytes_of(finished.dir / "generate") == before


def test_a_changed_setting_of_training_is_refused_naming_old_and_new(finished: Run) -> None:
    result = finished.do("train", "train.learning_rate=0.01", failpoint="train.after_step:1")
    assert result.code == 2 and "train.learning_rate: 0.001 -> 0.01" in result.error


def test_fresh_keeps_the_former_results_and_going_back_asks_no_engine(finished: Run, undisturbed: Run) -> None:
    other = "generate.max_new_tokens=8"
    finished.do("generate", other, fresh=True).ok()
    finished.do("filter", other).ok()
    previous = bytes_of(finished.dir / "generate.previous")
    for name, data in bytes_of(undisturbed.dir / "generate").items():
        assert name.startswith("journal") or previous[name] == data
    finished.do("generate", fresh=True, failpoint=NO_ANSWER).ok()
    finished.do("filter", failpoint=NO_ANSWER).ok()
    assert_same_results(finished, undisturbed, ("generate", "filter"))


def test_another_threshold_does_filter_over_without_asking_teacher_or_judge(finished: Run) -> None:
    scores = sorted(row["verdicts"][0]["score"] for row in finished.rows("filter"))
    threshold = scores[len(scores) // 2]
    generated, journals = bytes_of(finished.dir / "generate"), bytes_of(finished.dir / "filter" / "journal")
    setting = f"filter.judge.min_score={threshold}"
    result = finished.do("run", setting, "curate.size=10", failpoint=NO_ANSWER)
    assert result.code == 137, "evaluate has to ask the new student, and is the first to ask anyone"
    assert bytes_of(finished.dir / "generate") == generated
    assert bytes_of(finished.dir / "filter" / "journal") == journals
    kept = [row["verdicts"][0]["score"] for row in finished.rows("filter") if row["file"] != "rejects.parquet"]
    assert sorted(kept) == scores[scores.index(threshold) :]
    assert [name in result.stderr for name in ("filter    done already", "generate  done already")] == [False, True]
    assert finished.manifest("curate")["counts"]["kept"] == 10
    assert finished.manifest("train")["counts"]["input"] == 10


@pytest.mark.parametrize("place", ["front", "end"])
def test_new_prompts_cost_only_their_own_answers_and_judgements(finished: Run, place: str) -> None:
    text = finished.pipeline.read_text()
    old = Path(text.split("path: ")[1].split(",")[0])
    new = finished.folder / "prompts.jsonl"
    rows = [f"a question number {number}, unlike the others" for number in range(5)]
    added = "".join(json.dumps({"prompt": row}) + "\n" for row in rows)
    text = old.read_text("utf-8")
    new.write_text(added + text if place == "front" else text + added, "utf-8")
    before = finished.manifest("generate")["counts"]["kept"], finished.manifest("filter")["usage"]["requests"]
    finished.do("generate", f"prompts.path={new}", f"prompts.dataset={old.stem}").ok()
    num_new = finished.manifest("generate")["counts"]["kept"] - before[0]
    assert len(finished.answers()) == num_new > 0
    finished.do("filter", f"prompts.path={new}", f"prompts.dataset={old.stem}").ok()
    assert len(finished.answers()) - num_new == finished.manifest("filter")["usage"]["requests"] - before[1] <= num_new


def test_the_same_run_in_another_working_directory_is_the_same_run(finished: Run) -> None:
    finished.folder = finished.folder / "elsewhere"
    finished.folder.mkdir()
    assert "done already" in finished.do("filter", failpoint=NO_ANSWER).ok().stderr


def test_fresh_without_a_change_does_nothing_over(finished: Run) -> None:
    assert "done already" in finished.do("generate", fresh=True, failpoint=NO_ANSWER).ok().stderr
    assert not (finished.dir / "generate.previous").exists()


@pytest.mark.parametrize("stage", STAGES[2:])
def test_a_stage_without_its_input_names_the_command_to_run_first(new_run: Run, stage: str) -> None:
    result = new_run.do(stage)
    assert result.code == 1 and "is not finished yet -> run llmdistill " in result.error
    assert " prompts first" not in result.error
