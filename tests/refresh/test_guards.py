"""A line that would feed on itself is seen before anything is spent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmdistill.config import Generate, Model, Pipeline, Prompts, Refresh, Student
from llmdistill.errors import ConfigError, RejectsError
from llmdistill.record import Record
from llmdistill.refresh.guards import check_generation, check_real, generation_of
from tests.runs import answered, finish_stage, pipeline


def student_of(run_dir: Path, teacher: str = "some/teacher", **sections: object) -> str:
    """The student of a run whose teacher is this; its weights do not matter."""
    (run_dir / "train" / "student").mkdir(parents=True)
    settings = pipeline(run_dir, teacher=Model(model=teacher), **sections)
    (run_dir / "config.json").write_text(json.dumps(settings.model_dump(mode="json")))
    return str(run_dir / "train" / "student")


def asked(tmp_path: Path, teacher: str, **sections: object) -> Pipeline:
    return pipeline(tmp_path / "now", teacher=Model(model=teacher), **sections)


def test_a_teacher_that_nobody_taught_has_students_of_generation_one(tmp_path: Path) -> None:
    assert check_generation(asked(tmp_path, "some/teacher")) == 1


def test_generations_are_counted_through_the_runs_that_made_the_teachers(tmp_path: Path) -> None:
    first = student_of(tmp_path / "a")
    second = student_of(tmp_path / "b", first)
    assert generation_of(asked(tmp_path, first)) == 2
    assert generation_of(asked(tmp_path, second)) == 3


def test_a_student_as_teacher_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    first = student_of(tmp_path / "a")
    with pytest.raises(ConfigError, match="generation 2.*refresh.max_generation: 2"):
        check_generation(asked(tmp_path, first))
    assert check_generation(asked(tmp_path, first, refresh=Refresh(max_generation=2))) == 2


def test_the_pointer_to_the_champion_hides_no_generation(tmp_path: Path) -> None:
    first = Path(student_of(tmp_path / "a"))
    (tmp_path / "champion").symlink_to(first.parents[1])
    assert generation_of(asked(tmp_path, str(tmp_path / "champion" / "train" / "student"))) == 2


def test_a_version_says_its_generation_itself(tmp_path: Path) -> None:
    first = student_of(tmp_path / "a")
    (tmp_path / "a" / "version.json").write_text('{"generation": 4}')
    assert generation_of(asked(tmp_path, first)) == 5


def test_a_co_teacher_and_a_fallback_count_too(tmp_path: Path) -> None:
    first = student_of(tmp_path / "a")
    settings = Generate(mode="answer", fallback=Model(model=first))
    assert generation_of(asked(tmp_path, "some/teacher", generate=settings)) == 2


def test_runs_that_name_each_other_as_teachers_do_not_hang(tmp_path: Path) -> None:
    other = tmp_path / "b" / "train" / "student"
    first = student_of(tmp_path / "a", str(other))
    student_of(tmp_path / "b", first)
    assert generation_of(asked(tmp_path, first)) >= 2


def chosen(run_dir: Path, real: int, synthetic: int) -> None:
    records: list[Record] = [answered(f"real {number}") for number in range(real)]
    records += [answered(f"made {number}").with_meta(synthetic=1 + number % 2) for number in range(synthetic)]
    finish_stage(run_dir, "curate", [records])


def test_the_share_of_real_prompts_is_counted_by_generation(tmp_path: Path) -> None:
    chosen(tmp_path, 3, 5)
    found = check_real(pipeline(tmp_path))
    assert found == {"records": 8, "real": 3, "share": 0.375, "synthetic": {"0": 3, "1": 3, "2": 2}}


def test_too_few_real_prompts_stop_the_refresh_before_the_training(tmp_path: Path) -> None:
    chosen(tmp_path, 3, 5)
    assert check_real(pipeline(tmp_path, refresh=Refresh(min_real=0.37)))["real"] == 3
    with pytest.raises(RejectsError, match="3 have a prompt that a person wrote.*curate.quotas"):
        check_real(pipeline(tmp_path, refresh=Refresh(min_real=0.38)))


def test_prompts_declared_synthetic_are_not_real(tmp_path: Path) -> None:
    chosen(tmp_path, 3, 0)
    settings = Prompts(path="data/self-instruct/prompts.jsonl", synthetic=True, held_out_path="h.jsonl")
    assert check_real(pipeline(tmp_path, prompts=settings, student=Student(model="m")))["real"] == 0
