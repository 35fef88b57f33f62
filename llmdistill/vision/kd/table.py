"""The table of a comparison: test accuracy of every method, and its gain over plain training with the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from llmdistill.vision.kd.methods import KdPipeline

BASELINE = "plain"


def table_of(pipeline: KdPipeline, teacher: float, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with standard deviations; accuracies are shares, 0 to 1.

    Args:
        teacher: the teacher's test accuracy.
        rows: one for each method and seed.
    """
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["seed"]] = row
    plain = by_method.get(BASELINE, {})
    return {
        "name": pipeline.name,
        "protocol": pipeline.protocol.hash(pipeline.data),
        "teacher": teacher,
        "seeds": list(pipeline.protocol.seeds),
        "rows": [_row(title, found, plain) for title, found in by_method.items()],
    }


def _row(title: str, found: dict[int, dict[str, Any]], plain: dict[int, dict[str, Any]]) -> dict[str, Any]:
    gains = [row["test"] - plain[seed]["test"] for seed, row in found.items() if seed in plain]
    return {
        "method": title,
        **_summary("test", [row["test"] for row in found.values()]),
        **_summary("gain", gains if title != BASELINE else []),
        "by_seed": {str(seed): row["test"] for seed, row in found.items()},
        "seconds": mean(row["seconds"] for row in found.values()),
        "parameters": next(iter(found.values()))["parameters"],
    }


def _summary(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {name: mean(values) if values else None, f"{name}_sd": stdev(values) if len(values) > 1 else None}
