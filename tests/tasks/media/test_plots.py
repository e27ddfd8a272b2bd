"""Plots: what is in them, to scale; equal plots are equal files; without the library one line says so."""

import builtins
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from maskgen.tasks.media.plots import Bar, Curve, Panel, check_plots, plot_bars, plot_curves, save_plot

TEXT = "{http://www.w3.org/2000/svg}text"


def test_curves() -> None:
    measured = Curve(label="measured", points=[(1, 1), (10, 10), (100, 100)], ring=1)
    counted = Curve(label="counted", points=[(1, 2), (100, 20)], dashed=True)
    panels = [
        Panel(x="steps", y="seconds", curves=[measured, counted], heading="p", log=True),
        Panel(x="x", y="y", curves=[Curve(label="empty", points=[])]),
    ]
    (axes,) = plot_curves(panels, "Title").axes
    first, ring, second = axes.lines
    assert list(zip(*first.get_data(), strict=True)) == measured.points
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (10, 10)
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "steps", "seconds")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["measured", "counted"]
    (axes,) = plot_curves([Panel(x="precision", y="recall", curves=[Curve(label="", points=[(0.5, 0.5)])])]).axes
    assert (axes.get_xlim(), axes.get_ylim(), axes.get_legend()) == ((0, 1), (0, 1), None)


def test_bars() -> None:
    bars = [Bar(label="a<b", value=1, note="1 of it"), Bar(label="c", value=10, strong=True)]
    (axes,) = plot_bars([("p", bars), ("none", [])], "t", log=True).axes
    assert [bar.get_width() for bar in axes.patches] == [1, 10]
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()
    assert axes.get_xscale() == "log"
    place = axes.transData.transform
    left, middle, right = (place((value, 0))[0] for value in (1, 10, 100))
    assert math.isclose(middle - left, right - middle, rel_tol=1e-6)
    (axes,) = plot_bars([("", [Bar(label="cat", value=0.5, mark=0.75)])]).axes
    assert list(axes.lines[0].get_xdata()) == [0.75]
    assert axes.get_xlim() == (0, 1)
    (axes,) = plot_bars([("", [Bar(label=str(n), value=0.5) for n in range(41)])]).axes
    assert list(axes.get_yticks()) == []


def test_files(tmp_path: Path) -> None:
    bars = [("p", [Bar(label="a <b> & c", value=0.5)])]
    one, two = (save_plot(plot_bars(bars, "t"), tmp_path / str(n) / "bars.svg") for n in range(2))
    assert one.read_bytes() == two.read_bytes()
    assert {"t", "p", "a <b> & c"} <= {text.text for text in ET.parse(one).iter(TEXT)}
    with Image.open(save_plot(plot_bars(bars), tmp_path / "bars.png")) as picture:
        assert picture.size[0] == 900
    for nothing in (plot_bars([]), plot_curves([])):
        assert ET.parse(save_plot(nothing, tmp_path / "nothing.svg")).getroot().tag.endswith("svg")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r'plots need matplotlib: pip install "maskgen\[eval\]"'):
        check_plots()
