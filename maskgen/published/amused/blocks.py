"""Blocks of aMUSEd's transformer (Patil et al. 2024, arXiv 2401.01808; U-ViT: Hoogeboom et al. 2023, arXiv 2301.11093).

Nothing here has a bias; every norm divides by the root of the mean square, except the one before the feed-forward.
Sub-modules are called as in the published files.

Shapes: B batch, C channels, H W grid, N = H x W positions, S queries, L text tokens, D width, T width of the text, M width
of the feed-forward, E width of the condition.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.models.attention import AttentionBackend, attend

NORM_EPS = 1e-6


def channels_last(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, H, W, C]``."""
    return rearrange(x, "B C H W -> B H W C")


def channels_first(x: Tensor) -> Tensor:
    """``[B, H, W, C]`` -> ``[B, C, H, W]``."""
    return rearrange(x, "B H W C -> B C H W")


def frequency_features(values: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of v x 10000^(-i / half) for i < half = width / 2.

    Args:
        values: float, any shape.
        width: number of features a value, even.

    Returns:
        float32, the shape of ``values`` and ``width``.
    """
    half = width // 2
    # Through exp, as the published code does: at v = 512 one rounding of a frequency is visible in the logits.
    steps = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[..., None] * torch.exp(steps / half)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class GlobalResponseNorm(nn.Module):
    """Channels compete by their length over the grid (ConvNeXt V2, arXiv 2301.00808): gamma (x n) + beta + x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` -> ``[B, H, W, C]``."""
        length = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (length / (length.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class ConvNextBlock(nn.Module):
    """Depthwise 3x3, norm, wide and back with GELU and response norm, + x; after that x (1 + scale) + shift."""

    def __init__(self, channels: int, cond_width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.RMSNorm(channels, eps=NORM_EPS)
        self.channelwise_linear_1 = nn.Linear(channels, 4 * channels, bias=False)
        self.channelwise_norm = GlobalResponseNorm(4 * channels)
        self.channelwise_linear_2 = nn.Linear(4 * channels, channels, bias=False)
        self.cond_embeds_mapper = nn.Linear(cond_width, 2 * channels, bias=False)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """``[B, C, H, W]`` and ``[B, E]`` -> ``[B, C, H, W]``."""
        h = self.norm(channels_last(self.depthwise(x)))
        h = self.channelwise_linear_2(self.channelwise_norm(F.gelu(self.channelwise_linear_1(h))))
        scale, shift = self.cond_embeds_mapper(F.silu(cond))[:, :, None, None].chunk(2, dim=1)
        return (channels_first(h) + x) * (1 + scale) + shift


class CrossAttention(nn.Module):
    """Multi-head attention of ``x`` on a sequence of the same width (self-attention if it is ``x`` itself)."""

    def __init__(self, width: int, heads: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """``[B, S, D]`` and ``[B, L, D]`` -> ``[B, S, D]``."""
        q, k, v = (
            rearrange(layer(source), "B S (H D) -> B H S D", H=self.heads)
            for layer, source in ((self.to_q, x), (self.to_k, memory), (self.to_v, memory))
        )
        return self.to_out(rearrange(attend(q, k, v, backend=self.backend), "B H S D -> B S (H D)"))


class TextAttentionBlock(nn.Module):
    """Two attentions in a row, both on the text; no self-attention and no feed-forward."""

    def __init__(self, channels: int, text_width: int, heads: int, backend: AttentionBackend) -> None:
        super().__init__()
        # The published class has no mapper, and no SiLU either, where the widths are equal.
        self.kv_mapper = nn.Linear(text_width, channels, bias=False) if text_width != channels else None
        self.norm1 = nn.RMSNorm(channels, eps=NORM_EPS)
        self.attn1 = CrossAttention(channels, heads, backend)
        self.norm2 = nn.RMSNorm(channels, eps=NORM_EPS)
        self.attn2 = CrossAttention(channels, heads, backend)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """``[B, N, C]`` and ``[B, L, T]`` -> ``[B, N, C]``."""
        memory = text if self.kv_mapper is None else self.kv_mapper(F.silu(text))
        x = x + self.attn1(self.norm1(x), memory)
        return x + self.attn2(self.norm2(x), memory)


class DownSample(nn.Module):
    """Norm, then a 2x2 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=NORM_EPS)
        self.conv = nn.Conv2d(channels, channels, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H / 2, W / 2]``; H and W even."""
        return self.conv(channels_first(self.norm(channels_last(x))))


class UpSample(nn.Module):
    """Norm, then a transposed 2x2 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=NORM_EPS)
        self.conv = nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, 2 H, 2 W]``."""
        return self.conv(channels_first(self.norm(channels_last(x))))


class UVitBlock(nn.Module):
    """The convolutional ends: optional halving, pairs of ConvNext and text attention, optional doubling."""

    def __init__(
        self,
        channels: int,
        width: int,
        count: int,
        heads: int,
        *,
        down: bool = False,
        up: bool = False,
        backend: AttentionBackend = "sdpa",
    ) -> None:
        super().__init__()
        self.downsample = DownSample(channels) if down else None
        self.res_blocks = nn.ModuleList(ConvNextBlock(channels, width) for _ in range(count))
        self.attention_blocks = nn.ModuleList(TextAttentionBlock(channels, width, heads, backend) for _ in range(count))
        self.upsample = UpSample(channels) if up else None

    def forward(self, x: Tensor, cond: Tensor, text: Tensor) -> Tensor:
        """``[B, C, H, W]``, ``[B, E]`` and ``[B, L, T]`` -> ``[B, C, H', W']``."""
        if self.downsample is not None:
            x = self.downsample(x)
        for convolution, attention in zip(self.res_blocks, self.attention_blocks, strict=True):
            x = convolution(x, cond)
            height = x.shape[2]
            x = attention(rearrange(x, "B C H W -> B (H W) C"), text)
            x = rearrange(x, "B (H W) C -> B C H W", H=height)
        return x if self.upsample is None else self.upsample(x)


class AdaptiveNorm(nn.Module):
    """norm(x) (1 + scale) + shift with (scale, shift) = Linear(SiLU(cond)), scale first."""

    def __init__(self, norm: nn.Module, width: int) -> None:
        super().__init__()
        self.norm = norm
        self.linear = nn.Linear(width, 2 * width, bias=False)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """``[B, N, D]`` and ``[B, D]`` -> ``[B, N, D]``."""
        scale, shift = self.linear(F.silu(cond))[:, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class GatedFeedForward(nn.Module):
    """GEGLU (Shazeer 2020, arXiv 2002.05202): the first half of the wide layer times GELU of the second."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * mlp_width, bias=False)
        self.out = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class TransformerLayer(nn.Module):
    """Self-attention, text attention and feed-forward, each behind a norm that the condition modulates."""

    def __init__(self, width: int, heads: int, mlp_width: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.norm1 = AdaptiveNorm(nn.RMSNorm(width, eps=NORM_EPS), width)
        self.attn1 = CrossAttention(width, heads, backend)
        self.norm2 = AdaptiveNorm(nn.RMSNorm(width, eps=NORM_EPS), width)
        self.attn2 = CrossAttention(width, heads, backend)
        self.norm3 = AdaptiveNorm(nn.LayerNorm(width, eps=NORM_EPS, bias=False), width)
        self.ff = GatedFeedForward(width, mlp_width)

    def forward(self, x: Tensor, cond: Tensor, text: Tensor) -> Tensor:
        """``[B, N, D]``, ``[B, D]`` and ``[B, L, D]`` -> ``[B, N, D]``."""
        h = self.norm1(x, cond)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x, cond), text)
        return x + self.ff(self.norm3(x, cond))


class Embed(nn.Module):
    """Rows of the table, norm, 1x1 convolution; the mask and the spare rows stand behind the codes."""

    def __init__(self, rows: int, embed_width: int, channels: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(rows, embed_width)
        self.layer_norm = nn.RMSNorm(embed_width, eps=NORM_EPS)
        self.conv = nn.Conv2d(embed_width, channels, 1, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """``[B, H, W]`` -> ``[B, C, H, W]``."""
        return self.conv(channels_first(self.layer_norm(self.embeddings(ids))))


class Head(nn.Module):
    """1x1 convolution, norm, 1x1 convolution to the codes; the mask is not among them."""

    def __init__(self, channels: int, embed_width: int, codes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, embed_width, 1, bias=False)
        self.layer_norm = nn.RMSNorm(embed_width, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(embed_width, codes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, K, H, W]``."""
        return self.conv2(channels_first(self.layer_norm(channels_last(self.conv1(x)))))
