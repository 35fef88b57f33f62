"""Sharing out the number of chosen records among groups of records: sources, topics, levels of difficulty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from llmdistill.config import Quotas
from llmdistill.curate.select import Choice, Task, choose
from llmdistill.errors import UsageError
from llmdistill.fields import names_with_value, value_of
from llmdistill.record import Record

NONE = "none"
"""The group of the records that have no value."""

_MOST_NAMES = 30


class Grouping:
    """Names the group of each record by the field `quotas.by`, before numbers are cut into bins."""

    def __init__(self, quotas: Quotas) -> None:
        self._by = quotas.by
        self._names: set[str] | None = set()  # None as soon as a record has a value

    def __call__(self, record: Record) -> str:
        """The record's value as text; a number as a number is written in the settings, e.g. 3 and 0.25.

        Raises:
            UsageError: records have no such field, or it holds more than one value.
        """
        value = value_of(record, self._by)
        if isinstance(value, list | dict) or (value is not None and not isinstance(value, str | int | float)):
            raise UsageError(f"{self._by} is not one value", where="curate.quotas.by", do="name a field of it")
        if value is None or isinstance(value, float) and not math.isfinite(value):
            if self._names is not None:
                self._names.update(names_with_value(record))
            return NONE
        self._names = None
        if isinstance(value, bool):
            return str(value).lower()
        return value if isinstance(value, str) else f"{value:.12g}"

    def check(self) -> None:
        """After all records: raise `UsageError` if none has a value, naming the fields that have."""
        if self._names is not None:
            names = sorted(self._names)
            more = ", ..." if len(names) > _MOST_NAMES else ""
            known = f"there are {', '.join(names[:_MOST_NAMES])}{more}"
            raise UsageError(f"no record has a value in {self._by}", where="curate.quotas.by", do=known)


def grouping(quotas: Quotas | None) -> Grouping | None:
    """What names the groups, where there are quotas."""
    return Grouping(quotas) if quotas else None


def binned(groups: Sequence[str], num_bins: int) -> list[str]:
    """Numbers as the bin of equal width that they are in, between the lowest and the highest; `none` stays.

    Raises:
        UsageError: a group is no number.
    """
    values = [None if group == NONE else _number(group) for group in groups]
    found = [value for value in values if value is not None]
    if not found:
        return list(groups)
    low, high = min(found), max(found)
    edges = np.linspace(low, high, num_bins + 1)
    names = [f"{start:.6g} to {end:.6g}" for start, end in zip(edges[:-1], edges[1:], strict=True)]
    width = (high - low) or 1.0
    return [
        NONE if value is None else names[min(int((value - low) / width * num_bins), num_bins - 1)] for value in values
    ]


def _number(group: str) -> float:
    try:
        return float(group)
    except ValueError:
        raise UsageError(f"{group[:50]!r} is not a number", where="curate.quotas.bins", do="leave bins out") from None


def allocate(
    sizes: Mapping[str, int], size: int, shares: Mapping[str, float], least: Mapping[str, int] | None = None
) -> dict[str, int]:
    """How many of each group are chosen: min(size, all there are), by largest remainder (Hare and Niemeyer).

    Groups without a share split what the shares leave over evenly. What a group has too few rows for goes to the
    others in proportion to their shares. Equal remainders go to the larger group, then by name.

    Args:
        sizes: how many rows each group has.
        shares: of `size`, in all at most 1; groups that are not there have no rows.
        least: how many of each group are chosen in any case.
    """
    weights = _weights(sizes, shares)
    fixed = {group: 0 for group in sizes}
    while True:
        open_groups = {group: room for group, room in sizes.items() if not fixed[group]}
        shared = _share_out(open_groups, size - sum(fixed.values()), weights)
        short = {group for group, number in shared.items() if number < (least or {}).get(group, 0)}
        if not short:
            return {group: fixed[group] or shared[group] for group in sizes}
        for group in short:
            fixed[group] = (least or {})[group]


def _weights(sizes: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, Fraction]:
    """The share of each group; exact, as it is written."""
    exact = {group: Fraction(str(share)) for group, share in shares.items()}
    without = sum(group not in exact for group in sizes)
    rest = max(1 - sum(exact.values(), Fraction(0)), Fraction(0)) / max(without, 1)
    return {group: exact.get(group, rest) for group in sizes}


def _share_out(rooms: Mapping[str, int], size: int, weights: Mapping[str, Fraction]) -> dict[str, int]:
    """Share out `size` among groups; full ones leave the rest to the others."""
    given = dict.fromkeys(rooms, 0)
    left = min(max(size, 0), sum(rooms.values()))
    while left:
        with_room = {group: room for group, room in rooms.items() if given[group] < room}
        wanted = {group: weights[group] for group in with_room}
        if not any(wanted.values()):
            wanted = dict.fromkeys(with_room, Fraction(1))
        for group, number in _largest_remainder(wanted, left, rooms).items():
            taken = min(number, rooms[group] - given[group])
            given[group] += taken
            left -= taken
    return given


def _largest_remainder(weights: Mapping[str, Fraction], size: int, sizes: Mapping[str, int]) -> dict[str, int]:
    total = sum(weights.values())
    exact = {group: weight * size / total for group, weight in weights.items()}
    parts = {group: int(number) for group, number in exact.items()}
    order = sorted(exact, key=lambda group: (parts[group] - exact[group], -sizes[group], group))
    for group in order[: size - sum(parts.values())]:
        parts[group] += 1
    return parts


def choose_by_quota(method: str, task: Task, groups: Sequence[str], quotas: Quotas) -> Choice:
    """Choose within each group as many as its quota, by `method`.

    Given rows count for their group, and are chosen even beyond its quota. A method sees one group at a time: rows of
    different groups are not compared, and scores count relative to their group. What a group cannot give (`deita`
    passes over copies) goes to the others.

    Ranks: the given rows first; then the groups take turns so that every beginning of the list has nearly the shares
    of the whole: the i-th of n chosen rows of a group (i from 0) stands at (i + 1/2) / n, equals by name of the group.
    Cluster ids are distinct between groups; -1 for rows of groups that were taken whole or not at all. `notes` has
    `quota.<group>`, the number chosen of each group, 0 for a group that only `shares` knows.

    Raises:
        ValueError: as `select.choose`.
        UsageError: `bins` of what is no number, or no group that `shares` names exists.
    """
    names = binned(groups, quotas.bins) if quotas.bins else list(groups)
    rows_of = _rows_of(names, quotas)
    choices = _choices(method, task, rows_of, quotas)
    first = set(task.given)
    ranked = [(row, np.nan) for row in task.given]
    later = []
    for group, choice in choices.items():
        found = [
            (int(rows_of[group][place]), float(gain)) for place, gain in zip(choice.chosen, choice.gains, strict=True)
        ]
        found = [item for item in found if item[0] not in first]
        later += [((2 * i + 1) / (2 * len(found)), group, item) for i, item in enumerate(found)]
    ranked += [item for _, _, item in sorted(later, key=lambda entry: entry[:2])]
    chosen = np.array([row for row, _ in ranked], dtype=np.int64)
    gains = np.array([gain for _, gain in ranked], dtype=np.float64)
    counts = {f"quota.{group}": 0.0 for group in quotas.shares}
    counts |= {f"quota.{group}": float(len(choice.chosen)) for group, choice in choices.items()}
    return Choice(chosen, gains, _clusters(len(names), rows_of, choices), {**_summed(choices), **counts})


def _rows_of(names: Sequence[str], quotas: Quotas) -> dict[str, np.ndarray]:
    """Rows of each group, by name."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    if rows and quotas.shares and not any(name in rows for name in quotas.shares):
        known = ", ".join(sorted(rows)[:_MOST_NAMES])
        raise UsageError(
            f"no {quotas.by} is {' or '.join(quotas.shares)}", where="curate.quotas.shares", do=f"there are {known}"
        )
    return {name: np.array(rows[name], dtype=np.int64) for name in sorted(rows)}


def _choices(method: str, task: Task, rows_of: Mapping[str, np.ndarray], quotas: Quotas) -> dict[str, Choice]:
    """The choice within each group; where one comes short of its quota, the others get more."""
    given = {group: tuple(np.flatnonzero(np.isin(rows, task.given)).tolist()) for group, rows in rows_of.items()}
    least = {group: len(found) for group, found in given.items()}
    rooms = {group: len(rows) for group, rows in rows_of.items()}
    done: dict[str, tuple[int, Choice]] = {}
    while True:
        numbers = allocate(rooms, task.size, quotas.shares, least)
        for group, number in numbers.items():
            if group not in done or done[group][0] != number:
                rows = rows_of[group]
                part = replace(
                    task,
                    vectors=task.vectors[rows],
                    scores=np.asarray(task.scores)[rows],
                    size=number,
                    given=given[group],
                )
                done[group] = number, choose(method, part)
        short = {group: len(choice.chosen) for group, (number, choice) in done.items() if len(choice.chosen) < number}
        if not short:
            return {group: choice for group, (_, choice) in done.items()}
        rooms |= short


def _clusters(num: int, rows_of: Mapping[str, np.ndarray], choices: Mapping[str, Choice]) -> np.ndarray | None:
    if all(choice.clusters is None for choice in choices.values()):
        return None
    clusters = np.full(num, -1, dtype=np.int64)
    for group, choice in choices.items():
        if choice.clusters is not None:
            clusters[rows_of[group]] = choice.clusters + (clusters.max() + 1)
    return clusters


def _summed(choices: Mapping[str, Choice]) -> dict[str, float]:
    """What the methods noted, added up over the groups."""
    notes: dict[str, float] = {}
    for choice in choices.values():
        for name, number in choice.notes.items():
            notes[name] = notes.get(name, 0.0) + number
    return notes
