"""One self-contained HTML page of a demo run: pictures, clips, sounds, numbers, and how they were made."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from maskgen.checkpoint import atomic_file

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img, video { image-rendering: pixelated; max-width: 100%; border: 1px solid #ddd; }
figure { margin: 1rem 0 2rem; } figcaption { color: #555; max-width: 44rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>{{ style | safe }}</style></head><body>
<h1>{{ title }}</h1>
<p>{{ introduction }}</p>
{% for figure in figures %}
{% set name = figure.title or figure.caption %}
{% if figure.title %}
<h2>{{ figure.title }}</h2>
{% endif %}
<figure>
{% if figure.rows is defined %}
<table><tr>{% for column in figure.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in figure.rows %}
<tr><td>{{ row[0] }}</td>{% for value in row[1:] %}<td class="number">{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% elif figure.path.suffix | lower == ".mp4" %}
<video aria-label="{{ name }}" src="{{ data(figure.path, "video") }}" controls loop muted autoplay></video>
{% else %}
<img alt="{{ name }}" src="{{ data(figure.path, "image") }}">
{% endif %}
{% if figure.sound %}
<br><audio src="{{ data(figure.sound, "audio") }}" controls></audio>
{% endif %}
<figcaption>{{ figure.caption }}</figcaption></figure>
{% endfor %}
<h2>Numbers</h2>
<table><tr><th>number</th><th>value</th><th>meaning</th></tr>
{% for name, value, note in rows %}
<tr><td>{{ name }}</td><td class="number">{{ value }}</td><td>{{ note }}</td></tr>
{% endfor %}
</table>
</body></html>
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


@dataclass(frozen=True)
class Table:
    """Rows under a heading.

    Attributes:
        title: heading; "" goes on under the one before.
        columns: their names.
        rows: each with a name and its values, as they shall stand there.
        caption: what one reads and how it was measured.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


def write_report(
    path: Path,
    title: str,
    introduction: str,
    figures: Sequence[Figure | Table],
    numbers: Mapping[str, float | str],
    notes: Mapping[str, str],
) -> None:
    """Write the page; everything is embedded, so the one file can be sent to somebody.

    Args:
        path: the HTML file.
        title: heading of the page.
        introduction: a paragraph under it.
        figures: pictures, clips, sounds and tables, in order.
        numbers: name and value.
        notes: what a number means, by its name.
    """
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    rows = [(name, _number(value), notes.get(name, "")) for name, value in numbers.items()]
    text = page.render(style=_STYLE, title=title, introduction=introduction, figures=figures, rows=rows, data=_data)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _data(path: Path, kind: str) -> str:
    """A file as an address that holds it."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{kind}/{path.suffix.lstrip('.').lower()};base64,{data}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
