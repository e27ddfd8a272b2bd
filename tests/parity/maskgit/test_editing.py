"""The official class-conditional editing: which tokens are masked, and how the result is blended.

Shapes: h w token grid; fixture keys are ``SIZE/box_TOP_LEFT_HEIGHT_WIDTH/NAME``.
"""

import functools
import math

import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.tasks.image.class_swap import swap_alpha, swap_class, swap_token_mask
from maskgen.tasks.image.generation import generate
from maskgen.tasks.image.paste import Box
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from tests.parity.support import files, load, metadata


@functools.cache
def fixtures() -> dict[str, Tensor]:
    return {
        f"{path.name}:{key}": value
        for path in files("maskgit", "editing_helpers*")
        for key, value in load(path).items()
    }


def keys(name: str) -> list[str]:
    found = [key for key in fixtures() if key.endswith(f"/{name}") and "box_" in key]
    assert found
    return found


def box_of(key: str) -> tuple[int, Box]:
    """The size and the box that stand in a key."""
    size, box, _ = key.split(":")[1].split("/")
    top, left, height, width = (int(number) for number in box.removeprefix("box_").split("_"))
    return int(size), (top, left, height, width)


def stride_of(file: str) -> int:
    """Pixels a token: the recorded grids tell, at whatever size."""
    (stride,) = {box_of(key)[0] // len(fixtures()[key]) for key in keys("latent_mask") if key.startswith(f"{file}:")}
    return stride


def codes_of(file: str) -> int:
    """Size of the codebook: what the row of a class stands behind its label."""
    rows, labels = (fixtures()[f"{file}:normal/{name}"] for name in ("input_tokens", "label_tokens_in"))
    (codes,) = set((rows[:, 0] - labels.flatten()).tolist())
    return codes


def mask_of(key: str) -> tuple[Tensor, int]:
    """Our mask for the size and box that stand in a key."""
    size, box = box_of(key)
    cells = size // stride_of(key.split(":")[0])
    return swap_token_mask(box, (size, size), (cells, cells)), size


@pytest.mark.parametrize("key", keys("latent_mask"))
def test_latent_mask(key: str) -> None:
    assert torch.equal(mask_of(key)[0], fixtures()[key].bool())


@pytest.mark.parametrize("key", keys("input_tokens"))
def test_input_tokens(key: str) -> None:
    file = key.split(":")[0]
    label = metadata(next(path for path in files("maskgit", file)))["label"]
    mask, size = mask_of(key)
    image_tokens = fixtures()[f"{file}:{size}/image_tokens"]
    ours = torch.where(mask, -1, image_tokens).flatten(1)
    ours = torch.cat((torch.full((len(ours), 1), codes_of(file) + label), ours), dim=1)
    assert torch.equal(ours.int(), fixtures()[key])


@pytest.mark.parametrize("key", keys("composite_alpha"))
def test_composite_alpha(key: str) -> None:
    mask, size = mask_of(key)
    alpha = swap_alpha(mask, (size, size))
    # Another PIL may round its resize or blur differently by one grey level.
    made_with = str(metadata(next(path for path in files("maskgit", key.split(":")[0])))["pillow"])
    tolerance = 1e-7 if made_with == PIL.__version__ else 1.01 / 255
    torch.testing.assert_close(alpha, fixtures()[key], atol=tolerance, rtol=0)


def bert_pipeline(file: str, size: int, seen: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The official layout of the embedding table; ``seen`` gets the rows that enter the transformer."""
    stride, codes = stride_of(file), codes_of(file)
    axes = (size // stride, size // stride)
    model = BertTransformer(BertConfig(vocab_size=codes, axes=axes, width=8, heads=1, layers=1, mlp_width=8))
    embed = model.embed

    def spy(ids: Tensor) -> Tensor:
        seen.append(torch.where(ids == model.mask_row, -1, ids).int())
        return embed(ids)

    monkeypatch.setattr(model, "embed", spy)
    tokenizer = ToyTokenizer(ToyTokenizerConfig(levels=codes, patch=stride))
    return Pipeline(tokenizer, model, PipelineConfig(signal_size=(size, size)), device="cpu")


@pytest.mark.parametrize("key", [key for key in fixtures() if key.endswith("normal/input_tokens")])
def test_generation_starts_as_officially(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, labels = fixtures()[key], fixtures()[key.replace("input_tokens", "label_tokens_in")]
    file, seen = key.split(":")[0], []
    pipe = bert_pipeline(file, math.isqrt(expected.shape[1] - 1) * stride_of(file), seen, monkeypatch)
    labels = labels.flatten().expand(len(expected))
    for label in labels.unique().tolist():
        rows = expected[labels == label]
        seen.clear()
        generate(pipe, label, seeds=range(len(rows)), steps=1)
        # Equal rows go through the transformer once.
        assert torch.equal(seen[0].expand_as(rows), rows)


def inside(key: str) -> bool:
    """Whether the box of a key lies in the picture; ours refuses the others, which the official helper cuts."""
    size, (top, left, height, width) = box_of(key)
    return top + height <= size and left + width <= size


@pytest.mark.parametrize("key", [key for key in keys("input_tokens") if inside(key)])
def test_swapping_starts_as_officially(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, (size, box) = key.split(":")[0], box_of(key)
    (path,) = files("maskgit", file)
    seen: list[Tensor] = []
    pipe = bert_pipeline(file, size, seen, monkeypatch)
    steps: list[tuple[int, int]] = []
    for row, tokens in enumerate(fixtures()[f"{file}:{size}/image_tokens"].long()):
        monkeypatch.setattr(pipe.tokenizer, "encode", lambda _, tokens=tokens: tokens.reshape(1, -1, 1))
        picture = Image.new("RGB", (size, size), "gray")
        swap_class(
            pipe,
            picture,
            box=box,
            label=metadata(path)["label"],
            callback=lambda step: steps.append((step.step, step.steps)),
        )
        assert torch.equal(seen[0][0], fixtures()[key][row])
        assert steps == [(step, 12) for step in range(2, 12)]
        seen.clear()
        steps.clear()


def test_every_key_is_compared() -> None:
    known = ("latent_mask", "input_tokens", "composite_alpha", "image_tokens", "label_tokens_in")
    assert [key for key in fixtures() if not key.endswith(known)] == []
    assert len(keys("latent_mask")) == len(keys("input_tokens"))
