"""Two kinds of plots as plain SVG, for benchmarks need no plotting library: bars, and lines on two logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Bar", "Line", "bars", "lines"]

COLOURS = ("#1f5fa8", "#c8553d", "#3a8f5c", "#8a5fb0", "#b8860b", "#4a4a4a")
FONT = 'font-family="sans-serif"'


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar; ``value`` is positive, ``strong`` paints it in the first colour."""

    label: str
    value: float
    note: str = ""
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points joined by a line; all coordinates are positive."""

    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def bars(title: str, panels: Iterable[tuple[str, Sequence[Bar]]], *, width: int = 900) -> str:
    """Horizontal bars on one logarithmic scale, one panel under the other.

    Args:
        title: above all.
        panels: (heading, bars) each; panels without bars are left out.
        width: of the picture in pixels.

    Returns:
        an SVG document.
    """
    shown = [(heading, list(rows)) for heading, rows in panels if rows]
    values = [bar.value for _, rows in shown for bar in rows] or [1.0]
    low, high = min(values) / 2, max(values) * 1.05
    left, right, row = 250, 190, 18
    parts, y = [_text(10, 24, title, size=16)], 50
    for heading, rows in shown:
        parts.append(_text(10, y + 10, heading, size=13))
        y += 20
        for bar in rows:
            length = (width - left - right) * math.log(bar.value / low) / math.log(high / low)
            colour = COLOURS[0] if bar.strong else "#9db4cc"
            parts.append(_text(left - 8, y + 12, bar.label, anchor="end"))
            parts.append(f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{row - 5}" fill="{colour}"/>')
            parts.append(_text(left + length + 6, y + 12, bar.note or f"{bar.value:.3g}"))
            y += row
        y += 14
    return _document(width, y, parts)


def lines(title: str, panels: Iterable[tuple[str, str, str, Sequence[Line]]], *, width: int = 900) -> str:
    """Curves on two logarithmic axes, two panels a row.

    Args:
        title: above all.
        panels: (heading, name of x, name of y, lines) each; panels without a point are left out.
        width: of the picture in pixels.

    Returns:
        an SVG document.
    """
    shown = [panel for panel in panels if any(line.points for line in panel[3])]
    each, tall = width // 2, 300
    parts = [_text(10, 24, title, size=16)]
    for index, panel in enumerate(shown):
        inside = _panel(panel, each, tall)
        parts.append(f'<g transform="translate({index % 2 * each},{40 + index // 2 * tall})">{inside}</g>')
    return _document(width, 40 + (len(shown) + 1) // 2 * tall, parts)


def _panel(panel: tuple[str, str, str, Sequence[Line]], width: int, height: int) -> str:
    heading, x_name, y_name, curves = panel
    points = [point for line in curves for point in line.points]
    across = _Axis([x for x, _ in points], 60, width - 20)
    up = _Axis([y for _, y in points], height - 45, 40)
    parts = [_text(60, 18, heading, size=13), _text(60, 33, f"{y_name} over {x_name}", size=10)]
    for value in across.ticks(sorted({x for x, _ in points})):
        at = across(value)
        parts.append(_rule(at, 40, at, height - 45) + _text(at, height - 30, f"{value:g}", anchor="middle", size=10))
    for value in up.ticks():
        at = up(value)
        parts.append(_rule(60, at, width - 20, at) + _text(55, at + 4, f"{value:g}", anchor="end", size=10))
    for index, line in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if not line.dashed:
            dots = (f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour}"/>' for x, y in line.points)
            parts.extend(dots)
        parts.append(_text(70, 56 + 14 * index, line.label, size=11, colour=colour))
    return "".join(parts)


class _Axis:
    """A logarithmic axis from one pixel to another."""

    def __init__(self, values: Sequence[float], start: float, stop: float) -> None:
        self.low, self.high = min(values) / 1.15, max(values) * 1.15
        self.start, self.stop = start, stop

    def __call__(self, value: float) -> float:
        return self.start + (self.stop - self.start) * math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self, given: Sequence[float] | None = None) -> list[float]:
        """The given values, or 1, 2 and 5 times powers of ten; every other one where they stand too close."""
        if given is None:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
            given = [value for value in steps if self.low <= value <= self.high]
        while len(given) > 10:
            given = given[::2]
        return list(given)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, words: str, *, size: int = 11, anchor: str = "start", colour: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" {FONT} text-anchor="{anchor}" fill="{colour}">'
        f"{escape(words)}</text>"
    )


def _document(width: int, height: int, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
