"""Meissonic's text-to-image transformer and the key map of its files (Bai et al. 2024, arXiv 2410.08261; viiika/Meissonic).

It takes what aMUSEd's takes: text features (``Cond.context``: the last hidden states but one of CLIP-H/14), their pooled
vector (``Cond.pooled``) and five plain numbers (``Cond.micro``); and one number more, the time, sixth in ``Cond.micro``.

**The time** is how many steps are still to come: S - 1 at the first of S steps, 0 at the last. ``meissonic_logits`` sets
it at every step. The published training script passes 1000 x the share of masked tokens instead, a number up to 1000 where
sampling passes one below S. The two do not agree; the published results are those of sampling, whose rule this is. To train
by either rule, set the time with ``with_time``.

**The grid** that positions are taken from is the one that the blocks see, half of the tokens' grid in a model that halves
it. The published pipelines decide by the height of the picture: half the grid at 1024 pixels, all of it at any other. That
is the same for both models at their sizes; elsewhere the published code fails, and this runs.

Shapes: B batch, N = H x W tokens of the grid, L text tokens, T text width, M = 5 micro conditions, D width, which is that
of the pooled text too, K codes, R rows of the table.
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
from maskgen.precision import Linear
from maskgen.published.amused.blocks import NORM_EPS, Embed, Head, UVitBlock, frequency_features
from maskgen.published.amused.transformer import MICRO_CONDITIONS, micro_conditions
from maskgen.published.meissonic.blocks import FEATURES, DoubleBlock, SingleBlock, TimeTextEmbed, TwoLayers, rotation


@dataclass(frozen=True, kw_only=True)
class MeissonicConfig:
    """Sizes of a ``MeissonicTransformer``; the defaults are those of the release for 1024 x 1024 pixels.

    Attributes:
        codebook_size: K, codes that can be predicted.
        rows: R, rows of the embedding table; more than K, for the mask.
        mask_row: the row that stands for a masked token.
        axes: token grid used when a call names none; any other grid runs too.
        width: D, width of everything, and of ``Cond.pooled``.
        text_width: T, width of ``Cond.context``.
        double_layers: blocks that keep text and picture apart.
        single_layers: blocks after them that take both as one sequence.
        heads: dividing ``width``.
        rotary_widths: components of a head that turn with the three axes of a position; even, together those of a head.
        resample: halve the grid before the blocks and double it after; the grid must then be even.
        attention: back-end, see ``maskgen.models.attention``.
    """

    codebook_size: int = 8192
    rows: int = 8256
    mask_row: int = 8255
    axes: tuple[int, int] = (64, 64)
    width: int = 1024
    text_width: int = 1024
    double_layers: int = 14
    single_layers: int = 28
    heads: int = 8
    rotary_widths: tuple[int, int, int] = (16, 56, 56)
    resample: bool = True
    attention: AttentionBackend = "sdpa"

    def __post_init__(self) -> None:
        if not 2 <= self.codebook_size <= self.mask_row < self.rows:
            raise ValueError(
                f"got codebook_size {self.codebook_size}, mask_row {self.mask_row} and rows {self.rows}; expected "
                "2 <= codebook_size <= mask_row < rows: the mask is a row behind the codes"
            )
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of its heads, got {self.heads}")
        head = self.width // self.heads
        if sum(self.rotary_widths) != head or any(part < 0 or part % 2 for part in self.rotary_widths):
            raise ValueError(
                f"rotary_widths: got {self.rotary_widths}, expected three even numbers that make {head}, the width of a head"
            )
        if min(self.axes) < 1 or self.double_layers < 1 or self.single_layers < 0:
            raise ValueError(
                f"got axes {self.axes}, double_layers {self.double_layers}, single_layers {self.single_layers}; expected "
                "positive axes, 1 or more double and 0 or more single layers"
            )
        check_backend(self.attention)


PUBLISHED: dict[str, MeissonicConfig] = {"meissonic-1024": MeissonicConfig()}
"""Published name -> sizes: those of the training script, whose parameter count equals the published one."""


class MeissonicTransformer(MaskedTransformer):
    """Blocks of text and picture apart, then together, between the table and a head of convolutions."""

    def __init__(self, config: MeissonicConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_codebooks = config.codebook_size, 1
        self.num_classes, self.null_class = 0, False
        self.context_width, self.pooled_width = config.text_width, config.width
        width, heads, backend = config.width, config.heads, config.attention
        self.context_embedder = Linear(config.text_width, width)
        self.encoder_proj_layer_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.cond_embed = TwoLayers(width + MICRO_CONDITIONS * FEATURES, width, bias=False)
        self.time_text_embed = TimeTextEmbed(width)
        self.embed = Embed(config.rows, config.width, config.width)
        # aMUSEd's ends without a layer in them.
        self.down_block = UVitBlock(width, width, 0, heads, down=config.resample)
        self.project_to_hidden_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.project_to_hidden = Linear(width, width, bias=False)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(width, heads, backend) for _ in range(config.double_layers))
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(width, heads, backend) for _ in range(config.single_layers)
        )
        self.project_from_hidden_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.project_from_hidden = Linear(width, width, bias=False)
        self.up_block = UVitBlock(width, width, 0, heads, up=config.resample)
        self.mlm_layer = Head(config.width, config.width, config.codebook_size)

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """See ``MaskedTransformer``: K (as the mask id) reads the mask row of the table.

        Args:
            tokens: long ``[B, N, 1]``, row-major on the grid.
            cond: ``context`` ``[B, L, T]``, ``pooled`` ``[B, D]`` and ``micro`` ``[B, 6]``: ``micro_conditions`` of aMUSEd
                and the time, see ``with_time``. All text tokens are attended to, padding too, as the weights were trained.
                "No text" is the empty prompt, encoded.
            axes: (H, W); the grid of the config by default.

        Returns:
            float32 ``[B, N, 1, K]``.

        Raises:
            ValueError: tokens that do not fit the grid, an odd grid for a model that halves it, conditions that are
                missing or of another shape.
        """
        grid = tuple(self.config.axes if axes is None else axes)
        self._check_grid(tokens, grid)
        context, pooled, micro = self._conditions(cond, len(tokens))
        ids = rearrange(tokens, "B (H W) 1 -> B H W", H=grid[0])
        ids = torch.where(ids == self.vocab_size, self.config.mask_row, ids)
        logits = self.grid_logits(ids, context, pooled, micro[:, :MICRO_CONDITIONS], micro[:, MICRO_CONDITIONS])
        return rearrange(logits, "B K H W -> B (H W) 1 K").float()

    def usual_micro(self, size: Sequence[int]) -> Tensor:
        """See ``MaskedTransformer``: aMUSEd's, uncropped and of the usual aesthetic score; the time is the loop's to add."""
        return micro_conditions(1, size[1], size[0])[0]

    def grid_logits(self, ids: Tensor, context: Tensor, pooled: Tensor, micro: Tensor, time: Tensor) -> Tensor:
        """The published forward: rows of the table ``[B, H, W]``, conditions and times ``[B]`` in, ``[B, K, H, W]`` out."""
        dtype = self.context_embedder.weight.dtype
        text = self.encoder_proj_layer_norm(self.context_embedder(context.to(dtype)))
        numbers = rearrange(frequency_features(micro, FEATURES), "B M F -> B (M F)")
        cond = self.time_text_embed(time, self.cond_embed(torch.cat((pooled, numbers), dim=1).to(dtype)))
        x = self.down_block(self.embed(ids), cond, text)
        grid = x.shape[2:]
        x = self.project_to_hidden(self.project_to_hidden_norm(rearrange(x, "B D H W -> B (H W) D")))
        turn = rotation(text.shape[1], grid, self.config.rotary_widths, x.device)
        for block in self.transformer_blocks:
            text, x = block(text, x, cond, turn)
        both = torch.cat((text, x), dim=1)
        for block in self.single_transformer_blocks:
            both = block(both, cond, turn)
        x = self.project_from_hidden(self.project_from_hidden_norm(both[:, text.shape[1] :]))
        x = self.up_block(rearrange(x, "B (H W) D -> B D H W", H=grid[0]), cond, text)
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
        """Text features, pooled text, plain numbers with the time; or everything that is wrong with them."""
        if cond.context_mask is not None:
            raise ValueError(
                "context_mask: got one, but Meissonic attends to the padding of its text too; leave it out"
            )
        cond.check_used(type(self).__name__, "context", "pooled", "micro")
        context, pooled, micro = cond.context, cond.pooled, cond.micro
        text = 1 if context is None or context.ndim != 3 else max(1, context.shape[1])  # any number of them is fine
        shapes = ((batch, text, self.context_width), (batch, self.pooled_width), (batch, MICRO_CONDITIONS + 1))
        problems = [
            f"cond.{name}: got {None if value is None else tuple(value.shape)}, expected {shape}"
            for name, value, shape in zip(("context", "pooled", "micro"), (context, pooled, micro), shapes, strict=True)
            if value is None or value.shape != shape
        ]
        if context is None or pooled is None or micro is None or problems:
            raise ValueError(
                "; ".join(problems) + ". Meissonic needs text features, their pooled vector, and micro_conditions() "
                "with the time behind them (meissonic_logits and the sampler amused set it at every step); without text, "
                "give those of the empty prompt"
            )
        return context, pooled, micro


# Parts of names that differ: ours -> theirs. All other names are the same.
_OFFICIAL = {".to_out.": ".to_out.0.", ".proj.": ".net.0.proj.", ".out.": ".net.2."}


def convert(state: Mapping[str, Tensor], config: MeissonicConfig) -> dict[str, Tensor]:
    """Published weights as the state dict of ``MeissonicTransformer(config)``; tensors are passed on, not copied.

    Args:
        state: published name to tensor.
        config: see ``config_from``.

    Raises:
        ValueError: naming every tensor that is missing, unexpected or of another shape.
    """
    return renamed(state, empty_shapes(MeissonicTransformer, config), _official, "Meissonic transformer")


def _official(name: str) -> str:
    for ours, theirs in _OFFICIAL.items():
        name = name.replace(ours, theirs)
    return name


def config_from(
    state: Mapping[str, Tensor],
    *,
    rotary_widths: tuple[int, int, int] = MeissonicConfig.rotary_widths,
    mask_row: int | None = None,
    axes: tuple[int, int] | None = None,
) -> MeissonicConfig:
    """Sizes read from published weights.

    Args:
        state: published name to tensor.
        rotary_widths: see ``MeissonicConfig``; shapes do not show them.
        mask_row: row of the mask; the last one by default.
        axes: default grid; by default that of the release, 64 x 64, or 32 x 32 if the model does not halve its grid.

    Raises:
        ValueError: the weights are not those of such a model, or do not go with the arguments.
    """
    absent = [name for name, letters in _ANCHORS.items() if name not in state or state[name].ndim != len(letters)]
    if absent:
        raise ValueError(
            f"not the weights of a Meissonic transformer: {len(absent)} of {len(_ANCHORS)} tensors that give its sizes are "
            f"missing or of another shape ({', '.join(absent)})"
        )
    sizes = {
        letter: size
        for name, letters in _ANCHORS.items()
        for letter, size in zip(letters, state[name].shape, strict=True)
    }
    resample = "down_block.downsample.conv.weight" in state or "up_block.upsample.conv.weight" in state
    return MeissonicConfig(
        codebook_size=sizes["K"],
        rows=sizes["R"],
        mask_row=sizes["R"] - 1 if mask_row is None else mask_row,
        axes=axes or ((64, 64) if resample else (32, 32)),
        width=sizes["D"],
        text_width=sizes["T"],
        double_layers=_count(state, "transformer_blocks."),
        single_layers=_count(state, "single_transformer_blocks."),
        heads=sizes["D"] // sizes["A"],
        rotary_widths=rotary_widths,
        resample=resample,
    )


def settings_from(model: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes do not show, as arguments of ``config_from``, from the settings in a folder of diffusers.

    Args:
        model: ``transformer/config.json``.
        scheduler: ``scheduler/scheduler_config.json``; may be empty.
    """
    told = {"rotary_widths": tuple(model["axes_dims_rope"])}
    mask_row = scheduler.get("mask_token_id")
    return told if mask_row is None else told | {"mask_row": mask_row}


# Tensors that give the sizes, one letter an axis; A is the width of a head.
_ANCHORS = {
    "embed.embeddings.weight": "RD",
    "context_embedder.weight": ".T",
    "mlm_layer.conv2.weight": "K...",
    "transformer_blocks.0.attn.norm_q.weight": "A",
}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow a prefix: a gap then shows as missing, a stray number as unexpected."""
    return len({name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)})
