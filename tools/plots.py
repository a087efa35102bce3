"""The report's plots: matplotlib draws, the page's style sheet colours. Each function returns one <svg> element.

Colours are drawn as placeholders and replaced by CSS variables, so one drawing serves a light and a dark page; text
stays text, in the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import missing_package

INK, MUTED, GRID = "#010101", "#020202", "#030303"
MERGED, LORA, CCM = "#0a0a01", "#0a0a02", "#0a0a03"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    MERGED: "--merged",
    LORA: "--lora",
    CCM: "--ccm",
}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
_WIDE, _HALF = 9.6, 4.7  # inches: a page's column, and half of it
SMOOTH = 20  # steps that the loss curves average


@dataclass(frozen=True)
class Bar:
    """One labelled value with the interval around it."""

    label: str
    value: float
    low: float
    high: float
    colour: str


def require_matplotlib() -> None:
    """Fail early where the plots cannot be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    _matplotlib()


def training_curves(
    losses: Mapping[str, Sequence[float]], series: Mapping[str, Sequence[float]], *, budget: float
) -> str:
    """Loss of both runs, and what the gates did step by step.

    Args:
        losses: task loss per step by run ("LoRA", "ccm").
        series: title → value per step; the one called "effective rank" gets a line at `budget`.
    """
    figure, axes = _figure(_WIDE, 2.5, columns=1 + len(series))
    for (name, values), colour in zip(losses.items(), (LORA, CCM), strict=True):
        axes[0].plot(smoothed(values), color=colour, label=name)
    axes[0].legend(labelcolor=INK, handlelength=1.2, frameon=False)
    axes[0].set_title("task loss", loc="left")
    for axis, (title, values) in zip(axes[1:], series.items(), strict=True):
        axis.plot(values, color=CCM)
        axis.set_title(title, loc="left")
        if title == "effective rank":
            axis.axhline(budget, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axis.set_ylim(0, 1.15 * max(budget, *values))
    for axis in axes:
        axis.set_xlabel("step")
    return _svg(figure, "Training curves")


def rank_histogram(counts: NDArray[np.int64], rank: int, *, budget: float) -> str:
    """How often each effective rank was chosen, over test sentences and sites; counts (N, S)."""
    figure, (axis,) = _figure(_HALF, 2.9)
    shares = np.bincount(counts.ravel(), minlength=rank + 1)[: rank + 1] / counts.size
    axis.bar(range(rank + 1), shares * 100, width=0.72, color=CCM)
    axis.axvline(counts.mean(), color=INK, linewidth=1)
    axis.axvline(budget, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_ylim(top=shares.max() * 118)
    text, place = f"mean {counts.mean():.2f}, budget {budget:g}", (max(counts.mean(), budget), shares.max() * 110)
    axis.annotate(text, place, xytext=(7, 0), textcoords="offset points", color=INK)
    axis.set_xticks(range(0, rank + 1, 2))
    axis.set_xlabel("effective rank k of a sentence at a site")
    axis.set_ylabel("% of choices")
    axis.grid(visible=False, axis="x")
    return _svg(figure, "Histogram of effective ranks")


def layer_ranks(layers: Mapping[str, Sequence[float]], rank: int, *, budget: float) -> str:
    """Mean effective rank per layer as bars, its sites as dots; layers by name → mean rank of each site."""
    figure, (axis,) = _figure(_HALF, max(2.9, 0.34 * len(layers) + 0.9))
    for row, means in enumerate(layers.values()):
        axis.barh(row, np.mean(means), height=0.62, color=CCM, alpha=0.45, linewidth=0)
        axis.plot(means, np.full(len(means), row), "o", color=CCM, markersize=3.5)
    axis.axvline(budget, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_yticks(range(len(layers)), list(layers))
    axis.set_ylim(len(layers) - 0.4, -0.6)
    axis.set_xlim(0, rank)
    axis.set_xlabel("mean effective rank: layer (bar), its sites (dots)")
    axis.grid(visible=False, axis="y")
    return _svg(figure, "Mean effective rank per layer")


def usage_map(usage: NDArray[np.float64], sites: Sequence[str]) -> str:
    """Share of test sentences that use each rank direction of each site; usage (S, r)."""
    count, rank = usage.shape
    figure, (axis,) = _figure(_WIDE, 0.185 * count + 0.75)
    for row in range(count):
        for direction in range(rank):
            cell = {"width": 0.95, "height": 0.88, "left": direction + 0.025, "linewidth": 0}
            axis.barh(row, color=GRID, alpha=0.45, **cell)
            axis.barh(row, color=CCM, alpha=float(usage[row, direction]), **cell)
    axis.set_yticks(range(count), list(sites), fontsize=8)
    axis.set_ylim(count - 0.4, -0.6)
    axis.set_xlim(0, rank)
    axis.set_xticks(np.arange(rank) + 0.5, [str(direction) for direction in range(rank)])
    axis.set_xlabel("rank direction; the fuller its colour, the more sentences use it (empty 0 %, full 100 %)")
    axis.grid(visible=False)
    return _svg(figure, "Usage of rank directions")


def bars(rows: Sequence[Bar], *, unit: str, written: str, zoomed: bool) -> str:
    """Values with their intervals, one per line.

    Args:
        rows: top to bottom; unit: label of the axis; written: format of the value's text.
        zoomed: the axis need not start at zero: values are dots, not bars, whose lengths would mislead.
    """
    figure, (axis,) = _figure(_HALF, 0.5 * len(rows) + 0.85)
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    for position, row in enumerate(rows):
        if zoomed:
            axis.plot(row.value, position, "o", color=row.colour, markersize=7)
        else:
            axis.barh(position, row.value, height=0.56, color=row.colour)
        axis.plot([row.low, row.high], [position] * 2, color=INK, linewidth=1.4)
        text, place = written.format(row.value), (row.high, position)
        axis.annotate(text, place, xytext=(7, 0), textcoords="offset points", va="center", color=INK)
    axis.set_yticks(range(len(rows)), [row.label for row in rows])
    axis.tick_params(axis="y", labelcolor=INK)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    spread = high - low
    axis.set_xlim((low - 0.15 * spread, high + 0.45 * spread) if zoomed else (0, high * 1.22))
    axis.set_xlabel(unit)
    axis.grid(visible=False, axis="y")
    return _svg(figure, unit)


def smoothed(values: Sequence[float]) -> NDArray[np.float64]:
    """The mean of each value and up to `SMOOTH` − 1 before it."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - SMOOTH, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _matplotlib() -> ModuleType:
    try:
        import matplotlib as module
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise missing_package("matplotlib", extra="report", feature="the report's plots") from error
    drawn: ModuleType = module
    return drawn


def _figure(width: float, height: float, *, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure of `width` × `height` inches and its axes, without pyplot and its global state."""
    matplotlib = _matplotlib()
    with matplotlib.rc_context(_STYLE):
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def _svg(figure: Any, title: str) -> str:
    """The figure as an <svg> element that fills its place, with CSS variables for colours."""
    stream = io.StringIO()
    with _matplotlib().rc_context({**_STYLE, "svg.hashsalt": title}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{title}"', text, count=1)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return text
