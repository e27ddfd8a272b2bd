"""Outpainting: the original stays, any side and amount works, windows slide until nothing is hidden."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskgen.conditioning import Cond
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.image.outpainting import extend_tokens, outpaint
from maskgen.tasks.media.images import to_images
from maskgen.tasks.pipeline import Pipeline
from tests.support import OracleTransformer, oracle_pipeline, tiny_pipeline, toy_pipeline

REQUEST = Request(cond=Cond(labels=torch.tensor([1])), seeds=[0], sampling=Sampling(steps=1))
PIPE, WIDE = tiny_pipeline(), tiny_pipeline((32, 48))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def inner(result: Image.Image, original: Image.Image, left: int, top: int) -> Image.Image:
    return result.crop((left, top, left + original.width, top + original.height))


amounts = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 40))


@settings(max_examples=30)
@given(
    height=st.integers(2, 60),
    width=st.integers(2, 60),
    pads=st.tuples(amounts, amounts, amounts, amounts).filter(any),
    wide=st.booleans(),
)
def test_the_original_stays(height: int, width: int, pads: tuple[int, int, int, int], wide: bool) -> None:
    left, right, top, bottom = pads
    aspect = max((height + top + bottom) / height, (width + left + right) / width) * max(height / width, width / height)
    if aspect > 10:
        return  # very long canvases have their own test
    original = picture(height, width)
    (result,) = outpaint(
        WIDE if wide else PIPE, original, label=1, left=left, right=right, top=top, bottom=bottom, steps=1
    )
    assert result.size == (width + left + right, height + top + bottom)
    assert same(inner(result, original, left, top), original)


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
@pytest.mark.parametrize("amount", [1, 4, 5, 32, 70])
def test_a_model_that_knows_one_grey(side: str, amount: int) -> None:
    pipe = oracle_pipeline(torch.full((64, 1), 3))
    grey = to_images(pipe.decode(torch.full((1, 64, 1), 3)))[0]
    (result,) = outpaint(pipe, grey, label=1, **{side: amount})  # type: ignore[arg-type]
    assert result.size == ((16 + amount, 16) if side in ("left", "right") else (16, 16 + amount))
    assert (np.asarray(result) == np.asarray(grey)[0, 0]).all()


def test_new_pixels_are_the_models() -> None:
    pipe = oracle_pipeline(torch.full((64, 1), 7))  # white
    (result,) = outpaint(pipe, Image.new("RGB", (16, 16)), label=1, right=20, bottom=3)
    values = np.asarray(result)[..., 0]
    assert (values[:16, :16] == 0).all()
    # One pixel, half a token, fades from the original's edge; beyond it the model's white stands alone.
    assert (values[:16, 16] > 0).all()
    assert (values[:16, 16] < 255).all()
    assert (values[:, 17:] == 255).all()
    assert (values[17:] == 255).all()


def test_a_panorama_three_times_as_wide() -> None:
    seen: list[int] = []

    def callback(step: SampleStep) -> None:
        seen.append(int(step.mask.sum()))

    original = picture(32, 32)
    (result,) = outpaint(PIPE, original, label=1, right=64, steps=2, callback=callback)
    assert result.size == (96, 32)
    assert same(inner(result, original, 0, 0), original)
    assert np.asarray(result)[:, 40:].std() > 5  # it is not just the edge, drawn out
    assert len(seen) == 4 * 2  # four windows, half a window each
    left = outpaint(PIPE, original, label=1, left=32, right=32)[0]
    assert same(inner(left, original, 32, 0), original)
    corner = outpaint(PIPE, original, label=1, left=16, top=48, right=1)[0]
    assert same(inner(corner, original, 16, 48), original)


def test_items_depend_on_seed_and_label_alone() -> None:
    original = picture(32, 40)
    together = outpaint(PIPE, original, label=[1, 2, 1], seeds=[7, 7, 8], right=30, top=9)
    for label, seed, result in zip([1, 2, 1], [7, 7, 8], together, strict=True):
        assert same(outpaint(PIPE, original, label=label, seeds=[seed], right=30, top=9)[0], result)
    assert not same(together[0], together[1])
    assert not same(together[0], together[2])
    assert len(outpaint(PIPE, original, right=3, seeds=[0, 1])) == 2  # without a class


def test_large_and_small_pictures() -> None:
    for height, width in ((300, 200), (5, 7), (2, 19), (200, 31)):
        original = picture(height, width)
        (result,) = outpaint(PIPE, original, label=1, right=width // 2 + 1, bottom=1, steps=1)
        assert same(inner(result, original, 0, 0), original)


@pytest.mark.parametrize("pads", [(7, 0, 0, 0), (0, 7, 0, 0), (3, 40, 9, 1), (0, 0, 1, 50)])
@pytest.mark.parametrize("size", [(16, 16), (40, 40), (40, 52), (61, 40), (9, 12)])
def test_what_the_model_saw_comes_back_to_its_place(
    size: tuple[int, int], pads: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, (left, right, top, bottom) = toy_pipeline(levels=256, patch=2), pads
    y, x = np.mgrid[: size[0], : size[1]]
    slopes = np.rint(y / size[0] * 100 + x / size[1] * 150).astype(np.uint8)
    original = Image.fromarray(slopes).convert("RGB")
    shown: list[Image.Image] = []
    monkeypatch.setattr(
        "maskgen.tasks.media.originals.Original.paste", lambda _, repainted, __: shown.append(repainted)
    )
    outpaint(pipe, original, label=1, left=left, right=right, top=top, bottom=bottom, steps=1)
    away = np.asarray(inner(shown[0], original, left, top)).astype(int) - slopes[..., None]
    middle = away[size[0] // 3 : -size[0] // 3, size[1] // 3 : -size[1] // 3]
    # A token is an eighth of the picture, 12 and 19 levels: it shows steps of half that, but no shift on average.
    assert np.abs(middle).max() <= 18
    assert abs(middle.mean()) < 3


@pytest.mark.parametrize(
    ("width", "pads", "hidden"),
    [
        (17, {"right": 4}, [24]),  # 17 pixels are 8 tokens and a half: that ninth token and two more columns
        # 17 of the model's pixels wide, with nothing new to the right: the half token is the picture's.
        (21, {"bottom": 4}, [16, 2, 8, 1]),
        (17, {"left": 1}, [8]),
    ],
)
def test_a_token_at_the_edge(width: int, pads: dict[str, int], hidden: list[int]) -> None:
    pipe = oracle_pipeline(torch.zeros(64, 1, dtype=torch.long))
    model = pipe.transformer
    assert isinstance(model, OracleTransformer)
    outpaint(pipe, picture(16, width), label=1, steps=1, **pads)  # type: ignore[arg-type]
    assert [int((seen == 8).sum()) for seen in model.seen] == hidden


@pytest.mark.parametrize(
    ("size", "pads", "calls"),
    [
        ((16, 8), {"right": 8}, 1),  # half a picture, made whole: the model sees it at the scale it knows
        ((16, 16), {"left": 2, "right": 2, "top": 2, "bottom": 2}, 1),  # a frame: all of it in one window
        ((16, 16), {"left": 32, "right": 32, "top": 32, "bottom": 32}, 16),  # never below half scale: windows slide
    ],
)
def test_the_widened_picture_sets_the_scale(size: tuple[int, int], pads: dict[str, int], calls: int) -> None:
    pipe = oracle_pipeline(torch.zeros(64, 1, dtype=torch.long))
    model = pipe.transformer
    assert isinstance(model, OracleTransformer)
    outpaint(pipe, picture(*size), label=1, steps=1, **pads)  # type: ignore[arg-type]
    assert len(model.seen) == calls


def test_every_window_has_its_own_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, drawn = toy_pipeline(), []
    fill = pipe.fill

    def spy(tokens: torch.Tensor, mask: torch.Tensor, request: Request) -> torch.Tensor:
        drawn.extend(request.seeds)
        return fill(tokens, mask, request)

    monkeypatch.setattr(pipe, "fill", spy)
    outpaint(pipe, picture(16, 16), label=1, seeds=[0, 1], right=16, bottom=8)
    assert len(drawn) > 6
    assert len(set(drawn)) == len(drawn)


def strip(pipe: Pipeline, columns: int, given: slice) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(8, (1, 8, columns, 1), generator=torch.Generator().manual_seed(0))
    masked = torch.ones(8, columns, dtype=torch.bool)
    masked[:, given] = False
    return tokens, masked


@pytest.mark.parametrize(("overlap", "windows"), [(0.0, 2), (0.5, 4), (0.75, 8), (0.9, 16)])
def test_overlap_sets_the_number_of_windows(overlap: float, windows: int) -> None:
    pipe = oracle_pipeline(torch.arange(64)[:, None] % 8)
    model = pipe.transformer
    assert isinstance(model, OracleTransformer)
    tokens, masked = strip(pipe, 24, slice(0, 8))
    result = extend_tokens(pipe, tokens, masked, REQUEST, overlap=overlap)
    assert len(model.seen) == windows
    assert torch.equal(result[:, :, :8], tokens[:, :, :8])
    assert int(result.max()) < 8
    # Each window sees what stood before it.
    for seen in model.seen:
        assert int((seen == 8).sum()) == 128 // windows


def test_a_canvas_without_masked_tokens_comes_back() -> None:
    pipe = oracle_pipeline(torch.zeros(64, 1, dtype=torch.long))
    tokens, masked = strip(pipe, 9, slice(None))
    assert torch.equal(extend_tokens(pipe, tokens, masked, REQUEST), tokens)
    with pytest.raises(ValueError, match=r"overlap: got 1, expected 0 or more and below 1"):
        extend_tokens(pipe, tokens, masked, REQUEST, overlap=1)
    with pytest.raises(ValueError, match=r"mask: got \(8, 5\) for tokens .* at least \(8, 8\)"):
        extend_tokens(pipe, tokens[:, :, :5], masked[:, :5], REQUEST)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"right": 0}, ValueError, "outpaint: nothing to add: left, right, top and bottom are all 0"),
        ({"left": -1}, ValueError, "left: got -1, expected a whole number of 0 or more"),
        ({"top": 1.5}, TypeError, r"top: got 1\.5, expected a whole number"),
        ({"right": 2000}, ValueError, "outpaint: got 30 x 20 pixels to widen to 2030 x 20; expected at most"),
        ({"bottom": 10**12}, ValueError, "expected at most"),
        ({"label": 11}, ValueError, "label: got 11"),
        ({"label": [1, 2], "seeds": [1, 2, 3]}, ValueError, "got 2 labels, 3 seeds"),
        ({"image": "nowhere.png"}, FileNotFoundError, r"nowhere\.png: no such file"),
        ({"steps": 0}, ValueError, "steps: got 0"),
    ],
)
def test_mistakes(changes: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments = {"image": picture(20, 30), "right": 3, "label": 1} | changes
    with pytest.raises(kind, match=message):
        outpaint(toy_pipeline(), **arguments)  # type: ignore[arg-type]
