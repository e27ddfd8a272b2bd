"""One self-contained HTML page of a demo run: pictures, clips, sounds, numbers, and how they were made."""

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
img, video { image-rendering: pixelated; max-width: 100%; border: 1px solid #ddd; }
figure { margin: 1rem 0 2rem; } figcaption { color: #555; max-width: 44rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


@dataclass(frozen=True)
class Figure:
    """A picture or a clip with a heading.

    Attributes:
        title: heading; "" goes on under the one before.
        path: PNG, GIF or MP4 file.
        caption: what one sees and how it was made.
        sound: a WAV file that can be played under the picture.
    """

    title: str
    path: Path
    caption: str
    sound: Path | None = None


def write_report(
    path: Path,
    title: str,
    introduction: str,
    figures: Sequence[Figure],
    numbers: Mapping[str, float | str],
    notes: Mapping[str, str],
) -> None:
    """Write the page; everything is embedded, so the one file can be sent to somebody.

    Args:
        path: the HTML file.
        title: heading of the page.
        introduction: a paragraph under it.
        figures: pictures, clips and sounds, in order.
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
    title = html.escape(figure.title or figure.caption)
    if figure.path.suffix.lower() == ".mp4":
        shown = f'<video aria-label="{title}" src="{_data(figure.path, "video")}" controls loop muted autoplay></video>'
    else:
        shown = f'<img alt="{title}" src="{_data(figure.path, "image")}">'
    heading = f"<h2>{title}</h2>\n" if figure.title else ""
    player = "" if figure.sound is None else f'<br><audio src="{_data(figure.sound, "audio")}" controls></audio>'
    return f"{heading}<figure>{shown}{player}<figcaption>{html.escape(figure.caption)}</figcaption></figure>\n"


def _data(path: Path, kind: str) -> str:
    """A file as an address that holds it."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{kind}/{path.suffix.lstrip('.').lower()};base64,{data}"


def _number(value: float | str) -> str:
    return html.escape(value) if isinstance(value, str) else f"{value:.4g}"
