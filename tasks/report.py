"""One self-contained HTML page of a demo run: pictures, numbers, and how they were made."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskgen.checkpoint import atomic_file

__all__ = ["Figure", "write_report"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { image-rendering: pixelated; max-width: 100%; border: 1px solid #ddd; }
figure { margin: 1rem 0 2rem; } figcaption { color: #555; max-width: 44rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


@dataclass(frozen=True)
class Figure:
    """A picture with a heading.

    Attributes:
        title: heading.
        path: PNG or GIF file.
        caption: what one sees and how it was made.
    """

    title: str
    path: Path
    caption: str


def write_report(
    path: Path,
    title: str,
    introduction: str,
    figures: Sequence[Figure],
    numbers: Mapping[str, float | str],
    notes: Mapping[str, str],
) -> None:
    """Write the page; pictures are embedded, so the one file can be sent to somebody.

    Args:
        path: the HTML file.
        title: heading of the page.
        introduction: a paragraph under it.
        figures: pictures, in order.
        numbers: name and value.
        notes: what a number means, by its name.
    """
    rows = "\n".join(
        f'<tr><td>{html.escape(name)}</td><td class="number">{_number(value)}</td>'
        f"<td>{html.escape(notes.get(name, ''))}</td></tr>"
        for name, value in numbers.items()
    )
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p>{html.escape(introduction)}</p>
{"".join(_figure(figure) for figure in figures)}
<h2>Numbers</h2>
<table><tr><th>number</th><th>value</th><th>meaning</th></tr>
{rows}
</table>
</body></html>
"""
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _figure(figure: Figure) -> str:
    kind = figure.path.suffix.lstrip(".").lower()
    data = base64.b64encode(figure.path.read_bytes()).decode("ascii")
    return (
        f"<h2>{html.escape(figure.title)}</h2>\n<figure>"
        f'<img alt="{html.escape(figure.title)}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>\n"
    )


def _number(value: float | str) -> str:
    return html.escape(value) if isinstance(value, str) else f"{value:.4g}"
