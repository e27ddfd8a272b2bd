"""The families of published weights: where their names are mapped to ours, and how to tell one from another.

A family is a layout of names. Its module has ``config_from(state)``, ``convert(state, config)`` and ``PUBLISHED``, the sizes
of each published model, or a ``reader`` where files tell more than names and shapes do. Modules are named here and imported
only when they are used.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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
        also: key of a family that is the same network under other names; its files are taken, too.
    """

    title: str
    part: Part
    module: str
    build: str
    marks: str
    reader: str = ""
    also: str = ""

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


def _family(
    part: Part, title: str, path: str, marks: str, *, build: str = "", reader: str = "", also: str = ""
) -> Family:
    """A family whose module stands below ``published`` of its part.

    Args:
        part: see ``Family``.
        title: see ``Family``.
        path: the module below ``published``, with ``:class`` where our model stands in it.
        marks: see ``Family``.
        build: our model, where it stands elsewhere in its part.
        reader: function of the module, see ``Family``.
        also: see ``Family``.
    """
    root = "maskgen.tokenizers" if part == "tokenizer" else "maskgen"
    module, _, own = f"{root}.published.{path}".partition(":")
    ours, function = f"{root}.{build}" if build else f"{module}:{own}", f"{module}:{reader}" if reader else ""
    return Family(title=title, part=part, module=module, build=ours, marks=marks, reader=function, also=also)


_tokenizer, _transformer = partial(_family, "tokenizer"), partial(_family, "transformer")

# IBQ's network is CompVis's, name for name: only who asks knows which quantizer the weights belong to.
_TAMING_MARKS = r"(encoder|decoder)\.mid\.(block|attn)_\d\."

# In an order: weights are of the first family whose marks one of their names has.
FAMILIES: dict[str, Family] = {
    "maskgit-tokenizer": _tokenizer(
        "a MaskGIT tokenizer (flax)",
        "image.maskgit",
        r"(params/)?((encoder|decoder)/(Conv|ResBlock|GroupNorm)_\d+/|quantizer/codebook$)",
        build="image.vqgan:VQGAN",
    ),
    "maskgit-transformer": _transformer(
        "a MaskGIT transformer (flax)",
        "maskgit",
        r"(params/)?(Embed_0|MlmLayer_0|TransformerLayer_\d+)/",
        build="models.bert:BertTransformer",
    ),
    "open-magvit2-video": _tokenizer(
        "an Open-MAGVIT2 video tokenizer",
        "video.open_magvit2",
        r"(encoder|decoder)\.conv_(in|out)\.conv_1\.",
        build="magvit2.tokenizer:Magvit2Video",
    ),
    # Its other names are those of the PyTorch port, which stands after it.
    "open-magvit2-image": _tokenizer(
        "an Open-MAGVIT2 image tokenizer",
        "video.open_magvit2",
        r"decoder\.adaptive\.\d+\.(gamma|beta)\.",
        build="magvit2.tokenizer:Magvit2Image",
    ),
    "taming": _tokenizer("a CompVis taming-transformers VQGAN", "image.taming:TamingVQGAN", _TAMING_MARKS),
    "ibq": _tokenizer("an IBQ tokenizer", "image.ibq:IBQTokenizer", _TAMING_MARKS),
    "llamagen": _tokenizer("a LlamaGen tokenizer", "image.llamagen:LlamaGenVQ", r"(encoder|decoder)\.conv_blocks\."),
    # Its two relatives share some of these names and stand before it.
    "maskgit-torch": _tokenizer(
        "the PyTorch port of the MaskGIT tokenizer",
        "image.maskgit_torch",
        r"(encoder|decoder)\.((down|up)\.\d+\.block|mid\.\d+)\.",
        build="image.vqgan:VQGAN",
    ),
    "maskbit-tokenizer": _tokenizer(
        "a MaskBit tokenizer",
        "image.maskbit:MaskBitTokenizer",
        r"(encoder|decoder)\.(down|up|mid)\.(\d+\.)?res_blocks\.",
    ),
    "amused-tokenizer": _tokenizer(
        "the aMUSEd tokenizer (diffusers VQModel)", "image.amused:AmusedVQ", r"(encoder\.down|decoder\.up)_blocks\."
    ),
    "halton": _transformer(
        "a Halton-MaskGIT transformer",
        "halton.transformer:HaltonTransformer",
        r"(cls_emb|reg_tokens)\.weight$|transformer\.layers\.\d+\.(attn\.w|ff\.w|mlp\.1|ln)",
    ),
    "imagebert": _transformer(
        "an ImageBert transformer of 1d-tokenizer (TiTok)",
        "onedtok.imagebert:ImageBert",
        r"model\.(embeddings\.word_embeddings|encoder\.layer\.\d+|lm_head)\.",
    ),
    "uvitbert": _transformer(
        "a UViTBert transformer of 1d-tokenizer (TiTok)",
        "onedtok.uvitbert:UViTBert",
        r"(in|out)_blocks\.\d+\.|mid_block\.(attn|mlp)\.",
    ),
    "maskbit-transformer": _transformer(
        "a MaskBit transformer",
        "maskbit.transformer:MaskBitTransformer",
        r"transformer\.layers\.\d+\.\d+\.|(prediction_layer|input_proj|token_emb|class_emb)\.|tok_emb_list\.",
    ),
    # Its middle has names of the next one's.
    "openmuse-transformer": _transformer(
        "an open-muse transformer (MaskGiTUViT_v2)",
        "openmuse",
        r"(down|up)_blocks\.0\.(res|attention)_blocks\.",
        build="published.amused.transformer:UVit2D",
    ),
    "amused-transformer": _transformer(
        "an aMUSEd transformer (diffusers UVit2DModel)",
        "amused.transformer:UVit2D",
        r"(down_block|up_block)\.(res|attention)_blocks\.|transformer_layers\.\d+\.",
        also="openmuse-transformer",
    ),
    "meissonic-transformer": _transformer(
        "a Meissonic transformer",
        "meissonic.transformer:MeissonicTransformer",
        r"single_transformer_blocks\.\d+\.|transformer_blocks\.\d+\.norm1_context\.",
    ),
    # It shares the other names with DAC, which stands after it.
    "lac": _tokenizer(
        "VampNet's codec (LAC)",
        "audio.lac:LACTokenizer",
        r"decoder\.model\.\d+\.block\.\d+\.mrf_blocks\.",
        reader="lac_from_file",
    ),
    "dac": _tokenizer(
        "a Descript Audio Codec",
        "audio.dac:DACTokenizer",
        r"encoder\.block\.\d+\.(block\.\d+|res_unit\d|snake\d|conv\d)\.|decoder\.block\.\d+\.(conv_t\d|res_unit\d)\.",
        reader="dac_from_files",
    ),
    "encodec": _tokenizer(
        "an EnCodec",
        "audio.encodec_files",
        r"(encoder|decoder)\.(model|layers)\.\d+\.(conv|convtr|lstm|shortcut|block\.\d+\.conv)\.",
        build="published.audio.encodec:EncodecTokenizer",
        reader="encodec_from_files",
    ),
    "vampnet": _transformer(
        "a VampNet transformer",
        "vampnet.transformer:VampNetTransformer",
        r"embedding\.(special\.MASK|out_proj)\b|transformer\.layers\.\d+\.(self_attn|feed_forward|norm_\d)\.",
        reader="read_vampnet",
    ),
}
