"""Plots of numbers: curves and bars, by matplotlib, as PNG or SVG files.

matplotlib is imported when something is plotted; figures are made without pyplot, so nothing depends on a display.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskgen.checkpoint import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Bar", "Curve", "Panel", "check_plots", "plot_bars", "plot_curves", "save_plot"]

_STRONG, _PLAIN, _MARK = "#1f5fa8", "#9db4cc", "#c8553d"

_INCH = 0.22  # height of a bar

_MOST_NAMES = 40  # bars of a panel that are named


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points joined by a line.

    Attributes:
        label: in the legend; "" for none.
        points: x and y of each.
        dashed: for what was computed and not measured; such a line has no dots.
        ring: number of the point that is marked with a ring.
    """

    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    ring: int | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes with curves.

    Attributes:
        x: name of the axis across.
        y: name of the axis up.
        curves: what is plotted; a panel without a point is left out.
        heading: above it.
        log: whether both axes are logarithmic; otherwise both go from 0 to 1.
    """

    x: str
    y: str
    curves: Sequence[Curve]
    heading: str = ""
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        label: beside it.
        value: its length.
        note: behind it.
        strong: whether it is painted in the first colour.
        mark: a value marked on it, for comparison.
    """

    label: str
    value: float
    note: str = ""
    strong: bool = False
    mark: float | None = None


def check_plots() -> None:
    """Find out before the work whether its plots can be made.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ImportError('plots need matplotlib: pip install "maskgen[eval]"') from None


def plot_curves(panels: Iterable[Panel], title: str = "") -> Figure:
    """Curves, two panels a row.

    Args:
        panels: see ``Panel``.
        title: above all.

    Raises:
        ImportError: without matplotlib.
    """
    shown = [panel for panel in panels if any(curve.points for curve in panel.curves)]
    rows, columns = max(1, (len(shown) + 1) // 2), min(2, max(1, len(shown)))
    figure = _figure(4.8 * columns, 3.6 * rows, title)
    for number, panel in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set(title=panel.heading, xlabel=panel.x, ylabel=panel.y)
        axes.grid(color="#ddd")
        if panel.log:
            axes.set(xscale="log", yscale="log")
        else:
            axes.set(xlim=(0, 1), ylim=(0, 1))
        for curve in panel.curves:
            _add_curve(axes, curve)
        if any(curve.label for curve in panel.curves):
            axes.legend(fontsize="small")
    return figure


def plot_bars(panels: Iterable[tuple[str, Sequence[Bar]]], title: str = "", *, log: bool = False) -> Figure:
    """Horizontal bars on one scale, one panel under the other.

    Args:
        panels: heading and bars of each; panels without bars are left out.
        title: above all.
        log: whether the scale is logarithmic; otherwise it goes from 0 to 1.

    Raises:
        ImportError: without matplotlib.
    """
    shown = [(heading, list(bars)) for heading, bars in panels if bars]
    heights = [min(len(bars), 2 * _MOST_NAMES) + 2 for _, bars in shown]
    figure = _figure(9, max(1.5, _INCH * sum(heights) + 0.6), title)
    first: Axes | None = None
    grid = figure.add_gridspec(max(1, len(shown)), 1, height_ratios=heights or None)
    for number, (heading, bars) in enumerate(shown):
        axes = figure.add_subplot(grid[number], sharex=first)
        first = first or axes
        axes.set_title(heading, loc="left", fontsize="medium")
        places = range(len(bars))
        colours = [_STRONG if bar.strong else _PLAIN for bar in bars]
        drawn = axes.barh(places, [bar.value for bar in bars], color=colours)
        axes.bar_label(drawn, [bar.note for bar in bars], padding=4, fontsize="small")
        marks = [(bar.mark, place) for place, bar in enumerate(bars) if bar.mark is not None]
        axes.plot(
            [mark for mark, _ in marks],
            [place for _, place in marks],
            "|",
            color=_MARK,
            markersize=9,
            markeredgewidth=2,
        )
        axes.set_yticks(places, [bar.label for bar in bars]) if len(bars) <= _MOST_NAMES else axes.set_yticks([])
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xscale="log") if log else axes.set(xlim=(0, 1))
    return figure


def save_plot(figure: Figure, path: Path) -> Path:
    """Write a plot, the file whole or not at all; equal plots are equal files.

    Args:
        figure: of ``plot_curves`` or ``plot_bars``.
        path: a PNG or SVG file; in SVG, text stays text.
    """
    import matplotlib

    kind = path.suffix.removeprefix(".").lower()
    same: Any = {"svg.fonttype": "none", "svg.hashsalt": "maskgen"}
    with matplotlib.rc_context(same), atomic_file(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=100, metadata={"Date": None} if kind == "svg" else None)
    return path


def _figure(width: float, height: float, title: str) -> Figure:
    check_plots()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize="large")
    return figure


def _add_curve(axes: Axes, curve: Curve) -> None:
    x, y = [x for x, _ in curve.points], [y for _, y in curve.points]
    style: dict[str, Any] = {"linestyle": "--"} if curve.dashed else {"marker": "o", "markersize": 4}
    (line,) = axes.plot(x, y, label=curve.label or None, **style)
    if curve.ring is not None:
        ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "color": line.get_color()}
        axes.plot(x[curve.ring], y[curve.ring], "o", **ring)
