"""What can stand in a file of `vision dd`, and how a mistake is told: in one line, before anything is spent."""

import numpy as np
import pytest
import torch

from llmdistill.errors import ConfigError, DamagedError, StageError
from llmdistill.pipeline_file import load_as
from llmdistill.vision.dd.jobs import identity_of, jobs_of, made_for
from llmdistill.vision.dd.methods import BASELINES, DdPipeline
from llmdistill.vision.dd.run import run, sets_of
from tests.tiny import REPO
from tests.vision.dd.runs import DM, images_in, pipeline

LEARNED = ("dc", "dsa", "dm", "cafe", "mtt", "tesla", "dd", "kip")
METHODS = (*BASELINES, *LEARNED, "label_solve")


def method_named(name, **settings):
    file = {"name": "모두", "baselines": False, "methods": [{"name": name, **settings}]}
    return DdPipeline.model_validate(file).methods[0]


def preset_of(method, preset, ipc):
    """What the class says, by hand."""
    found = type(method).presets.get(preset, {})
    return {**found.get(None, {}), **found.get(ipc, {})}


class TestPresets:
    @pytest.mark.parametrize("name", METHODS)
    def test_every_preset_can_be_used_at_every_size(self, name):
        for preset in ("paper", *type(method_named(name)).presets):
            for ipc in (1, 2, 10, 50):
                method = method_named(name, preset=preset)
                resolved, wanted = method.resolved(ipc), preset_of(method, preset, ipc)
                assert resolved.preset == preset
                changed = type(method).model_validate({"name": name, **wanted})
                assert resolved.model_copy(update={"preset": None}) == changed

    @pytest.mark.parametrize("name", LEARNED)
    def test_a_method_that_learns_has_a_ci_preset(self, name):
        assert "ci" in type(method_named(name)).presets

    def test_what_the_user_writes_wins_and_a_preset_makes_no_other_set(self, tmp_path):
        values = preset_of(method_named("dm"), "ci", 1)
        given, by_hand = (
            pipeline(tmp_path, methods=[{**more, "name": "dm", "iterations": 7}]) for more in ({"preset": "ci"}, values)
        )
        jobs = next(jobs_of(given)), next(jobs_of(by_hand))
        assert jobs[0].method.iterations == 7
        assert identity_of(made_for(given), jobs[0]) == identity_of(made_for(by_hand), jobs[1])

    def test_a_preset_that_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="random has no preset ci"):
            pipeline(tmp_path, methods=[{"name": "random", "preset": "ci"}])


class TestMistakes:
    def save(self, path, images, labels):
        np.savez(path, train_images=images, train_labels=labels)
        return str(path)

    def images(self, number):
        return np.random.default_rng(0).integers(0, 256, (number, 8, 8), np.uint8)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"data": {"path": "없는.npz"}}, "없는.npz: there is no such file"),
            ({"ipc": [2000]}, "training images, fewer than 2000"),
            ({"net": {"arch": "convnet", "depth": 5}}, "too small for depth 5"),
            ({"across": [{"arch": "convnet", "depth": 5}]}, "too small for depth 5"),
        ],
        ids=["file", "ipc", "depth", "across"],
    )
    def test_it_is_told_before_anything_is_made(self, tmp_path, changed, message):
        with pytest.raises(ConfigError, match=message) as error:
            run(pipeline(tmp_path, **changed))
        assert "\n" not in str(error.value) and error.value.exit_code == 2
        assert not (tmp_path / "sets").exists()

    def test_one_image_is_refused(self, tmp_path):
        path = self.save(tmp_path / "one.npz", self.images(1), np.zeros(1, np.int64))
        with pytest.raises(ConfigError, match="one.npz"):
            run(pipeline(tmp_path / "run", data={"path": path}))

    def test_a_class_without_images_is_refused(self, tmp_path):
        path = self.save(tmp_path / "gap.npz", self.images(40), np.array([0, 2] * 20))
        with pytest.raises(ConfigError, match="class 1 has no image"):
            run(pipeline(tmp_path / "run", data={"path": path}))

    def test_pixels_that_are_not_finite_are_refused(self, tmp_path):
        sets = sets_of(pipeline(tmp_path))
        sets.data.train.images[3, 0, 2, 2] = torch.nan
        with pytest.raises(DamagedError, match="not finite"):
            sets.check()

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"ipc": [0]}, "greater than or equal to 1"),
            ({"ipc": [1, 1]}, "twice in ipc"),
            ({"seeds": [3, 3]}, "twice in seeds"),
            ({"methods": [{"name": "dmm"}]}, "dmm"),
            ({"methods": [DM, DM]}, "two methods are called dm"),
            ({"methods": [{**DM, "label": "random"}], "baselines": True}, "two methods are called random"),
            ({"methods": [{**DM, "learning_rate": 0}]}, "greater than 0"),
            ({"methods": []}, "at least 1"),
        ],
        ids=str,
    )
    def test_a_file_that_cannot_be_meant_is_refused(self, tmp_path, changed, message):
        with pytest.raises(ValueError, match=message):
            pipeline(tmp_path, **changed)

    def test_a_loss_that_is_not_finite_names_its_place_and_what_is_done_is_kept(self, tmp_path):
        wild = {**DM, "label": "거친 것", "learning_rate": 1e30}
        with pytest.raises(StageError, match=r"in iteration \d+ of 거친 것, 1 image a class, seed 0.*learning_rate"):
            run(pipeline(tmp_path, methods=[DM, wild]))
        assert len(images_in(tmp_path)) == 1


@pytest.mark.parametrize("path", sorted((REPO / "pipelines" / "vision").glob("*-dd*.yaml")), ids=lambda path: path.name)
def test_every_shipped_pipeline_can_be_read_and_compares_with_the_baselines(path):
    found = load_as(DdPipeline, str(path))
    assert found.name == f"vision-{path.stem}"
    assert {method.name for method in found.compared} >= set(BASELINES)
