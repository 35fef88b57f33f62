"""A run of `vision dd`: sets are made once and kept apart, and what was begun is gone on with."""

import json
import os
import resource

import numpy as np
import pytest
import torch

from llmdistill.errors import DamagedError, DiskError
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.jobs import jobs_of
from llmdistill.vision.dd.methods import BASELINES
from llmdistill.vision.dd.run import plan_only, run, sets_of
from llmdistill.vision.dd.sets import MOST_POINTS, Curve
from tests.vision.dd.runs import DC, DM, assert_same_images, images_in, pipeline, without_clock


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed: its folder and its table."""
    folder = tmp_path_factory.mktemp("실행")
    return folder, run(pipeline(folder))


def written(folder):
    """Every file of a set, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("sets/*/*")}


class TestRun:
    def test_every_method_has_a_row_with_one_set_for_each_seed(self, whole):
        folder, table = whole
        assert [(row["method"], row["ipc"], row["num_sets"]) for row in table["rows"]] == [("dm", 1, 2), ("dc", 1, 2)]
        assert len(images_in(folder)) == 4
        assert json.loads((folder / "table.json").read_text("utf-8")) == table
        assert not (folder / "checkpoints").exists()

    def test_again_it_makes_nothing_and_says_the_same(self, whole, capsys):
        folder, table = whole
        before = written(folder)
        assert run(pipeline(folder)) == table
        assert written(folder) == before
        assert "to do" not in capsys.readouterr().err

    def test_a_label_changes_the_row_and_makes_nothing(self, whole):
        folder, table = whole
        before = written(folder)
        renamed = run(pipeline(folder, methods=[{**DM, "label": "분포 맞추기"}, DC]))
        assert renamed["rows"][0] == {**table["rows"][0], "method": "분포 맞추기"}
        assert written(folder) == before

    def test_another_setting_is_another_set_and_another_protocol_the_same_one(self, whole):
        folder, table = whole
        before = written(folder)
        changed = run(pipeline(folder, seeds=[0], methods=[{**DM, "batch_real": 16}]))
        assert len(written(folder)) == len(before) + 2
        assert changed["rows"][0]["test"] != table["rows"][0]["test"]
        again = run(pipeline(folder, evaluation={"epochs": 5, "nets": 1, "learning_rates": [0.1]}))
        assert len(written(folder)) == len(before) + 2
        assert again["protocol"] != table["protocol"] and again["rows"][0]["num_nets"] == 2

    def test_a_set_that_was_removed_is_made_again_as_it_was(self, whole, tmp_path):
        folder, table = whole
        settings = pipeline(folder)
        place = sets_of(settings).folder_of(next(jobs_of(settings)))
        place.rename(tmp_path / "aside")
        assert without_clock(run(settings)) == without_clock(table)
        before, after = (DistilledDataset.load(each) for each in (tmp_path / "aside", place))
        assert torch.equal(before.images, after.images)

    def test_a_damaged_set_is_one_line_that_names_it(self, tmp_path):
        settings = pipeline(tmp_path, methods=[{**DM, "iterations": 2}], seeds=[0])
        run(settings)
        (path,) = tmp_path.glob("sets/*/images.safetensors")
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(DamagedError, match=f"{path.parent.name}.*remove") as error:
            run(settings)
        assert "\n" not in str(error.value)

    def test_the_global_generator_is_left_alone(self, tmp_path):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        run(pipeline(tmp_path, methods=[{**DM, "iterations": 2}], seeds=[0]))
        assert torch.equal(torch.rand(3), expected)

    def test_a_set_tells_what_it_was_made_by(self, whole):
        folder, _ = whole
        settings = pipeline(folder)
        job = next(jobs_of(settings))
        provenance = DistilledDataset.load(sets_of(settings).folder_of(job)).provenance
        assert provenance["method"]["name"] == "dm" and provenance["method"]["batch_real"] == 32
        assert (provenance["ipc"], provenance["seed"], provenance["zca"]) == (1, 0, False)

    def test_files_that_may_not_grow_are_one_line_and_nothing_is_lost(self, whole, tmp_path):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, hard))
        try:
            with pytest.raises(DiskError, match="may not grow"):
                run(pipeline(tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert without_clock(run(pipeline(tmp_path))) == without_clock(whole[1])
        assert_same_images(tmp_path, whole[0])


class TestResume:
    def stopped(self, settings, job, after):
        """Leave a checkpoint of a set in the making."""

        def stop(_job, _dataset, _curve, iteration):
            if iteration == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sets_of(settings).make(job, "시험", stop)

    @pytest.mark.parametrize("number", [0, 1])
    def test_it_goes_on_from_its_checkpoint_to_the_same_images(self, whole, tmp_path, number, capsys):
        settings = pipeline(tmp_path, seeds=[0])
        job = list(jobs_of(settings))[number]
        self.stopped(settings, job, 2)
        seen = []
        made = sets_of(settings).make(job, "시험", lambda *found: seen.append(found[-1]))
        assert seen[:1] == [3] or job.method.iterations == 3, "it began anew"
        name = sets_of(settings).name_of(job)
        assert torch.equal(made.dataset.images, images_in(whole[0])[name])
        assert made.curve == sets_of(pipeline(whole[0])).make(job, "전체", lambda *_: None).curve

    def test_a_damaged_checkpoint_is_passed_over_and_said(self, whole, tmp_path, capsys):
        settings = pipeline(tmp_path, seeds=[0])
        job = next(jobs_of(settings))
        self.stopped(settings, job, 5)
        path = sets_of(settings).checkpoint_of(job).path
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        made = sets_of(settings).make(job, "시험", lambda *_: None)
        assert f"{path} is passed over: it is damaged" in capsys.readouterr().err
        assert torch.equal(made.dataset.images, images_in(whole[0])[sets_of(settings).name_of(job)])

    def test_a_checkpoint_of_other_settings_is_not_gone_on_from(self, tmp_path, capsys):
        settings, other = (pipeline(tmp_path, methods=[{**DM, "batch_real": size}]) for size in (32, 16))
        job, its = next(jobs_of(settings)), next(jobs_of(other))
        self.stopped(other, its, 5)
        mine, theirs = sets_of(settings).checkpoint_of(job).path, sets_of(other).checkpoint_of(its).path
        assert mine != theirs
        os.rename(theirs, mine)
        made = sets_of(settings).make(job, "시험", lambda *_: None)
        assert "is of another set" in capsys.readouterr().err
        assert torch.equal(
            made.dataset.images, sets_of(pipeline(tmp_path / "새")).make(job, "", lambda *_: None).dataset.images
        )


class TestCurve:
    @pytest.mark.parametrize("number", [1, 399, 400, 1000, 12_345])
    def test_it_stays_small_and_keeps_the_mean(self, number):
        curve = Curve()
        for value in range(number):
            curve.add(float(value))
        assert len(curve.points) < 2 * MOST_POINTS and len(curve.waiting) < curve.stride
        assert len(curve.points) * curve.stride + len(curve.waiting) == number
        if curve.points:
            assert np.mean(curve.points) == pytest.approx((len(curve.points) * curve.stride - 1) / 2)


class TestPlan:
    def test_it_counts_what_is_left_and_writes_nothing(self, tmp_path):
        plan = plan_only(pipeline(tmp_path / "run", baselines=True))
        left = {step.name: step.left for step in plan.steps}
        assert left == {**{f"{name}, 1": 2 for name in (*BASELINES, "dm", "dc")}, "full": 1}
        assert plan.seconds > 0
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_left_of_a_run_that_is_done(self, whole):
        plan = plan_only(pipeline(whole[0]))
        assert sum(step.left for step in plan.steps) == 0
        assert list(plan.lines()) == []
