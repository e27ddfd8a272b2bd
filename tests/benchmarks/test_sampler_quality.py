"""The benchmark of orders and steps, its pieces at tiny size: who takes part, what is counted, scored and written."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import sampler_quality
from sampler_quality import SETTINGS, SPEED, RealDigits, contestants, cost_of, markdown, measure, report

from maskgen.data import TensorSource
from maskgen.sampling.settings import Sampling, Speed
from maskgen.tasks.data.images.digits import Digits
from maskgen.tasks.pipeline import Pipeline
from tests.selections import flat_sampling
from tests.support import oracle_pipeline, tiny_pipeline


def digits(each: int) -> tuple[TensorSource, TensorSource]:
    """The first few of every class."""
    data = Digits(size=32)
    found = []
    for source in (data.train(), data.test()):
        assert isinstance(source, TensorSource)
        labels = source.tensors["labels"]
        chosen = torch.cat([(labels == label).nonzero().flatten()[:each] for label in range(10)])
        found.append(TensorSource(**{name: tensor[chosen] for name, tensor in source.tensors.items()}))
    return found[0], found[1]


@pytest.fixture(scope="module")
def measured() -> RealDigits:
    return RealDigits(*digits(8))


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    plain = tiny_pipeline()
    return Pipeline(plain.tokenizer, plain.transformer, plain.config, "cpu", critic=tiny_pipeline(seed=1).transformer)


def test_real_digits_are_as_good_as_can_be_and_noise_is_not(measured: RealDigits) -> None:
    real = measured.row("real", [measured.images])
    assert real.cas > 0.85
    assert real.label_agreement > 0.95
    assert real.frechet == pytest.approx(0, abs=1e-6)
    noise = measured.row("noise", [torch.rand(measured.images.shape, generator=torch.Generator().manual_seed(0))])
    assert noise.cas < 0.4
    assert noise.frechet > 1
    both = measured.row("both", [measured.images, measured.images * 0.9])
    second = measured.row("darker", [measured.images * 0.9])
    assert both.frechet == pytest.approx((real.frechet + second.frechet) / 2)
    assert both.cas == pytest.approx((real.cas + second.cas) / 2)


def test_wrong_labels_show(measured: RealDigits) -> None:
    turned = measured.images[np.roll(np.arange(len(measured.images)), 8)]  # every digit is the one before
    row = measured.row("turned", [turned])
    assert row.label_agreement < 0.1
    assert row.frechet == pytest.approx(0, abs=1e-6)


def test_who_takes_part(pipe: Pipeline) -> None:
    everyone = contestants(pipe)
    assert list(everyone) == [name for name in SETTINGS if name != "self-critic"]
    assert "critic" not in contestants(tiny_pipeline())
    assert everyone["halton"] == dataclasses.replace(pipe.config.sampling, select="halton", schedule="arccos")
    assert list(contestants(pipe, ["self-critic", "random"])) == ["self-critic", "random"]
    with pytest.raises(ValueError, match="orders: got 'best', expected some of"):
        contestants(pipe, ["random", "best"])


@pytest.mark.parametrize(("name", "forwards"), [("random", 3), ("critic", 5), ("self-critic", 5), ("remdm-cap", 3)])
def test_a_line_counts_its_forwards(pipe: Pipeline, measured: RealDigits, name: str, forwards: int) -> None:
    (sampling,) = contestants(pipe, [name]).values()
    row = measure(pipe, measured, name, dataclasses.replace(sampling, steps=3), sets=1, batch_size=50)
    assert (row.order, row.steps, row.forwards) == (name, 3, forwards)
    assert 0 <= row.cas <= 1
    assert row.frechet > 0
    assert row.sampling == dataclasses.asdict(dataclasses.replace(sampling, steps=3))


def test_fast_ways_take_part_beside_their_exact_forms(pipe: Pipeline, measured: RealDigits) -> None:
    everyone = contestants(pipe, speed=True)
    assert list(everyone) == list(SPEED)
    assert everyone["halton, reuse 4"] == dataclasses.replace(everyone["halton, exact"], speed=Speed(reuse=4))
    row = measure(pipe, measured, "halton, reuse 4", dataclasses.replace(everyone["halton, reuse 4"], steps=8), sets=1)
    exact = cost_of(pipe, dataclasses.replace(everyone["halton, exact"], steps=8))
    assert row.cost is not None
    assert exact is not None
    assert row.cost < 0.75 * exact
    strict = oracle_pipeline(torch.zeros(64, 1, dtype=torch.long), null_class=False)
    assert not any("guided" in name for name in contestants(strict, speed=True))


def test_costs_in_whole_forwards(pipe: Pipeline) -> None:
    def cost(**settings: Any) -> float:
        found = cost_of(pipe, flat_sampling(**{"steps": 4, **settings}))
        assert found is not None
        return found

    plain = cost()
    assert 3 < plain < 4  # of the last of two layers only hidden places are computed
    assert cost(select="halton") < plain
    assert cost(select="remdm-cap") == pytest.approx(4, rel=0.05)  # all places, conditions prepared once
    assert cost(guidance=1.0) == pytest.approx(2 * plain, rel=0.05)
    half = cost(guidance=1.0, guidance_interval=(0.5, 1.0))
    assert plain < half < 0.85 * cost(guidance=1.0)
    assert cost(select="critic") > plain + 2.9
    assert cost_of(pipe, Sampling(select="entropy:1")) is None


def test_an_order_that_stops_early_is_cheaper(pipe: Pipeline, measured: RealDigits) -> None:
    sampling = Sampling(select="entropy:10000", steps=6)
    assert measure(pipe, measured, "entropy", sampling, sets=1).forwards == 1


def test_sets_differ_and_a_line_is_reproducible(pipe: Pipeline, measured: RealDigits) -> None:
    one, again, two = (measure(pipe, measured, "random", Sampling(steps=2), sets=sets) for sets in (1, 1, 2))
    assert one == again
    assert one.frechet != two.frechet


def test_the_table(pipe: Pipeline, measured: RealDigits) -> None:
    said: list[str] = []
    rows = report(pipe, measured, contestants(pipe, ["random", "halton"]), [1, 2], 1, said.append)
    orders = [(row.order, row.steps) for row in rows]
    real = [("(real training digits)", None), ("(training digits through the tokenizer)", None)]
    assert orders == [*real, ("random", 1), ("random", 2), ("halton", 1), ("halton", 2)]
    assert said[0].startswith("| order | steps | CAS |")
    text = markdown(rows, {"cpu": "one", "gpu": None}, {"sets": 1})
    assert all(line in text for line in said)
    assert "cpu: one\n\nsets: 1" in text
    assert "- halton: select halton, schedule arccos" in text
    assert "gpu" not in text


def test_the_command(tmp_path: Path, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.save_pretrained(tmp_path / "model")

    class Few(Digits):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self._train, self._test = digits(4)

    monkeypatch.setattr(sampler_quality, "Digits", Few)
    words = ["--model", tmp_path / "model", "--steps", 1, 2, "--orders", "random", "critic", "--sets", 1]
    words += ["--json", tmp_path / "found.json", "--report", tmp_path / "found.md"]
    sampler_quality.main([str(word) for word in words])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [(row["order"], row["steps"], row["forwards"]) for row in found["results"][2:]] == [
        ("random", 1, 1),
        ("random", 2, 2),
        ("critic", 1, 1),
        ("critic", 2, 3),
    ]
    assert found["settings"]["digits a set"] == 40
    text = (tmp_path / "found.md").read_text(encoding="utf-8")
    assert text.startswith("# Orders and steps on handwritten digits")
    assert text.count("| critic |") == 2
