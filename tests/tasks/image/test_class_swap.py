"""Class swapping: the official numbers are compared in tests/parity; here any size, any box, any mistake."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.image.class_swap import swap_alpha, swap_class, swap_token_mask
from tests.support import OracleTransformer, oracle_pipeline, tiny_pipeline, toy_pipeline

PIPE, WIDE = tiny_pipeline(), tiny_pipeline((32, 64))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


@given(cells=st.tuples(st.integers(1, 20), st.integers(1, 20)), step=st.integers(1, 16), data=st.data())
def test_token_box(cells: tuple[int, int], step: int, data: st.DataObject) -> None:
    size = (cells[0] * step, cells[1] * step)
    top, left = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
    height, width = data.draw(st.integers(1, size[0] - top)), data.draw(st.integers(1, size[1] - left))
    mask = swap_token_mask((top, left, height, width), size, cells)
    for y in range(cells[0]):
        for x in range(cells[1]):
            inside = max(0, top // step - 1) <= y < min(cells[0], height // step + top // step + 1)
            inside &= max(0, left // step - 1) <= x < min(cells[1], width // step + left // step + 1)
            assert bool(mask[y, x]) == inside


def test_alpha() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:4, 2:4] = True
    for size in ((32, 32), (64, 48), (100, 300), (8, 8), (3, 2)):
        alpha = swap_alpha(mask, size)
        assert alpha.shape == size
        assert alpha.min() >= 0
        assert 0.2 < alpha.max() <= 1
    assert (alpha_far := swap_alpha(mask, (64, 64)))[-16:].max() == 0
    assert alpha_far[20, 20] > 0.6
    assert torch.equal(swap_alpha(torch.ones(8, 8, dtype=torch.bool), (50, 40)), torch.ones(50, 40))


@settings(max_examples=30)
@given(height=st.integers(2, 80), width=st.integers(2, 80), wide=st.booleans(), data=st.data())
def test_pixels_without_alpha_stay(height: int, width: int, wide: bool, data: st.DataObject) -> None:
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = (top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    original, pipe = picture(height, width), WIDE if wide else PIPE
    (result,) = swap_class(pipe, original, box=box, label=1, steps=3)
    assert result.size == original.size
    target = pipe.grid_size
    rows = [box[0] * target[0] // height, -(-(box[0] + box[2]) * target[0] // height)]
    columns = [box[1] * target[1] // width, -(-(box[1] + box[3]) * target[1] // width)]
    scaled = (rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0])
    alpha = swap_alpha(swap_token_mask(scaled, target, pipe.axes), (height, width))  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(result)[(alpha == 0).numpy()], np.asarray(original)[(alpha == 0).numpy()])


def test_the_box_changes() -> None:
    original = picture(100, 60)
    (result,) = swap_class(PIPE, original, box=(10, 10, 30, 30), label=1)
    changed = (np.asarray(result) != np.asarray(original)).any(-1)
    assert changed[10:40, 10:40].mean() > 0.95
    assert not changed[85:].any()


def test_hidden_tokens_and_steps() -> None:
    answer = torch.zeros(64, 1, dtype=torch.long)
    pipe = oracle_pipeline(answer)
    model = pipe.transformer
    assert isinstance(model, OracleTransformer)
    seen: list[tuple[int, int]] = []

    def callback(step: SampleStep) -> None:
        seen.append((step.step, step.steps))

    black = Image.new("RGB", (32, 32))
    (result,) = swap_class(pipe, black, box=(8, 12, 8, 4), label="two", callback=callback)
    assert same(result, black)
    # Half size: rows 4 to 8, columns 6 to 8; tokens of two pixels: rows 1 to 4, columns 2 to 4.
    assert torch.equal(model.seen[0].reshape(8, 8) == 8, swap_token_mask((4, 6, 4, 2), (16, 16), (8, 8)))
    assert (model.seen[0].reshape(8, 8) == 8).nonzero().amin(0).tolist() == [1, 2]
    assert (model.seen[0].reshape(8, 8) == 8).nonzero().amax(0).tolist() == [4, 4]
    assert seen == [(step, 12) for step in range(2, 12)]
    seen.clear()
    swap_class(pipe, black, box=(8, 12, 8, 4), label=2, sampling=Sampling(steps=5), start_step=1, callback=callback)
    assert seen == [(step, 5) for step in range(1, 5)]
    seen.clear()
    swap_class(
        pipe, black, box=(8, 12, 8, 4), label=2, sampling=Sampling(steps=5), steps=3, guidance=1.0, callback=callback
    )
    assert seen == [(2, 3)]


def test_seeds_and_labels() -> None:
    pipe, original = toy_pipeline(), picture(40, 30)
    results = swap_class(pipe, original, box=(5, 5, 20, 20), label=1, seeds=[4, 5, 4])
    assert same(results[0], results[2])
    assert not same(results[0], results[1])
    assert same(swap_class(pipe, original, box=(5, 5, 20, 20), label=1, seeds=[5])[0], results[1])
    other = swap_class(pipe, original, box=(5, 5, 20, 20), label=["one", "two"], seeds=[5])
    assert same(other[0], results[1])
    assert not same(other[0], other[1])
    assert len(swap_class(pipe, original, box=(5, 5, 20, 20), label=None)) == 1


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"box": (0, 0, 0, 4)}, ValueError, "box: got top 0, left 0, height 0, width 4; expected at least one pixel"),
        ({"box": (0, 0, 4, -1)}, ValueError, "width -1; expected"),
        ({"box": (-1, 0, 4, 4)}, ValueError, "top -1"),
        ({"box": (10, 0, 11, 4)}, ValueError, "inside the image of height 20 and width 30"),
        ({"box": (0, 28, 4, 4)}, ValueError, "inside the image of height 20 and width 30"),
        ({"box": (0, 0, 4)}, TypeError, "box: got .* expected four whole numbers"),
        ({"box": (0, 0, 4.0, 4)}, TypeError, "box: got .* expected four whole numbers"),
        ({"label": "eleven"}, ValueError, "label: got 'eleven'"),
        ({"label": [1, 2], "seeds": [1, 2, 3]}, ValueError, "got 2 labels, 3 seeds"),
        ({"steps": 2}, ValueError, "start_step: got 2"),
        ({"start_step": -1}, ValueError, "start_step: got -1"),
    ],
)
def test_mistakes(changes: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments = {"image": picture(20, 30), "box": (2, 2, 5, 5), "label": 1} | changes
    with pytest.raises(kind, match=message):
        swap_class(toy_pipeline(), **arguments)  # type: ignore[arg-type]
