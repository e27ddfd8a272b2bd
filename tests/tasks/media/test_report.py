"""The report is one file that needs no other, and shows text as text."""

import base64
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import maskgen.checkpoint
from maskgen.tasks.media.report import Figure, write_report

NASTY = '<script>alert("1")</script> & more'


class Page(HTMLParser):
    """Tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]


def report(folder: Path, **changes: object) -> str:
    Image.new("RGB", (3, 2), "red").save(folder / "a.png")
    Image.new("RGB", (3, 2), "red").save(folder / "b.gif")
    figures = [Figure("Still", folder / "a.png", "What one sees."), Figure("Moving", folder / "b.gif", "")]
    plain = {
        "title": "A run",
        "introduction": "How it went.",
        "figures": figures,
        "numbers": {"accuracy": 0.912345, "steps": 12, "name": "small"},
        "notes": {"accuracy": "share that is right"},
    }
    write_report(folder / "new" / "report.html", **(plain | changes))  # type: ignore[arg-type]
    return (folder / "new" / "report.html").read_text(encoding="utf-8")


def test_pictures_are_inside(tmp_path: Path) -> None:
    text = report(tmp_path)
    page = Page(text)
    assert page.tags.count("img") == 2
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    kinds = re.findall(r"data:image/(\w+);base64,([^\"]+)", text)
    assert [kind for kind, _ in kinds] == ["png", "gif"]
    assert [base64.b64decode(data) for _, data in kinds] == [
        (tmp_path / name).read_bytes() for name in ("a.png", "b.gif")
    ]


def test_numbers_and_what_they_mean(tmp_path: Path) -> None:
    text = report(tmp_path)
    assert "0.9123" in text
    assert '<td class="number">12</td>' in text
    assert '<td class="number">small</td>' in text
    assert "share that is right" in text
    assert "What one sees." in text


def test_everything_is_escaped(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "c.png")
    text = report(
        tmp_path,
        title=NASTY,
        introduction=NASTY,
        figures=[Figure(NASTY, tmp_path / "c.png", NASTY)],
        numbers={NASTY: NASTY},
        notes={NASTY: NASTY},
    )
    assert "script" not in Page(text).tags
    assert (
        text.count("&lt;script&gt;") == 9
    )  # title and heading, introduction, heading, alternative text, caption, a row
    assert '"1"' not in text


def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = report(tmp_path)

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(maskgen.checkpoint.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        report(tmp_path, title="Another")
    assert os.listdir(tmp_path / "new") == ["report.html"]
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == before
