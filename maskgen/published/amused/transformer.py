"""aMUSEd's text-to-image transformer and the key map of its files (Patil et al. 2024, arXiv 2401.01808).

Text enters three times: its token features (``Cond.context``) through cross-attention, its pooled feature
(``Cond.pooled``) and five plain numbers about the picture (``Cond.micro``) through scales and shifts. Features are those of
the CLIP-L/14 with projection that the weights were trained with: the last hidden states but one, without the final norm.

Tokens have no position embeddings: the 3x3 convolutions at both ends tell positions apart. So any grid runs.

Shapes: B batch, N = H x W tokens of the grid, L text tokens, T text width, P width of the pooled text, M = 5 micro
conditions, C channels at the ends, D width in the middle, K codes, R rows of the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from maskgen.checkpoint import empty_shapes, renamed
from maskgen.conditioning import Cond
from maskgen.models.attention import AttentionBackend, check_backend
from maskgen.models.base import MaskedTransformer
from maskgen.published.amused.blocks import NORM_EPS, Embed, Head, TransformerLayer, UVitBlock, frequency_features

MICRO_CONDITIONS = 5


@dataclass(frozen=True, kw_only=True)
class UVit2DConfig:
    """Sizes of a ``UVit2D``; the defaults are those of aMUSEd 256.

    Attributes:
        codebook_size: K, codes that can be predicted.
        rows: R, rows of the embedding table; more than K, for the mask.
        mask_row: the row that stands for a masked token; the last one in the releases, which keep its number in the
            scheduler's settings.
        axes: token grid used when a call names none; any other grid runs too.
        embed_width: width of the table and of the head.
        block_width: C, width of the convolutional ends.
        width: D, width of the middle and of the condition.
        text_width: T, width of ``Cond.context``.
        pooled_width: P, width of ``Cond.pooled``.
        micro_width: features of each of the five micro conditions, even.
        blocks: pairs of convolution and text attention at each end.
        block_heads: heads there, dividing ``block_width``.
        layers: transformer layers in the middle.
        heads: heads there, dividing ``width``.
        mlp_width: hidden width of the gated feed-forward.
        resample: halve the grid before the middle and double it after (aMUSEd 512); the grid must then be even.
        attention: back-end, see ``maskgen.models.attention``.
    """

    codebook_size: int = 8192
    rows: int = 8256
    mask_row: int = 8255
    axes: tuple[int, int] = (16, 16)
    embed_width: int = 768
    block_width: int = 768
    width: int = 1024
    text_width: int = 768
    pooled_width: int = 768
    micro_width: int = 256
    blocks: int = 3
    block_heads: int = 12
    layers: int = 22
    heads: int = 16
    mlp_width: int = 2816
    resample: bool = False
    attention: AttentionBackend = "sdpa"

    def __post_init__(self) -> None:
        if not 2 <= self.codebook_size <= self.mask_row < self.rows:
            raise ValueError(
                f"got codebook_size {self.codebook_size}, mask_row {self.mask_row} and rows {self.rows}; expected "
                "2 <= codebook_size <= mask_row < rows: the mask is a row behind the codes"
            )
        for name, width, heads in (
            ("width", self.width, self.heads),
            ("block_width", self.block_width, self.block_heads),
        ):
            if heads < 1 or width % heads:
                raise ValueError(f"{name} {width} must be a multiple of its heads, got {heads}")
        if self.micro_width < 2 or self.micro_width % 2:
            raise ValueError(f"micro_width: got {self.micro_width}, expected an even number (cosines and sines)")
        if min(self.axes) < 1 or self.blocks < 1 or self.layers < 0:
            raise ValueError(
                f"got axes {self.axes}, blocks {self.blocks}, layers {self.layers}; expected positive axes, 1 or more "
                "blocks and 0 or more layers"
            )
        check_backend(self.attention)


PUBLISHED: dict[str, UVit2DConfig] = {
    "amused-256": UVit2DConfig(),
    "amused-512": UVit2DConfig(axes=(32, 32), resample=True),
}
"""Published name -> sizes: the class defaults of diffusers 0.42.1, whose parameter counts equal the published ones."""


class UVit2D(MaskedTransformer):
    """Convolutions with text attention at both ends, a transformer with text attention between them."""

    def __init__(self, config: UVit2DConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_codebooks = config.codebook_size, 1
        self.num_classes, self.null_class = 0, False
        self.context_width, self.pooled_width = config.text_width, config.pooled_width
        width, ends, backend = config.width, config.block_width, config.attention
        self.encoder_proj = nn.Linear(config.text_width, width, bias=False)
        self.encoder_proj_layer_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.embed = Embed(config.rows, config.embed_width, config.block_width)
        self.cond_embed = _CondEmbed(config.pooled_width + MICRO_CONDITIONS * config.micro_width, width)
        self.down_block = UVitBlock(
            ends, width, config.blocks, config.block_heads, down=config.resample, backend=backend
        )
        self.project_to_hidden_norm = nn.RMSNorm(ends, eps=NORM_EPS)
        self.project_to_hidden = nn.Linear(ends, width, bias=False)
        self.transformer_layers = nn.ModuleList(
            TransformerLayer(width, config.heads, config.mlp_width, backend) for _ in range(config.layers)
        )
        self.project_from_hidden_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.project_from_hidden = nn.Linear(width, ends, bias=False)
        self.up_block = UVitBlock(ends, width, config.blocks, config.block_heads, up=config.resample, backend=backend)
        self.mlm_layer = Head(config.block_width, config.embed_width, config.codebook_size)

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """See ``MaskedTransformer``: K (as the mask id) reads the mask row of the table.

        Args:
            tokens: long ``[B, N, 1]``, row-major on the grid.
            cond: ``context`` ``[B, L, T]``, ``pooled`` ``[B, P]`` and ``micro`` ``[B, 5]`` (see ``micro_conditions``). All
                text tokens are attended to, padding too, as the weights were trained. "No text" is the empty prompt,
                encoded; labels are ignored.
            axes: (H, W); the grid of the config by default.

        Returns:
            ``[B, N, 1, K]``.

        Raises:
            ValueError: tokens that do not fit the grid, an odd grid for a model that halves it, conditions that are
                missing or of another shape.
        """
        grid = tuple(self.config.axes if axes is None else axes)
        self._check_grid(tokens, grid)
        context, pooled, micro = self._conditions(cond, len(tokens))
        ids = rearrange(tokens, "B (H W) 1 -> B H W", H=grid[0])
        ids = torch.where(ids == self.vocab_size, self.config.mask_row, ids)
        return rearrange(self.grid_logits(ids, context, pooled, micro), "B K H W -> B (H W) 1 K")

    def usual_micro(self, size: Sequence[int]) -> Tensor:
        """See ``MaskedTransformer``: uncropped, of the usual aesthetic score."""
        return micro_conditions(1, size[1], size[0])[0]

    def grid_logits(self, ids: Tensor, context: Tensor, pooled: Tensor, micro: Tensor) -> Tensor:
        """The published forward: rows of the table ``[B, H, W]`` and the conditions in, logits ``[B, K, H, W]`` out."""
        text = self.encoder_proj_layer_norm(self.encoder_proj(context))
        numbers = frequency_features(micro, self.config.micro_width).flatten(1).to(pooled.dtype)
        modulation = self.cond_embed(torch.cat((pooled, numbers), dim=1))
        x = self.down_block(self.embed(ids), modulation, text)
        height = x.shape[2]
        x = self.project_to_hidden(self.project_to_hidden_norm(rearrange(x, "B C H W -> B (H W) C")))
        for layer in self.transformer_layers:
            x = layer(x, modulation, text)
        x = self.project_from_hidden(self.project_from_hidden_norm(x))
        x = self.up_block(rearrange(x, "B (H W) C -> B C H W", H=height), modulation, text)
        return self.mlm_layer(x)

    def _check_grid(self, tokens: Tensor, grid: tuple[int, ...]) -> None:
        if len(grid) != 2 or tokens.ndim != 3 or tokens.shape[1:] != (torch.Size(grid).numel(), 1):
            raise ValueError(
                f"tokens: got {tuple(tokens.shape)} on a grid {grid}, expected [B, H * W, 1] on a grid (H, W); pass the "
                "grid as axes"
            )
        if self.config.resample and (grid[0] % 2 or grid[1] % 2):
            raise ValueError(
                f"axes: got {grid}, expected even numbers: this model halves the grid and doubles it again"
            )

    def _conditions(self, cond: Cond, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Text features, pooled text and micro conditions, or everything that is wrong with them."""
        if cond.context_mask is not None:
            raise ValueError("context_mask: got one, but aMUSEd attends to the padding of its text too; leave it out")
        cond.check_used(type(self).__name__, "context", "pooled", "micro")
        context, pooled, micro = cond.context, cond.pooled, cond.micro
        text = (
            1 if context is None or context.ndim != 3 else max(1, context.shape[1])
        )  # any number of text tokens is fine
        shapes = ((batch, text, self.config.text_width), (batch, self.config.pooled_width), (batch, MICRO_CONDITIONS))
        problems = [
            f"cond.{name}: got {None if value is None else tuple(value.shape)}, expected {shape}"
            for name, value, shape in zip(("context", "pooled", "micro"), (context, pooled, micro), shapes, strict=True)
            if value is None or value.shape != shape
        ]
        if context is None or pooled is None or micro is None or problems:
            raise ValueError(
                "; ".join(problems) + ". aMUSEd needs text features, their pooled vector and micro_conditions(); "
                "without text, give those of the empty prompt"
            )
        return context, pooled, micro


class _CondEmbed(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width, bias=False)
        self.linear_2 = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, P + M x features]`` -> ``[B, D]``."""
        return self.linear_2(nn.functional.silu(self.linear_1(x)))


def micro_conditions(
    batch: int, width: float, height: float, *, crop: tuple[float, float] = (0.0, 0.0), aesthetic_score: float = 6.0
) -> Tensor:
    """``Cond.micro`` for pictures of that size in pixels: float ``[batch, 5]`` = width, height, crop, aesthetic score."""
    return torch.tensor([[width, height, *crop, aesthetic_score]], dtype=torch.float32).repeat(batch, 1)


# Ends of names that differ: theirs -> ours. All other names are the same.
_RENAMED = {
    ".to_out.0.weight": ".to_out.weight",
    ".ff.net.0.proj.weight": ".ff.proj.weight",
    ".ff.net.2.weight": ".ff.out.weight",
}


def convert(state: Mapping[str, Tensor], config: UVit2DConfig) -> dict[str, Tensor]:
    """Published weights as the state dict of ``UVit2D(config)``; tensors are passed on, not copied.

    Args:
        state: published name to tensor.
        config: see ``config_from``.

    Raises:
        ValueError: naming every tensor that is missing, unexpected or of another shape.
    """
    official = {ours: published for published, ours in _RENAMED.items()}
    return renamed(state, empty_shapes(UVit2D, config), lambda name: _renamed(name, official), "aMUSEd transformer")


def config_from(
    state: Mapping[str, Tensor],
    *,
    heads: int = 16,
    block_heads: int = 12,
    micro_width: int = 256,
    mask_row: int | None = None,
    axes: tuple[int, int] | None = None,
) -> UVit2DConfig:
    """Sizes read from published weights.

    Args:
        state: published name to tensor.
        heads: heads in the middle; shapes do not show them.
        block_heads: heads at the ends.
        micro_width: features a micro condition; shapes only show the sum with the pooled text's width.
        mask_row: row of the mask; the last one by default.
        axes: default grid; by default that of the release: 32 x 32 if the model halves its grid, else 16 x 16.

    Raises:
        ValueError: the weights are not those of such a model, or do not go with the arguments.
    """
    anchors = {name: len(shape) for name, shape in _ANCHORS.items()}
    absent = [name for name, ndim in anchors.items() if name not in state or state[name].ndim != ndim]
    if absent:
        raise ValueError(
            f"not the weights of an aMUSEd transformer: {len(absent)} of {len(anchors)} tensors that give its sizes are "
            f"missing or of another shape ({', '.join(absent)})"
        )
    sizes = {
        letter: size
        for name, letters in _ANCHORS.items()
        for letter, size in zip(letters, state[name].shape, strict=True)
        if letter != "."
    }
    pooled = sizes["I"] - MICRO_CONDITIONS * micro_width
    if pooled < 1:
        raise ValueError(
            f"cond_embed.linear_1.weight takes {sizes['I']} numbers, expected more than {MICRO_CONDITIONS} x micro_width "
            f"{micro_width}; give the micro_width of these weights"
        )
    resample = "down_block.downsample.conv.weight" in state or "up_block.upsample.conv.weight" in state
    return UVit2DConfig(
        codebook_size=sizes["K"],
        rows=sizes["R"],
        mask_row=sizes["R"] - 1 if mask_row is None else mask_row,
        axes=axes or ((32, 32) if resample else (16, 16)),
        embed_width=sizes["E"],
        block_width=sizes["C"],
        width=sizes["D"],
        text_width=sizes["T"],
        pooled_width=pooled,
        micro_width=micro_width,
        blocks=_count(state, "down_block.res_blocks."),
        block_heads=block_heads,
        layers=_count(state, "transformer_layers."),
        heads=heads,
        mlp_width=state["transformer_layers.0.ff.net.2.weight"].shape[1],
        resample=resample,
    )


def settings_from(model: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes do not show, as arguments of ``config_from``, from the settings in a folder of diffusers.

    Args:
        model: ``transformer/config.json``.
        scheduler: ``scheduler/scheduler_config.json``; may be empty.
    """
    told = {
        "heads": model["num_attention_heads"],
        "block_heads": model["block_num_heads"],
        "micro_width": model["micro_cond_encode_dim"],
        "axes": (model["sample_size"], model["sample_size"]),
    }
    mask_row = scheduler.get("mask_token_id")
    return told if mask_row is None else told | {"mask_row": mask_row}


# Tensors that give the sizes, one letter an axis; E is the width of the table, I what the condition's first layer takes.
_ANCHORS = {
    "embed.embeddings.weight": "RE",
    "encoder_proj.weight": "DT",
    "cond_embed.linear_1.weight": ".I",
    "project_to_hidden.weight": ".C",
    "mlm_layer.conv2.weight": "K...",
    "transformer_layers.0.ff.net.2.weight": "..",
    "down_block.res_blocks.0.norm.weight": ".",
}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow a prefix: a gap then shows as missing, a stray number as unexpected."""
    return len({name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)})


def _renamed(name: str, endings: Mapping[str, str]) -> str:
    for ending, other in endings.items():
        if name.endswith(ending):
            return name.removesuffix(ending) + other
    return name
