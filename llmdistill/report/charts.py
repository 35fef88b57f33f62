"""Charts as SVG that stands inside the page: its text is text, its colours are the page's.

Matplotlib draws; `_inline` keeps of its SVG only shapes and text, so the same
data gives the same bytes and no identifier, style sheet or link gets into the page.
No text from the run's data is drawn.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmdistill.report.coverage import CoverageView, Curve, Floats, coverage_of
from llmdistill.report.curation import Curation
from llmdistill.report.data import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _LINE, _GOOD, _BAD, _REST = "#101010", "#202020", "#303030", "#404040", "#505050"
_COLOURS = {_INK: "--ink", _LINE: "--line", _GOOD: "--good", _BAD: "--bad", _REST: "--rest"}
"""Colours that matplotlib draws with -> the page's own, which know light and dark."""

_WIDTH, _HEIGHT = 5.0, 2.9
_NUM_BINS = 30
_MAX_STEPS = 600
_SHAPES = {"svg", "g", "path", "text", "tspan"}
_ATTRIBUTES = {"d", "style", "transform", "viewBox", "x", "y"}
_FONT_FAMILY = re.compile(r"font-family:[^;]*;\s*")
_DIGITS = re.compile(r"(-?\d+\.\d)\d+")


@dataclass(frozen=True)
class Chart:
    """One figure. `svg` is markup made here; title and caption are plain text."""

    title: str
    svg: str
    caption: str


def draw_all(data: RunData, min_score: float | None) -> list[Chart]:
    """The charts of data and training that there is data for."""
    charts = [_pass_rates(data), _scores(data, min_score), _lengths(data), _loss(data)]
    return [chart for chart in charts if chart]


def draw_choice(data: RunData) -> list[Chart]:
    """The charts of the selection that there is data for."""
    view = coverage_of(data.manifests.get("curate"))
    charts = [_map(data.curation), *(_against_size(view) if view and len(view.sizes) > 1 else [])]
    return [chart for chart in charts if chart]


def draw_gains(data: RunData) -> list[Chart]:
    """How much better a refreshed student is than the champion on each held-out prompt."""
    view = data.refresh
    if view is None or len(view.gains) < 2:
        return []
    gains = np.sort(view.gains)
    # A long row of prompts is thinned evenly; the ends stay.
    shown = gains[np.linspace(0, len(gains) - 1, min(len(gains), _MAX_STEPS)).round().astype(int)]
    edges = np.linspace(0, len(gains), len(shown) + 1)

    def draw(axes: Axes) -> None:
        axes.stairs(np.maximum(shown, 0), edges, fill=True, color=_GOOD, label="the new student is better")
        axes.stairs(np.minimum(shown, 0), edges, fill=True, color=_BAD, label="the champion is better")
        axes.axhline(0, color=_INK, linewidth=1)
        axes.set(xlabel="held-out prompts, in the order of the gain", ylabel=f"gain ({view.unit})")

    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    caption = (
        f"{len(gains):,} held-out prompts: the new student is better on {better:,}, the champion on {worse:,}, "
        f"they are equal on {len(gains) - better - worse:,}."
    )
    return [Chart("Gain on each held-out prompt", _figure(draw, "Gain on each held-out prompt"), caption)]


def _scores(data: RunData, min_score: float | None) -> Chart | None:
    both = np.concatenate([data.scores_kept, data.scores_rejected])
    if not len(both):
        return None
    edges = np.histogram_bin_edges(both, bins=_NUM_BINS)
    kept, rejected = (np.histogram(scores, edges)[0] for scores in (data.scores_kept, data.scores_rejected))

    def draw(axes: Axes) -> None:
        axes.stairs(kept, edges, fill=True, color=_GOOD, label="kept")
        axes.stairs(kept + rejected, edges, baseline=kept, fill=True, color=_BAD, label="rejected")
        if min_score is not None:
            axes.axvline(min_score, color=_INK, linewidth=1, linestyle="--", label="lowest score to keep")
        axes.set(xlabel="score (points of the rubric)", ylabel="records")

    caption = f"{len(data.scores_kept):,} judged records kept, {len(data.scores_rejected):,} rejected."
    return Chart("Judge scores", _figure(draw, "Judge scores"), caption)


def _pass_rates(data: RunData) -> Chart | None:
    if not len(data.pass_rates):
        return None
    edges = np.linspace(0, 1, 11)
    counts = np.histogram(data.pass_rates, edges)[0]

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=_GOOD, label="answers")
        axes.set(xlabel="share of right answers to the prompt (no unit)", ylabel="records")

    hard, easy = ((data.pass_rates == end).mean() for end in (0.0, 1.0))
    caption = (
        f"{len(data.pass_rates):,} answers; {hard:.0%} to prompts never solved, {easy:.0%} to prompts always solved."
    )
    return Chart("Pass rates", _figure(draw, "Pass rates"), caption)


def _lengths(data: RunData) -> Chart | None:
    if not len(data.tokens_all):
        return None
    most = int(max(data.tokens_all.max(), data.tokens_chosen.max(initial=0)))
    # Bins of whole tokens: others hold now more, now fewer of the whole numbers, and look like a comb.
    width = most // _NUM_BINS + 1
    edges = np.arange(0, most + width + 1, width)
    generated, chosen = (np.histogram(tokens, edges)[0] for tokens in (data.tokens_all, data.tokens_chosen))

    def draw(axes: Axes) -> None:
        axes.stairs(generated, edges, fill=True, color=_REST, label="all replies")
        axes.stairs(chosen, edges, fill=True, color=_GOOD, label="chosen for training")
        axes.set(xlabel="length of the teacher's reply (tokens)", ylabel="records")

    caption = f"{len(data.tokens_all):,} replies, median {np.median(data.tokens_all):,.0f} tokens"
    if len(data.tokens_chosen):
        caption += f"; {len(data.tokens_chosen):,} chosen, median {np.median(data.tokens_chosen):,.0f} tokens"
    return Chart("Reply lengths", _figure(draw, "Reply lengths"), f"{caption}.")


def _map(curation: Curation) -> Chart | None:
    layers = (
        (curation.places_other, _REST, 3.0, "not chosen"),
        (curation.places_copies, _BAD, 3.0, "copies"),
        (curation.places_chosen, _GOOD, 4.0, "chosen for training"),
    )
    num_shown = sum(len(points) for points, *_ in layers)
    if not num_shown:
        return None

    def draw(axes: Axes) -> None:
        for points, colour, size, label in layers:
            if len(points):
                _dots(axes, points, colour, size, label)
        axes.set(xlabel="first principal component (no unit)", ylabel="second (no unit)")

    caption = f"One point is one prompt; near ones are alike. {num_shown:,} of {curation.num_places:,} are drawn."
    return Chart("What was chosen", _figure(draw, "Map of the prompts", height=3.6), caption)


def _against_size(view: CoverageView) -> list[Chart]:
    """Coverage and radius against the number of chosen records, beside random choices."""
    similarity = "Similarity of a record to the nearest of the first n chosen, mean over the pool: higher is better."
    distance = "Distance of the worst covered record from the nearest of the first n chosen: lower is better."
    wanted = [
        ("Coverage", view.coverage, "similarity (1 + cosine) / 2", similarity),
        ("Worst covered record", view.radius, "distance (no unit)", distance),
    ]
    return [
        Chart(
            title,
            _figure(_drawing_of(view.sizes, values, unit), title, height=3.6),
            f"{caption} {_band_words(view)}",
        )
        for title, values, unit, caption in wanted
    ]


def _band_words(view: CoverageView) -> str:
    return f"Grey: from the lowest to the highest of {view.num_random} random choices."


def _drawing_of(sizes: Floats, curve: Curve, ylabel: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        around = np.concatenate([sizes, sizes[::-1]]), np.concatenate([curve.low, curve.high[::-1]])
        axes.fill(*around, color=_REST, alpha=0.35, linewidth=0)
        axes.plot(sizes, curve.mean, color=_REST, linewidth=1.5, label="chosen at random")
        axes.plot(sizes, curve.chosen, color=_GOOD, linewidth=2, label="chosen")
        axes.set(xlabel="n, number of records", ylabel=ylabel, xscale="log")

    return draw


def _dots(axes: Axes, points: Floats, colour: str, size: float, label: str) -> None:
    """All points as one path of round-ended strokes of no length: a tenth of the size of one shape each."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    codes = np.tile([Path.MOVETO, Path.LINETO], len(points))
    path = Path(np.repeat(points, 2, axis=0), codes)
    path.should_simplify = False
    style: dict[str, Any] = {"edgecolor": colour, "linewidth": size, "capstyle": "round", "alpha": 0.75}
    axes.add_patch(PathPatch(path, fill=False, label="_", **style))
    axes.update_datalim(points)
    axes.autoscale_view()
    axes.plot([], [], color=colour, linewidth=size + 2, label=label)


def _loss(data: RunData) -> Chart | None:
    history = data.history
    if not len(history):
        return None
    window = max(1, len(history) // 20)
    steps, losses = _binned(history)

    def draw(axes: Axes) -> None:
        if len(steps) == 1:
            _dots(axes, history[:1], _GOOD, 5.0, "loss")
        else:
            axes.plot(steps, losses, color=_REST if window > 1 else _GOOD, linewidth=1, label="loss")
        if window > 1:
            axes.plot(*_running_mean(history, window), color=_GOOD, linewidth=2, label=f"mean of {window} log entries")
        axes.set(xlabel="training step", ylabel="loss (nats per token)")

    first, last = history[:window, 1].mean(), history[-window:, 1].mean()
    caption = f"{len(history):,} log entries; from {first:.3f} at the start to {last:.3f} at the end."
    return Chart("Training loss", _figure(draw, "Training loss"), caption)


def _binned(history: Floats) -> tuple[Floats, Floats]:
    """Steps and losses; a long history is averaged down to `_MAX_STEPS` points."""
    size = -(-len(history) // _MAX_STEPS)
    starts = np.arange(0, len(history), size)
    counts = np.diff([*starts, len(history)])
    sums = np.add.reduceat(history, starts, axis=0)
    return sums[:, 0] / counts, sums[:, 1] / counts


def _running_mean(history: Floats, window: int) -> tuple[Floats, Floats]:
    steps, losses = (np.convolve(history[:, column], np.full(window, 1 / window), "valid") for column in (0, 1))
    return _binned(np.stack([steps, losses], axis=1))


def _figure(draw: Callable[[Axes], None], name: str, height: float = _HEIGHT) -> str:
    """Draw on fresh axes, under settings that no matplotlibrc of the user changes; gives SVG markup."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "llmdistill", "font.size": 9})
        figure = Figure((_WIDTH, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        draw(axes)
        _dress(axes)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return _inline(drawn.getvalue(), name)


def _dress(axes: Axes) -> None:
    """Light frame, whole numbers where counts are, and a legend above that covers no data."""
    from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)
    # Ticks would be drawn as references to shapes; labels and grid say the same.
    axes.tick_params(left=False, bottom=False, labelcolor=_INK)
    axes.grid(axis="y", color=_LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    if axes.get_xscale() == "log":
        axes.minorticks_off()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=12))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=axes.get_xlabel() == "training step"))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=axes.get_ylabel() == "records"))
    for artist in (*axes.lines, *axes.patches, *axes.xaxis.get_gridlines(), *axes.yaxis.get_gridlines()):
        artist.set_clip_on(False)
    options: dict[str, Any] = {"frameon": False, "labelcolor": _INK, "handlelength": 1.2, "borderaxespad": 0.2}
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, **options)


def _inline(svg: bytes, name: str) -> str:
    """Matplotlib's SVG reduced to shapes and text, fit to stand inside HTML."""
    root = ET.fromstring(svg)
    _reduce(root)
    root.set("role", "img")
    root.set("aria-label", name)
    return ET.tostring(root, encoding="unicode")


def _reduce(element: ET.Element) -> None:
    """Keep shapes, text and their geometry; drop namespaces, ids, style sheets, metadata and references."""
    element.tag = _local(element.tag)
    element.attrib = {_local(key): value for key, value in element.attrib.items() if _local(key) in _ATTRIBUTES}
    if "style" in element.attrib:
        element.set("style", _themed(element.attrib["style"]))
    for key in ("d", "transform", "x", "y"):
        if key in element.attrib:
            element.set(key, _DIGITS.sub(r"\1", " ".join(element.attrib[key].split())))
    if element.tag != "text" and element.tag != "tspan":
        element.text = None
    element.tail = None
    for child in list(element):
        if not isinstance(child.tag, str) or _local(child.tag) not in _SHAPES:
            element.remove(child)
        else:
            _reduce(child)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _themed(style: str) -> str:
    """The page's colours and font in place of matplotlib's."""
    style = _FONT_FAMILY.sub("", style)
    for colour, variable in _COLOURS.items():
        style = style.replace(colour, f"var({variable})")
    return style
