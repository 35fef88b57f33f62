"""`llmdistill vision kd` on scikit-learn's digits, as a user runs it."""

from llmdistill.pipeline_file import load_as
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.run import run

SHORT = ["protocol.epochs=3", "protocol.seeds=[0,1]"]


def pipeline(tmp_path):
    return load_as(KdPipeline, "pipelines/vision/digits.yaml", [*SHORT, f"run_dir={tmp_path / '실행'}"])


class TestRun:
    def test_every_method_has_a_row_and_all_learn(self, tmp_path):
        table = run(pipeline(tmp_path))
        assert [row["method"] for row in table["rows"]] == ["plain", "response"]
        assert all(row["test"] > 0.5 for row in table["rows"])
        assert table["teacher"] > 0.9

    def test_again_it_trains_nothing_and_says_the_same(self, tmp_path):
        first = run(pipeline(tmp_path))
        written = {path: path.stat().st_mtime_ns for path in (tmp_path / "실행").rglob("*.safetensors")}
        assert run(pipeline(tmp_path)) == first
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "실행").rglob("*.safetensors")} == written
