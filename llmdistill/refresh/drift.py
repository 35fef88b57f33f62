"""How a version's new prompts differ from the old ones, and whether the judge moved.

Each finding is a plain dict: what was measured, `p` of a test against "nothing moved" and `p_adjusted` for the number
of tests (Holm), whether it `moved`, and the same in `words`. A finding moved when its adjusted p is at most `ALPHA`
and its effect is large enough to matter; with fewer than `FEWEST` on either side it is said that nothing can be told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmdistill.config import Pipeline
from llmdistill.refresh.pools import Answers, Pools, among, read_answers, read_pools
from llmdistill.refresh.rejudge import rejudge
from llmdistill.refresh.two_samples import holm, mean_difference, mmd, ranks_test, shares_test
from llmdistill.run.manifest import Usage

ALPHA = 0.05
FEWEST = 20

_MOST_VECTORS = 5_000
_MOST_COMPARED = 2_000
"""Rows of either side in the test of distances, whose time and memory grow with their square."""
_MOST_CLUSTERS = 20
_ROWS_PER_CLUSTER = 10
_SHOWN_CLUSTERS = 5
_SHOWN_EXAMPLES = 2
_EXAMPLE_CHARS = 300
_CHARS_LOOKED_AT = 2_000
"""Characters that tell in which script a text is written."""
_HANGUL_SHARE = 0.2
"""Korean prompts quote English words and names; `filter` takes a text for Korean from the same share on."""
_SPACELESS = 0.1
"""From this share of prompts in scripts other than Latin on, lengths are counted in characters."""
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
        num_new: what the test was to rest on, on the side that has less.
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


def drift(pipeline: Pipeline, parent_dir: Path) -> dict[str, Any]:
    """Compare a version whose records are curated with the run it was made from.

    The same call gives the same findings; a judge that was asked is not asked again.

    Args:
        pipeline: the version's; its run directory is the version's.
        parent_dir: run directory of its parent.

    Returns:
        JSON values: `new`, `old` and `gone` count prompts; `findings` by name; `judge`, None without one; `moved` names
        what moved; `usage` is what the judge took. Without a new prompt only `new`.

    Raises:
        DamagedError: a file of one of the runs cannot be read.
    """
    pools = read_pools(pipeline.run_path, parent_dir, pipeline.seed)
    if not pools.num_new:
        return {"new": 0}
    by_prompt = pipeline.generate.samples.n > 1
    before, now = read_answers(parent_dir, by_prompt), read_answers(pipeline.run_path, by_prompt)
    judge = rejudge(pipeline, parent_dir, before, now)
    found = {**_of_vectors(pipeline, pools), **_of_texts(pools), **_of_answers(before, now)}
    every = found | ({"judge": _judge(judge)} if judge else {})
    adjusted = holm({name: one.p for name, one in every.items() if one.p is not None})
    told = {name: one.as_dict(adjusted.get(name)) for name, one in every.items()}
    return {
        "new": pools.num_new,
        "old": pools.num_old,
        "gone": pools.num_gone,
        "alpha": ALPHA,
        "findings": {name: told[name] for name in found},
        "judge": told.get("judge"),
        "moved": [name for name, one in told.items() if one["moved"]],
        "usage": judge["usage"] if judge else asdict(Usage()),
    }


def _of_vectors(pipeline: Pipeline, pools: Pools) -> dict[str, Finding]:
    from llmdistill.curate.embed import embed

    old, new = pools.old[:_MOST_VECTORS], pools.new[:_MOST_VECTORS]
    cache = pipeline.run_path / "curate" / "journal"
    vectors = np.asarray(embed([*old, *new], pipeline.curate.embed, pipeline, cache))
    usable = np.isfinite(vectors).all(1)
    sides = [
        ([text for text, good in zip(texts, ok, strict=True) if good], rows[ok])
        for texts, rows, ok in (
            (old, vectors[: len(old)], usable[: len(old)]),
            (new, vectors[len(old) :], usable[len(old) :]),
        )
    ]
    (old, old_rows), (new, new_rows) = sides
    few = _too_few(len(old), len(new))
    if few is not None:
        return {"embedding": Finding(few=few), "clusters": Finding(few=few)}
    return {
        "embedding": _embedding(old_rows[:_MOST_COMPARED], new_rows[:_MOST_COMPARED], pipeline.seed),
        "clusters": _clusters(old, old_rows, new, new_rows, pipeline.seed),
    }


def _too_few(*numbers: int) -> int | None:
    return min(numbers) if min(numbers) < FEWEST else None


def _embedding(old: np.ndarray, new: np.ndarray, seed: int) -> Finding:
    found = mmd(old, new, seed)
    return Finding(
        {"mmd2": found.value, "compared_old": len(old), "compared_new": len(new)},
        f"squared distance of their vectors' distributions {found.value:.2g} (MMD), {len(new):,} against {len(old):,}",
        ("new prompts are about other things", "new prompts are about what the old ones are about"),
        found.p,
    )


def _clusters(old: list[str], old_rows: np.ndarray, new: list[str], new_rows: np.ndarray, seed: int) -> Finding:
    """Shares of clusters that are found on one half of the old, compared on the other: k-means fits its own rows best."""
    from llmdistill.curate.select.cluster import assign, distinct, fit, start

    half = len(old) // 2
    most = max(2, min(_MOST_CLUSTERS, min(half, len(new)) // _ROWS_PER_CLUSTER))
    rows = np.array(old_rows[:half])
    centres = fit(rows, start(rows, distinct(rows, most), seed))
    old, old_rows = old[half:], old_rows[half:]
    labels, distances = assign(np.concatenate([old_rows, new_rows]), centres)
    is_new = np.arange(len(labels)) >= len(old)
    counts = [np.bincount(labels[side], minlength=len(centres)) for side in (~is_new, is_new)]
    shares = [count / count.sum() for count in counts]
    order = np.argsort(-np.abs(shares[1] - shares[0]), kind="stable")[:_SHOWN_CLUSTERS]
    texts = [*old, *new]
    movers = [
        {
            "old_share": float(shares[0][cluster]),
            "new_share": float(shares[1][cluster]),
            "examples": _examples(texts, (labels == cluster) & (is_new == (shares[1] > shares[0])[cluster]), distances),
        }
        for cluster in order
    ]
    found = shares_test(*counts, seed)
    first = movers[0]
    return Finding(
        {"num_clusters": len(centres), "chi_square": found.value, "movers": movers},
        f"one of {len(centres)} clusters has {first['new_share']:.0%} of the new and {first['old_share']:.0%} of the old",
        ("new prompts fall on other topics", "new prompts fall on the same topics"),
        found.p,
    )


def _examples(texts: Sequence[str], wanted: np.ndarray, distances: np.ndarray) -> list[str]:
    """The texts that lie nearest to the middle."""
    rows = np.flatnonzero(wanted)
    nearest = rows[np.argsort(distances[rows], kind="stable")[:_SHOWN_EXAMPLES]]
    return [texts[row][:_EXAMPLE_CHARS] for row in nearest]


def _of_texts(pools: Pools) -> dict[str, Finding]:
    few = _too_few(len(pools.old), len(pools.new))
    sides = [pa.array(texts, pa.large_string()) for texts in (pools.old, pools.new)]
    scripts = [_scripts(texts) for texts in sides]
    language = _language(*scripts, few)
    counted = "words" if all(_share_beyond_latin(found) < _SPACELESS for found in scripts) else "characters"
    return {"length": _length(*(_lengths(texts, counted) for texts in sides), counted, few), "language": language}


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
    counts = [np.array(list(side.values())) for side in (old, new)]
    shares = {
        name: {"old": old[name] / max(1, sum(old.values())), "new": new[name] / max(1, sum(new.values()))}
        for name in old
    }
    name, most = max(shares.items(), key=lambda item: abs(item[1]["new"] - item[1]["old"]))
    if most["new"] == most["old"]:
        name, most = max(shares.items(), key=lambda item: item[1]["new"])
    return Finding(
        {"scripts": shares},
        f"{_in_script(name)} {most['new']:.1%} of the new and {most['old']:.1%} of the old",
        ("new prompts are written in other scripts", "new prompts are written in the same scripts"),
        None if few is not None else shares_test(*counts).p,
        abs(most["new"] - most["old"]),
        _LEAST_SHARE,
        few,
    )


def _in_script(name: str) -> str:
    return {"none": "without letters are", "other": "in other scripts than Hangul and Latin are"}.get(
        name, f"in {name} are"
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


def _of_answers(before: Answers, now: Answers) -> dict[str, Finding]:
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
    values = {"judged_old": len(old), "judged_new": len(new)}
    few = _too_few(len(old), len(new))
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
    few = _too_few(len(old), len(new))
    values: dict[str, Any] = {"looked_at_old": len(old), "looked_at_new": len(new)}
    if not len(old) or not len(new):
        return Finding(values, few=few)
    rates = float(old.mean()), float(new.mean())
    difference = mean_difference(old.astype(float), new.astype(float))
    ends = _ends(difference.low, difference.high) if few is None else {}
    counts = [np.array([kept.sum(), len(kept) - kept.sum()]) for kept in (old, new)]
    return Finding(
        values | {"old": rates[0], "new": rates[1], "difference": difference.value, **ends},
        f"{rates[1]:.1%} against {rates[0]:.1%}",
        (
            f"{'more' if rates[1] > rates[0] else 'fewer'} new prompts have an answer that the filter keeps",
            "the filter keeps about as many of the new",
        ),
        None if few is not None else shares_test(*counts).p,
        abs(rates[1] - rates[0]),
        _LEAST_SHARE,
        few,
    )


def _judge(found: dict[str, Any]) -> Finding:
    values = {key: value for key, value in found.items() if key not in ("p", "usage")}
    compared, p = found["compared"], found["p"]
    if found["error"] and not compared:
        return Finding(values, f"the judge could not be asked once more: {found['error']}")
    if not found["asked"]:
        return Finding(values, "no old answer was judged once more")
    failed = f", {found['failed']:,} could not be read" if found["failed"] else ""
    if not compared:
        return Finding(values, f"none of {found['asked']:,} judgements could be read")
    said = (
        f"{found['shift']:+.2f} on average ({found['low']:+.2f} to {found['high']:+.2f}) for {compared:,} old answers, "
        f"{found['equal']:.0%} have the score they had{failed}"
    )
    if found["changed"]:
        return Finding(values, f"another judge or rubric than then: {said}")
    if compared < FEWEST:
        return Finding(values, said, few=compared)
    way = "more lenient" if found["shift"] > 0 else "stricter"
    return Finding(values, said, (f"the judge has become {way}", "the judge has not moved"), p)
