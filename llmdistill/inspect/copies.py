"""Groups of records that `curate` found to be copies of each other, and in what their texts differ."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmdistill.decisions import COPIES

_WORDS = re.compile(r"\s+|\S+")


@dataclass(frozen=True)
class Groups:
    """G groups of records that nearly equal each other: one that went on, and its C copies in all.

    Attributes:
        heads: [G] row of the one that went on.
        starts: [G + 1] where each group's copies begin.
        copies: [C] rows of the copies, group by group, the most similar first.
        originals: [C] the row that each was found to equal: the head, or another copy.
        similarities: [C] to that one; NaN where it is not known.
    """

    heads: np.ndarray
    starts: np.ndarray
    copies: np.ndarray
    originals: np.ndarray
    similarities: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """[G] copies of each group."""
        return np.diff(self.starts)

    @property
    def least_similar(self) -> np.ndarray:
        """[G] the lowest similarity of each group."""
        return self.similarities[self.starts[1:] - 1]

    def places_of(self, group: int) -> range:
        """Where one group's copies stand among all copies."""
        return range(int(self.starts[group]), int(self.starts[group + 1]))


def duplicate_groups(decisions: pa.Table) -> Groups:
    """Who was dropped as a copy of whom.

    A copy of what was itself dropped as a copy belongs to the group of the one that went on.
    """
    num = decisions.num_rows
    ids = decisions.column("id").combine_chunks()
    is_copy = _as_bools(pc.is_in(decisions.column("reason"), pa.array(COPIES)))
    originals = pc.fill_null(pc.index_in(decisions.column("duplicate_of"), ids), -1).to_numpy()
    parents = np.where(is_copy & (originals >= 0), originals, np.arange(num))
    heads = _roots(parents)
    similarities = decisions.column("similarity").to_numpy()
    copies = np.flatnonzero(heads != np.arange(num))
    copies = copies[np.lexsort((copies, -similarities[copies], heads[copies]))]
    found, starts = np.unique(heads[copies], return_index=True)
    return Groups(found, np.append(starts, len(copies)), copies, parents[copies], similarities[copies])


def _roots(parents: np.ndarray) -> np.ndarray:
    """Where each row's chain of parents ends; each round doubles the length that is followed."""
    for _ in range(len(parents).bit_length()):
        further = parents[parents]
        if np.array_equal(further, parents):
            break
        parents = further
    return parents


def _as_bools(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), dtype=bool)


def differing(kept: str, copy: str) -> list[tuple[str, bool]]:
    """The copy's text in pieces, each with whether the kept text has it otherwise; compared word by word."""
    ours, theirs = _WORDS.findall(kept), _WORDS.findall(copy)
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    pieces = [("".join(theirs[first:last]), tag != "equal") for tag, _, _, first, last in matcher.get_opcodes()]
    return [(text, differs) for text, differs in pieces if text]
