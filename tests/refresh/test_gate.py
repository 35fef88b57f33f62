"""The gate on real models and real prompts: who is promoted, who is refused, and on what."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llmdistill.errors import LlmdistillError
from llmdistill.record import record_id
from llmdistill.refresh.gate import GateResult, compare
from llmdistill.refresh.paired import MEASURES
from llmdistill.run.inherit import inherit
from llmdistill.run.stage import inputs_of
from tests.refresh.gate_runs import (
    NUM_HELD_OUT,
    TEXT,
    World,
    alone,
    evaluated,
    gated,
    journal_rows,
    measured,
    noisy,
    settings,
    tasks,
    version,
)
from tests.runs import answered

TEXTS = ("human_text_ce", "teacher_text_ce", "teacher_text_kl", "teacher_text_top1")


@pytest.mark.parametrize("measure", [None, *MEASURES])
def test_a_better_student_is_promoted(world: World, measure: str | None) -> None:
    found = compare(gated(world.better, measure=measure), world.champion, 3)
    assert found.promoted and "better than version 3" in found.reason
    assert found.measure == (measure or "accuracy")
    assert (found.num_records, found.num_leaked, found.same_weights) == (NUM_HELD_OUT, 0, False)
    assert {other.measure for other in found.secondary} == set(MEASURES) - {found.measure}


@pytest.mark.parametrize("measure", [None, *MEASURES])
def test_a_worse_student_is_refused_and_told_by_how_much(world: World, measure: str | None) -> None:
    found = compare(gated(world.worse, measure=measure), world.champion, 3)
    assert not found.promoted and "worse than version 3" in found.reason
    assert f"{found.student:.4f} against {found.champion:.4f}" in found.reason
    assert f"margin is {0.02 if found.higher_is_better else 0.05}" in found.reason


def test_noise_on_the_weights_and_no_training_at_all_are_refused(world: World, tmp_path: Path) -> None:
    untrained = world.folder / "tiny"
    for number, student in enumerate((noisy(world.students["well"], tmp_path / "noisy", 0.05), untrained)):
        found = compare(world.version(tmp_path / str(number), student), world.champion, 0)
        assert not found.promoted and "worse" in found.reason


def test_a_better_one_within_a_margin_of_the_champion_is_promoted_and_one_beyond_it_is_not(world: World) -> None:
    """The roles are exchanged: the better student is the champion, and how much one may lose decides."""
    narrow = compare(gated(world.worse, measure="human_text_ce"), world.better.run_path, 1)
    wide = compare(gated(world.worse, measure="human_text_ce", margin=10.0), world.better.run_path, 1)
    assert not narrow.promoted and wide.promoted
    assert "not worse by more than 10 than" in wide.reason
    assert (narrow.low, narrow.high) == (wide.low, wide.high)


def test_the_means_are_those_of_evaluate_and_the_differences_those_of_the_records(world: World) -> None:
    found = compare(gated(world.better, measure="human_text_ce"), world.champion, 0)
    table = json.loads((world.better.run_path / "evaluate" / "manifest.json").read_text())["metrics"]["table"]
    assert found.student == pytest.approx(table["student"]["human_text_ce"]["mean"])
    weights = [row["weight"] for row in found.per_record]
    for who in ("champion", "student"):
        mean = sum(row[who] * row["weight"] for row in found.per_record) / sum(weights)
        assert mean == pytest.approx(getattr(found, who))
    assert found.difference == pytest.approx(found.student - found.champion)
    assert {row["id"] for row in found.per_record} == {record.id for record in tasks()}


def test_the_champion_has_the_scores_that_its_own_evaluate_gives_it(world: World, tmp_path: Path) -> None:
    own = world.version(tmp_path / "own", world.students["well"])
    found = compare(gated(world.better, measure="teacher_text_kl"), world.champion, 0)
    table = json.loads((own.run_path / "evaluate" / "manifest.json").read_text())["metrics"]["table"]["student"]
    values = {other.measure: other.champion for other in (found, *found.secondary)}
    for measure in TEXTS:
        assert values[measure] == pytest.approx(table[measure]["mean"], rel=1e-6)


def test_the_result_is_plain_json(world: World) -> None:
    found = compare(world.better, world.champion, 0)
    again = json.loads(json.dumps(asdict(found), allow_nan=False))
    assert again["promoted"] is True and len(again["per_record"]) == NUM_HELD_OUT


def test_the_same_comparison_again_asks_nothing_and_says_the_same(world: World) -> None:
    first = compare(world.better, world.champion, 0)
    before = journal_rows(world.better.run_path)
    assert compare(world.better, world.champion, 0) == first
    assert journal_rows(world.better.run_path) == before


def test_what_the_champions_own_evaluate_asked_is_inherited(world: World, tmp_path: Path) -> None:
    champion = world.version(tmp_path / "champion", world.students["well"])
    fresh = alone(world.better, tmp_path / "fresh")
    shutil.rmtree(fresh.run_path / "evaluate")
    inherit(champion.run_path, fresh.run_path, "0000")
    before = journal_rows(evaluated(fresh).run_path)
    found = compare(fresh, champion.run_path, 0)
    assert found.champion == compare(world.better, world.champion, 0).champion
    verdicts = 2 * NUM_HELD_OUT
    assert journal_rows(fresh.run_path) - before <= NUM_HELD_OUT + verdicts  # it is scored, but not asked


@pytest.mark.parametrize("measure", [None, *TEXTS])
def test_identical_students_are_promoted_and_differ_by_exactly_nothing(world: World, tmp_path: Path, measure) -> None:
    if not (world.folder / "same").exists():
        world.version(world.folder / "same", world.students["well"])
    copied = alone(settings(world.folder / "same", world.teacher, TEXT), tmp_path / "same")
    same = gated(copied, measure=measure, margin=0.0)
    before = journal_rows(same.run_path)
    found = compare(same, world.champion, 2)
    assert found.promoted and found.same_weights and "weights of version 2" in found.reason
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert all(other.difference == 0.0 == other.low == other.high for other in found.secondary)
    assert journal_rows(same.run_path) - before == NUM_HELD_OUT  # only verdicts: nobody is asked or scored


def test_identical_weights_scored_for_real_differ_by_exactly_nothing(world: World, tmp_path: Path) -> None:
    copied = shutil.copytree(world.students["well"], tmp_path / "student")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "a_note": "of no effect"}))
    same = world.version(tmp_path / "same", copied)
    for measure in TEXTS:
        found = compare(gated(same, measure=measure, margin=0.0), world.champion, 2)
        assert not found.same_weights
        assert found.promoted, found.reason
        assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)


def test_prompts_that_the_champion_was_trained_on_are_left_out(world: World, tmp_path: Path) -> None:
    held_out = tasks()
    sample = replace(held_out[0], id=record_id(held_out[0].prompt, 2))
    system = [{"role": "system", "content": "Be brief."}, *held_out[1].prompt]
    spaced = answered(f" {held_out[2].question.upper()} \n", "Loud.")
    curated = [sample, replace(held_out[1], id=record_id(system), prompt=system), spaced, answered("Another?", "Yes.")]
    champion = version(tmp_path / "champion", world.students["well"], held_out, curated)
    found = compare(gated(world.better, measure="human_text_ce"), champion, 1)
    assert (found.num_held_out, found.num_leaked, found.num_records) == (NUM_HELD_OUT, 3, NUM_HELD_OUT - 3)
    assert {row["id"] for row in found.per_record} == {record.id for record in held_out[3:]}
    whole = compare(gated(world.better, measure="human_text_ce"), world.champion, 1)
    kept = [row for row in whole.per_record if row["id"] not in {record.id for record in held_out[:3]}]
    assert list(found.per_record) == kept


def test_prompts_that_the_new_student_or_an_earlier_one_was_trained_on_are_left_out_too(world, tmp_path) -> None:
    held_out = tasks()
    run = version(tmp_path / "run", world.students["best"], held_out, held_out[:1])
    given = gated(evaluated(settings(run, world.teacher, TEXT)), measure="human_text_ce")
    earlier = version(tmp_path / "earlier", world.students["little"], held_out, held_out[1:3])
    assert compare(given, world.champion, 0).num_leaked == 1
    assert compare(given, world.champion, 0, learned_from=[earlier]).num_leaked == 3


def test_a_champion_trained_on_all_of_them_leaves_nothing_to_decide_on(world: World, tmp_path: Path) -> None:
    champion = version(tmp_path / "champion", world.students["little"], tasks(), tasks())
    before = journal_rows(world.better.run_path)
    found = compare(world.better, champion, 1)
    assert not found.promoted and found.num_leaked == NUM_HELD_OUT and found.difference is None
    assert f"0 of {NUM_HELD_OUT} held-out prompts" in found.reason and "trained on them" in found.reason
    assert journal_rows(world.better.run_path) == before


@pytest.mark.parametrize("measure", [None, *MEASURES])
def test_too_few_prompts_are_refused_however_good_the_student(world: World, tmp_path: Path, measure) -> None:
    given = gated(alone(world.better, tmp_path / "run"), measure=measure, min_records=NUM_HELD_OUT + 1)
    before = journal_rows(given.run_path)
    found = compare(given, world.champion, 0)
    assert not found.promoted
    assert f"at least {NUM_HELD_OUT + 1} are needed" in found.reason
    assert journal_rows(given.run_path) == before  # nobody was asked


def test_no_held_out_prompt_at_all_is_refused(world: World, tmp_path: Path) -> None:
    run = version(tmp_path / "run", world.students["best"], [])
    found = compare(evaluated(settings(run, world.teacher)), world.champion, 0)
    assert not found.promoted and "0 of 0 held-out prompts" in found.reason and found.champion is None


def test_a_student_that_few_prompts_cannot_tell_from_a_worse_one_is_refused(world: World, tmp_path: Path) -> None:
    """Noise too small to see in two dozen answers: no difference shows, and that is no proof of equality."""
    nearly = noisy(world.students["well"], tmp_path / "nearly", 1e-4)
    given = world.version(tmp_path / "run", nearly)
    found = compare(given, world.champion, 0)
    assert found.difference == pytest.approx(0.0, abs=0.05)
    assert not found.promoted and "cannot be told" in found.reason and "held-out prompts would tell" in found.reason
    fine = compare(gated(given, measure="teacher_text_ce"), world.champion, 0)
    assert fine.promoted and "not worse by more than 0.05" in fine.reason


def test_a_measure_with_too_few_references_gives_way_to_one_with_enough(world: World, tmp_path: Path) -> None:
    held_out = [replace(record, reference=None) if number >= 5 else record for number, record in enumerate(tasks())]
    given = evaluated(settings(version(tmp_path / "run", world.students["best"], held_out), world.teacher, TEXT))
    assert compare(given, world.champion, 0).measure == "teacher_text_ce"
    asked = compare(gated(given, measure="accuracy"), world.champion, 0)
    assert not asked.promoted and f"5 of {NUM_HELD_OUT} held-out prompts can be compared by accuracy" in asked.reason


def test_evaluate_limit_holds_for_the_champion_too(world: World, tmp_path: Path) -> None:
    given = settings(version(tmp_path / "run", world.students["best"], tasks()), world.teacher, TEXT)
    limited = evaluated(given.model_copy(update={"evaluate": given.evaluate.model_copy(update={"limit": 6})}))
    found = compare(gated(limited, measure="human_text_ce", min_records=6), world.champion, 0)
    assert found.num_records == found.num_held_out == 6
    assert {row["id"] for row in found.per_record} == {record.id for record in measured(limited.run_path)}


def test_a_mended_reference_is_scored_anew_and_the_others_are_not(world: World, tmp_path: Path) -> None:
    compare(world.better, world.champion, 0)
    held_out = [replace(tasks()[0], reference="Something else."), *tasks()[1:]]
    fresh = settings(version(tmp_path / "run", world.students["best"], held_out), world.teacher, TEXT)
    inherit(world.better.run_path, fresh.run_path, "0001")
    before = journal_rows(evaluated(fresh).run_path)
    found = compare(gated(fresh, measure="human_text_ce"), world.champion, 0)
    assert found.num_records == NUM_HELD_OUT
    assert journal_rows(fresh.run_path) - before <= 1 + 2  # one text to score, two verdicts on the other reference


def broken_in(found: GateResult) -> bool:
    json.dumps(asdict(found), allow_nan=False)
    return not found.promoted and "no finite numbers" in found.reason


@pytest.mark.parametrize("measure", [None, *TEXTS])
def test_a_student_whose_scores_are_no_numbers_is_never_promoted(world: World, tmp_path: Path, measure) -> None:
    if not (world.folder / "diverged").exists():
        world.version(world.folder / "diverged", noisy(world.students["well"], tmp_path / "nan", float("nan")))
    given = settings(world.folder / "diverged", world.teacher, TEXT, measure=measure, margin=1e9)
    found = compare(given, world.champion, 0)
    assert broken_in(found) and "diverged" in found.reason


def test_a_champion_whose_scores_are_no_numbers_is_not_replaced_unseen(world: World, tmp_path: Path) -> None:
    champion = version(tmp_path / "nan", noisy(world.students["well"], tmp_path / "model", float("nan")), tasks())
    found = compare(gated(world.better, measure="teacher_text_ce"), champion, 7)
    assert broken_in(found) and "version 7, the champion" in found.reason and "--rollback" in found.reason


def test_evaluate_and_both_trainings_must_be_finished(world: World, tmp_path: Path) -> None:
    unevaluated = settings(version(tmp_path / "run", world.students["best"], tasks()), world.teacher)
    for given, champion in ((unevaluated, world.champion), (world.better, tmp_path / "nothing")):
        with pytest.raises(LlmdistillError, match="is not finished yet"):
            compare(given, champion, 0)
    gone = shutil.copytree(world.champion, tmp_path / "gone")
    shutil.rmtree(gone / "train" / "student")
    with pytest.raises(LlmdistillError, match="the student is missing"):
        compare(world.better, gone, 0)


def test_the_champions_rows_are_found_by_its_weights_not_by_its_place(world: World, tmp_path: Path) -> None:
    compare(world.better, world.champion, 0)
    moved = shutil.copytree(world.champion, tmp_path / "moved")
    assert inputs_of(moved, "train") == inputs_of(world.champion, "train")
    before = journal_rows(world.better.run_path)
    assert compare(world.better, moved, 9).champion_number == 9
    assert journal_rows(world.better.run_path) == before
