"""The families of published weights: where their names are mapped to ours, and how to tell one from another.

A family is a layout of names. Its module has ``config_from(state)``, ``convert(state, config)`` and ``PUBLISHED``, the sizes
of each published model, or a ``reader`` where files tell more than names and shapes do. Modules are named here and imported
only when they are used.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["FAMILIES", "Family", "Part", "load_name", "looks_like"]

Part = Literal["tokenizer", "transformer"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One layout of published weights.

    Attributes:
        title: how people know it.
        part: what it becomes.
        module: import path of its key map.
        build: ``module:class`` of our model.
        marks: pattern of names that no family after it has.
        reader: for files or folders that tell their own settings, ``module:function`` from a path to our config and state
            dict; ``module`` then needs ``PUBLISHED`` alone, if anything was.
    """

    title: str
    part: Part
    module: str
    build: str
    marks: str
    reader: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """Everything that is imported when the family is used, as ``module:name``."""
        if self.reader:
            return (self.build, self.reader)
        return (self.build, *(f"{self.module}:{name}" for name in ("config_from", "convert", "PUBLISHED")))

    def model(self) -> type[nn.Module]:
        """Our class, built from one config."""
        found: type[nn.Module] = load_name(self.build)
        return found

    def empty(self, config: Any) -> nn.Module:
        """Our model of that config without memory, for its names, shapes and properties."""
        with torch.device("meta"), _NoNumbers():
            return self.model()(config)

    def convert(self, state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """Official names to ours; see the module."""
        function: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]] = load_name(f"{self.module}:convert")
        return function(state, config)

    def config_from(self, state: Mapping[str, Tensor], **known: Any) -> Any:
        """Sizes that weights show; see the module."""
        return load_name(f"{self.module}:config_from")(state, **known)

    def published(self, name: str) -> Any:
        """Sizes of a published model."""
        return load_name(f"{self.module}:PUBLISHED")[name]


class _NoNumbers(TorchFunctionMode):
    """Leaves out what would fill tensors that have no memory; torch loads 120 MB of libraries to do nothing there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("tensor")
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and isinstance(first, Tensor) and first.is_meta:
            return first
        return torch.empty(*args, **kwargs) if func in (torch.zeros, torch.ones) else func(*args, **kwargs)


def load_name(path: str) -> Any:
    """The object at ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def looks_like(names: Iterable[str]) -> str | None:
    """The family (a key of ``FAMILIES``) that weights of these names belong to; None if it is none known here."""
    listed = list(names)
    return next((key for key, family in FAMILIES.items() if any(re.match(family.marks, name) for name in listed)), None)


_TOKENIZERS = "maskgen.tokenizers.published"

_TRANSFORMERS = "maskgen.published"


# IBQ's network is CompVis's, name for name: only who asks knows which quantizer the weights belong to.
_TAMING_MARKS = r"(encoder|decoder)\.mid\.(block|attn)_\d\."

FAMILIES: dict[str, Family] = {
    "maskgit-tokenizer": Family(
        title="a MaskGIT tokenizer (flax)",
        part="tokenizer",
        module=f"{_TOKENIZERS}.image.maskgit",
        build="maskgen.tokenizers.image.vqgan:VQGAN",
        marks=r"(params/)?((encoder|decoder)/(Conv|ResBlock|GroupNorm)_\d+/|quantizer/codebook$)",
    ),
    "maskgit-transformer": Family(
        title="a MaskGIT transformer (flax)",
        part="transformer",
        module=f"{_TRANSFORMERS}.maskgit",
        build="maskgen.models.bert:BertTransformer",
        marks=r"(params/)?(Embed_0|MlmLayer_0|TransformerLayer_\d+)/",
    ),
    "open-magvit2-video": Family(
        title="an Open-MAGVIT2 video tokenizer",
        part="tokenizer",
        module=f"{_TOKENIZERS}.video.open_magvit2",
        build="maskgen.tokenizers.magvit2.tokenizer:Magvit2Video",
        marks=r"(encoder|decoder)\.conv_(in|out)\.conv_1\.",
    ),
    "open-magvit2-image": Family(
        title="an Open-MAGVIT2 image tokenizer",
        part="tokenizer",
        module=f"{_TOKENIZERS}.video.open_magvit2",
        build="maskgen.tokenizers.magvit2.tokenizer:Magvit2Image",
        # Its other names are those of the PyTorch port, which stands after it.
        marks=r"decoder\.adaptive\.\d+\.(gamma|beta)\.",
    ),
    "taming": Family(
        title="a CompVis taming-transformers VQGAN",
        part="tokenizer",
        module=f"{_TOKENIZERS}.image.taming",
        build=f"{_TOKENIZERS}.image.taming:TamingVQGAN",
        marks=_TAMING_MARKS,
    ),
    "ibq": Family(
        title="an IBQ tokenizer",
        part="tokenizer",
        module=f"{_TOKENIZERS}.image.ibq",
        build=f"{_TOKENIZERS}.image.ibq:IBQTokenizer",
        marks=_TAMING_MARKS,
    ),
    "llamagen": Family(
        title="a LlamaGen tokenizer",
        part="tokenizer",
        module=f"{_TOKENIZERS}.image.llamagen",
        build=f"{_TOKENIZERS}.image.llamagen:LlamaGenVQ",
        marks=r"(encoder|decoder)\.conv_blocks\.",
    ),
    "maskgit-torch": Family(
        title="the PyTorch port of the MaskGIT tokenizer",
        part="tokenizer",
        module=f"{_TOKENIZERS}.image.maskgit_torch",
        build="maskgen.tokenizers.image.vqgan:VQGAN",
        # Its two relatives share some of these names and stand before it.
        marks=r"(encoder|decoder)\.((down|up)\.\d+\.block|mid\.\d+)\.",
    ),
    "maskbit-tokenizer": Family(
        title="a MaskBit tokenizer",
        part="tokenizer",
        module=f"{_TOKENIZERS}.image.maskbit",
        build=f"{_TOKENIZERS}.image.maskbit:MaskBitTokenizer",
        marks=r"(encoder|decoder)\.(down|up|mid)\.(\d+\.)?res_blocks\.",
    ),
    "amused-tokenizer": Family(
        title="the aMUSEd tokenizer (diffusers VQModel)",
        part="tokenizer",
        module=f"{_TOKENIZERS}.image.amused",
        build=f"{_TOKENIZERS}.image.amused:AmusedVQ",
        marks=r"(encoder\.down|decoder\.up)_blocks\.",
    ),
    "halton": Family(
        title="a Halton-MaskGIT transformer",
        part="transformer",
        module=f"{_TRANSFORMERS}.halton.transformer",
        build=f"{_TRANSFORMERS}.halton.transformer:HaltonTransformer",
        marks=r"(cls_emb|reg_tokens)\.weight$|transformer\.layers\.\d+\.(attn\.w|ff\.w|mlp\.1|ln)",
    ),
    "imagebert": Family(
        title="an ImageBert transformer of 1d-tokenizer (TiTok)",
        part="transformer",
        module=f"{_TRANSFORMERS}.onedtok.imagebert",
        build=f"{_TRANSFORMERS}.onedtok.imagebert:ImageBert",
        marks=r"model\.(embeddings\.word_embeddings|encoder\.layer\.\d+|lm_head)\.",
    ),
    "uvitbert": Family(
        title="a UViTBert transformer of 1d-tokenizer (TiTok)",
        part="transformer",
        module=f"{_TRANSFORMERS}.onedtok.uvitbert",
        build=f"{_TRANSFORMERS}.onedtok.uvitbert:UViTBert",
        marks=r"(in|out)_blocks\.\d+\.|mid_block\.(attn|mlp)\.",
    ),
    "maskbit-transformer": Family(
        title="a MaskBit transformer",
        part="transformer",
        module=f"{_TRANSFORMERS}.maskbit.transformer",
        build=f"{_TRANSFORMERS}.maskbit.transformer:MaskBitTransformer",
        marks=r"transformer\.layers\.\d+\.\d+\.|(prediction_layer|input_proj|token_emb|class_emb)\.|tok_emb_list\.",
    ),
    "amused-transformer": Family(
        title="an aMUSEd transformer (diffusers UVit2DModel)",
        part="transformer",
        module=f"{_TRANSFORMERS}.amused.transformer",
        build=f"{_TRANSFORMERS}.amused.transformer:UVit2D",
        marks=r"(down_block|up_block)\.(res|attention)_blocks\.|transformer_layers\.\d+\.",
    ),
    "lac": Family(
        title="VampNet's codec (LAC)",
        part="tokenizer",
        module=f"{_TOKENIZERS}.audio.lac",
        build=f"{_TOKENIZERS}.audio.lac:LACTokenizer",
        # It shares the other names with DAC.
        marks=r"decoder\.model\.\d+\.block\.\d+\.mrf_blocks\.",
        reader=f"{_TOKENIZERS}.audio.lac:lac_from_file",
    ),
    "dac": Family(
        title="a Descript Audio Codec",
        part="tokenizer",
        module=f"{_TOKENIZERS}.audio.dac",
        build=f"{_TOKENIZERS}.audio.dac:DACTokenizer",
        marks=r"encoder\.block\.\d+\.(block\.\d+|res_unit\d|snake\d|conv\d)\.|decoder\.block\.\d+\.(conv_t\d|res_unit\d)\.",
        reader=f"{_TOKENIZERS}.audio.dac:dac_from_files",
    ),
    "encodec": Family(
        title="an EnCodec",
        part="tokenizer",
        module=f"{_TOKENIZERS}.audio.encodec_files",
        build=f"{_TOKENIZERS}.audio.encodec:EncodecTokenizer",
        marks=r"(encoder|decoder)\.(model|layers)\.\d+\.(conv|convtr|lstm|shortcut|block\.\d+\.conv)\.",
        reader=f"{_TOKENIZERS}.audio.encodec_files:encodec_from_files",
    ),
    "vampnet": Family(
        title="a VampNet transformer",
        part="transformer",
        module=f"{_TRANSFORMERS}.vampnet.transformer",
        build=f"{_TRANSFORMERS}.vampnet.transformer:VampNetTransformer",
        marks=r"embedding\.(special\.MASK|out_proj)\b|transformer\.layers\.\d+\.(self_attn|feed_forward|norm_\d)\.",
        reader=f"{_TRANSFORMERS}.vampnet.transformer:read_vampnet",
    ),
}
