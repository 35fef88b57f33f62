"""The page of a comparison: what each method reached, under which protocol, and how training went.

Charts are drawn here as points of the template's own SVG; nothing is loaded from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import mean
from typing import Any

from llmdistill.report import words
from llmdistill.report.html import render_page
from llmdistill.report.words import points, with_spread
from llmdistill.run.digest import flatten
from llmdistill.run.files import write_text
from llmdistill.vision.charts import HEIGHT, WIDTH, Axis, axis_of
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.table import BASELINE, LATENCY

Row = Mapping[str, Any]


def write_report(pipeline: KdPipeline, table: Row, teacher: Row, rows: Sequence[Row]) -> Path:
    """Write `report/index.html` into the run directory.

    Args:
        table: of `table_of`.
        teacher: the teacher's row, `validation` by epoch among it.
        rows: one for each method and seed.
    """
    path = pipeline.run_path / "report" / "index.html"
    write_text(path, render(pipeline, table, teacher, rows))
    return path


def render(pipeline: KdPipeline, table: Row, teacher: Row, rows: Sequence[Row]) -> str:
    """The whole page as HTML text."""
    asked = table["measures"]
    return render_page(
        __package__,
        "report.html",
        language="en",
        title="Distillation of images",
        run_name=pipeline.name,
        facts=_facts(pipeline, table),
        conclusion=conclude(table),
        rows=[_cells(row) for row in table["rows"]],
        teacher=_teacher_cells(table["teacher"]),
        spread=_spread(table),
        curves=_curves(rows, teacher),
        asked=[measure_heading(name) for name in asked],
        measured=[[title, *cells] for title, cells in measured_cells(table)],
        found=own_measures(table),
        networks=_networks(pipeline, table),
        settings=[(key, words.setting(value)) for key, value in _settings(pipeline).items()],
        width=WIDTH,
        height=HEIGHT,
    )


def conclude(table: Row) -> str:
    """Which methods help, in a sentence or two."""
    compared = [row for row in table["rows"] if row["gain"] is not None]
    if not compared:
        return "Nothing was compared: the pipeline has no plain training, or nothing else."
    if len(table["seeds"]) < 2:
        return "One seed: how much of a difference is chance is not known."
    better, worse = ([row["method"] for row in compared if row["better"] is is_better] for is_better in (True, False))
    parts = [
        f"Better than plain training: {', '.join(better)}." if better else "No method is clearly better than plain.",
        f"Worse: {', '.join(worse)}." if worse else "",
        f"For the other {num} the 95 % interval holds 0." if (num := len(compared) - len(better) - len(worse)) else "",
    ]
    return " ".join(part for part in parts if part)


def _facts(pipeline: KdPipeline, table: Row) -> dict[str, str]:
    paths = [pipeline.data.path] if isinstance(pipeline.data.path, str) else pipeline.data.path
    return {
        "Data": ", ".join(Path(path).name for path in paths),
        "Protocol": table["protocol"],
        "Epochs": f"{pipeline.protocol.epochs:,}",
        "Optimiser": f"{pipeline.protocol.optimiser}, {pipeline.protocol.learning_rate:g}",
        "Augmentation": ", ".join(pipeline.protocol.augment) or "none",
        "Seeds": ", ".join(map(str, table["seeds"])),
    }


def _cells(row: Row) -> list[str]:
    ends = [points(row[name], "+") for name in ("gain_low", "gain_high")]
    return [
        row["method"],
        with_spread(row["test"], row["test_sd"]),
        words.MISSING if row["gain"] is None else with_spread(row["gain"], row["gain_sd"], "+"),
        words.MISSING if words.MISSING in ends else " to ".join(ends),
        words.duration(row["seconds"]),
        words.MISSING if row["times_plain"] is None else f"{row['times_plain']:.2f}",
        f"{row['parameters']:,}",
    ]


def _teacher_cells(teacher: Row) -> list[str]:
    empty = [words.MISSING] * 2
    time = words.duration(teacher["seconds"])
    return ["teacher", points(teacher["test"]), *empty, time, words.MISSING, f"{teacher['parameters']:,}"]


def _spread(table: Row) -> dict[str, Any]:
    """Accuracies on one scale: the mean, one standard deviation to each side, and a dot for each seed."""
    rows = [{**table["teacher"], "method": "teacher", "test_sd": None, "by_seed": {}}, *table["rows"]]
    ends = [row["test"] + side * (row["test_sd"] or 0.0) for row in rows for side in (-1, 1)]
    axis = axis_of([*ends, *(value for row in rows for value in row["by_seed"].values())])
    lines = []
    for row in rows:
        low, high = (axis.place(row["test"] + side * (row["test_sd"] or 0.0), WIDTH) for side in (-1, 1))
        dots = [axis.place(value, WIDTH) for value in row["by_seed"].values()]
        line = {"low": low, "high": high, "middle": axis.place(row["test"], WIDTH), "dots": dots}
        lines.append({"name": row["method"], "value": points(row["test"]), **line})
    return {"lines": lines, "ticks": [(axis.place(tick, WIDTH), f"{100 * tick:g}") for tick in axis.ticks]}


def _curves(rows: Sequence[Row], teacher: Row) -> dict[str, Any]:
    """Validation accuracy by epoch, the mean over seeds; each method beside plain training."""
    by_method: dict[str, list[Sequence[float]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row["validation"])
    curves = {"teacher": list(teacher["validation"])} | {title: _mean_of(all_) for title, all_ in by_method.items()}
    values = [value for curve in curves.values() for value in curve]
    if not values:
        return {"panels": [], "ticks": []}
    axis = axis_of(values, 4)
    plain = curves.get(BASELINE, [])
    panels = [
        {
            "name": title,
            "own": _path(curve, axis),
            "plain": "" if title == BASELINE else _path(plain, axis),
            "epochs": len(curve),
            "last": points(curve[-1]) if curve else words.MISSING,
        }
        for title, curve in curves.items()
    ]
    ticks = [(round(HEIGHT - axis.place(tick, HEIGHT), 2), f"{100 * tick:g}") for tick in axis.ticks]
    return {"panels": panels, "ticks": ticks}


def _mean_of(curves: Sequence[Sequence[float]]) -> list[float]:
    return [mean(value for value in values if value is not None) for values in zip_longest(*curves)]


def _path(curve: Sequence[float], axis: Axis) -> str:
    """The points of a polyline."""
    last = max(len(curve) - 1, 1)
    return " ".join(
        f"{WIDTH * number / last:.1f},{HEIGHT - axis.place(value, HEIGHT):.1f}" for number, value in enumerate(curve)
    )


def _measures(table: Row) -> dict[str, Row]:
    alone = {name: {"mean": value, "sd": None} for name, value in table["teacher"]["measures"].items()}
    return {"teacher": alone} | {row["method"]: row["measures"] for row in table["rows"]}


def measured_cells(table: Row) -> list[tuple[str, list[str]]]:
    """Each network, and its cells under the measures that the pipeline asks for."""
    return [
        (title, [measure_words(name, found.get(name)) for name in table["measures"]])
        for title, found in _measures(table).items()
    ]


def own_measures(table: Row) -> list[tuple[str, str]]:
    """What methods report of themselves; those that report nothing are left out."""
    found = [(row["method"], _others(row["measures"], table["measures"])) for row in table["rows"]]
    return [(title, text) for title, text in found if text]


def _others(found: Row, asked: Sequence[str]) -> str:
    return ", ".join(f"{name} {measure_words(name, value)}" for name, value in found.items() if name not in asked)


def measure_words(name: str, value: Row | None) -> str:
    """A measure with its unit: accuracies under attack in percent, bytes, milliseconds."""
    if value is None or words.number(value["mean"]) is None:
        return words.MISSING
    if name in ("fgsm", "pgd"):
        return with_spread(value["mean"], value["sd"])
    if name == "bytes":
        return f"{value['mean']:,.0f}"
    if LATENCY.fullmatch(name):
        return f"{value['mean']:,.3f}"
    return f"{value['mean']:.4g}"


def measure_heading(name: str) -> str:
    """A measure's name with its unit."""
    if LATENCY.fullmatch(name):
        batch = name.partition("_")[2] or "1"
        return f"ms for {batch}"
    return {"fgsm": "FGSM, %", "pgd": "PGD, %", "bytes": "bytes"}.get(name, name)


def _networks(pipeline: KdPipeline, table: Row) -> list[list[str]]:
    student = next((row["parameters"] for row in table["rows"] if row["method"] == BASELINE), None)
    found = (("teacher", pipeline.teacher, table["teacher"]["parameters"]), ("student", pipeline.student, student))
    return [
        [
            role,
            net.timm or net.arch,
            *(words.MISSING if value is None else str(value) for value in (net.width, net.depth, net.norm)),
            words.MISSING if number is None else f"{number:,}",
        ]
        for role, net, number in found
    ]


def _settings(pipeline: KdPipeline) -> dict[str, Any]:
    values = pipeline.model_dump(mode="json")
    methods = {f"methods.{method['label'] or method['name']}": method for method in values.pop("methods")}
    return flatten({**values, **methods})
