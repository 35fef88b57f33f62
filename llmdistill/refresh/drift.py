"""How a version's new prompts differ from the old ones, and whether the judge moved.

Each finding is a plain dict: what was measured, `p` of a test against "nothing moved" and `p_adjusted` for the number
of tests (Holm), whether it `moved`, and the same in `words`. A finding moved when its adjusted p is at most `ALPHA`
and its effect is large enough to matter; with fewer than `FEWEST` on either side it is said that nothing can be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.config import Pipeline
from llmdistill.refresh.findings import ALPHA, FEWEST, Finding, of_answers, of_texts, too_few
from llmdistill.refresh.pools import Pools, read_answers, read_pools
from llmdistill.refresh.rejudge import rejudge
from llmdistill.refresh.two_samples import holm, mmd, shares_test
from llmdistill.run.manifest import Usage

_MOST_VECTORS = 5_000
_MOST_COMPARED = 2_000
"""Rows of either side in the test of distances, whose time and memory grow with their square."""
_MOST_CLUSTERS = 20
_ROWS_PER_CLUSTER = 10
_SHOWN_CLUSTERS = 5
_SHOWN_EXAMPLES = 2
_EXAMPLE_CHARS = 300


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
    found = {**_of_vectors(pipeline, pools), **of_texts(pools), **of_answers(before, now)}
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
    few = too_few(len(old), len(new))
    if few is not None:
        return {"embedding": Finding(few=few), "clusters": Finding(few=few)}
    return {
        "embedding": _embedding(old_rows[:_MOST_COMPARED], new_rows[:_MOST_COMPARED], pipeline.seed),
        "clusters": _clusters(old, old_rows, new, new_rows, pipeline.seed),
    }


def _embedding(old: np.ndarray, new: np.ndarray, seed: int) -> Finding:
    found = mmd(old, new, seed)
    return Finding(
        {"mmd2": found.value, "compared_old": len(old), "compared_new": len(new)},
        f"squared distance of their vectors' distributions {found.value:.2g} (MMD), {len(new):,} against {len(old):,}",
        ("new prompts are about other things", "new prompts are about what the old ones are about"),
        found.p,
    )


def _clusters(old: list[str], old_rows: np.ndarray, new: list[str], new_rows: np.ndarray, seed: int) -> Finding:
    """Clusters are found on one half of the old and compared on the other: k-means fits its own rows best."""
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
    found = shares_test(counts[0], counts[1], seed)
    first = movers[0]
    return Finding(
        {"num_clusters": len(centres), "chi_square": found.value, "movers": movers},
        f"one of {len(centres)} clusters has {first['new_share']:.0%} of the new, {first['old_share']:.0%} of the old",
        ("new prompts fall on other topics", "new prompts fall on the same topics"),
        found.p,
    )


def _examples(texts: Sequence[str], wanted: np.ndarray, distances: np.ndarray) -> list[str]:
    """The texts that lie nearest to the middle."""
    rows = np.flatnonzero(wanted)
    nearest = rows[np.argsort(distances[rows], kind="stable")[:_SHOWN_EXAMPLES]]
    return [texts[row][:_EXAMPLE_CHARS] for row in nearest]


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
