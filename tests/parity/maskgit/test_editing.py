"""The official class-conditional editing: which tokens are masked, and how the result is blended.

Shapes: h w token grid; fixture keys are ``SIZE/box_TOP_LEFT_HEIGHT_WIDTH/NAME``.
"""

import functools

import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.tasks.image.class_swap import swap_alpha, swap_class, swap_token_mask
from maskgen.tasks.image.generation import generate
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from tests.parity.support import files, load, metadata

STRIDE, CODES = 16, 1024


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


def mask_of(key: str) -> tuple[Tensor, int]:
    """Our mask for the size and box that stand in a key."""
    _, rest = key.split(":")
    size_text, box_text, _ = rest.split("/")
    top, left, height, width = (int(number) for number in box_text.removeprefix("box_").split("_"))
    size = int(size_text)
    return swap_token_mask((top, left, height, width), (size, size), (size // STRIDE, size // STRIDE)), size


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
    ours = torch.cat((torch.full((len(ours), 1), CODES + label), ours), dim=1)
    assert torch.equal(ours.int(), fixtures()[key])


@pytest.mark.parametrize("key", keys("composite_alpha"))
def test_composite_alpha(key: str) -> None:
    mask, size = mask_of(key)
    alpha = swap_alpha(mask, (size, size))
    # Another PIL may round its resize or blur differently by one grey level.
    made_with = str(metadata(next(path for path in files("maskgit", key.split(":")[0])))["pillow"])
    tolerance = 1e-7 if made_with == PIL.__version__ else 1.01 / 255
    torch.testing.assert_close(alpha, fixtures()[key], atol=tolerance, rtol=0)


def bert_pipeline(size: int, seen: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The official layout of the embedding table; ``seen`` gets the rows that enter the transformer."""
    axes = (size // STRIDE, size // STRIDE)
    model = BertTransformer(BertConfig(axes=axes, width=8, heads=1, layers=1, mlp_width=8))
    embed = model.embed

    def spy(ids: Tensor) -> Tensor:
        seen.append(torch.where(ids == model.mask_row, -1, ids).int())
        return embed(ids)

    monkeypatch.setattr(model, "embed", spy)
    tokenizer = ToyTokenizer(ToyTokenizerConfig(levels=CODES, patch=STRIDE))
    return Pipeline(tokenizer, model, PipelineConfig(signal_size=(size, size)), device="cpu")


@pytest.mark.parametrize("key", [key for key in fixtures() if key.endswith("normal/input_tokens")])
def test_generation_starts_as_officially(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, labels = fixtures()[key], fixtures()[key.replace("input_tokens", "label_tokens_in")]
    seen: list[Tensor] = []
    generate(bert_pipeline(256, seen, monkeypatch), int(labels), seeds=range(len(expected)), steps=1)
    # Equal rows go through the transformer once.
    assert torch.equal(seen[0].expand_as(expected), expected)


@pytest.mark.parametrize("size", [256, 512])
def test_swapping_starts_as_officially(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = files("maskgit", "editing_helpers.safetensors")
    image_tokens, box = fixtures()[f"{path.name}:{size}/image_tokens"].long(), (17, 31, 33, 63)
    seen: list[Tensor] = []
    pipe = bert_pipeline(size, seen, monkeypatch)
    steps: list[tuple[int, int]] = []
    for row, tokens in enumerate(image_tokens):
        monkeypatch.setattr(pipe.tokenizer, "encode", lambda _, tokens=tokens: tokens.reshape(1, -1, 1))
        picture = Image.new("RGB", (size, size), "gray")
        swap_class(
            pipe,
            picture,
            box=box,
            label=metadata(path)["label"],
            callback=lambda step: steps.append((step.step, step.steps)),
        )
        assert torch.equal(seen[0][0], fixtures()[f"{path.name}:{size}/box_17_31_33_63/input_tokens"][row])
        assert steps == [(step, 12) for step in range(2, 12)]
        seen.clear()
        steps.clear()


def test_every_key_is_compared() -> None:
    known = ("latent_mask", "input_tokens", "composite_alpha", "image_tokens", "label_tokens_in")
    assert [key for key in fixtures() if not key.endswith(known)] == []
    assert len(keys("latent_mask")) == len(keys("input_tokens"))
