"""Inpainting: kept pixels stay, what stands under the mask does not matter, an item depends on itself alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.image import generate, inpaint, outpaint, swap_class
from maskgen.tasks.image.paste import feather as soft_edge
from maskgen.tasks.media.images import to_images
from maskgen.tasks.pipeline import Pipeline
from tests.support import OracleTransformer, oracle_pipeline, tiny_pipeline, toy_pipeline


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def hole(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    top, left, tall, wide = box
    mask[top : top + tall, left : left + wide] = True
    return mask


def same(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def known_answer(size: tuple[int, int] = (16, 16), null_class: bool = True) -> tuple[Pipeline, Image.Image]:
    """A model that knows one picture, and the picture."""
    answer = torch.randint(8, (size[0] * size[1] // 4, 1), generator=torch.Generator().manual_seed(1))
    pipe = oracle_pipeline(answer, size, null_class=null_class)
    return pipe, to_images(pipe.decode(answer[None]))[0]


@pytest.mark.parametrize("box", [(3, 4, 6, 5), (0, 0, 1, 1), (0, 0, 16, 15), (15, 0, 1, 16)])
def test_a_model_that_knows_restores_the_picture(box: tuple[int, int, int, int]) -> None:
    pipe, whole = known_answer()
    mask = hole(16, 16, box)
    damaged = Image.fromarray(np.where(mask[..., None], 255, np.asarray(whole)).astype(np.uint8))
    assert not same(damaged, whole)
    assert all(same(result, whole) for result in inpaint(pipe, damaged, mask, label=3, seeds=[0, 1]))


def test_exactly_the_touched_tokens_are_hidden() -> None:
    pipe, whole = known_answer()
    model = pipe.transformer
    assert isinstance(model, OracleTransformer)
    for dilation, rows, columns in ((0, slice(1, 4), slice(2, 4)), (1, slice(0, 5), slice(1, 5))):
        model.seen.clear()
        inpaint(pipe, whole, hole(16, 16, (3, 4, 4, 3)), label=0, dilation=dilation)
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[rows, columns] = True
        assert torch.equal(model.seen[0].reshape(8, 8) == model.vocab_size, expected)
        known = pipe.transformer(model.seen[0], None).argmax(-1).reshape(8, 8)  # type: ignore[arg-type]
        assert torch.equal(model.seen[0].reshape(8, 8)[~expected], known[~expected])


@settings(max_examples=40)
@given(
    height=st.integers(2, 90),
    width=st.integers(2, 90),
    square=st.booleans(),
    width_of_edge=st.sampled_from([None, 0, 1, 5]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_kept_pixels_stay(
    height: int, width: int, square: bool, width_of_edge: int | None, seed: int, data: st.DataObject
) -> None:
    pipe = PIPES[square]
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    tall, wide = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    mask = hole(height, width, (top, left, tall, wide))
    if mask.all():
        mask[0, 0] = False
    original = picture(height, width, seed)
    (result,) = inpaint(pipe, original, mask, label=1, feather=width_of_edge)
    assert result.size == original.size
    changed = (np.asarray(result) != np.asarray(original)).any(-1)
    # The default edge is half a token; a token is at most the whole picture over the grid, and at least a pixel.
    reach = max(1, round(max(height / 8, width / 8) / 2)) if width_of_edge is None else width_of_edge
    assert not changed[(soft_edge(torch.from_numpy(mask), reach) == 0).numpy()].any()


def test_what_the_model_saw_comes_back_to_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = toy_pipeline(levels=256, patch=1)
    for height, width, top, left in (
        (40, 40, 15, 15),
        (40, 100, 15, 80),
        (100, 40, 3, 3),
        (33, 70, 28, 33),
        (8, 8, 2, 2),
    ):
        y, x = np.mgrid[:height, :width]
        slopes = np.rint(y / height * 100 + x / width * 150).astype(np.uint8)
        whole = Image.fromarray(slopes).convert("RGB")
        mask = hole(height, width, (top, left, 2, 2))
        shown: list[Image.Image] = []
        monkeypatch.setattr(
            "maskgen.tasks.media.originals.Original.paste",
            lambda _, repainted, __, shown=shown: shown.append(repainted),
        )
        inpaint(pipe, whole, mask, label=1)
        near = soft_edge(torch.from_numpy(mask), max(8, height // 6, width // 6)).numpy() > 0
        away = np.abs(np.asarray(shown[0]).astype(int) - np.asarray(whole))[~near]
        assert away.max(initial=0) <= 6  # edges; a shift by one token would be 9 and more everywhere
        assert away.mean() < 1 if away.size else True


def test_the_crop_holds_the_feather(monkeypatch: pytest.MonkeyPatch) -> None:
    original, mask = picture(40, 100), hole(40, 100, (0, 30, 40, 40))  # fits the 40 x 40 window, its feather does not
    shown: list[Image.Image] = []
    monkeypatch.setattr(
        "maskgen.tasks.media.originals.Original.paste", lambda _, repainted, __: shown.append(repainted)
    )
    for edge, changes in ((5, True), (0, False)):
        shown.clear()
        inpaint(PIPES[True], original, mask, label=1, feather=edge)
        beside = (np.asarray(shown[0]) != np.asarray(original)).any(-1)[:, 25:30]
        assert beside.mean() > 0.95 if changes else not beside.any()


PIPES = {True: tiny_pipeline(), False: tiny_pipeline((32, 48))}


def test_marked_pixels_change() -> None:
    original, mask = picture(50, 70), hole(50, 70, (10, 20, 12, 15))
    (result,) = inpaint(PIPES[True], original, mask, label=1, feather=0)
    changed = (np.asarray(result) != np.asarray(original)).any(-1)
    assert changed[mask].mean() > 0.95
    assert not changed[~mask].any()


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (50, 70), (20, 17)])
def test_nothing_under_the_mask_leaks(size: tuple[int, int]) -> None:
    mask = hole(*size, (5, 6, 7, 8))
    clean, other = np.asarray(picture(*size, 1)), np.asarray(picture(*size, 2))
    garbage = np.where(mask[..., None], other, clean)
    results = [inpaint(PIPES[True], image, mask, label=1)[0] for image in (clean, garbage)]
    # Only the feather outside the mask shows the original, so the two are equal everywhere.
    assert same(*results)


def test_several_pictures_with_different_masks_equal_single_calls() -> None:
    pictures = [picture(40, 60, 1), picture(32, 32, 2), picture(25, 18, 3)]
    masks = [hole(40, 60, (3, 3, 9, 9)), hole(32, 32, (0, 0, 20, 31)), hole(25, 18, (24, 17, 1, 1))]
    labels, seeds = [1, "two", 3], [5, 6, 5]
    together = inpaint(PIPES[True], pictures, masks, label=labels, seeds=seeds)
    for number, result in enumerate(together):
        (alone,) = inpaint(PIPES[True], pictures[number], masks[number], label=labels[number], seeds=[seeds[number]])
        # The decoder's last float bit depends on the batch on some CPUs, and a pixel may round to its neighbour level.
        assert np.abs(np.asarray(alone, dtype=int) - np.asarray(result)).max() <= 1


def test_numbers_of_pictures_and_seeds() -> None:
    pipe, original, mask = toy_pipeline(), picture(20, 20), hole(20, 20, (4, 4, 9, 9))
    variations = inpaint(pipe, original, mask, label=1, seeds=[0, 1, 0])
    assert same(variations[0], variations[2])
    assert not same(variations[0], variations[1])
    assert same(inpaint(pipe, original, mask, label=1, seeds=[1])[0], variations[1])
    assert len(inpaint(pipe, [original, picture(9, 9)], [mask, hole(9, 9, (1, 1, 2, 2))], label=1)) == 2
    assert len(inpaint(pipe, [original, original], mask, label=[1, 2], seeds=[3])) == 2
    assert not same(*inpaint(pipe, original, mask, label=[1, 2]))
    assert len(inpaint(pipe, original, mask)) == 1  # without a class


def test_settings_reach_the_sampler() -> None:
    seen: list[tuple[int, int]] = []

    def callback(step: SampleStep) -> None:
        seen.append((step.step, step.steps))

    pipe, original, mask = toy_pipeline(), picture(20, 20), hole(20, 20, (4, 4, 9, 9))
    inpaint(pipe, original, mask, label=1, sampling=Sampling(steps=5), steps=2, guidance=1.0, callback=callback)
    assert seen == [(0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"mask": np.zeros((20, 20), bool)}, ValueError, "nothing to repaint"),
        ({"mask": np.ones((20, 20), bool)}, ValueError, "nothing is kept"),
        ({"mask": np.ones((20, 21), bool)}, ValueError, "mask: got 21 x 20 pixels, expected 20 x 20"),
        ({"mask": [hole(20, 20, (1, 1, 2, 2))] * 2, "seeds": [0, 1, 2]}, ValueError, "got 2 images, 1 labels, 3 seeds"),
        (
            {"image": [picture(20, 20)] * 2, "mask": [hole(20, 20, (1, 1, 2, 2))] * 3},
            ValueError,
            "got 2 images, 3 masks",
        ),
        ({"image": []}, ValueError, "got 0 images, 1 masks"),
        ({"seeds": []}, ValueError, "got 1 images, 1 labels, 0 seeds"),
        ({"label": 10}, ValueError, "label: got 10, expected 0 to 9"),
        ({"dilation": -1}, ValueError, "dilation: got -1"),
        ({"feather": -1}, ValueError, "feather: got -1"),
        ({"feather": 0.5}, TypeError, "feather: got 0.5"),
        ({"steps": 0}, ValueError, "steps: got 0"),
    ],
)
def test_mistakes(changes: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments = {"image": picture(20, 20), "mask": hole(20, 20, (1, 1, 2, 2)), "label": 1} | changes
    with pytest.raises(kind, match=message):
        inpaint(toy_pipeline(), **arguments)  # type: ignore[arg-type]


def test_models_of_another_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = toy_pipeline()
    monkeypatch.setattr(type(pipe.tokenizer), "modality", "audio")
    with pytest.raises(ValueError, match="inpainting needs an image model, but this model's modality is audio"):
        inpaint(pipe, picture(20, 20), hole(20, 20, (1, 1, 2, 2)), label=1)


def test_models_that_need_a_class_or_cannot_be_guided() -> None:
    pipe, whole = known_answer(null_class=False)
    with pytest.raises(ValueError, match="label: got none"):
        inpaint(pipe, whole, hole(16, 16, (1, 1, 2, 2)))
    with pytest.raises(ValueError, match=r"guidance: got 2\.0"):
        inpaint(pipe, whole, hole(16, 16, (1, 1, 2, 2)), label=1, guidance=2.0)


def test_tokens_without_regions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    monkeypatch.setattr(type(pipe.tokenizer), "is_spatial", False)
    image, mask = picture(32, 32), hole(32, 32, (3, 4, 6, 5))
    for edit in (
        lambda: inpaint(pipe, image, mask, label=0),
        lambda: outpaint(pipe, image, right=4, label=0),
        lambda: swap_class(pipe, image, box=(3, 4, 6, 5), label=0),
    ):
        with pytest.raises(ValueError, match="keeps a part of the signal, but each token of VQGAN describes all of it"):
            edit()
    assert generate(pipe, 0, seeds=[0])[0].size == (32, 32)
