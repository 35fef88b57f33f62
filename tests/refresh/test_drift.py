"""Drift between a run and its next version: what moved is found and said, what did not is left in peace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmdistill.config import Curate, Embed, Generate, Pipeline, Samples
from llmdistill.curate.embed import embed
from llmdistill.errors import DamagedError
from llmdistill.record import Record, Reject, record_id
from llmdistill.refresh.drift import drift
from tests.refresh.test_drift_tests import GSM8K, texts_of
from tests.runs import answered, finish_stage, pipeline
from tests.tiny import PROMPTS, REPO, save_tiny_model

INSTRUCTIONS = [str(text) for text in np.random.default_rng(0).permutation(texts_of(PROMPTS, "prompt"))]
MATHEMATICS = texts_of(GSM8K, "question")
KOREAN = texts_of(REPO / "data" / "korean" / "prompts.jsonl", "prompt")


def records(texts: Sequence[str], scores: Sequence[float | None] | None = None) -> list[Record]:
    return [answered(text, score=score) for text, score in zip(texts, scores or [None] * len(texts), strict=True)]


def write_run(
    run_dir: Path, pool: Sequence[Record], rejected: Sequence[Record] = (), reason: str = "low_score"
) -> Path:
    """A run as far as `filter`; prompts in two shards."""
    prompts = [Record(item.id, item.prompt) for item in [*pool, *rejected]]
    held_out = [Record(record_id(found), found) for found in [[{"role": "user", "content": "Held out?"}]]]
    finish_stage(run_dir, "prompts", [prompts[::2], prompts[1::2]], held_out=held_out)
    finish_stage(run_dir, "filter", [list(pool)], [Reject(item, "filter", reason) for item in rejected])
    return run_dir


def drift_of(folder: Path, old: Sequence[Record], new: Sequence[Record], **sections: Any) -> dict[str, Any]:
    """Drift of a run to which `new` was added, as it is in a JSON file."""
    write_run(folder / "parent", old)
    write_run(folder / "child", [*old, *new])
    return as_json(drift(pipeline(folder / "child", **sections), folder / "parent"))


def as_json(found: dict[str, Any]) -> dict[str, Any]:
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_without_a_new_prompt_nothing_is_compared(tmp_path: Path) -> None:
    old = records(INSTRUCTIONS[:30])
    assert drift_of(tmp_path, old, []) == {"new": 0}
    shutil.rmtree(tmp_path / "child")
    write_run(tmp_path / "child", [*old[:20], answered("Held out?")])
    assert drift(pipeline(tmp_path / "child"), tmp_path / "parent") == {"new": 0}


def test_of_few_new_prompts_nothing_is_claimed(tmp_path: Path) -> None:
    found = drift_of(tmp_path, records(INSTRUCTIONS[:200], [4.0] * 200), records(KOREAN[:19], [1.0] * 19))
    assert found["new"] == 19 and found["moved"] == [] and found["judge"] is None
    for one in found["findings"].values():
        assert one["p"] is None and one["p_adjusted"] is None and not one["moved"]
        assert one["words"].startswith("too few to tell (19)")


def test_school_mathematics_after_instructions_is_found_and_said(tmp_path: Path) -> None:
    found = drift_of(tmp_path, records(INSTRUCTIONS), records(MATHEMATICS[:60]))
    assert (found["new"], found["old"], found["gone"]) == (60, len(INSTRUCTIONS), 0)
    assert {"embedding", "clusters", "length"} <= set(found["moved"])
    told = found["findings"]
    assert told["embedding"]["words"].startswith("new prompts are about other things: ")
    medians = [np.median([len(text.split()) for text in texts]) for texts in (MATHEMATICS[:60], INSTRUCTIONS)]
    assert told["length"]["words"] == (
        f"new prompts are longer: {medians[0]:,.0f} words against {medians[1]:,.0f} (median)"
    )
    movers = told["clusters"]["movers"]
    assert 2 <= len(movers) <= 5 and movers[0]["new_share"] > movers[0]["old_share"] + 0.1
    first, second = movers[0]["examples"]
    assert all(any(whole.startswith(text) for whole in MATHEMATICS) for text in (first, second))


@pytest.mark.parametrize("num", [25, 120], ids=["few", "many"])
def test_more_of_the_same_moves_nothing(tmp_path: Path, num: int) -> None:
    scores = [float(1 + number * 7 % 5) for number in range(len(INSTRUCTIONS))]
    pool = records(INSTRUCTIONS, scores)
    found = drift_of(tmp_path, pool[num:], pool[:num])
    assert found["moved"] == [] and len(found["findings"]) == 6
    assert found["findings"]["embedding"]["words"].startswith("new prompts are about what the old ones are about: ")


def test_false_alarms_of_all_findings_together_are_few(tmp_path: Path) -> None:
    """16 ways to divide one pool at random: at most 5 % should seem to differ anywhere; 4 would be 1 case in 140."""
    pool, alarms = records(INSTRUCTIONS[:90], [float(1 + number % 5) for number in range(90)]), 0
    for number in range(16):
        mixed = [pool[place] for place in np.random.default_rng(number).permutation(len(pool))]
        alarms += bool(drift_of(tmp_path / str(number), mixed[30:], mixed[:30])["moved"])
    assert alarms < 4


def test_korean_after_english_is_another_language_and_is_measured_in_characters(tmp_path: Path) -> None:
    found = drift_of(tmp_path, records(INSTRUCTIONS[:300]), records(KOREAN[:40]))["findings"]
    assert found["language"]["moved"] and found["language"]["scripts"]["Hangul"] == {"old": 0.0, "new": 1.0}
    assert found["language"]["words"] == (
        "new prompts are written in other scripts: 100.0% of the new are in Hangul, 0.0% of the old"
    )
    median = float(np.median([len("".join(text.split())) for text in KOREAN[:40]]))
    assert found["length"]["unit"] == "characters" and found["length"]["median_new"] == median


@pytest.mark.parametrize(
    "text, script",
    [
        ("GPT-4로 이 문단을 summarize해 주세요", "Hangul"),
        ("Как дела?", "other"),
        ("月は何個ありますか", "other"),
        ("3 + 4 = ?", "none"),
        ("Übersetze das", "Latin"),
    ],
    ids=["mixed", "cyrillic", "japanese", "no-letters", "umlaut"],
)
def test_each_prompt_counts_for_one_script(tmp_path: Path, text: str, script: str) -> None:
    new = records([text, *(f"{text} {number}" for number in range(19))])
    found = drift_of(tmp_path, records(INSTRUCTIONS[:20]), new)
    assert found["findings"]["language"]["scripts"][script]["new"] == 1.0


def test_lower_scores_and_fewer_kept_answers_are_found(tmp_path: Path) -> None:
    old = records(INSTRUCTIONS[:200], [4.0, 5.0] * 100)
    new = records(INSTRUCTIONS[200:280], [2.0, 5.0] * 40)
    write_run(tmp_path / "parent", old)
    write_run(tmp_path / "child", [*old, *new[1::2]], new[::2])
    found = as_json(drift(pipeline(tmp_path / "child"), tmp_path / "parent"))
    assert found["moved"] == ["scores", "keep_rate"]
    scores, kept = found["findings"]["scores"], found["findings"]["keep_rate"]
    assert (scores["mean_old"], scores["mean_new"], scores["difference"]) == (4.5, 3.5, -1.0)
    assert scores["low"] < -1 < scores["high"] and scores["words"].startswith("answers to new prompts are judged lower")
    assert (kept["old"], kept["new"]) == (1.0, 0.5) and "fewer new prompts have an answer" in kept["words"]


def test_answers_that_could_not_be_judged_are_no_rejects(tmp_path: Path) -> None:
    old, new = records(INSTRUCTIONS[:60]), records(INSTRUCTIONS[60:120])
    write_run(tmp_path / "parent", old)
    write_run(tmp_path / "child", [*old, *new[:30]], new[30:], reason="failed")
    kept = drift(pipeline(tmp_path / "child"), tmp_path / "parent")["findings"]["keep_rate"]
    assert (kept["looked_at_new"], kept["new"]) == (30, 1.0)


def test_a_file_of_only_new_prompts_is_compared_with_the_parents(tmp_path: Path) -> None:
    write_run(tmp_path / "parent", records(INSTRUCTIONS[:100], [4.0] * 100))
    write_run(tmp_path / "child", records(MATHEMATICS[:40], [2.0] * 40))
    found = drift(pipeline(tmp_path / "child"), tmp_path / "parent")
    assert (found["new"], found["old"], found["gone"]) == (40, 100, 100)
    assert {"embedding", "scores"} <= set(found["moved"])


def test_several_answers_to_a_prompt_count_as_one(tmp_path: Path) -> None:
    """Else ten answers to each of 20 prompts would pass for 200 prompts."""

    def samples(texts: Sequence[str], score: float) -> list[Record]:
        found = [(answered(text, score=score), number) for text in texts for number in range(10)]
        return [
            Record(record_id(one.prompt, number), one.prompt, one.completion, verdicts=one.verdicts)
            for one, number in found
        ]

    old, new = INSTRUCTIONS[:40], INSTRUCTIONS[40:65]
    for name, texts in {"parent": old, "child": [*old, *new]}.items():
        finish_stage(tmp_path / name, "prompts", [records(texts)], held_out=[])
        finish_stage(tmp_path / name, "filter", [samples(texts, 3.0)])
    settings = Generate(template="prompts/en/answer.yaml", samples=Samples(n=10))
    found = drift(pipeline(tmp_path / "child", generate=settings), tmp_path / "parent")["findings"]
    assert (found["scores"]["judged_old"], found["scores"]["judged_new"]) == (40, 25)
    assert found["keep_rate"]["looked_at_new"] == 25


def with_model(run_dir: Path, model: Path) -> Pipeline:
    return pipeline(run_dir, curate=Curate(embed=Embed(method="static", model=str(model))))


def test_vectors_that_curation_has_are_taken_and_the_others_made_once(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    old, new = records(INSTRUCTIONS[:60]), records(MATHEMATICS[:30])
    write_run(tmp_path / "parent", old)
    write_run(tmp_path / "child", [*old, *new[:25]], new[25:])
    given = with_model(tmp_path / "child", model)
    cache = tmp_path / "child" / "curate" / "journal"

    def rows() -> list[int]:
        return sorted(len(np.load(path)) for path in cache.rglob("*.npy"))

    embed([item.question for item in [*old, *new[:25]]], given.curate.embed, given, cache)
    assert rows() == [85]
    first = drift(given, tmp_path / "parent")
    assert rows() == [5, 85] and "embedding" in first["moved"]
    assert drift(given, tmp_path / "parent") == first and rows() == [5, 85]


def test_prompts_without_a_vector_are_left_out(tmp_path: Path) -> None:
    """A text of no words has a zero row; it is a place like any other, and no error."""
    found = drift_of(tmp_path, records(INSTRUCTIONS[:50]), records([" " * number + "\u200b" for number in range(25)]))
    assert found["new"] == 25 and found["findings"]["embedding"]["moved"]


def test_a_damaged_shard_is_one_clear_error(tmp_path: Path) -> None:
    drift_of(tmp_path, records(INSTRUCTIONS[:30]), records(MATHEMATICS[:30]))
    path = tmp_path / "parent" / "filter" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedError, match="filter"):
        drift(pipeline(tmp_path / "child"), tmp_path / "parent")
