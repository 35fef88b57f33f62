"""The page of a comparison of distilled sets: what networks reach on them, what they look like, how making them went.

It is written anew while sets are made, so that loading it again shows how a picture comes along.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llmdistill.report import words
from llmdistill.report.html import render_page
from llmdistill.report.words import points
from llmdistill.run.digest import flatten
from llmdistill.run.files import write_text
from llmdistill.vision.charts import HEIGHT, WIDTH, axis_of
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.cells import across_cells, fairness_cells, main_cells, measure_cells
from llmdistill.vision.dd.grid import png
from llmdistill.vision.dd.jobs import Job
from llmdistill.vision.dd.methods import BASELINES, DdPipeline
from llmdistill.vision.dd.sets import Curve

Row = Mapping[str, Any]

MOST_CLASSES, MOST_IMAGES = 20, 10
"""Of a picture: rows, and images in a row."""


@dataclass(frozen=True)
class Shown:
    """A set as the page shows it.

    Attributes:
        picture: a PNG; empty where the page shows another seed's.
        iteration: of a set in the making, None of one that is done.
    """

    job: Job
    picture: bytes
    curve: Curve | None = None
    iteration: int | None = None


def picture_of(dataset: DistilledDataset) -> bytes:
    """A PNG of the first classes and images."""
    classes = dataset.classes
    rows = [torch.nonzero(classes == label).flatten()[:MOST_IMAGES] for label in range(MOST_CLASSES)]
    chosen = torch.cat(rows)
    some = replace(dataset, images=dataset.images[chosen], labels=dataset.labels[chosen])
    return png(some.pixels(), some.classes, min(dataset.num_classes, MOST_CLASSES))


def write_report(pipeline: DdPipeline, table: Row, shown: Sequence[Shown], left: int) -> Path:
    """Write `report/index.html` into the run directory.

    Args:
        table: of `table_of`, of what is judged so far.
        left: sets that are not judged yet.
    """
    path = pipeline.run_path / "report" / "index.html"
    write_text(path, render(pipeline, table, shown, left))
    return path


def render(pipeline: DdPipeline, table: Row, shown: Sequence[Shown], left: int) -> str:
    """The whole page as HTML text."""
    return render_page(
        __package__,
        "report.html",
        language="en",
        title="Distillation of a data set",
        run_name=pipeline.name,
        facts=_facts(pipeline, table),
        conclusion=conclude(pipeline, table, left),
        rows=main_cells(table),
        measures=measure_cells(table),
        across=across_cells(table),
        fairness=fairness_cells(table),
        pictures=[_picture(each) for each in shown if each.picture],
        charts=_charts(shown),
        most=MOST_IMAGES,
        settings=[(key, words.setting(value)) for key, value in _settings(pipeline).items()],
        width=WIDTH,
        height=HEIGHT,
    )


def conclude(pipeline: DdPipeline, table: Row, left: int) -> str:
    """What is best at each size, beside random images."""
    parts = [f"{left:,} set{'s are' if left > 1 else ' is'} not done yet: load this page again."] if left else []
    names = {method.title: method.name for method in pipeline.compared}
    for ipc in pipeline.ipc:
        found = {row["method"]: row["test"] for row in table["rows"] if row["ipc"] == ipc}
        learned = {title: test for title, test in found.items() if names[title] not in BASELINES}
        if learned:
            best = max(learned, key=lambda title: float(learned[title]))
            random = [f", random images {points(test)} %" for title, test in found.items() if names[title] == "random"]
            parts.append(f"Best at {ipc} a class: {best} {points(learned[best])} %{''.join(random)}.")
    return " ".join(parts) or "Nothing was distilled."


def _facts(pipeline: DdPipeline, table: Row) -> dict[str, str]:
    paths = [pipeline.data.path] if isinstance(pipeline.data.path, str) else pipeline.data.path
    net = pipeline.net
    size = ", ".join(f"{name} {value}" for name, value in net.model_dump(exclude={"arch", "timm"}).items() if value)
    return {
        "Data": ", ".join(Path(path).name for path in paths) + (", whitened" if pipeline.zca else ""),
        "Network": f"{net.timm or net.arch}{', ' if size else ''}{size}",
        "Protocol": f"{table['evaluation']['title']}, {table['protocol']}",
        "Images a class": ", ".join(map(str, pipeline.ipc)),
        "Sets": f"{len(pipeline.seeds)} of each method and size",
    }


def _name_of(job: Job) -> str:
    return f"{job.method.title}, {job.ipc} a class"


def _picture(shown: Shown) -> dict[str, str]:
    job = shown.job
    state = "" if shown.iteration is None else f"after {shown.iteration:,} of {job.method.iterations:,} iterations"
    source = f"data:image/png;base64,{base64.b64encode(shown.picture).decode('ascii')}"
    return {"name": _name_of(job), "state": state, "source": source}


def _charts(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """One of each method and size that has losses, a line for each seed."""
    found: dict[str, list[Shown]] = {}
    for each in shown:
        if each.curve is not None and len(each.curve.points) > 1 and any(each.curve.points):
            found.setdefault(_name_of(each.job), []).append(each)
    return [_chart(name, some) for name, some in found.items()]


def _chart(name: str, shown: Sequence[Shown]) -> dict[str, Any]:
    curves = [each.curve for each in shown if each.curve is not None]
    values = [point for curve in curves for point in curve.points]
    logarithmic = min(values) > 0 and max(values) > 30 * min(values)
    scaled = math.log10 if logarithmic else float
    axis = axis_of([scaled(value) for value in values], 4)
    ticks = [(round(HEIGHT - axis.place(tick, HEIGHT), 2), _label(tick, logarithmic)) for tick in axis.ticks]
    iterations = shown[0].job.method.iterations
    lines = [
        _line(curve, [axis.place(scaled(point), HEIGHT) for point in curve.points], iterations) for curve in curves
    ]
    last = f"{curves[0].points[0]:.4g} to {curves[0].points[-1]:.4g}"
    return {"name": name, "lines": lines, "ticks": ticks, "iterations": iterations, "last": last}


def _line(curve: Curve, heights: Sequence[float], iterations: int) -> str:
    """Points of a polyline: each stands where its last iteration is."""
    ends = ((number + 1) * curve.stride / iterations for number in range(len(heights)))
    return " ".join(
        f"{WIDTH * min(end, 1):.1f},{HEIGHT - height:.1f}" for end, height in zip(ends, heights, strict=True)
    )


def _label(tick: float, logarithmic: bool) -> str:
    return f"{10**tick:.2g}" if logarithmic else f"{tick:g}"


def _settings(pipeline: DdPipeline) -> dict[str, Any]:
    """Those of the file, and the numbers of each method at each size."""
    values = pipeline.model_dump(mode="json", exclude={"methods"})
    methods = {
        f"methods.{method.title}.{ipc} a class": method.resolved(ipc).model_dump(mode="json", exclude={"label"})
        for method in pipeline.compared
        for ipc in pipeline.ipc
    }
    return flatten({**values, **methods})
