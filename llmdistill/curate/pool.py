"""The records to choose from, as columns: what curation compares of them, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from llmdistill.record import Record, record_id


@dataclass(frozen=True)
class Pool:
    """N records in the order of their ids.

    Attributes:
        ids: ids of the records.
        prompts: ids of their prompts; several samples of one prompt share it.
        questions: texts of their prompts.
        replies: texts of their answers.
        scores: [N] float64, 0 where a record has none.
        groups: the quota group of each record; empty without quotas.
    """

    ids: list[str]
    prompts: list[str]
    questions: list[str]
    replies: list[str]
    scores: np.ndarray
    groups: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def best_first(self, first: Iterable[int] = ()) -> np.ndarray:
        """Rows with those of `first` in front, then by score from the highest, then by id."""
        later = np.ones(len(self), dtype=bool)
        later[list(first)] = False
        return np.lexsort((np.arange(len(self)), -self.scores, later))


def read_pool(records: Iterable[Record], group_of: Callable[[Record], str] | None = None) -> Pool:
    """Take from each record what curation compares."""
    rows = []
    for record in records:
        group = group_of(record) if group_of else ""
        rows.append((record.id, record_id(record.prompt), record.question, record.reply, record.score or 0.0, group))
    rows.sort(key=lambda row: row[0])
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(6)]
    ids, prompts, questions, replies, scores, groups = columns
    return Pool(ids, prompts, questions, replies, np.array(scores, dtype=np.float64), groups if group_of else [])
