"""Whether two runs ended with the same results."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.faults.conftest import STAGES, Run

TIMES = ("tokens_per_second", "seconds")


def plain(value: Any) -> Any:
    """A value without what depends on the clock."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def open_meta(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their JSON column read."""
    return [{**row, "meta": json.loads(row["meta"])} if "meta" in row else row for row in rows]


def assert_same(found: Any, wanted: Any, where: str = "") -> None:
    """Equal values; floats may differ by rounding, because batches are made up otherwise after a kill."""
    if isinstance(wanted, dict):
        assert set(found) == set(wanted), where
        for key in wanted:
            assert_same(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for index, pair in enumerate(zip(found, wanted, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5), where
    else:
        assert found == wanted, where


def assert_same_results(run: Run, wanted: Run, stages: tuple[str, ...] = STAGES) -> None:
    """Every record, count, loss and weight of `run` is that of `wanted`, and nothing half-made is left."""
    for stage in stages:
        assert_same(plain(open_meta(run.rows(stage))), plain(open_meta(wanted.rows(stage))), stage)
        made, expected = run.manifest(stage), wanted.manifest(stage)
        for key in ("counts", "usage", "metrics"):
            assert_same(plain(made[key]), plain(expected[key]), f"{stage}.{key}")
        assert sorted(made["outputs"]) == sorted(expected["outputs"])
    if "train" in stages:
        weights, expected = (load_file(r.dir / "train" / "student" / "model.safetensors") for r in (run, wanted))
        for name in expected:
            assert abs(weights[name] - expected[name]).max() < 1e-5, name
    left = [path for path in run.dir.rglob("*") if path.name.endswith(".tmp") or path.name == "working"]
    assert not left
