"""Shares of groups: the numbers add up exactly, given rows count, and every group is served in turn."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdistill.config import Quotas
from llmdistill.curate.quotas import allocate, binned, choose_by_quota, grouping
from llmdistill.curate.select import METHODS, Task, choose
from llmdistill.errors import UsageError
from llmdistill.fields import value_of
from llmdistill.record import Record, Source, to_row
from tests.curate.select.small_tasks import unit
from tests.runs import answered


def record(name: str, **meta: object) -> Record:
    """A record with meta values."""
    return replace(answered(name), source=Source("set", "train", name), meta=json.dumps(meta, ensure_ascii=False))


@pytest.mark.parametrize(
    ("sizes", "size", "shares", "expected"),
    [
        ({"a": 100, "b": 100}, 10, {}, {"a": 5, "b": 5}),
        ({"a": 100, "b": 100}, 10, {"a": 0.7, "b": 0.3}, {"a": 7, "b": 3}),
        ({"a": 100, "b": 100}, 10, {"a": 0.7}, {"a": 7, "b": 3}),
        ({"a": 100, "b": 100, "c": 100}, 10, {"a": 0.5}, {"a": 5, "b": 3, "c": 2}),
        ({"a": 100, "b": 100, "c": 200}, 10, {"a": 0.5}, {"a": 5, "b": 2, "c": 3}),
        ({"a": 3, "b": 100}, 10, {"a": 0.7, "b": 0.3}, {"a": 3, "b": 7}),
        ({"a": 3, "b": 100, "c": 100}, 23, {"a": 0.6, "b": 0.3, "c": 0.1}, {"a": 3, "b": 15, "c": 5}),
        ({"a": 3, "b": 100}, 10, {"a": 1.0}, {"a": 3, "b": 7}),
        ({"a": 3, "b": 2}, 10, {"a": 0.1}, {"a": 3, "b": 2}),
        ({"a": 100, "b": 100}, 10, {"a": 0.2, "b": 0.2}, {"a": 5, "b": 5}),
        ({"b": 100}, 10, {"a": 0.9, "b": 0.1}, {"b": 10}),
        ({"a": 100}, 0, {}, {"a": 0}),
        ({}, 10, {"a": 1.0}, {}),
        ({"a": 100, "b": 100}, 100, {"a": 0.29}, {"a": 29, "b": 71}),
        ({"가": 9, "나": 9}, 4, {"가": 0.75}, {"가": 3, "나": 1}),
    ],
    ids=str,
)
def test_numbers_of_groups_by_largest_remainder(sizes, size, shares, expected):
    assert allocate(sizes, size, shares) == expected


def test_given_rows_beyond_a_quota_take_from_the_others():
    sizes = {"a": 100, "b": 100, "c": 100}
    assert allocate(sizes, 9, {}, {"a": 5}) == {"a": 5, "b": 2, "c": 2}
    assert allocate(sizes, 9, {}, {"a": 8, "b": 3}) == {"a": 8, "b": 3, "c": 0}


_GROUPS = st.sampled_from("abcdef")
_SHARES = st.dictionaries(_GROUPS, st.integers(0, 16).map(lambda part: part / 100))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_GROUPS, st.integers(0, 30)), st.integers(0, 100), _SHARES)
def test_numbers_add_up_fit_and_do_not_depend_on_the_order_of_groups(sizes, size, shares):
    numbers = allocate(sizes, size, shares)
    assert sum(numbers.values()) == min(size, sum(sizes.values()))
    assert all(0 <= numbers[group] <= sizes[group] for group in sizes)
    backwards = dict(reversed(sizes.items()))
    assert allocate(backwards, size, dict(reversed(shares.items()))) == numbers


def pool(seed: int = 0, num: int = 60) -> tuple[Task, list[str]]:
    rng = np.random.default_rng(seed)
    names = rng.choice(["가", "b", "none"], num, p=[0.6, 0.3, 0.1]).tolist()
    return Task(unit(rng.normal(size=(num, 6))), rng.permutation(num) / num, 20, quality=0.5), names


@pytest.mark.parametrize("method", METHODS)
def test_every_method_chooses_within_each_group_what_it_would_choose_alone(method):
    task, names = pool()
    choice = choose_by_quota(method, task, names, Quotas(by="meta.topic", shares={"가": 0.5}))
    rows = [row for row, name in enumerate(names) if name == "가"]
    alone = choose(method, replace(task, vectors=task.vectors[rows], scores=task.scores[rows], size=10))
    assert [row for row in choice.chosen.tolist() if names[row] == "가"] == [rows[place] for place in alone.chosen]
    assert len(set(choice.chosen.tolist())) == 20
    assert [choice.notes[f"quota.{name}"] for name in ("가", "b", "none")] == [10, 5, 5]


def test_every_beginning_of_the_ranks_has_nearly_the_shares_of_the_whole():
    task, names = pool(num=600)
    quotas = Quotas(by="meta.topic", shares={"가": 0.5, "b": 0.4, "none": 0.1})
    chosen = choose_by_quota("top_score", replace(task, size=100), names, quotas).chosen.tolist()
    for length in range(1, 101):
        for name, share in quotas.shares.items():
            assert abs(sum(names[row] == name for row in chosen[:length]) - share * length) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_given_rows_come_first_in_their_order_and_count_within_their_group(method):
    task, _ = pool()
    names = ["a"] * 30 + ["b"] * 30
    choice = choose_by_quota(method, replace(task, given=(50, 31, 3)), names, Quotas(by="x", shares={"b": 0.3}))
    assert choice.chosen[:3].tolist() == [50, 31, 3]
    assert np.isnan(choice.gains[:3]).all()
    assert len(set(choice.chosen.tolist())) == 20
    assert sum(names[row] == "b" for row in choice.chosen) == 6


def test_more_given_rows_than_the_quota_are_all_kept():
    task, _ = pool()
    names = ["a"] * 30 + ["b"] * 30
    choice = choose_by_quota("dpp", replace(task, given=tuple(range(15))), names, Quotas(by="x", shares={"b": 0.9}))
    assert choice.chosen[:15].tolist() == list(range(15))
    assert sum(names[row] == "b" for row in choice.chosen) == 5


def test_what_deita_passes_over_in_one_group_goes_to_the_others():
    vectors = np.concatenate([np.repeat(np.eye(40)[:1], 10, axis=0), np.eye(40)[1:31]])
    names = ["copies"] * 10 + ["b"] * 30
    choice = choose_by_quota("deita", Task(vectors, np.arange(40.0), 20), names, Quotas(by="x"))
    assert len(choice.chosen) == 20 and choice.notes["quota.copies"] == 1
    choice = choose_by_quota("deita", Task(vectors, np.arange(40.0), 35), names, Quotas(by="x"))
    assert len(choice.chosen) == 31


def test_cluster_ids_of_different_groups_are_different():
    task, names = pool()
    choice = choose_by_quota("cluster", task, names, Quotas(by="x", shares={"none": 0.0}))
    found = [{int(c) for c, n in zip(choice.clusters, names, strict=True) if n == name} for name in ("가", "b", "none")]
    assert found[2] == {-1}
    assert len(found[0]) == len(found[1]) == 10 and not found[0] & found[1] and -1 not in found[0] | found[1]


def test_no_rows_and_one_group_are_fine():
    empty = choose_by_quota("dpp", Task(np.zeros((0, 3)), np.zeros(0), 5), [], Quotas(by="x", shares={"a": 1.0}))
    assert len(empty.chosen) == 0
    task, _ = pool()
    one = choose_by_quota("dpp", task, ["a"] * 60, Quotas(by="x"))
    assert one.chosen.tolist() == choose("dpp", task).chosen.tolist()


def test_shares_of_groups_that_do_not_exist_are_a_clear_error_when_none_does():
    task, names = pool()
    with pytest.raises(UsageError, match="no meta.topic is math or code -> there are b, none, 가"):
        choose_by_quota("dpp", task, names, Quotas(by="meta.topic", shares={"math": 0.5, "code": 0.2}))
    choice = choose_by_quota("dpp", task, names, Quotas(by="meta.topic", shares={"math": 0.5, "b": 0.2}))
    assert choice.notes["quota.math"] == 0 and len(choice.chosen) == 20


@pytest.mark.parametrize(
    ("by", "group"),
    [
        ("source.dataset", "set"),
        ("source.key", "수학 1"),
        ("source.licence", "none"),
        ("teacher.model", "m"),
        ("teacher.prompt_tokens", "10"),
        ("score", "3.5"),
        ("meta.topic", "대수"),
        ("meta.pass_rate", "0.25"),
        ("meta.deep.level", "3"),
        ("meta.deep.nothing", "none"),
        ("meta.topic.nothing", "none"),
        ("meta.ok", "true"),
        ("meta.empty", "none"),
    ],
)
def test_a_record_is_in_the_group_of_its_field(by, group):
    meta = {"topic": "대수", "pass_rate": 0.25, "deep": {"level": 3}, "ok": True, "empty": None}
    found = replace(answered("수학 1", score=3.5), source=Source("set", key="수학 1"), meta=json.dumps(meta))
    name_group = grouping(Quotas(by=by))
    assert name_group and name_group(found) == group
    assert value_of(to_row(found), by) == value_of(found, by)


def test_a_field_that_no_record_has_names_those_there_are():
    name_group = grouping(Quotas(by="meta.topik"))
    for found in (record("1", topic="대수"), record("2", level=3)):
        assert name_group(found) == "none"
    with pytest.raises(UsageError) as caught:
        name_group.check()
    assert "no record has a value in meta.topik -> there are meta.level, meta.topic, source.dataset" in str(
        caught.value
    )
    name_group(record("3", topik="x"))
    name_group.check()


@pytest.mark.parametrize("by", ["sorce.dataset", "source.name", "nothing"])
def test_a_misspelt_field_is_refused_at_the_first_record(by):
    with pytest.raises(UsageError, match=f"records have no field {by} -> there are id, prompt"):
        grouping(Quotas(by=by))(record("1"))


@pytest.mark.parametrize("by", ["prompt", "source", "meta.deep", "verdicts"])
def test_a_field_of_several_values_is_refused(by):
    with pytest.raises(UsageError, match=f"{by} is not one value"):
        grouping(Quotas(by=by))(record("1", deep={"a": 1}))


def test_numbers_are_cut_into_bins_of_equal_width():
    assert binned(["0", "0.1", "0.25", "0.5", "none", "1", "0.99"], 4) == [
        *["0 to 0.25"] * 2,
        "0.25 to 0.5",
        "0.5 to 0.75",
        "none",
        *["0.75 to 1"] * 2,
    ]
    assert binned(["3", "3"], 4) == ["3 to 3"] * 2
    assert binned(["none"], 4) == ["none"]
    with pytest.raises(UsageError, match="'수학' is not a number"):
        binned(["1", "수학"], 2)


def test_bins_share_out_by_difficulty():
    task, _ = pool()
    rates = [f"{row / 59:.12g}" for row in range(60)]
    choice = choose_by_quota("top_score", task, rates, Quotas(by="meta.pass_rate", bins=2, shares={"0 to 0.5": 0.8}))
    assert sum(row < 30 for row in choice.chosen) == 16
