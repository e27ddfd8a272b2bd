"""Open-MAGVIT2 and IBQ through the catalog: sizes, which copy of the weights, and families that share their names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.checkpoint import load_module
from maskgen.tasks.published.catalog import CATALOG
from maskgen.tasks.published.convert import convert_files
from maskgen.tasks.published.entries.base import Published
from maskgen.tasks.published.entries.families import looks_like
from maskgen.tasks.published.entries.seed_voken import SEED_VOKEN
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2ImageConfig, Magvit2Video, Magvit2VideoConfig
from maskgen.tokenizers.published.image import ibq
from maskgen.tokenizers.published.image.ibq import IBQConfig, IBQTokenizer
from maskgen.tokenizers.published.video import open_magvit2 as magvit2
from tests.parity.support import files

SMALL: dict[str, Any] = {"channels": 32, "multipliers": (1, 2, 1), "res_blocks": 1, "token_bits": (3, 3)}
SIZES = {
    "image_128_262144": {"open-magvit2-128"},
    "image_256_262144": {"open-magvit2-256", "open-magvit2-pretrain-18bit"},
    "image_pretrain256_16384": {"open-magvit2-pretrain-14bit"},
    "video_128_262144": {"open-magvit2-video"},
    "ibq_256_16384": {"ibq-16384"},
}


def checkpoint(kind: str) -> dict[str, Tensor]:
    """A Lightning state dict, its averaged weights one more than the others."""
    if kind == "ibq":
        small = IBQConfig(
            channels=32,
            multipliers=(1, 2),
            res_blocks=1,
            latent_channels=6,
            code_dim=5,
            codebook_size=24,
            attention_levels=(1,),
        )
        plain = {ibq.NAMES.official(name, 2): value for name, value in IBQTokenizer(small).state_dict().items()}
    else:
        video = Magvit2VideoConfig(**SMALL, strides=((1, 2, 2), (2, 2, 2)))
        model = Magvit2Video(video) if kind == "video" else Magvit2Image(Magvit2ImageConfig(**SMALL))
        plain = {
            magvit2.official_name(name, video=kind == "video"): value for name, value in model.state_dict().items()
        }
    averaged = {"model_ema." + name.replace(".", ""): value + 1 for name, value in plain.items()}
    return plain | averaged | {"loss.discriminator.main.0.weight": torch.zeros(3)}


@pytest.mark.parametrize("entry", SEED_VOKEN, ids=lambda entry: entry.name)
def test_counts(entry: Published) -> None:
    assert entry.tokenizer is not None
    weights = entry.tokenizer
    model = weights.kind.empty(weights.kind.published(weights.sizes))
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == weights.parameters
    assert model.modality == entry.modality
    grid = (5, 16, 16) if entry.modality == "video" else (16, 16)
    assert model.axes((1, 3, *entry.signal_size)) == grid


def test_official_layouts() -> None:
    told = {path.stem.removeprefix("full_shapes_"): path for path in files("magvit2", "full_shapes_*.json")}
    assert told.keys() == SIZES.keys()
    for name, path in told.items():
        layout = json.loads(path.read_text(encoding="utf-8"))["state_dict"]
        state = {key: torch.empty(shape, device="meta") for key, shape in layout.items()}
        for entry in SIZES[name]:
            weights = CATALOG[entry].tokenizer
            assert weights is not None
            weights.kind.convert(state, weights.kind.published(weights.sizes))
            # IBQ has the names of CompVis's VQGAN.
            assert looks_like(state) == {"ibq": "taming"}.get(weights.family, weights.family)


@pytest.mark.parametrize(
    ("kind", "name"), [("image", "open-magvit2-256"), ("video", "open-magvit2-video"), ("ibq", "ibq-16384")]
)
def test_the_averaged_copy_unless_told_otherwise(kind: str, name: str, tmp_path: Path) -> None:
    state = checkpoint(kind)
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "last.ckpt")
    for ema, more in ((None, 1), (True, 1), (False, 0)):
        out = tmp_path / str(ema)
        convert_files(name, out, tokenizer=tmp_path / "last.ckpt", any_size=True, ema=ema)
        found = load_module(out, Tokenizer).state_dict()["decoder.norm_out.bias"]  # type: ignore[type-abstract]
        assert torch.equal(found, state["decoder.norm_out.bias"] + more)


def test_who_is_sent_where(tmp_path: Path) -> None:
    for kind in ("image", "video"):
        torch.save({"state_dict": checkpoint(kind)}, tmp_path / f"{kind}.ckpt")
    for name, file, message in (
        ("open-magvit2-128", "video", "looks like an Open-MAGVIT2 video tokenizer; .* --family open-magvit2-video"),
        ("open-magvit2-video", "image", "looks like an Open-MAGVIT2 image tokenizer; .*open-magvit2-256"),
        ("vqgan-imagenet-f16-1024", "image", "looks like an Open-MAGVIT2 image tokenizer"),
        ("open-magvit2-256", "image", "sizes that open-magvit2-256 has not .*token_bits"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_files(name, tmp_path / "out", tokenizer=tmp_path / f"{file}.ckpt")
