"""The table of a comparison: gains are paired by seed, and the interval says how sure they are."""

import math

import pytest

from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.table import interval, table_of

NET = {"arch": "mlp"}
TEACHER = {"test": 0.99, "parameters": 10, "seconds": 1.0, "measures": {}}


def row(method, seed, test, seconds=1.0, **measures):
    return {"method": method, "seed": seed, "test": test, "seconds": seconds, "parameters": 5, "measures": measures}


def table(*rows, methods=({"name": "plain"}, {"name": "response"})):
    pipeline = KdPipeline.model_validate({"name": "표", "student": NET, "teacher": NET, "methods": methods})
    return table_of(pipeline, TEACHER, rows)


def test_a_gain_is_over_plain_training_with_the_same_seed():
    rows = [row("plain", 0, 0.5), row("plain", 1, 0.9), row("response", 0, 0.6), row("response", 1, 1.0)]
    found = table(*rows)["rows"][1]
    assert found["gain"] == pytest.approx(0.1)
    assert found["gain_sd"] == pytest.approx(0.0, abs=1e-12), "the spread of seeds is not in a paired gain"


def test_a_seed_without_plain_training_is_no_part_of_the_gain():
    rows = [row("plain", 0, 0.5), row("response", 0, 0.6), row("response", 1, 0.9)]
    assert table(*rows)["rows"][1]["gain"] == pytest.approx(0.1)


def test_the_interval_is_students_t_over_the_seeds():
    found = interval([0.01, 0.02, 0.03])
    half = 4.302653 * 0.01 / math.sqrt(3)  # the 97.5 % quantile with 2 degrees of freedom
    assert found["gain_low"] == pytest.approx(0.02 - half, abs=1e-8)
    assert found["gain_high"] == pytest.approx(0.02 + half, abs=1e-8)


@pytest.mark.parametrize(
    ("gains", "better"),
    [([0.02, 0.021, 0.022], True), ([-0.02, -0.021, -0.022], False), ([0.02, -0.02, 0.03], None), ([0.5], None)],
)
def test_a_gain_is_clear_only_where_its_interval_leaves_out_0(gains, better):
    assert interval(gains)["better"] is better


def test_plain_training_has_no_gain_and_a_method_without_it_none_either():
    assert table(row("plain", 0, 0.5))["rows"][0]["gain"] is None
    assert table(row("response", 0, 0.5))["rows"][0]["gain"] is None


def test_the_speed_is_the_median_of_ratios_within_each_seed():
    slow = [row("plain", seed, 0.5, seconds) for seed, seconds in enumerate((1.0, 10.0, 2.0))]
    its = [row("response", seed, 0.5, seconds) for seed, seconds in enumerate((2.0, 20.0, 40.0))]
    assert table(*slow, *its)["rows"][1]["times_plain"] == pytest.approx(2.0)


def test_measures_are_means_over_the_seeds_that_have_them():
    rows = [row("response", 0, 0.5, sparsity=0.5), row("response", 1, 0.5, sparsity=0.7), row("response", 2, 0.5)]
    assert table(*rows)["rows"][0]["measures"]["sparsity"]["mean"] == pytest.approx(0.6)


def test_a_gain_is_over_the_row_that_the_method_names():
    methods = [{"name": "plain"}, {"name": "mutual"}, {"name": "response", "against": "mutual"}]
    rows = [row("plain", 0, 0.9), row("mutual", 0, 0.5), row("response", 0, 0.6, 3.0)]
    found = table(*rows, methods=methods)["rows"][2]
    assert found["gain"] == pytest.approx(0.1) and found["against"] == "mutual"
    assert found["times_plain"] == pytest.approx(3.0)


def test_a_row_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no method is called 없음"):
        table(methods=[{"name": "plain"}, {"name": "response", "against": "없음"}])
