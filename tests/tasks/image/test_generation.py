"""Generation: one picture a label and seed, the same in any batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.image.generation import generate
from maskgen.tasks.pipeline import Pipeline
from tests.support import make_tiny_pipeline, oracle_pipeline, tiny_pipeline, toy_pipeline


def same(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def test_one_picture_a_label() -> None:
    pictures = generate(tiny_pipeline(), [3, "nine", 3])
    assert [picture.size for picture in pictures] == [(32, 32)] * 3
    assert [picture.mode for picture in pictures] == ["RGB"] * 3
    assert not same(pictures[0], pictures[2])  # seeds 0 and 2


def test_a_single_label_goes_with_any_number_of_seeds() -> None:
    pipe = toy_pipeline()
    assert len(generate(pipe, "two", seeds=range(5))) == 5
    assert len(generate(pipe, [2], seeds=[7, 8])) == 2
    assert len(generate(pipe, 2)) == 1


def test_an_item_depends_on_its_label_and_seed_alone() -> None:
    pipe = toy_pipeline()
    together = generate(pipe, [1, 2, 1, 4, 5], seeds=[9, 3, 9, 0, 1])
    alone = generate(pipe, [1], seeds=[9])
    assert same(together[0], alone[0])
    assert same(together[2], alone[0])
    assert not same(generate(pipe, 2, seeds=[9])[0], alone[0])
    split = generate(pipe, [1, 2, 1, 4, 5], seeds=[9, 3, 9, 0, 1], batch_size=2)
    assert all(same(a, b) for a, b in zip(together, split, strict=True))


def test_grids_that_are_not_square() -> None:
    assert generate(tiny_pipeline((16, 48)), 0)[0].size == (48, 16)


def test_settings_reach_the_sampler() -> None:
    pipe, seen = toy_pipeline(), []

    def callback(step: SampleStep) -> None:
        seen.append((step.step, step.steps))

    generate(pipe, 0, steps=4, callback=callback)
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4)]
    greedy = Sampling(steps=2, temperature=0, choice_temperature=0)
    first, second = generate(pipe, 0, seeds=[0, 1], sampling=greedy)
    assert same(first, second)
    pushed = generate(pipe, 0, seeds=[0], guidance=3.0)[0]
    assert not same(pushed, generate(pipe, 0, seeds=[0])[0])


def test_without_a_class() -> None:
    pipe = toy_pipeline()
    assert len(generate(pipe, None, seeds=[0, 1])) == 2
    strict = oracle_pipeline(torch.zeros(64, 1, dtype=torch.long), null_class=False)
    with pytest.raises(ValueError, match="label: got none, but this model has no unconditional mode"):
        generate(strict, None)


def test_a_saved_model_gives_the_same_pictures(tmp_path: Path) -> None:
    make_tiny_pipeline(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path, device="cpu")
    for before, after in zip(generate(tiny_pipeline(), [1, 2]), generate(loaded, [1, 2]), strict=True):
        assert same(before, after)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": []}, "got 0 labels, 0 seeds"),
        ({"labels": 1, "seeds": []}, "got 1 labels, 0 seeds"),
        ({"labels": [1, 2], "seeds": [0, 1, 2]}, "got 2 labels, 3 seeds; expected the same number of each, or one"),
        ({"labels": 10}, "label: got 10, expected 0 to 9"),
        ({"labels": "eleven"}, "label: got 'eleven', expected a number from 0 to 9 or a class name"),
        ({"labels": 1, "batch_size": 0}, "batch_size: got 0, expected at least 1"),
        ({"labels": 1, "steps": 0}, "steps: got 0, expected at least 1"),
        ({"labels": 1, "seeds": [-1]}, "seeds: got -1, expected 0 <= seed"),
    ],
)
def test_mistakes(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(toy_pipeline(), **arguments)  # type: ignore[arg-type]
