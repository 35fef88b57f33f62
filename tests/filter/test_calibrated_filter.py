"""`min_score: calibrated`: the stage filters at the threshold that the gold set gave, and says so."""

from __future__ import annotations

import json

import pytest

from llmdistill.errors import ConfigError
from llmdistill.filter import stage as filter_stage
from llmdistill.run.manifest import read_manifest
from tests.filter.judging import judging
from tests.filter.test_calibration import answers, by_quality, stored, with_gold, write_gold
from tests.runs import answered, finish_stage

POOL = [answered(f"질문 {number}: 무엇입니까?", f"품질 {number % 5 + 1}, 답 {number}") for number in range(20)]


@pytest.fixture
def gold(tmp_path):
    return write_gold(tmp_path / "gold.jsonl", answers())


def test_the_stage_calibrates_first_and_keeps_what_reaches_the_threshold(tmp_path, gold):
    with judging(by_quality) as server:
        given = with_gold(tmp_path, server.url, gold)
        finish_stage(given.run_path, "generate", [POOL])
        manifest = filter_stage.run(given)
        assert (manifest.counts.kept, manifest.counts.reasons) == (8, {"low_score": 12})
        assert manifest.metrics["min_score"] == manifest.settings["filter.judge.threshold"] == 4
        assert len(server.seen) == 50 + len(POOL)
        assert filter_stage.run(given) == manifest
        assert len(server.seen) == 50 + len(POOL)


def test_another_precision_filters_anew_and_asks_nobody(tmp_path, gold):
    with judging(by_quality) as server:
        finish_stage(tmp_path / "run", "generate", [POOL])
        filter_stage.run(with_gold(tmp_path, server.url, gold))
        counted = len(server.seen)
        manifest = filter_stage.run(with_gold(tmp_path, server.url, gold, precision=0.8))
        assert (manifest.counts.kept, manifest.metrics["min_score"]) == (12, 3)
        assert len(server.seen) == counted


def test_a_judge_that_cannot_be_calibrated_leaves_the_filter_undone(tmp_path, gold):
    with judging(lambda question: "All fine.\nScore: 3") as server:
        given = with_gold(tmp_path, server.url, gold)
        finish_stage(given.run_path, "generate", [POOL])
        with pytest.raises(ConfigError, match="precision"):
            filter_stage.run(given)
    assert read_manifest(given.run_path / "filter") is None
    assert not stored(tmp_path).exists()


def test_what_the_manifest_rests_on_changes_with_the_gold_set(tmp_path, gold):
    with judging(by_quality) as server:
        given = with_gold(tmp_path, server.url, gold)
        finish_stage(given.run_path, "generate", [POOL])
        before = filter_stage.run(given).settings["filter.judge.calibrated_by"]
        write_gold(tmp_path / "gold.jsonl", [*answers(), {**answers()[0], "prompt": "새 질문?"}])
        after = filter_stage.run(given).settings["filter.judge.calibrated_by"]
    assert before != after
    assert json.loads(stored(tmp_path).read_text("utf-8"))["rows"] == 51
