"""Plots as inline SVG: matplotlib draws the geometry, the page's style sheet gives the colours.

Every colour in the drawing is a placeholder that becomes a CSS variable, so one plot is legible
on a light and on a dark page. No text from the run gets into an SVG: legends and tables stand
beside it in HTML, where the template escapes them. Equal data give equal bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike, NDArray

from prefloop.pipeline.report.formats import count, figure, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

COLOURS = 6
"""Series colours that the style sheet defines, as ``--series-0`` and so on."""

_INK, _MUTED, _GRID, _PAPER = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--line", _PAPER: "--card"}
_SERIES = [f"#0a00{index:02d}" for index in range(COLOURS)]
_VARIABLES |= {colour: f"--series-{index}" for index, colour in enumerate(_SERIES)}
_DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))
_KEY_DASHES = ("none", "6 3", "2 2", "7 2 2 2")  # the same for a legend's short line
_MARKERS = "osD^vP"

_WIDTH, _HEIGHT = 3.5, 2.3  # inches; small enough that text stays legible on a telephone
_AXES = (0.13, 0.17, 0.85, 0.79)  # left, bottom, width, height: the same in all, so that they align
_MOST_POINTS = 300
_MOST_TABLE_ROWS = 12
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, selected and searched
    "svg.hashsalt": "prefloop",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Words:
    """What is written on a plot and beside it; ``name`` is its id in the page."""

    name: str
    title: str
    caption: str = ""
    x: str = ""
    """Of the x axis."""


@dataclass(frozen=True)
class Series:
    """One line: points in order of ``x``, with an interval at each point or none at all."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None


@dataclass(frozen=True)
class Point:
    """One place, with an interval in both directions or none: value, low, high."""

    label: str
    x: tuple[float, float | None, float | None]
    y: tuple[float, float | None, float | None]


@dataclass(frozen=True)
class Bars:
    """One histogram: a count for each bin."""

    label: str
    counts: ArrayLike


@dataclass(frozen=True)
class Key:
    """A legend's entry: a label and how its line looks."""

    label: str
    colour: int
    dashes: str


@dataclass(frozen=True)
class Figure:
    """A drawn plot with what goes beside it."""

    title: str
    caption: str
    svg: Markup
    legend: tuple[Key, ...]
    """Empty where there is one series only."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The plotted numbers as a table, thinned out where they are many."""


def lines(
    words: Words,
    series: Sequence[Series],
    *,
    x_names: Sequence[str] | None = None,
    reference: float | None = None,
    as_percent: bool = False,
    markers: bool = False,
) -> Figure:
    """Lines over a common x axis, every point marked where it is discrete, where a line has no
    other, or where ``markers`` is set.

    ``x_names`` names the places 0, 1, ... of a discrete axis. ``reference`` draws a dashed line
    at the value that means "no difference". No axis goes below 0 where no value does.
    """
    form = percent if as_percent else figure

    def draw(axes: Axes) -> None:
        if reference is not None:
            axes.axhline(reference, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for index, each in enumerate(series):
            # Intervals at the same place would hide each other: set the series a little apart.
            shift = 0.07 * (index - (len(series) - 1) / 2) if x_names is not None else 0.0
            _draw_line(axes, each, index, shift, discrete=markers or x_names is not None)
        if x_names is not None:
            _name_places(axes, x_names)
        else:
            _count_places(axes, series)
        axes.set_xlabel(words.x)
        _begin_at_zero(axes, series)
        if as_percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")

    columns, rows = _line_table(series, x_names, words.x or "policy of", form)
    return _figure(words, draw, [each.label for each in series], columns, rows)


def scatter(
    words: Words, points: Sequence[Point], *, y: str, reference: float | None = None
) -> Figure:
    """Points with their intervals; ``y`` names what goes upwards, in the table beside it."""

    def draw(axes: Axes) -> None:
        if reference is not None:
            axes.axhline(reference, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for index, each in enumerate(points):
            colour = _SERIES[index % COLOURS]
            (x, *x_ends), (value, *y_ends) = each.x, each.y
            for ends, across in ((x_ends, True), (y_ends, False)):
                if None not in ends:
                    place = [value, value] if across else [x, x]
                    line = (ends, place) if across else (place, ends)
                    axes.plot(*line, color=colour, linewidth=1.4, alpha=0.75)
            marker = _MARKERS[index % len(_MARKERS)]
            axes.plot([x], [value], marker=marker, color=colour, markersize=6,
                      markeredgecolor=_PAPER, markeredgewidth=1)  # fmt: skip
        axes.set_xlabel(words.x)

    rows = tuple((each.label, _interval(each.x), _interval(each.y)) for each in points)
    return _figure(words, draw, [each.label for each in points], ("", words.x, y), rows)


def _interval(of: tuple[float, float | None, float | None]) -> str:
    value, low, high = of
    known = "" if low is None or high is None else f" [{figure(low)}, {figure(high)}]"
    return figure(value) + known


def histogram(words: Words, edges: NDArray[np.float64], bars: Sequence[Bars]) -> Figure:
    """Histograms over common bins; empty bins at both ends are left out."""
    heights = [np.asarray(each.counts) for each in bars]
    occupied = np.flatnonzero(np.sum(heights, axis=0))
    first, last = (occupied[0], occupied[-1]) if len(occupied) else (0, len(edges) - 2)
    edges = edges[first : last + 2]
    heights = [each[first : last + 1] for each in heights]

    def draw(axes: Axes) -> None:
        for index, each in enumerate(heights):
            colour = _SERIES[index]
            axes.stairs(each, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
            axes.stairs(each, edges, color=colour, linewidth=1.6, linestyle=_DASHES[index % 4])
        axes.set_xlabel(words.x)
        axes.set_ylim(bottom=0)
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_locator(_round_places(5, whole=True))
        axes.yaxis.set_major_formatter(lambda value, _: count(value))

    labels = [each.label for each in bars]
    rows = tuple(
        (f"{figure(low)} – {figure(high)}", *(count(each[index]) for each in heights))
        for index, (low, high) in enumerate(pairwise(edges))
    )
    return _figure(words, draw, labels, (words.x or "bin", *labels), rows)


def length_bins(counts: Sequence[ArrayLike], most: int = 24) -> NDArray[np.float64]:
    """Edges of at most ``most`` bins of a round width that hold lengths 0, 1, 2, ..."""
    longest = max((len(np.asarray(each)) for each in counts), default=0)
    widths = (mantissa * 10**power for power in range(10) for mantissa in (1, 2, 5))
    width = next(width for width in widths if longest <= most * width)
    return np.arange(0, longest + width, width, dtype=np.float64)


def rebin(counts: ArrayLike, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts of lengths 0, 1, 2, ... gathered into the bins of ``edges``."""
    values = np.asarray(counts)
    return np.histogram(np.arange(len(values)), edges, weights=values)[0].astype(np.int64)


def _legend(labels: Sequence[str]) -> tuple[Key, ...]:
    if len(labels) < 2:
        return ()
    return tuple(
        Key(label, index % COLOURS, _KEY_DASHES[index % 4]) for index, label in enumerate(labels)
    )


def _draw_line(axes: Axes, series: Series, index: int, shift: float, *, discrete: bool) -> None:
    colour = _SERIES[index % COLOURS]
    style: dict[str, Any] = {"color": colour, "linestyle": _DASHES[index % 4]}
    if discrete or len(series.x) == 1:  # a line through one point is none
        style |= {
            "marker": _MARKERS[index % len(_MARKERS)],
            "markersize": 6,
            "markeredgecolor": _PAPER,
            "markeredgewidth": 1,
        }
    keep = _thinned(len(series.x), _MOST_POINTS)
    x = np.asarray(series.x, dtype=np.float64)[keep] + shift
    y = np.asarray(series.y, dtype=np.float64)[keep]
    if series.low and series.high:
        for place, index in zip(x, keep, strict=True):
            low, high = series.low[index], series.high[index]
            if low is not None and high is not None:
                axes.plot([place, place], [low, high], color=colour, linewidth=1.4, alpha=0.75)
    axes.plot(x, y, **style)


def _round_places(most: int, *, whole: bool = False) -> Locator:
    """Marks of an axis at round numbers, with ``whole`` at whole ones."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=1 if whole else 2)


def _count_places(axes: Axes, series: Sequence[Series]) -> None:
    """Steps are counted: there is none between two of them."""
    if all(float(place).is_integer() for each in series for place in each.x):
        axes.xaxis.set_major_locator(_round_places(6, whole=True))


def _begin_at_zero(axes: Axes, series: Sequence[Series]) -> None:
    """Room below 0 says that a value could lie there, and a share or a length cannot."""
    ends = [end for each in series for bound in (each.low, each.high) for end in bound or ()]
    values = [end for end in ends if end is not None] + [y for each in series for y in each.y]
    if values and min(values) >= 0 > axes.get_ylim()[0]:
        axes.set_ylim(0, axes.get_ylim()[1] if max(values) > 0 else 1)
        for line in axes.lines:
            line.set_clip_on(False)  # a mark at 0 is whole


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    step = -(-len(names) // 8)
    places = range(0, len(names), step)
    axes.set_xticks(list(places), [names[place] for place in places])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(visible=False, axis="x")


def _thinned(size: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of the places 0 .. size - 1, evenly, the last one included."""
    if size <= most:
        return np.arange(size)
    return np.unique(np.linspace(0, size - 1, most).round().astype(np.int64))


def _line_table(
    series: Sequence[Series],
    x_names: Sequence[str] | None,
    x_label: str,
    form: Callable[[float], str],
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    places = sorted({place for each in series for place in each.x})
    shown = [places[index] for index in _thinned(len(places), _MOST_TABLE_ROWS)]
    rows = []
    for place in shown:
        name = x_names[int(place)] if x_names is not None else _place(place)
        rows.append((name, *(_cell(each, place, form) for each in series)))
    return (x_label, *(each.label for each in series)), tuple(rows)


def _place(x: float) -> str:
    """A step is counted, a KL is measured."""
    return count(x) if float(x).is_integer() else figure(x)


def _cell(series: Series, place: float, form: Callable[[float], str]) -> str:
    if place not in series.x:
        return ""
    index = list(series.x).index(place)
    text = form(series.y[index])
    if series.low and series.high:
        low, high = series.low[index], series.high[index]
        if low is not None and high is not None:
            text += f" [{form(low)}, {form(high)}]"
    return text


def _figure(
    words: Words,
    draw: Callable[[Axes], None],
    labels: Sequence[str],
    columns: tuple[str, ...],
    rows: tuple[tuple[str, ...], ...],
) -> Figure:
    svg = _svg(words.name, words.title, draw)
    return Figure(words.title, words.caption, svg, _legend(labels), columns, rows)


def _svg(name: str, title: str, draw: Callable[[Axes], None]) -> Markup:
    """Draw on one set of axes and return an ``<svg>`` element whose ids begin with ``name``."""
    # Not through pyplot: that would choose a window system and keep every figure alive.
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context(_STYLE):
        canvas = Canvas(figsize=(_WIDTH, _HEIGHT))
        axes = canvas.add_axes(_AXES)
        # Few ticks at round numbers; set before drawing, which may name places of its own.
        axes.yaxis.set_major_locator(_round_places(5))
        axes.xaxis.set_major_locator(_round_places(6))
        draw(axes)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Markup(_for_page(buffer.getvalue(), name, title))  # noqa: S704 - see _for_page


def _for_page(svg: str, name: str, title: str) -> str:
    """The drawing for use inside a page: no prolog, no metadata, own ids, the page's colours.

    Safe to embed: all text in it is numbers and words of this module; ``title`` is escaped.
    """
    body = svg[svg.index("<svg") :]
    # Its style element would hold for the whole page: the page's own style sheet says the same.
    body = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', body)
    assert view is not None
    head = f'<svg class="plot" {view[0]} role="img" aria-labelledby="{name}-title">'
    body = head + f'<title id="{name}-title">{escape(title)}</title>' + body[body.index(">") + 1 :]
    body = re.sub(r'\bid="(?!' + name + r'-title)([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return body
