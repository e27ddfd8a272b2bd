"""A tiny model in the official layout: its files, and its place in the catalog."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import maskgen.tasks.published.download
from maskgen.models.bert import BertConfig
from maskgen.published import maskgit
from maskgen.tasks.published import catalog
from maskgen.tasks.published.catalog import CATALOG
from maskgen.tasks.published.entries.base import Published, Weights
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.published import flax_names
from maskgen.tokenizers.published.image import maskgit as tokenizers
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from tests.flax_files import nested, write_flax

NAME = "tiny-maskgit"
TRANSFORMER = BertConfig(vocab_size=64, num_classes=1000, axes=(4, 4), width=32, layers=2, heads=2, mlp_width=64)
WIDE = BertConfig(vocab_size=64, num_classes=1000, axes=(8, 8), width=32, layers=2, heads=2, mlp_width=64)
TOKENIZER = VQGANConfig(
    channels=32, multipliers=(1, 1), res_blocks=1, quantizer=QuantizerConfig(codebook_size=64, dim=8)
)


def official_transformer(config: BertConfig) -> dict[str, Tensor]:
    """Random weights with the names and layouts of the official file."""
    sizes = {
        "R": config.vocab_size + config.num_classes + 1,
        "P": 1 + config.axes[0] * config.axes[1],
        "D": config.width,
        "H": config.heads,
        "W": config.width // config.heads,
        "M": config.mlp_width,
    }
    return {
        f"params/{name}": torch.randn([sizes[letter] for letter in axes]) * 0.1
        for name, (_, axes) in maskgit._names(config.layers).items()
    }


def official_tokenizer(config: VQGANConfig) -> dict[str, Tensor]:
    model = VQGAN(config)
    modules = flax_names.network_modules(len(config.multipliers) - 1, (config.res_blocks,) * 2)
    state = {}
    for key, tensor in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        owner = model.get_submodule(module)
        names = {"weight": "scale" if isinstance(owner, torch.nn.GroupNorm) else "kernel"}
        state[f"params/{modules[module]}/{names.get(leaf, leaf)}"] = (
            flax_names._to_flax(tensor, owner, True).contiguous() if leaf == "weight" else tensor
        )
    return state


def write(folder: Path) -> dict[str, Path]:
    """Both files of the tiny model, and a transformer for twice the size."""
    torch.manual_seed(0)
    found = {name: folder / name for name in ("tokenizer", "transformer", "wide")}
    write_flax(found["tokenizer"], nested(official_tokenizer(TOKENIZER)))
    write_flax(found["transformer"], nested(official_transformer(TRANSFORMER)))
    write_flax(found["wide"], nested(official_transformer(WIDE)))
    return found


def entry(name: str, size: int, address: str = "http://127.0.0.1:9") -> Published:
    return Published(
        name=name,
        tokenizer=Weights(family="maskgit-tokenizer", sizes=name, url=f"{address}/tokenizer"),
        transformer=Weights(family="maskgit-transformer", sizes=name, url=f"{address}/transformer"),
        licence="none",
        signal_size=(size, size),
        class_names="imagenet",
        sampling=CATALOG["maskgit-imagenet512"].sampling,
    )


def put_into_catalog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tiny model in the catalog, a cache of its own, and no waiting."""
    monkeypatch.setitem(maskgit.PUBLISHED, NAME, TRANSFORMER)
    monkeypatch.setitem(maskgit.PUBLISHED, "tiny-wide", WIDE)
    monkeypatch.setitem(tokenizers.PUBLISHED, NAME, TOKENIZER)
    monkeypatch.setitem(tokenizers.PUBLISHED, "tiny-wide", TOKENIZER)
    monkeypatch.setitem(catalog.CATALOG, NAME, entry(NAME, 8))
    monkeypatch.setitem(catalog.CATALOG, "tiny-wide", entry("tiny-wide", 16))
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(maskgen.tasks.published.download, "_PAUSE", 0.0)


def shapes(config: BertConfig) -> dict[str, list[int]]:
    with torch.device("meta"):
        return {name: list(tensor.shape) for name, tensor in official_transformer(config).items()}
