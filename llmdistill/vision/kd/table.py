"""The table of a comparison: test accuracy of every method, and its gain over another row with the same seed.

The other row is plain training, or the one that the method names in `against`.

Plain and method share the seed, so student, images and their order are the same, and the gain is a mean of
differences d(s), one for each seed. Its 95 % interval is mean(d) +- t * sd(d) / sqrt(number of seeds), t the 97.5 %
quantile of Student's distribution with (number of seeds - 1) degrees of freedom. It is about the seeds, not about the
choice of test images. Each interval is for its own comparison: of many methods that gain nothing, one in twenty seems
to gain or to lose.

`times_plain` is the median over seeds of a training's time divided by that of plain training with the same seed, which
came shortly before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from llmdistill.vision.kd.methods import KdPipeline

BASELINE = "plain"
LATENCY = re.compile(r"latency(_\d+)?")


def table_of(pipeline: KdPipeline, teacher: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with standard deviations; accuracies are shares, 0 to 1.

    Args:
        teacher: what is known of the teacher, its test accuracy as `test`.
        rows: one for each method and seed.
    """
    by_method: ByMethod = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["seed"]] = row
    against = {method.title: method.against or BASELINE for method in pipeline.methods}
    return {
        "name": pipeline.name,
        "protocol": pipeline.protocol.hash(pipeline.data),
        "seeds": list(pipeline.protocol.seeds),
        "teacher": {name: teacher[name] for name in ("test", "parameters", "seconds", "measures")},
        "rows": [_row(title, found, against[title], by_method) for title, found in by_method.items()],
        "measures": _asked(pipeline.measure, [teacher, *rows]),
    }


def _asked(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures that all networks have because the pipeline asks for them."""
    found = dict.fromkeys(name for row in rows for name in row["measures"])
    return [name for name in found if name in names or ("latency" in names and LATENCY.fullmatch(name))]


ByMethod = dict[str, dict[int, dict[str, Any]]]
"""Rows by method and seed."""


def _row(title: str, found: dict[int, dict[str, Any]], against: str, by_method: ByMethod) -> dict[str, Any]:
    other, plain = by_method.get(against, {}), by_method.get(BASELINE, {})
    gains = [] if title == against else [found[seed]["test"] - other[seed]["test"] for seed in found if seed in other]
    timed = [] if title == BASELINE else [seed for seed in found if seed in plain and plain[seed]["seconds"] > 0]
    ratios = [found[seed]["seconds"] / plain[seed]["seconds"] for seed in timed]
    return {
        "method": title,
        "against": against,
        **_summary("test", [row["test"] for row in found.values()]),
        **_summary("gain", gains),
        **interval(gains),
        "by_seed": {str(seed): row["test"] for seed, row in found.items()},
        "seconds": mean(row["seconds"] for row in found.values()),
        "times_plain": median(ratios) if ratios else None,
        "parameters": next(iter(found.values()))["parameters"],
        "measures": _measures(list(found.values())),
    }


def _summary(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {name: mean(values) if values else None, f"{name}_sd": stdev(values) if len(values) > 1 else None}


def _measures(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation of what each seed's network was measured for."""
    names = dict.fromkeys(name for row in rows for name in row["measures"])
    found = {name: [row["measures"][name] for row in rows if name in row["measures"]] for name in names}
    return {
        name: {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None} for name, values in found.items()
    }


def interval(gains: Sequence[float]) -> dict[str, Any]:
    """The gain's 95 % interval, see above, and whether it is clear: `better` is None where the interval holds 0."""
    if len(gains) < 2:
        return {"gain_low": None, "gain_high": None, "better": None}
    from scipy.stats import t

    half = float(t.ppf(0.975, len(gains) - 1)) * stdev(gains) / math.sqrt(len(gains))
    low, high = mean(gains) - half, mean(gains) + half
    return {"gain_low": low, "gain_high": high, "better": True if low > 0 else False if high < 0 else None}
