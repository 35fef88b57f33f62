"""The tables: means over networks and sets, beside the full data, other networks and random images."""

from __future__ import annotations

import json
from statistics import stdev
from typing import Any

import pytest

from llmdistill.vision.config import Net
from llmdistill.vision.dd.methods import DdPipeline
from llmdistill.vision.dd.protocol import Evaluation
from llmdistill.vision.dd.table import table_of


def row(method: str, ipc: int | None, seed: int, test: list[float], **more: Any) -> dict[str, Any]:
    usual = {"validation": [0.5], "learning_rate": 0.01, "floats": 640, "seconds": 1.0, "not_finite": 0}
    return {"method": method, "ipc": ipc, "seed": seed, "test": test, **usual, **more}


def table(*rows: dict[str, Any]) -> dict[str, Any]:
    pipeline = DdPipeline.model_validate({"name": "표", "methods": [{"name": "random"}]})
    found = table_of(pipeline, rows)
    assert json.loads(json.dumps(found)) == found, "plain data"
    return found


FULL = row("full", None, 0, [0.9, 1.0], floats=64_000)


def treated(own: float, augmented: float) -> dict[str, list[float]]:
    return {"own": [own], "hard": [own], "plain": [own], "augmented": [augmented]}


def test_the_mean_is_over_all_networks_of_all_sets_and_the_deviations_say_of_what():
    found = table(row("dm", 1, 0, [0.5, 0.6]), row("dm", 1, 1, [0.8, 0.9]), row("dm", 10, 0, [1.0]))["rows"]
    assert found[0]["test"] == pytest.approx(0.7)
    assert found[0]["test_sd"] == pytest.approx(stdev([0.5, 0.6, 0.8, 0.9]))
    assert found[0]["sets_sd"] == pytest.approx(stdev([0.55, 0.85]))
    assert (found[0]["num_sets"], found[0]["num_nets"]) == (2, 4)
    assert found[1]["test_sd"] is None and found[1]["sets_sd"] is None


def test_accuracy_and_size_are_beside_the_full_data():
    found = table(row("dm", 1, 0, [0.475]), FULL)["rows"]
    assert found[0]["relative"] == pytest.approx(0.5) and found[0]["floats_share"] == pytest.approx(0.01)
    assert found[1]["relative"] == 1
    assert table(row("dm", 1, 0, [0.5]))["rows"][0]["relative"] is None


def test_a_hash_and_all_settings_of_the_protocol_are_there():
    found = table()
    assert found["protocol"] == Evaluation().hash(DdPipeline.model_fields["data"].default, Net())
    assert found["evaluation"]["title"] == "common" and found["evaluation"]["epochs"] == 300


def test_other_networks_have_a_row_for_each_method_and_size():
    judged = {"validation": [0.5], "learning_rate": 0.1, "not_finite": 1, "tried": {}}
    one = row("dm", 1, 0, [0.5], across={"mlp": {"test": [0.4], **judged}})
    two = row("dm", 1, 1, [0.5], across={"mlp": {"test": [0.6], **judged}, "vgg": {"test": [0.1], **judged}})
    found = table(one, two, row("random", 1, 0, [0.3]))["across"]
    assert found["nets"] == ["mlp", "vgg"] and [each["method"] for each in found["rows"]] == ["dm"]
    mlp = found["rows"][0]["nets"]["mlp"]
    assert mlp["test"] == pytest.approx(0.5) and mlp["learning_rates"] == [0.1, 0.1] and mlp["not_finite"] == 2
    assert found["rows"][0]["nets"]["vgg"]["num_sets"] == 1


def test_fairness_is_beside_random_images_of_the_same_number():
    rows = [
        row("random", 1, 0, [0.4], fairness=treated(0.4, 0.5)),
        row("random", 10, 0, [0.7], fairness=treated(0.7, 0.7)),
        row("dm", 1, 0, [0.6], fairness=treated(0.6, 0.6)),
        row("dm", 1, 1, [0.8], fairness=treated(0.8, 0.8)),
    ]
    found = {(each["method"], each["ipc"]): each for each in table(*rows, FULL)["fairness"]}
    assert found["dm", 1]["ior"] == pytest.approx(0.3) and found["dm", 1]["hlr"] == pytest.approx(0.25)
    assert found["random", 1]["augmentation_gain"] == pytest.approx(0.1)
    assert ("full", None) not in found
    assert not table(*rows)["fairness"], "without the full data there is no recovery"


def test_measures_are_columns_of_their_own():
    rows = [row("kip", 1, 0, [0.2], measures={"kernel": [0.8]}), row("kip", 1, 1, [0.2], measures={"kernel": [0.9]})]
    found = table(*rows, row("random", 1, 0, [0.5]))
    assert found["measures"] == ["kernel"]
    assert found["rows"][0]["measures"]["kernel"]["mean"] == pytest.approx(0.85)
    assert found["rows"][0]["test"] == pytest.approx(0.2) and found["rows"][1]["measures"] == {}


def test_no_number_but_seconds_is_a_clocks():
    slow = [row("dm", 1, 0, [0.5], seconds=99.0, judge_seconds=5.0), FULL]
    fast = [row("dm", 1, 0, [0.5], seconds=None, judge_seconds=1.0), FULL]
    one, other = table(*slow), table(*fast)
    assert one["rows"][0].pop("seconds") == 99.0 and other["rows"][0].pop("seconds") is None
    assert one == other
