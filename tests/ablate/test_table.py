"""The numbers of the table against their definitions."""

from __future__ import annotations

import random
from statistics import mean, stdev

import numpy as np
import pytest

from llmdistill.ablate.measure import Measurement
from llmdistill.ablate.table import compare, table_of
from llmdistill.cli.ablate import notes_of, print_table
from llmdistill.config import Ablation

ONE_IN_FORTY = 0.025


def measured(values: list[float], tokens: list[int], chosen: int | None = 8, trained: int = 8) -> Measurement:
    sums = {
        f"r{number}": {"ce": value * count, "top1": value * count, "tokens": float(count)}
        for number, (value, count) in enumerate(zip(values, tokens, strict=True))
    }
    return Measurement(sums, chosen, trained, 100, 1.0)


def drawn(rng: random.Random, num_prompts: int, of_seed: float, shift: float = 0.0) -> list[Measurement]:
    """Three seeds, each with a luck of its own."""
    tokens = [random.Random(5 + number).randint(1, 9) for number in range(num_prompts)]
    found = []
    for _ in range(3):
        luck = rng.gauss(shift, of_seed)
        found.append(measured([3 + luck + rng.gauss(0, 0.1) for _ in tokens], tokens))
    return found


def ablation(measure: str = "human_text_ce", **more: object) -> Ablation:
    return Ablation(vary={"base": {}, "other": {}}, baseline="base", measure=measure, **more)


def results(**groups: list[Measurement]) -> dict[tuple[str, int], Measurement]:
    return {(name, seed): found for name, group in groups.items() for seed, found in enumerate(group)}


def test_means_spread_and_difference_are_those_of_the_definition():
    rng = random.Random(1)
    base, other = drawn(rng, 20, 0.05), drawn(rng, 20, 0.05, shift=0.3)
    table = table_of(ablation(), 8, base[0], results(base=base, other=other))
    rows = {row["variant"]: row for row in table["rows"]}
    for name, group in (("base", base), ("other", other)):
        own = []
        for found in group:
            total = count = 0.0
            for sums in found.sums.values():
                total, count = total + sums["ce"], count + sums["tokens"]
            own.append(total / count)
        row = rows[name]
        assert row["mean"] == pytest.approx(mean(own)) and row["sd"] == pytest.approx(stdev(own))
        assert (row["low"], row["high"]) == pytest.approx((min(own), max(own)))
    assert rows["other"]["difference"] == pytest.approx(rows["other"]["mean"] - rows["base"]["mean"])
    assert rows["base"]["difference"] is None and rows["untrained"]["sd"] is None
    assert [row["variant"] for row in table["rows"]].index("other") == 2, "the worst comes last"


def test_the_interval_is_that_of_a_slow_reference():
    rng = random.Random(2)
    base, other = drawn(rng, 12, 0.05), drawn(rng, 12, 0.05, shift=0.1)
    found = compare(other, base, "ce")
    ids = sorted(base[0].sums)

    def value(one: Measurement, prompts: list[str]) -> float:
        return sum(one.sums[id_]["ce"] for id_ in prompts) / sum(one.sums[id_]["tokens"] for id_ in prompts)

    differences = [value(mine, ids) - value(its, ids) for mine, its in zip(other, base, strict=True)]
    student = np.random.default_rng(3)
    draws = []
    for _ in range(4000):
        prompts = rng.choices(ids, k=len(ids))
        again = mean(value(mine, prompts) - value(its, prompts) for mine, its in zip(other, base, strict=True))
        draws.append(again + student.standard_t(2) * stdev(differences) / 3**0.5)
    low, high = np.quantile(draws, [ONE_IN_FORTY, 1 - ONE_IN_FORTY])
    tolerance = 0.08 * (high - low)
    assert found["difference_low"] == pytest.approx(low, abs=tolerance)
    assert found["difference_high"] == pytest.approx(high, abs=tolerance)


def test_the_interval_holds_the_truth_as_often_as_it_says_and_drawing_the_seeds_anew_would_not():
    """Two variants that are equal in truth, and differ by the luck of three seeds and of thirty prompts."""
    rng, held, held_naively, rounds = random.Random(4), 0, 0, 150
    for _ in range(rounds):
        base, other = drawn(rng, 30, 0.05), drawn(rng, 30, 0.05)
        found = compare(other, base, "ce")
        held += found["better"] is None
        values = [[sum(s["ce"] for s in m.sums.values()) for m in group] for group in (base, other)]
        by_seed = np.subtract(*values)
        means = by_seed[np.random.default_rng(0).integers(0, 3, (500, 3))].mean(1)
        low, high = np.quantile(means, [ONE_IN_FORTY, 1 - ONE_IN_FORTY])
        held_naively += low <= 0 <= high
    assert held >= 0.92 * rounds
    assert held_naively <= 0.85 * rounds


@pytest.mark.parametrize(("measure", "better"), [("human_text_ce", False), ("human_text_top1", True)])
def test_what_is_better_depends_on_the_measure(measure, better):
    rng = random.Random(6)
    base, other = drawn(rng, 20, 0.001), drawn(rng, 20, 0.001, shift=1.0)
    table = table_of(ablation(measure), 8, base[0], results(base=base, other=other))
    row = next(row for row in table["rows"] if row["variant"] == "other")
    assert row["better"] is better
    assert (table["rows"][0]["variant"] == "other") is better


def test_one_seed_gives_no_interval_and_says_so():
    rng = random.Random(7)
    done = results(base=drawn(rng, 20, 0.1)[:1], other=drawn(rng, 20, 0.1, shift=3.0)[:1])
    table = table_of(ablation(seeds=(0,)), 8, done["base", 0], done)
    row = next(row for row in table["rows"] if row["variant"] == "other")
    assert row["difference"] > 1 and row["difference_low"] is None and row["better"] is None
    assert any("one seed" in note for note in notes_of(table))


def test_seeds_are_compared_with_the_same_seeds_while_some_are_not_done_yet():
    rng = random.Random(8)
    base, other = drawn(rng, 20, 0.5), drawn(rng, 20, 0.5)
    done = results(base=base, other=other)
    del done["other", 0]
    table = table_of(ablation(), 8, base[0], done)
    row = next(row for row in table["rows"] if row["variant"] == "other")
    assert row["seeds"] == [1, 2] and row["difference"] == compare(other[1:], base[1:], "ce")["difference"]
    assert any("5 of 6 trainings" in note for note in notes_of(table))
    del done["base", 0], done["base", 1], done["base", 2]
    table = table_of(ablation(), 8, base[0], done)
    assert [row["difference"] for row in table["rows"]] == [None, None]


def test_sets_of_unequal_size_are_said_to_be_unequal():
    tokens, values = [3, 4], [1.0, 2.0]
    done = results(base=[measured(values, tokens)] * 2, other=[measured(values, tokens, chosen=5, trained=4)] * 2)
    table = table_of(ablation(), 8, measured(values, tokens, None), done)
    notes = {row["variant"]: row["note"] for row in table["rows"]}
    assert notes == {"base": "", "untrained": "", "other": "chose 5 of 8 wanted; 4 of them could be trained on"}
    assert any("chose 5 of 8" in note for note in notes_of(table))


def test_the_table_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rng = random.Random(9)
    settings = Ablation(vary={"facility_location": {}, "무작위": {}}, baseline="무작위", measure="teacher_text_top1")
    groups = {name: drawn(rng, 20, 0.3) for name in settings.vary}
    print_table(table_of(settings, 8, groups["무작위"][0], results(**groups)))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) == 5
    assert sum("no clear difference" in line for line in lines) == 2 and sum("baseline" in line for line in lines) == 1
