"""Why a record was kept or dropped, and copies side by side: the right records, in a fixed order."""

from __future__ import annotations

import pyarrow as pa
import pytest

from llmdistill.errors import DamagedError, UsageError
from llmdistill.inspect import explanation
from llmdistill.inspect.copies import differing, duplicate_groups
from llmdistill.inspect.explanation import explain, groups_of_copies, in_words
from llmdistill.inspect.rows import find_rows
from llmdistill.record import Reject
from tests.decided import KOREAN, decided
from tests.runs import answered, finish_stage


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def made(run_dir):
    finish_stage(run_dir, "filter", [], [Reject(answered("Bad?"), "filter", "low_score", "1.20 < 3.0")])
    return decided(run_dir)


def table_of(*rows: tuple[str, str, str | None, float | None]) -> pa.Table:
    """Decisions of (id, reason, duplicate of, similarity)."""
    types = [pa.string(), pa.string(), pa.string(), pa.float64()]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
    return pa.table(columns, names=["id", "reason", "duplicate_of", "similarity"])


class TestGroups:
    def test_copies_of_copies_belong_to_the_one_that_went_on(self):
        found = duplicate_groups(
            table_of(
                ("a", "cluster", None, None),
                ("b", "near_duplicate", "a", 0.8),
                ("c", "semantic_duplicate", "b", 0.9),
                ("d", "near_duplicate", "c", 0.7),
                ("e", "not_selected", None, None),
                ("f", "near_duplicate", "e", 1.0),
            )
        )
        assert found.heads.tolist() == [0, 4] and found.sizes.tolist() == [3, 1]
        assert found.copies.tolist() == [2, 1, 3, 5] and found.originals.tolist() == [1, 0, 2, 4]
        assert found.least_similar.tolist() == [0.7, 1.0]

    def test_a_chain_of_any_length_is_followed_to_its_end(self):
        chain = [(f"{n:04}", "near_duplicate", f"{n + 1:04}", 0.9) for n in range(999)]
        found = duplicate_groups(table_of(*chain, ("0999", "cluster", None, None)))
        assert found.heads.tolist() == [999] and found.sizes.tolist() == [999]

    def test_only_copies_make_groups(self):
        found = duplicate_groups(
            table_of(
                ("a", "contaminated", "b", 1.0), ("b", "near_duplicate", "gone", 0.9), ("c", "cluster", None, None)
            )
        )
        assert len(found.heads) == len(found.copies) == 0 and found.starts.tolist() == [0]

    def test_a_ring_in_a_damaged_file_ends(self):
        duplicate_groups(table_of(*((name, "near_duplicate", other, 0.9) for name, other in ("ab", "bc", "ca"))))

    def test_no_rows_give_no_groups(self):
        empty = table_of(("a", "x", None, None)).slice(0, 0)
        assert len(duplicate_groups(empty).heads) == 0


class TestDiffering:
    @pytest.mark.parametrize(
        ("kept", "copy", "marked"),
        [
            ("the big dog", "the big dog", []),
            ("the big dog", "the small dog", ["small"]),
            ("사과를 먹는다", "사과가 먹는다", ["사과가"]),
            ("one", "two", ["two"]),
            ("one two three", "one three", []),
            ("", "new", ["new"]),
            ("old", "", []),
        ],
    )
    def test_what_the_copy_has_otherwise_is_marked_and_no_letter_is_lost(self, kept, copy, marked):
        pieces = differing(kept, copy)
        assert "".join(text for text, _ in pieces) == copy
        assert [text for text, differs in pieces if differs and text.strip()] == marked


class TestDuplicates:
    def test_groups_come_with_those_that_differ_most_first(self, run_dir, made):
        groups, found = groups_of_copies(run_dir, [], 5)
        assert found == 3
        assert [min(copy["similarity"] for copy in group["copies"]) for group in groups] == [0.74, 0.83, 1.0]
        head, copies = made.group
        assert groups[1]["kept"] == {"id": head.id, "reason": "k_center", "question": head.question}
        assert [copy["id"] for copy in groups[1]["copies"]] == [copy.id for copy in copies]
        assert groups[1]["copies"][2]["duplicate_of"] == copies[0].id
        assert KOREAN[0] == groups[0]["kept"]["question"]

    def test_few_copies_are_shown_and_all_are_counted(self, run_dir, made):
        groups, _ = groups_of_copies(run_dir, [], 2, most=1)
        assert [(group["num_copies"], len(group["copies"])) for group in groups] == [(2, 1), (3, 1)]

    @pytest.mark.parametrize(
        ("conditions", "sizes"),
        [
            (["similarity<0.8"], [2]),
            (["similarity<0.85"], [2, 3]),
            (["reason=semantic_duplicate"], [3]),
            (["similarity>0.95", "reason=near_duplicate"], [1]),
            (["question~친구한테"], [2]),
            (["question~kcal", "similarity<0.85"], [3]),
            (["question~kcal", "similarity<0.80"], []),
            (["reject.detail~91%"], [3]),
        ],
        ids=str,
    )
    def test_conditions_are_on_the_decision_or_on_the_record(self, run_dir, made, monkeypatch, conditions, sizes):
        for batch in (1, 10_000):
            monkeypatch.setattr(explanation, "_BATCH", batch)
            groups, found = groups_of_copies(run_dir, conditions, 5)
            assert [group["num_copies"] for group in groups] == sizes and found == len(sizes)

    @pytest.mark.parametrize("condition", ["similarity", "similarity<much", "colour=red"])
    def test_a_wrong_condition_is_a_usage_error(self, run_dir, made, condition):
        with pytest.raises(UsageError):
            groups_of_copies(run_dir, [condition], 5)

    def test_a_seed_gives_a_sample_that_is_the_same_each_time(self, run_dir, made):
        drawn = [groups_of_copies(run_dir, [], 1, seed)[0][0]["kept"]["id"] for seed in (*range(12), *range(12))]
        assert drawn[:12] == drawn[12:] and len(set(drawn)) > 1

    def test_before_curate_there_is_nothing_to_show(self, tmp_path):
        with pytest.raises(UsageError, match="run llmdistill curate first"):
            groups_of_copies(tmp_path, [], 5)

    def test_a_torn_file_is_named(self, tmp_path):
        decided(tmp_path)
        path = tmp_path / "curate" / "rejects.parquet"
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(DamagedError, match=path.name):
            groups_of_copies(tmp_path, [], 5)


class TestExplain:
    def test_a_chosen_record_has_its_place_gain_and_cluster(self, run_dir, made):
        told = dict(in_words(explain(run_dir, made.chosen[3].id)))
        assert told["decision"] == "kept by k_center, number 4 of 30"
        assert told["numbers"] == "rank 3, gain 0.25, cluster 3"
        assert told["prompt"] == made.chosen[3].question and "why" not in told

    def test_a_copy_has_the_text_it_equals(self, run_dir, made):
        copy, original, _, _ = made.copies[3]
        told = dict(in_words(explain(run_dir, copy.id)))
        assert told["decision"] == "dropped by curate: near_duplicate"
        assert told["copy of"] == f"{original.id} (0.740)\n{KOREAN[0]}"
        assert told["why"] == f"74% like {original.id}"

    def test_a_record_left_over_has_its_nearest_chosen_one(self, run_dir, made):
        told = dict(in_words(explain(run_dir, made.left_over[0].id)))
        assert told["nearest chosen"] == f"{made.chosen[2].id} (0.625)\n{made.chosen[2].question}"

    def test_a_contaminated_record_has_the_span(self, run_dir, made):
        told = dict(in_words(explain(run_dir, made.contaminated.id)))
        assert "gsm8k.jsonl:1" in told["why"] and "'ducks lay 16 eggs per day'" in told["why"]

    def test_what_an_earlier_stage_dropped_is_explained_too(self, run_dir, made):
        told = dict(in_words(explain(run_dir, answered("Bad?").id)))
        assert told["decision"] == "dropped by filter: low_score" and told["why"] == "1.20 < 3.0"

    def test_a_prefix_is_enough_and_an_ambiguous_one_names_some(self, run_dir, made):
        wanted = made.chosen[5].id
        assert explain(run_dir, wanted[:12])["id"] == wanted
        with pytest.raises(UsageError, match=r"^\d+ ids begin with '': \w+, \w+, \w+ \.\.\. -> write more of it$"):
            explain(run_dir, "")

    def test_an_unknown_id_is_a_usage_error(self, run_dir, made):
        with pytest.raises(UsageError, match="begins with 'zz'"):
            explain(run_dir, "zz")


def test_rows_are_found_by_id_among_shards_and_rejects(run_dir, made):
    wanted = [made.chosen[0].id, made.chosen[25].id, made.copies[0][0].id]
    found = find_rows(run_dir, "curate", [*wanted, "unknown"])
    assert sorted(found) == sorted(wanted)
    assert find_rows(run_dir, "curate", []) == {} and find_rows(run_dir / "none", "curate", ["x"]) == {}
