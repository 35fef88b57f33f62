"""The tables of a comparison: test accuracy of networks trained on each set, by method and size.

`test` is the mean over all networks of all sets (one set for each seed). `test_sd` is the standard deviation over all
these networks, as the papers give it; `sets_sd` is the standard deviation over sets of each set's mean, which is what
a set's seed changes. `relative` is the share of what networks reach on the full data. No number but `seconds` comes
from a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

from llmdistill.vision.dd.fairness import scores
from llmdistill.vision.dd.methods import DdPipeline

FULL, RANDOM = "full", "random"

Row = dict[str, Any]
Sizes = dict[tuple[str, int | None], list[Row]]
"""Rows of all seeds by method and images for each class, None for the full data."""


def table_of(pipeline: DdPipeline, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that is known, as plain data; accuracies are shares, 0 to 1.

    Args:
        rows: one for each set: `method`, `ipc` (None for the full data), `seed`, `floats`, `seconds`, what `judge`
            gives, and where they are known `measures` (lists of numbers by name), `across` (what `judge` gives, by
            the title of a network) and `fairness` (what `treatments` gives).
    """
    found: Sizes = {}
    for row in rows:
        found.setdefault((row["method"], row["ipc"]), []).append(row)
    evaluation = pipeline.evaluation
    return {
        "name": pipeline.name,
        "protocol": evaluation.hash(pipeline.data, pipeline.net, pipeline.zca),
        "evaluation": {"title": evaluation.title, **evaluation.model_dump(mode="json")},
        "seeds": list(pipeline.seeds),
        "rows": [_row(key, some, found) for key, some in found.items()],
        "measures": _names(rows, "measures"),
        "across": {"nets": _names(rows, "across"), "rows": list(_across(found))},
        "fairness": list(_fairness(found)),
    }


def _row(key: tuple[str, int | None], rows: Sequence[Row], found: Sizes) -> Row:
    full = found.get((FULL, None))
    floats = rows[0]["floats"]
    its = _accuracy(rows)
    return {
        "method": key[0],
        "ipc": key[1],
        **its,
        "validation": _mean(value for row in rows for value in row["validation"]),
        "relative": its["test"] / _accuracy(full)["test"] if full else None,
        "floats": floats,
        "floats_share": floats / full[0]["floats"] if full else None,
        "learning_rates": [row["learning_rate"] for row in rows],
        "not_finite": sum(row.get("not_finite", 0) for row in rows),
        "measures": _measures(rows),
        "seconds": _mean(row["seconds"] for row in rows if row["seconds"] is not None),
    }


def _accuracy(rows: Sequence[Row]) -> Row:
    """Mean and deviations over networks and over sets."""
    tests = [test for row in rows for test in row["test"]]
    return {
        "test": mean(tests),
        "test_sd": stdev(tests) if len(tests) > 1 else None,
        "sets_sd": stdev(mean(row["test"]) for row in rows) if len(rows) > 1 else None,
        "num_sets": len(rows),
        "num_nets": len(tests),
    }


def _mean(values: Iterable[float]) -> float | None:
    given = list(values)
    return mean(given) if given else None


def _names(rows: Sequence[Row], what: str) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.get(what) or {}))


def _measures(rows: Sequence[Row]) -> dict[str, Row]:
    """Mean and standard deviation over all numbers of all sets."""
    measured = {}
    for name in _names(rows, "measures"):
        values = [value for row in rows for value in (row.get("measures") or {}).get(name, [])]
        measured[name] = {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}
    return measured


def _across(found: Sizes) -> Iterable[Row]:
    for (method, ipc), rows in found.items():
        titles = _names(rows, "across")
        by_net = {title: [row["across"][title] for row in rows if title in row["across"]] for title in titles}
        if by_net:
            yield {"method": method, "ipc": ipc, "nets": {title: _other(some) for title, some in by_net.items()}}


def _other(rows: Sequence[Row]) -> Row:
    return {
        **_accuracy(rows),
        "learning_rates": [row["learning_rate"] for row in rows],
        "not_finite": sum(row.get("not_finite", 0) for row in rows),
    }


def _fairness(found: Sizes) -> Iterable[Row]:
    """Scores of every method at every size at which random images and the full data are known too."""
    full = found.get((FULL, None))
    for (method, ipc), rows in found.items():
        random = _treated(found.get((RANDOM, ipc), []))
        its = _treated(rows)
        if full and random and its and ipc is not None:
            yield {"method": method, "ipc": ipc, **scores(its, random, _accuracy(full)["test"])}


def _treated(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Accuracies of all sets by treatment."""
    names = _names(rows, "fairness")
    return {name: [value for row in rows for value in (row.get("fairness") or {}).get(name, [])] for name in names}
