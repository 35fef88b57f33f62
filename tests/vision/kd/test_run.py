"""`llmdistill vision kd` on scikit-learn's digits, as a user runs it."""

import pytest
import torch

from llmdistill.errors import ConfigError, DamagedError
from llmdistill.pipeline_file import load_as
from llmdistill.vision.data import load
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.plan import make_plan, plan_only
from llmdistill.vision.kd.run import run
from llmdistill.vision.kd.search import SearchPipeline
from llmdistill.vision.kd.trainings import Trainings
from tests.tiny import REPO

FILE = "pipelines/vision/digits.yaml"
SHORT = ["protocol.epochs=3", "protocol.seeds=[0,1]"]


def pipeline(run_dir, *more):
    return load_as(KdPipeline, FILE, [*SHORT, f"run_dir={run_dir}", *more])


def weights(run_dir):
    """Every file of weights, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed: its folder and its table."""
    folder = tmp_path_factory.mktemp("실행")
    return folder, run(pipeline(folder))


class TestRun:
    def test_every_method_has_a_row_and_all_learn(self, whole):
        _, table = whole
        assert [row["method"] for row in table["rows"]] == ["plain", "response"]
        assert all(row["test"] > 0.5 for row in table["rows"])
        assert table["teacher"]["test"] > 0.9

    def test_again_it_trains_nothing_and_says_the_same(self, whole):
        folder, table = whole
        written = weights(folder)
        assert run(pipeline(folder)) == table
        assert weights(folder) == written

    def test_a_label_changes_the_row_and_trains_nothing(self, whole):
        folder, table = whole
        written = weights(folder)
        renamed = run(pipeline(folder, "methods=[{name: plain}, {name: response, temperature: 4, label: 부드럽게}]"))
        assert renamed["rows"][1] == {**table["rows"][1], "method": "부드럽게"}
        assert weights(folder) == written

    def test_what_a_network_is_measured_for_stands_in_its_row(self, tmp_path):
        table = run(pipeline(tmp_path, "measure=[fgsm, bytes]", "protocol.seeds=[0]"))
        assert table["measures"] == ["fgsm", "bytes"]
        assert all(0 <= row["measures"]["fgsm"]["mean"] < row["test"] for row in table["rows"])
        sizes = {path.stat().st_size for path in (tmp_path / "students").iterdir()}
        assert {row["measures"]["bytes"]["mean"] for row in table["rows"]} == sizes

    def test_a_student_file_is_whole_and_never_named_after_a_label(self, tmp_path):
        run(pipeline(tmp_path, "protocol.epochs=1", "protocol.seeds=[0]", "methods=[{name: plain, label: ../../밖}]"))
        (path,) = (tmp_path / "students").iterdir()
        assert path.name.startswith("plain-0-")

    def test_torn_teacher_weights_are_one_clear_line(self, tmp_path):
        run(pipeline(tmp_path, "protocol.epochs=1", "protocol.seeds=[0]"))
        (path,) = (tmp_path / "teachers").glob("*.safetensors")
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(DamagedError, match=f"{path.name}.*cannot be read.*remove it"):
            run(pipeline(tmp_path, "protocol.epochs=1", "protocol.seeds=[0]"))


FILES = [path for path in sorted((REPO / "pipelines" / "vision").glob("*.yaml")) if "-dd" not in path.name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_shipped_pipeline_says_what_it_compares(path):
    model = SearchPipeline if "search" in path.name else KdPipeline
    found = load_as(model, str(path))
    assert found.name == f"vision-{path.stem}"
    assert found.methods[0].name == "plain", "there is nothing to compare with"


class TestPlan:
    def test_it_counts_what_is_left_and_writes_nothing(self, tmp_path):
        plan = plan_only(pipeline(tmp_path / "run"))
        assert [(step.name, step.left) for step in plan.steps] == [("teacher", 1), ("plain", 2), ("response", 2)]
        assert plan.seconds > 0
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_left_of_a_run_that_is_done(self, whole):
        plan = plan_only(pipeline(whole[0]))
        assert sum(step.left for step in plan.steps) == 0
        assert list(plan.lines()) == []

    def test_all_stages_of_a_method_are_in_its_time(self, tmp_path):
        chain = "{name: assistant, assistants: [{arch: mlp, width: 16}, {arch: mlp, width: 16}]}"
        settings = pipeline(tmp_path, f"methods=[{{name: response}}, {chain}]")
        plan = make_plan(Trainings(settings, load(settings.data)), set())
        response, assistant = (step.seconds for step in plan.steps[1:])
        assert assistant > 1.5 * response

    def test_a_layer_that_is_not_there_is_found_before_anything_is_trained(self, tmp_path):
        layers = "methods=[{name: feature, layers: [[blocks.7, blocks.0]]}]"
        with pytest.raises(ConfigError, match=r"blocks\.7"):
            run(pipeline(tmp_path, layers))
        assert not (tmp_path / "teachers").exists()

    def test_the_estimate_leaves_the_global_generator_alone(self, tmp_path):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        plan_only(pipeline(tmp_path))
        assert torch.equal(torch.rand(3), expected)
