"""Blocks and the two halves of the VQGAN with attention (Esser et al. 2021), shared by the families descended from it.

Level 0 is the full resolution, at both ends: ``encoder.down.l`` and ``decoder.up.l`` work at 1 / 2^l of the image.

Shapes: B batch, C channels, H W pixels of a feature map, Z width of the latents, h w token grid, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from maskgen.precision import attention
from maskgen.tokenizers.layers.conv2d import ResidualBlock, Upsample, group_norm


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What every family's settings come down to.

    Attributes:
        stem: width after the first convolution.
        widths: width of each level, full resolution first; L levels give a stride of 2^(L-1).
        res_blocks: residual blocks a level of the encoder; the decoder has one more.
        latent_channels: Z, between encoder and ``quant_conv``.
        code_dim: width of a code, between ``quant_conv`` and ``post_quant_conv``.
        codebook_size: number of codes.
        attention_levels: levels with an attention after every residual block, whatever the size of the image.
        middle_attention: whether an attention stands between the two middle blocks.
        groups: groups of every normalisation; must divide every width.
    """

    stem: int
    widths: tuple[int, ...]
    res_blocks: int
    latent_channels: int
    code_dim: int
    codebook_size: int
    attention_levels: tuple[int, ...]
    middle_attention: bool
    groups: int

    def __post_init__(self) -> None:
        sizes = (self.res_blocks, self.latent_channels, self.code_dim, self.groups)
        if min(sizes) < 1 or self.codebook_size < 2:
            raise ValueError(
                f"res_blocks, latent_channels, code_dim, groups: got {sizes}, expected 1 or more of each; "
                f"codebook_size: got {self.codebook_size}, expected 2 or more"
            )
        if not self.widths:
            raise ValueError("widths: got no level, expected one positive width a level, full resolution first")
        uneven = [width for width in (self.stem, *self.widths) if width < 1 or width % self.groups]
        if uneven:
            raise ValueError(
                f"widths: got {(self.stem, *self.widths)}, expected positive multiples of groups={self.groups}; "
                "choose other widths or fewer groups"
            )
        outside = [level for level in self.attention_levels if not 0 <= level < len(self.widths)]
        if outside:
            raise ValueError(
                f"attention_levels: got {self.attention_levels}, expected levels from 0 to {len(self.widths) - 1}"
            )


class AttentionBlock(nn.Module):
    """x + proj_out(attention(norm(x))): one head over all pixels, projections by 1 x 1 convolutions with biases.

    Args:
        channels: width in and out, and of the head.
        groups: groups of the normalisation.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        y = self.norm(x)
        # One head; the default scale is 1 / sqrt(C).
        q, k, v = (rearrange(to(y), "b c h w -> b 1 (h w) c") for to in (self.q, self.k, self.v))
        mixed = rearrange(attention(q, k, v), "b 1 (h w) c -> b c h w", h=x.shape[2])
        return x + self.proj_out(mixed)


class Downsample(nn.Module):
    """Halve both pixel axes, rounding down: a 3 x 3 convolution, stride 2, with one row and column of zeros.

    The zeros stand at the bottom and on the right only, so the window of a token hangs over there.

    Args:
        channels: width in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, floor(H / 2), floor(W / 2)]."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by an attention on some levels, then the way to the next level.

    Args:
        in_channels: width in.
        out_channels: width out.
        res_blocks: number of residual blocks.
        groups: groups of the normalisations.
        attention: whether the level has attentions.
        resample: what leads to the next level; None at the end.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        res_blocks: int,
        groups: int,
        *,
        attention: bool,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        widths = [in_channels, *[out_channels] * res_blocks]
        self.block = nn.ModuleList(ResidualBlock(width, out_channels, groups) for width in widths[:-1])
        self.attn = nn.ModuleList(AttentionBlock(out_channels, groups) for _ in range(res_blocks if attention else 0))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H', W'], sizes as ``resample`` makes them."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x if self.resample is None else self.resample(x)


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with or without an attention between them.

    Args:
        channels: width in and out.
        groups: groups of the normalisations.
        attention: whether there is one.
    """

    def __init__(self, channels: int, groups: int, *, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups) if attention else None
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        x = self.block_1(x)
        if self.attn_1 is not None:
            x = self.attn_1(x)
        return self.block_2(x)


class Encoder(nn.Module):
    """Pixels, in the range the family was trained on, to latents."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(3, config.stem, kernel_size=3, padding=1)
        self.down = _levels(
            config,
            before=(config.stem, *widths[:-1]),
            res_blocks=config.res_blocks,
            resample=[None if level == last else Downsample(width) for level, width in enumerate(widths)],
        )
        self.mid = Middle(widths[-1], config.groups, attention=config.middle_attention)
        self.norm_out = group_norm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, kernel_size=3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, Z, floor(H / stride), floor(W / stride)]."""
        x: Tensor = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return x


class Decoder(nn.Module):
    """Latents to pixels in the family's range. The last layer is linear, so pixels are not bounded."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], kernel_size=3, padding=1)
        self.mid = Middle(widths[-1], config.groups, attention=config.middle_attention)
        self.up = _levels(
            config,
            before=(*widths[1:], widths[-1]),
            res_blocks=config.res_blocks + 1,
            resample=[None if level == 0 else Upsample(width) for level, width in enumerate(widths)],
        )
        self.norm_out = group_norm(widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], 3, kernel_size=3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, Z, h, w] -> [B, 3, h * stride, w * stride]."""
        x: Tensor = self.mid(self.conv_in(latents))
        for level in reversed(self.up):  # level 0, the full resolution, runs last
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return x


def _levels(
    config: NetworkConfig, *, before: Sequence[int], res_blocks: int, resample: Sequence[nn.Module | None]
) -> nn.ModuleList:
    """Level l, from ``before[l]`` channels to the config's width."""
    return nn.ModuleList(
        Level(
            before[level],
            width,
            res_blocks,
            config.groups,
            attention=level in config.attention_levels,
            resample=resample[level],
        )
        for level, width in enumerate(config.widths)
    )
