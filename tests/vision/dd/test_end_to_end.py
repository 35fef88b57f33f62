"""Digits at one image a class with the `ci` presets, as a user runs it: methods are better than random images."""

import pytest

from llmdistill.pipeline_file import load_as
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.kernel import krr_accuracy
from llmdistill.vision.dd.methods import BASELINES, DdPipeline
from llmdistill.vision.dd.run import run, sets_of

FILE = "pipelines/vision/digits-dd.yaml"
SHORT = ["ipc=[1]", "across=none", "fairness=false", "evaluation.learning_rates=[0.1]", "evaluation.full_steps=300"]

MARGIN = 0.15
"""At least, over random images."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The pipeline, and its table."""
    pipeline = load_as(DdPipeline, FILE, [*SHORT, f"run_dir={tmp_path_factory.mktemp('끝까지')}"])
    return pipeline, {row["method"]: row for row in run(pipeline)["rows"]}


@pytest.mark.parametrize("name", ["dc", "dsa", "dm", "cafe", "mtt", "tesla", "dd"])
def test_networks_learn_more_from_a_distilled_set_than_from_random_images(found, name):
    _, rows = found
    assert rows[name]["test"] >= rows["random"]["test"] + MARGIN


@pytest.mark.parametrize(("name", "margin"), [("kip", MARGIN), ("label_solve", 0.1)])
def test_kernel_regression_learns_more_from_it_than_from_random_images(found, name, margin):
    pipeline, rows = found
    sets = sets_of(pipeline)
    random = DistilledDataset.load(next(pipeline.run_path.glob("sets/random-1-0-*")))
    by_random = krr_accuracy(random, sets.data.test)
    assert rows[name]["measures"]["kernel"]["mean"] >= by_random + margin


def test_the_baselines_and_the_full_data_stand_beside_them(found):
    _, rows = found
    assert list(rows)[:4] == list(BASELINES) and list(rows)[-1] == "full"
    assert rows["full"]["test"] > max(row["test"] for name, row in rows.items() if name != "full")
    assert rows["class_mean"]["test"] > rows["random"]["test"]
    assert {row["floats"] for name, row in rows.items() if name in BASELINES} == {640}
