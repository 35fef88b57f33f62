"""What is found of the texts and answers of new prompts beside old ones, and the form of every finding."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmdistill.refresh.pools import Answers, Pools, among
from llmdistill.refresh.two_samples import mean_difference, ranks_test, shares_test

if TYPE_CHECKING:
    Floats = np.ndarray[Any, np.dtype[np.float64]]

ALPHA = 0.05
FEWEST = 20

_CHARS_LOOKED_AT = 2_000
"""Characters that tell in which script a text is written."""
_HANGUL_SHARE = 0.2
"""Korean prompts quote English words and names; `filter` takes a text for Korean from the same share on."""
_SPACELESS = 0.1
"""From this share of prompts in scripts other than Latin on, lengths are counted in characters."""
_NAMED = {"none": "without letters", "other": "in scripts other than Hangul and Latin"}
_LEAST_RANKS = 0.05
_LEAST_SHARE = 0.02


@dataclass
class Finding:
    """One thing that may have moved.

    Attributes:
        values: what was measured.
        said: in words, without what it means.
        meaning: what it means if it moved, and if it did not.
        p: None where there is nothing to test, or too little.
        effect: how far it moved, in the unit of `least`.
        least: the smallest effect that matters.
        few: how many there are on the side that has too few for a test.
    """

    values: dict[str, Any] = field(default_factory=dict)
    said: str = ""
    meaning: tuple[str, str] = ("", "")
    p: float | None = None
    effect: float = math.inf
    least: float = 0.0
    few: int | None = None

    def as_dict(self, adjusted: float | None) -> dict[str, Any]:
        """Plain values; `adjusted` is `p` beside the other tests."""
        moved = adjusted is not None and adjusted <= ALPHA and self.effect >= self.least
        return {**self.values, "p": self.p, "p_adjusted": adjusted, "moved": moved, "words": self._words(moved)}

    def _words(self, moved: bool) -> str:
        if self.few is not None:
            return f"too few to tell ({self.few:,})" + (f": {self.said}" if self.said else "")
        if self.p is None:
            return self.said
        return f"{self.meaning[0] if moved else self.meaning[1]}: {self.said}"


def too_few(*numbers: int) -> int | None:
    """The least of the numbers where a test can say nothing of so few, else None."""
    return min(numbers) if min(numbers) < FEWEST else None


def of_texts(pools: Pools) -> dict[str, Finding]:
    """How long the prompts are, and in which script."""
    few = too_few(len(pools.old), len(pools.new))
    old, new = (pa.array(texts, pa.large_string()) for texts in (pools.old, pools.new))
    scripts_old, scripts_new = _scripts(old), _scripts(new)
    spaced = max(_share_beyond_latin(scripts_old), _share_beyond_latin(scripts_new)) < _SPACELESS
    counted = "words" if spaced else "characters"
    return {
        "length": _length(_lengths(old, counted), _lengths(new, counted), counted, few),
        "language": _language(scripts_old, scripts_new, few),
    }


def _scripts(texts: pa.Array) -> dict[str, int]:
    """How many texts are written in which script."""
    texts = pc.utf8_slice_codeunits(texts, 0, _CHARS_LOOKED_AT)
    letters, hangul, latin = (
        np.asarray(pc.count_substring_regex(texts, pattern=pattern).to_numpy(zero_copy_only=False))
        for pattern in (r"\p{L}", r"\p{Hangul}", r"\p{Latin}")
    )
    korean = (letters > 0) & (hangul >= _HANGUL_SHARE * letters)
    in_latin = (letters > 0) & ~korean & (2 * latin >= letters)
    counts = {"Hangul": korean, "Latin": in_latin, "other": (letters > 0) & ~korean & ~in_latin, "none": letters == 0}
    return {name: int(found.sum()) for name, found in counts.items()}


def _share_beyond_latin(scripts: dict[str, int]) -> float:
    return (scripts["Hangul"] + scripts["other"]) / max(1, sum(scripts.values()))


def _language(old: dict[str, int], new: dict[str, int], few: int | None) -> Finding:
    p = None if few is not None else shares_test(np.array(list(old.values())), np.array(list(new.values()))).p
    shares = {
        name: {"old": old[name] / max(1, sum(old.values())), "new": new[name] / max(1, sum(new.values()))}
        for name in old
    }
    name, most = max(shares.items(), key=lambda item: abs(item[1]["new"] - item[1]["old"]))
    if most["new"] == most["old"]:
        name, most = max(shares.items(), key=lambda item: item[1]["new"])
    return Finding(
        {"scripts": shares},
        f"{most['new']:.1%} of the new are {_NAMED.get(name, f'in {name}')}, {most['old']:.1%} of the old",
        ("new prompts are written in other scripts", "new prompts are written in the same scripts"),
        p,
        abs(most["new"] - most["old"]),
        _LEAST_SHARE,
        few,
    )


def _lengths(texts: pa.Array, counted: str) -> np.ndarray:
    """Words, or characters that are no space: Hangul has few spaces, other scripts have none."""
    if counted == "words":
        found = pc.count_substring_regex(texts, pattern=r"\S+")
    else:
        found = pc.utf8_length(pc.replace_substring_regex(texts, r"\s+", ""))
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.float64)


def _length(old: np.ndarray, new: np.ndarray, counted: str, few: int | None) -> Finding:
    medians = {"old": float(np.median(old)) if len(old) else None, "new": float(np.median(new))}
    said = f"{medians['new']:,.0f} {counted}" + ("" if not len(old) else f" against {medians['old']:,.0f} (median)")
    values = {"unit": counted, "median_old": medians["old"], "median_new": medians["new"]}
    if few is not None:
        return Finding(values, said, few=few)
    found, difference = ranks_test(old, new), mean_difference(old, new)
    way = "longer" if found.value > 0.5 else "shorter"
    return Finding(
        values | {"longer": found.value, "difference": difference.value, **_ends(difference.low, difference.high)},
        said,
        (f"new prompts are {way}", "new prompts are about as long"),
        found.p,
        abs(found.value - 0.5),
        _LEAST_RANKS,
    )


def _ends(low: float, high: float) -> dict[str, float]:
    return {"low": low, "high": high}


@dataclass(frozen=True)
class _PerPrompt:
    """Prompts whose answers were looked at: whether an answer to it was kept, and the mean score of its answers."""

    kept: np.ndarray
    scores: np.ndarray

    def only(self, which: np.ndarray) -> _PerPrompt:
        return _PerPrompt(self.kept[which], self.scores[which])


def of_answers(before: Answers, now: Answers) -> dict[str, Finding]:
    """Both sides as this version's filter decided; where it has no old ones, as the parent's did."""
    per_prompt, is_old = _per_prompt(now, among(now.ids, before.ids))
    old, new = per_prompt.only(is_old), per_prompt.only(~is_old)
    if len(old.kept) < FEWEST:
        old = _per_prompt(before, np.ones(len(before.kept), dtype=bool))[0]
    return {"scores": _scores(old.scores, new.scores), "keep_rate": _keep_rate(old.kept, new.kept)}


def _per_prompt(answers: Answers, old: np.ndarray) -> tuple[_PerPrompt, np.ndarray]:
    """One row for each prompt, and whether it is old, which it is if any of its answers is."""
    _, place = np.unique(answers.prompts, return_inverse=True)
    judged = ~np.isnan(answers.scores)
    sums = np.bincount(place, np.where(judged, answers.scores, 0.0))
    counts = np.bincount(place, judged)
    means = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return _PerPrompt(np.bincount(place, answers.kept) > 0, means), np.bincount(place, old) > 0


def _scores(old: np.ndarray, new: np.ndarray) -> Finding:
    old, new = old[~np.isnan(old)], new[~np.isnan(new)]
    if not len(old) and not len(new):
        return Finding(said="no answer was judged")
    values: dict[str, Any] = {"judged_old": len(old), "judged_new": len(new)}
    few = too_few(len(old), len(new))
    if few is not None:
        return Finding(values, few=few)
    found, difference = ranks_test(old, new), mean_difference(old, new)
    way = "higher" if found.value > 0.5 else "lower"
    values |= {"mean_old": float(old.mean()), "mean_new": float(new.mean()), "higher": found.value}
    ends = f"{difference.low:+.2f} to {difference.high:+.2f}"
    return Finding(
        values | {"difference": difference.value, **_ends(difference.low, difference.high)},
        f"{new.mean():.2f} against {old.mean():.2f} on average (difference {difference.value:+.2f}, {ends})",
        (f"answers to new prompts are judged {way}", "answers to new prompts are judged alike"),
        found.p,
        abs(found.value - 0.5),
        _LEAST_RANKS,
    )


def _keep_rate(old: np.ndarray, new: np.ndarray) -> Finding:
    few = too_few(len(old), len(new))
    values: dict[str, Any] = {"looked_at_old": len(old), "looked_at_new": len(new)}
    if not len(old) or not len(new):
        return Finding(values, few=few)
    rates = float(old.mean()), float(new.mean())
    difference = mean_difference(old.astype(float), new.astype(float))
    ends = _ends(difference.low, difference.high) if few is None else {}
    counts = [np.array([(~kept).sum(), kept.sum()]) for kept in (old, new)]
    return Finding(
        values | {"old": rates[0], "new": rates[1], "difference": difference.value, **ends},
        f"{rates[1]:.1%} against {rates[0]:.1%}",
        (
            f"{'more' if rates[1] > rates[0] else 'fewer'} new prompts have an answer that the filter keeps",
            "the filter keeps about as many of the new",
        ),
        None if few is not None else shares_test(counts[0], counts[1]).p,
        abs(rates[1] - rates[0]),
        _LEAST_SHARE,
        few,
    )
