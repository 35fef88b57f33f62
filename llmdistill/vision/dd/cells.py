"""The numbers of a table as text, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmdistill.report import words
from llmdistill.report.words import points, with_spread

Row = Mapping[str, Any]
Cells = list[list[str]]

FAIRNESS = {
    "own": "own labels, %",
    "hard": "class labels, %",
    "plain": "not augmented, %",
    "augmented": "augmented, %",
    "lrs": "LRS",
    "ars": "ARS",
}
"""Columns of what is due to labels and augmentation, with their headings."""


def size_of(row: Row) -> str:
    """Images a class."""
    return "all" if row["ipc"] is None else f"{row['ipc']:,}"


def main_cells(table: Row) -> Cells:
    """Method, images a class, test accuracy, share of what the full data give, floats, seconds of one set."""
    return [
        [
            row["method"],
            size_of(row),
            with_spread(row["test"], row["test_sd"]),
            points(row["relative"]),
            words.count(row["floats"]),
            words.MISSING if row["seconds"] is None else words.duration(row["seconds"]),
        ]
        for row in table["rows"]
    ]


def measure_cells(table: Row) -> tuple[list[str], Cells]:
    """Headings and rows of what methods are measured by beside networks that the protocol trains."""
    names = table["measures"]
    rows = [
        [row["method"], size_of(row), *(_measure(row["measures"].get(name)) for name in names)]
        for row in table["rows"]
        if row["measures"]
    ]
    return ["method", "a class", *(f"{name.replace('_', ' ')}, %" for name in names)], rows


def _measure(value: Row | None) -> str:
    return words.MISSING if value is None else with_spread(value["mean"], value["sd"])


def across_cells(table: Row) -> tuple[list[str], Cells]:
    """Headings and rows of the accuracies of other architectures, in percent."""
    nets = table["across"]["nets"]
    rows = []
    for row in table["across"]["rows"]:
        reached = [row["nets"].get(net) for net in nets]
        cells = [words.MISSING if its is None else with_spread(its["test"], its["test_sd"]) for its in reached]
        rows.append([row["method"], size_of(row), *cells])
    return ["method", "a class", *nets], rows


def fairness_cells(table: Row) -> tuple[list[str], Cells]:
    """Headings and rows of what labels and augmentation do."""
    rows = [[row["method"], size_of(row), *(_fair(name, row[name]) for name in FAIRNESS)] for row in table["fairness"]]
    return ["method", "a class", *FAIRNESS.values()], rows


def _fair(name: str, value: float) -> str:
    return f"{value:.2f}" if name in ("lrs", "ars") else points(value)
