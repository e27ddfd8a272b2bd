"""VampNet's transformer (Garcia et al. 2023, arXiv 2307.04686; hugofloresgarcia/vampnet), its "coarse" and "c2f" models.

A frame's K tokens enter as the codec's own vectors, side by side, through one linear layer; the masked token is a learned
vector of each codebook. Blocks are pre-norm with T5's relative positions, so any number of frames works. Coarse-to-fine
models read ``conditioning_codebooks`` that they do not predict.

Official files hold low-rank factors (LoRA) beside the weights, a weight-normalised head, and no code tables: ``convert``
folds the first two into plain weights, and the tables of the codec are put in by ``with_code_tables``.

Shapes: B batch, T frames, K codebooks, V codes, L width of a code, D width, H heads, P = K - conditioning codebooks.
"""

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.checkpoint import check_state
from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer, init_layer
from maskgen.precision import Linear
from maskgen.published.vampnet.blocks import BUCKETS, VampNetBlock, VampNetConfig, relative_buckets
from maskgen.weights.files import guess_container, read_weights

_LORA_RANK, _LORA_SCALE = 8, 1 / 8  # alpha 1 over rank 8

PUBLISHED: dict[str, VampNetConfig] = {
    "vampnet_coarse": VampNetConfig(),
    "vampnet_c2f": VampNetConfig(num_codebooks=14, conditioning_codebooks=4, axes=(173,), layers=16),
}
"""Full-size settings, for VampNet's own codec (LAC, 44.1 kHz mono, 14 codebooks); ``axes`` are 10 s and 3 s of it."""


class VampNetTransformer(MaskedTransformer):
    """Pre-norm encoder over frames; see the head of this file.

    ``code_tables`` are constants of the codec, part of the state dict but not trained. A new model has random ones; give
    those of your codec to ``set_code_tables`` before training.
    """

    code_tables: Tensor

    def __init__(self, config: VampNetConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_codebooks = config.vocab_size, config.num_codebooks
        self.conditioning_codebooks = config.conditioning_codebooks
        self.num_classes, self.null_class = 0, False
        width, codes = config.width, (config.num_codebooks, config.vocab_size, config.code_width)
        self.register_buffer("code_tables", torch.randn(codes))
        self.mask_rows = nn.Parameter(torch.randn(config.num_codebooks, config.code_width))
        self.embed = Linear(config.num_codebooks * config.code_width, width)
        self.relative_bias = nn.Embedding(BUCKETS, config.heads)
        self.blocks = nn.ModuleList(VampNetBlock(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = Linear(width, config.predicted_codebooks * config.vocab_size)
        self.apply(init_layer)

    @torch.no_grad()
    def set_code_tables(self, tables: Tensor) -> None:
        """Take the vectors of a codec, ``[K', V, L]`` with K' at least K; the first K are used.

        Raises:
            ValueError: tables of another codec.
        """
        self.code_tables.copy_(_fitting(tables, self.config))

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """See ``MaskedTransformer``; any number of frames; the family has no conditions.

        The logits of conditioning codebooks are zeros: nothing predicts them, so they must be given when sampling and
        cost nothing in training (``MaskingSettings.visible_codebooks``).

        Raises:
            ValueError: another number of codebooks, or ``axes`` that are not (T,).
        """
        cond.check_used(type(self).__name__)
        if axes is not None and tuple(axes) != tokens.shape[1:2]:
            raise ValueError(f"axes: got {tuple(axes)}, expected {tuple(tokens.shape[1:2])}, the frames of the tokens")
        return F.pad(self.predicted_logits(tokens), (0, 0, self.conditioning_codebooks, 0))

    def predicted_logits(self, tokens: Tensor) -> Tensor:
        """Logits of the predicted codebooks alone.

        Args:
            tokens: long ``[B, T, K]``, V where masked.

        Returns:
            ``[B, T, P, V]``.

        Raises:
            ValueError: another number of codebooks, or no frame.
        """
        if tokens.ndim != 3 or tokens.shape[1] < 1 or tokens.shape[2] != self.num_codebooks:
            raise ValueError(
                f"tokens: got {tuple(tokens.shape)}, expected [B, T, {self.num_codebooks}] with at least one frame"
            )
        # Under autocast the layer gives half precision; what the blocks add to stays as precise as the parameters.
        x = self.embed(self.latents(tokens)).to(self.embed.weight.dtype)
        bias = self.position_bias(tokens.shape[1])
        for block in self.blocks:
            x = block(x, bias)
        return rearrange(self.head(self.norm(x)), "B T (K V) -> B T K V", V=self.vocab_size)

    def latents(self, tokens: Tensor) -> Tensor:
        """The codec's vectors of a frame side by side, codebook by codebook: ``[B, T, K]`` -> ``[B, T, K L]``."""
        masked = tokens == self.vocab_size
        offsets = torch.arange(self.num_codebooks, device=tokens.device) * self.vocab_size
        rows = F.embedding(tokens.masked_fill(masked, 0) + offsets, rearrange(self.code_tables, "K V L -> (K V) L"))
        return rearrange(torch.where(masked[..., None], self.mask_rows, rows), "B T K L -> B T (K L)")

    def position_bias(self, frames: int) -> Tensor:
        """What every layer adds to its attention logits, by distance: ``[1, H, T, T]``."""
        offsets = torch.arange(1 - frames, frames, device=self.mask_rows.device)
        of_offset = self.relative_bias(relative_buckets(offsets)).T  # [H, 2 T - 1]
        # Row q of the matrix is the window of offsets -q .. T - 1 - q, so the windows come in reverse order.
        return of_offset.unfold(1, frames, 1).flip(1)[None]


def config_from(kwargs: Mapping[str, object]) -> VampNetConfig:
    """Settings from the official constructor's arguments, which its files hold as ``metadata.kwargs``.

    Arguments that do not change the network are dropped. The excerpt length is not among them: ``axes`` are those of the
    published model of the same kind.

    Args:
        kwargs: name to value.

    Raises:
        ValueError: sizes are missing, or the model is of a kind that was never published (controls, flash attention
            without relative positions, FiLM, noise other than masks).
    """
    names = {
        **{"vocab_size": "vocab_size", "n_codebooks": "num_codebooks", "latent_dim": "code_width"},
        **{"n_conditioning_codebooks": "conditioning_codebooks", "embedding_dim": "width"},
        **{"n_layers": "layers", "n_heads": "heads"},
    }
    missing = sorted(names.keys() - kwargs.keys())
    if missing:
        raise ValueError(f"VampNet settings: missing {missing}; found {sorted(kwargs)}")
    for name, expected in (("ctrl_dims", None), ("flash_attn", False), ("r_cond_dim", 0), ("noise_mode", "mask")):
        if (kwargs.get(name) or expected) != expected:
            raise ValueError(
                f"VampNet settings: got {name} {kwargs[name]!r}, expected {expected!r} as in every published model; this "
                "one is another network, which is not read here"
            )
    sizes = {ours: kwargs[official] for official, ours in names.items()}
    wrong = {name: value for name, value in sizes.items() if not isinstance(value, int) or isinstance(value, bool)}
    if wrong:
        raise ValueError(f"VampNet settings: got {wrong}, expected integers")
    dropout = kwargs.get("dropout", 0.1)  # files of 2023 do not tell
    kind = "vampnet_c2f" if sizes["conditioning_codebooks"] else "vampnet_coarse"
    return VampNetConfig(**sizes, dropout=dropout, axes=PUBLISHED[kind].axes)  # type: ignore[arg-type]


_LINEARS = {  # official name -> ours; w_1 becomes two
    **{"self_attn.w_qs": "query", "self_attn.w_ks": "key", "self_attn.w_vs": "value", "self_attn.fc": "out"},
    **{"feed_forward.w_1": "expand", "feed_forward.w_2": "contract"},
}


def official_shapes(config: VampNetConfig, *, lora: bool = True) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of every weight, with or without the low-rank factors.

    Args:
        config: sizes.
        lora: with the factors, as in every official file.
    """
    width, channels = config.width, config.predicted_codebooks * config.vocab_size
    inputs = config.num_codebooks * config.code_width
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.special.MASK": (config.num_codebooks, config.code_width),
        "embedding.out_proj.weight": (width, inputs, 1),
        "embedding.out_proj.bias": (width,),
        "transformer.layers.0.self_attn.relative_attention_bias.weight": (BUCKETS, config.heads),
        "transformer.norm.weight": (width,),
        "classifier.layers.0.weight_g": (channels, 1, 1),
        "classifier.layers.0.weight_v": (channels, width, 1),
        "classifier.layers.0.bias": (channels,),
    }
    sizes = {"feed_forward.w_1": (4 * width, width), "feed_forward.w_2": (width, 2 * width)}
    for layer in (f"transformer.layers.{number}" for number in range(config.layers)):
        shapes |= {f"{layer}.norm_1.weight": (width,), f"{layer}.norm_3.weight": (width,)}
        for name in _LINEARS:
            rows, columns = sizes.get(name, (width, width))
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            if lora and name != "self_attn.w_ks":
                shapes[f"{layer}.{name}.lora_A"] = (_LORA_RANK, columns)
                shapes[f"{layer}.{name}.lora_B"] = (rows, _LORA_RANK)
    return shapes


def convert(state: Mapping[str, Tensor], config: VampNetConfig, *, fold_lora: bool = True) -> dict[str, Tensor]:
    """Official weights as the state dict of ``VampNetTransformer(config)``, code tables not included.

    1. weight + lora_B lora_A / 8. Official files were mostly saved with this sum already made, and the official loader
       makes it once more; what the published models sound like is the second sum, so it is added to whatever is there.
    2. head: g v / |v| of each row (weight norm), from channel = code x P + codebook to codebook x V + code.
    3. the feed-forward's first layer into its two halves.

    Gradients pass through, so official parameters can be trained through our model.

    Args:
        state: official name to tensor.
        config: see ``config_from``.
        fold_lora: leave out 1 and the factors with it.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape.
    """
    has_lora = any(".lora_" in name for name in state)
    check_state(state, official_shapes(config, lora=has_lora), "VampNet weights")
    state = {name: tensor.float() for name, tensor in state.items()}

    def weight(name: str) -> Tensor:
        plain = state[f"{name}.weight"]
        if not fold_lora or f"{name}.lora_A" not in state:
            return plain
        return plain + state[f"{name}.lora_B"] @ state[f"{name}.lora_A"] * _LORA_SCALE

    def by_codebook(channels: Tensor) -> Tensor:
        return rearrange(channels, "(V K) ... -> (K V) ...", V=config.vocab_size)

    direction = state["classifier.layers.0.weight_v"]
    head = state["classifier.layers.0.weight_g"] * direction / direction.norm(dim=(1, 2), keepdim=True)
    found = {
        "mask_rows": state["embedding.special.MASK"],
        "embed.weight": state["embedding.out_proj.weight"].squeeze(-1),
        "embed.bias": state["embedding.out_proj.bias"],
        "relative_bias.weight": state["transformer.layers.0.self_attn.relative_attention_bias.weight"],
        "norm.weight": state["transformer.norm.weight"],
        "head.weight": by_codebook(head.squeeze(-1)),
        "head.bias": by_codebook(state["classifier.layers.0.bias"]),
    }
    for number in range(config.layers):
        layer, block = f"transformer.layers.{number}", f"blocks.{number}"
        found[f"{block}.attention_norm.weight"] = state[f"{layer}.norm_1.weight"]
        found[f"{block}.mlp_norm.weight"] = state[f"{layer}.norm_3.weight"]
        found |= {f"{block}.{ours}.weight": weight(f"{layer}.{official}") for official, ours in _LINEARS.items()}
        halves = found[f"{block}.expand.weight"].chunk(2)
        found[f"{block}.expand.weight"], found[f"{block}.gate.weight"] = halves
    return found


def read_vampnet(
    path: str | Path, *, fold_lora: bool = True, lora: str | Path | None = None
) -> tuple[VampNetConfig, dict[str, Tensor]]:
    """Settings and weights of an official file (coarse.pth, c2f.pth, or the weights.pth of a training folder).

    Args:
        path: what the official ``save(package=False)`` wrote: ``state_dict`` and ``metadata.kwargs``. Only plain weights
            are read, nothing in the file is run.
        fold_lora: see ``convert``.
        lora: a fine-tune's lora.pth, whose factors take the place of those in ``path``.

    Returns:
        The settings, and the state dict without the code tables: see ``with_code_tables``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no VampNet transformer, saying what it looks like; weights that do not fit, all of them named.
    """
    place = Path(path)
    state = _read(place)
    if all(".lora_" in name for name in state):
        raise ValueError(
            f"{place}: holds LoRA factors only (a fine-tune's lora.pth); give the weights they belong to, and this "
            "file as lora"
        )
    config = config_from(_kwargs(place))
    if lora is not None:
        if not fold_lora:
            raise ValueError(
                "lora: got a file of factors with fold_lora=False, which leaves them out; give one of the two"
            )
        state |= _read_factors(Path(lora), config)
    return config, convert(state, config, fold_lora=fold_lora)


def _read(place: Path) -> dict[str, Tensor]:
    """``read_weights``, refusing what people mix up with a transformer."""
    if zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as archive:
            names = archive.namelist()
        if any(name.endswith(".data/extern_modules") for name in names):
            raise ValueError(
                f"{place}: a torch.package, whose pickled code is never run. VampNet's transformers are never saved so, its "
                "codec may be; where you trust it, load it with its own code and save its state_dict() and kwargs"
            )
    state = read_weights(place)
    if any(name.startswith(("encoder.", "decoder.", "quantizer.")) for name in state):
        raise ValueError(
            f"{place}: looks like an audio codec; give it as the tokenizer, and coarse.pth or c2f.pth as the transformer"
        )
    return state


def _kwargs(place: Path) -> Mapping[str, Any]:
    """The constructor's arguments beside the weights."""
    content: Any = None
    kind = guess_container(place)
    if kind in ("torch", "pickle"):
        try:
            content = torch.load(str(place), map_location="cpu", weights_only=True, mmap=kind == "torch" or None)
        except (pickle.UnpicklingError, RuntimeError):  # records of another training library, which hold no such entry
            content = None
    metadata = content.get("metadata") if isinstance(content, Mapping) else None
    kwargs = metadata.get("kwargs") if isinstance(metadata, Mapping) else None
    if not isinstance(kwargs, Mapping):
        raise ValueError(
            f"{place}: holds weights without the settings of the model (metadata.kwargs), which the official files have; "
            "give the file as it was published or as VampNet's training wrote it (weights.pth)"
        )
    return kwargs


def _read_factors(place: Path, config: VampNetConfig) -> dict[str, Tensor]:
    factors = _read(place)
    if any(".lora_" not in name for name in factors):
        raise ValueError(
            f"{place}: holds whole weights, expected LoRA factors only; fine-tunes published as loras/*/coarse.pth are "
            "whole models: give it as the transformer itself"
        )
    shapes = official_shapes(config)
    check_state(factors, {name: shape for name, shape in shapes.items() if ".lora_" in name}, str(place))
    return factors


def with_code_tables(state: Mapping[str, Tensor], tables: Tensor, config: VampNetConfig) -> dict[str, Tensor]:
    """The state dict with the vectors of the codec, without which a VampNet cannot read a token.

    Args:
        state: what ``convert`` or ``read_vampnet`` gave.
        tables: ``[K', V, L]``, K' at least K, as the codec's quantizers look them up (``AudioTokenizer.code_tables``).
        config: sizes of the model.

    Raises:
        ValueError: tables of another codec, saying which one is needed.
    """
    return {**state, "code_tables": _fitting(tables, config)}


def _fitting(tables: Tensor, config: VampNetConfig) -> Tensor:
    """The first K tables as float32 of their own memory, if they fit."""
    needed = (config.vocab_size, config.code_width)
    if tables.ndim != 3 or tuple(tables.shape[1:]) != needed or len(tables) < config.num_codebooks:
        published = (*needed, config.width) == (1024, 8, 1280)
        hint = " (the published models: VampNet's codec.pth, a LAC of 14 codebooks at 44.1 kHz)" if published else ""
        raise ValueError(
            f"code tables: got {list(tables.shape)}, expected {config.num_codebooks} or more codebooks of {needed[0]} "
            f"codes, {needed[1]} wide: a VampNet works only with the very codec it was trained with{hint}"
        )
    return tables[: config.num_codebooks].detach().float().clone()
