"""The selection on the page: what covers more than chance, which copies went, which test questions were kept out."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from llmdistill.curate.coverage import coverage_curve
from llmdistill.errors import DamagedError
from llmdistill.record import Reject
from llmdistill.report.ablation import read_ablation
from llmdistill.report.charts import draw_choice
from llmdistill.report.coverage import coverage_of, coverage_words
from llmdistill.report.curation import MAX_COPIES, MAX_POINTS, read_curation
from llmdistill.report.data import RunData
from llmdistill.report.stage import run
from llmdistill.run.files import write_table
from llmdistill.run.manifest import Counts, Manifest, Usage
from tests.decided import KOREAN, decided
from tests.report.run_dirs import Texts, decisions_of, full_run, pipeline, record, stage_of

ROW = {"seeds": 5, "mean": 0.3, "low": 0.28, "high": 0.33, "difference": None, "chosen": 1000}
ABLATION = {
    "measure": "exact match",
    "baseline": "random",
    "rows": [
        {"variant": "random", **ROW},
        {"variant": "dpp", **ROW, "difference": 0.02, "difference_low": -0.01, "difference_high": 0.05},
    ],
}


class Cells(HTMLParser):
    """Text by the element it stands in."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.found.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[str]:
        return [text for inside, text in self.found if inside == tag and text.strip()]

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.found)


def page_of(run_dir) -> Cells:
    run(pipeline(run_dir))
    return Cells((run_dir / "report" / "index.html").read_text("utf-8"))


def measured(chosen, vectors) -> Manifest:
    metrics = {"coverage": json.loads(json.dumps(coverage_curve(vectors, chosen, 0).as_dict()))}
    return Manifest("curate", "d", {}, Counts(0, 0, 0), Usage(), {}, metrics)


CROWD = np.repeat(np.eye(8), [40, 2, 2, 2, 2, 2, 2, 2], axis=0)
SPREAD = np.array([0, *range(40, 54, 2)])


class TestCoverage:
    def test_a_spread_choice_is_said_to_be_better_than_every_draw(self):
        view = coverage_of(measured(SPREAD, CROWD))
        assert view
        first, second = coverage_words(view)
        assert "over the 54 records of the pool, the nearest of the 8 chosen has a similarity of 1.000" in first
        assert "in 5 draws): the choice is better than every draw." in first and first.endswith(
            "as good as 8 random ones."
        )
        assert "lies 0.00 from" in second and "better than every draw" in second

    def test_a_crowded_choice_is_said_to_be_worse(self):
        vectors = np.repeat(np.eye(21), [10] + [3] * 20, axis=0)
        view = coverage_of(measured(np.arange(5), vectors))
        assert view and "the choice is worse than every draw." in coverage_words(view)[0]

    def test_a_choice_like_any_other_is_said_to_be_no_different(self):
        view = coverage_of(measured(np.arange(5), np.eye(60)))
        assert view and all("no different from the draws" in line for line in coverage_words(view))
        assert "random ones" not in coverage_words(view)[0]

    def test_without_a_choice_nothing_is_claimed(self):
        view = coverage_of(measured(np.arange(4), np.eye(4)))
        assert view and coverage_words(view) == [
            "Every record of the pool was chosen, so there is no random choice of the same size to compare with."
        ]

    @pytest.mark.parametrize(
        "change",
        [
            {"sizes": []},
            {"sizes": None},
            {"coverage": [0.5]},
            {"radius": ["wide"] * 6},
            {"radius": [float("nan")] * 6},
            {"random_radius": {"mean": []}},
            {"num_random": 0},
            {"num_pool": None},
        ],
        ids=str,
    )
    def test_a_curve_that_is_not_whole_is_left_out(self, change):
        whole = measured(SPREAD, CROWD)
        broken = {"coverage": {**whole.metrics["coverage"], **change}}
        manifest = Manifest("curate", "d", {}, Counts(0, 0, 0), Usage(), {}, broken)
        assert coverage_of(whole) and coverage_of(manifest) is None and draw_choice(RunData({"curate": manifest})) == []

    def test_both_charts_are_drawn_with_their_band(self):
        coverage, radius = draw_choice(RunData({"curate": measured(SPREAD, CROWD)}))
        assert (coverage.title, radius.title) == ("Coverage", "Worst covered record")
        assert "nan" not in coverage.svg + radius.svg and "var(--rest)" in coverage.svg
        assert "5 random choices" in coverage.caption


class TestCopies:
    def test_what_a_copy_has_otherwise_is_marked_and_korean_stays_whole(self, tmp_path):
        full_run(tmp_path)
        made = decided(tmp_path / "other")
        stage_of(tmp_path, "curate", made.chosen, [])
        for name in ("part-00000.parquet", "rejects.parquet", "decisions.parquet"):
            (tmp_path / "curate" / name).write_bytes((tmp_path / "other" / "curate" / name).read_bytes())
        page = page_of(tmp_path)
        marks = "".join(page.of("mark"))
        assert "brekfast" in marks and "외국인친구한테" in marks and "breakfast" not in marks
        assert (
            KOREAN[0] in page.text and "6 records were dropped because they nearly equal one of 3 others" in page.text
        )

    def test_groups_come_from_the_largest_and_pairs_from_both_ends(self, tmp_path):
        made = decided(tmp_path)
        found = read_curation(tmp_path, None)
        assert [len(group.copies) for group in found.groups] == [3, 2, 1]
        assert (found.num_groups, found.num_copies) == (3, 6)
        assert found.groups[0].kept == made.group[0].question
        assert found.groups[0].copies[2].note == "semantic duplicate, 0.83, like another copy"
        assert [pair.copies[0].note for pair in found.closest] == [
            f"near duplicate, {x}" for x in ("1.00", "0.91", "0.90")
        ]
        assert [pair.copies[0].note[-4:] for pair in found.farthest] == ["0.74", "0.83", "0.87"]

    def test_a_large_group_says_how_many_are_not_shown(self, tmp_path):
        head, copies = record("head", 0), [record("copy", number) for number in range(10)]
        rejects = [Reject(copy, "curate", "near_duplicate") for copy in copies]
        stage_of(tmp_path, "curate", [head], rejects)
        table = decisions_of([head], rejects, {copy.id: head.id for copy in copies}, np.zeros((1, 2)))
        write_table(tmp_path / "curate" / "decisions.parquet", table)
        (group,) = read_curation(tmp_path, None).groups
        assert len(group.copies) == MAX_COPIES and group.num_more == 10 - MAX_COPIES

    def test_copies_have_a_colour_of_their_own_on_the_map(self, tmp_path):
        kept = [record("kept", number) for number in range(3)]
        rejects = [Reject(record("copy", 0), "curate", "semantic_duplicate")]
        rejects += [Reject(record("other", number), "curate", "not_selected") for number in range(3 * MAX_POINTS)]
        places = np.random.default_rng(0).normal(size=(len(kept) + len(rejects), 2))
        table = decisions_of(kept, rejects, {rejects[0].record.id: kept[0].id}, places)
        write_table(tmp_path / "curate" / "decisions.parquet", table)
        found = read_curation(tmp_path, None)
        assert (len(found.places_chosen), len(found.places_copies)) == (3, 1)
        assert len(found.places_other) == MAX_POINTS - 4
        (chart,) = draw_choice(RunData({}, curation=found))
        assert "var(--bad)" in chart.svg and "copies" in chart.svg


class TestContamination:
    def test_each_evaluation_set_has_its_count_and_its_own_examples(self, tmp_path):
        records = [record("Solve", number) for number in range(6)]
        sets = ["gsm8k.jsonl"] * 5 + ["data/my.jsonl"]
        rejects = [
            Reject(item, "curate", "contaminated", f"100% near with {name}:{number} ({name}): '한글 span'")
            for number, (item, name) in enumerate(zip(records, sets, strict=True))
        ]
        counts = {"held_out": 0, "gsm8k.jsonl": 5, "data/my.jsonl": 1}
        stage_of(tmp_path, "curate", [record("kept", 0)], rejects, {"contamination": counts})
        table = decisions_of([record("kept", 0)], rejects, {}, np.zeros((1, 2)))
        write_table(tmp_path / "curate" / "decisions.parquet", table)
        manifest = Manifest("curate", "d", {}, Counts(0, 0, 0), Usage(), {}, {"contamination": counts})
        found = read_curation(tmp_path, manifest).contaminated
        assert [(each.set, each.num, len(each.examples)) for each in found] == [
            ("held_out", "0", 0),
            ("gsm8k.jsonl", "5", 3),
            ("data/my.jsonl", "1", 1),
        ]
        assert found[2].examples == [(records[5].question, rejects[5].detail)]


class TestAblation:
    def test_the_table_is_shown_with_spread_and_difference(self, tmp_path):
        full_run(tmp_path)
        page_of(tmp_path)
        (tmp_path / "ablation").mkdir()
        (tmp_path / "ablation" / "table.json").write_text(json.dumps(ABLATION))
        page = page_of(tmp_path)
        assert "Measure: exact match." in page.text and "difference from random" in page.text
        cells = page.of("td")
        assert "0.28 to 0.33" in cells and "-0.01 to +0.05" in cells and "1,000" in cells

    @pytest.mark.parametrize(
        "text", ["[]", "{}", '{"measure": "x", "baseline": "y", "rows": [{}]}', '{"rows": 1', "null"]
    )
    def test_a_damaged_table_is_named(self, tmp_path, text):
        (tmp_path / "ablation").mkdir()
        (tmp_path / "ablation" / "table.json").write_text(text)
        with pytest.raises(DamagedError, match=r"table\.json"):
            read_ablation(tmp_path)


def test_names_of_others_stay_text(tmp_path):
    evil = "<script>alert(1)</script>"
    full_run(tmp_path, Texts(where=evil))
    (tmp_path / "ablation").mkdir()
    rows = [{"variant": evil, **ROW}]
    (tmp_path / "ablation" / "table.json").write_text(json.dumps({**ABLATION, "measure": evil, "rows": rows}))
    page = page_of(tmp_path)
    assert not page.of("script") and page.text.count(evil) >= 4
