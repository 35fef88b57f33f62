"""The page of a run of `vision dd`: complete, inert whatever names hold, and there while sets are made."""

import base64
import io

import pytest
from PIL import Image

from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.jobs import jobs_of
from llmdistill.vision.dd.report import Shown, conclude, picture_of, render
from llmdistill.vision.dd.run import run, sets_of
from llmdistill.vision.dd.sets import Curve
from llmdistill.vision.dd.table import table_of
from tests.vision.dd.runs import DC, DM, EVALUATION, pipeline
from tests.vision.kd.test_report import EVIL, TAGS, Page


def judged(test):
    return {"test": [test, test + 0.01], "validation": [test], "learning_rate": 0.1, "not_finite": 0, "tried": {}}


def made(tmp_path, label="분포", **changed):
    """A pipeline, a table of it as a run gives it, and pictures."""
    settings = pipeline(tmp_path, methods=[{**DM, "label": label}, DC], baselines=True, **changed)
    rows = [
        {
            "method": job.method.title,
            "ipc": job.ipc,
            "seed": job.seed,
            "floats": 640,
            "seconds": 75.0,
            "across": {"resnet18 batch": judged(0.25)},
            "fairness": {name: [0.5, 0.5] for name in ("own", "hard", "plain", "augmented")},
            "measures": {"kernel": [0.625]} if job.method.name == "dm" else {},
            **judged(0.5 + 0.1 * number / 12),
        }
        for number, job in enumerate(jobs_of(settings))
    ]
    full = {"method": "full", "ipc": None, "seed": None, "floats": 82_816, "seconds": 1.0, "across": {}, "measures": {}}
    sets = sets_of(settings)
    shown = []
    for job in jobs_of(settings):
        dataset = job.method.distillation(sets.task(job)).result({})
        shown.append(Shown(job, picture_of(dataset) if job.seed == 0 else b"", Curve([4.0, 2.0, 0.01], 4)))
    return settings, table_of(settings, [*rows, {**full, **judged(0.9), "fairness": None}]), shown


class TestPage:
    def test_it_holds_what_was_measured_under_which_protocol(self, tmp_path):
        settings, table, shown = made(tmp_path)
        text = Page(render(settings, table, shown, 0)).text
        for part in (
            table["protocol"],
            "숫자-증류",
            "분포",
            "640",
            "82,816",
            "62.50",
            "25.50",
            "resnet18 batch",
            "LRS",
        ):
            assert part in text, part
        assert "methods.dc.1 a class.inner_epochs" in text

    @pytest.mark.parametrize("label", EVIL)
    def test_a_name_is_text_and_nothing_else(self, tmp_path, label):
        found = Page(render(*made(tmp_path, label), 3))
        assert set(found.tags) <= {*TAGS, "img"}
        assert not {"href", "onerror", "onload"} & set(found.attributes)
        assert all(source.startswith("data:image/png;base64,") for source in found.attributes["src"])
        assert label.replace("\x1b[31m", "") in found.text

    def test_every_method_has_a_picture_and_curves_inside_their_charts(self, tmp_path):
        settings, table, shown = made(tmp_path)
        found = Page(render(settings, table, shown, 0))
        assert len(found.attributes["src"]) == len(settings.compared)
        assert len(found.attributes["points"]) == len(shown)
        for points in found.attributes["points"]:
            places = [tuple(map(float, point.split(","))) for point in points.split()]
            assert all(0 <= x <= 300 and 0 <= y <= 150 for x, y in places)
            assert places == sorted(places)

    def test_a_picture_has_a_row_for_each_class(self, tmp_path):
        settings = pipeline(tmp_path, ipc=[12])
        job = next(jobs_of(settings))
        dataset = job.method.distillation(sets_of(settings).task(job)).result({})
        width, height = Image.open(io.BytesIO(picture_of(dataset))).size
        assert (width, height) == (10 * 33 + 1, 10 * 33 + 1), "ten classes of ten images are shown"

    def test_nothing_is_judged_yet_and_the_page_can_be_looked_at(self, tmp_path):
        settings, _, shown = made(tmp_path)
        running = Shown(shown[-1].job, shown[0].picture, Curve([0.5]), 2)
        text = Page(render(settings, table_of(settings, []), [running], 12)).text
        assert "12 sets are not done yet" in text and "after 2 of 3 iterations" in text


def test_a_set_in_the_making_is_on_the_page_at_each_checkpoint(tmp_path, monkeypatch):
    seen = []
    page = tmp_path / "report" / "index.html"
    settings = pipeline(
        tmp_path, seeds=[0], methods=[{**DM, "iterations": 3}, {**DM, "label": "둘째", "iterations": 4}]
    )
    original = DistilledDataset.save

    def save(dataset, folder):
        seen.append(page.read_text("utf-8"))
        original(dataset, folder)

    monkeypatch.setattr(DistilledDataset, "save", save)
    run(settings)
    assert "after 2 of 3 iterations" in seen[0] and "2 sets are not done yet" in seen[0]
    assert "after 3 of 4 iterations" in seen[1] and "1 set is not done yet" in seen[1]
    final = page.read_text("utf-8")
    assert "iterations," in final and "not done yet" not in final
    pictures = [source.partition(",")[2] for source in Page(final).attributes["src"]]
    assert len(pictures) == 2 and all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


def test_the_conclusion_names_the_best_method_beside_random_images(tmp_path):
    settings, table, _ = made(tmp_path, evaluation=EVALUATION)
    reached = {row["method"]: row["test"] for row in table["rows"]}
    said = f"Best at 1 a class: dc {100 * reached['dc']:.2f} %, random images {100 * reached['random']:.2f} %."
    assert conclude(settings, table, 0) == said
