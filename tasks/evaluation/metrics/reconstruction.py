"""How much of a picture or a clip a tokenizer gives back: PSNR, SSIM, LPIPS, and how it uses its codes.

Shapes: B batch, T frames, H W pixels, N tokens, K codebooks, V codes. Clips count frame by frame.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from maskgen.tasks.evaluation.metrics.base import Metric
from maskgen.tasks.evaluation.metrics.pairs import CEILING, PairScores, check_measures
from maskgen.tokenizers.quantizers.usage import codebook_usage
from maskgen.tokenizers.training.base import psnr
from maskgen.tokenizers.training.losses.perceptual import Perceptual, PerceptualNet

_SMALLEST = 11  # pixels of SSIM's window

_NOTES = {"psnr": "dB, mean over pictures", "ssim": "window of 11 pixels, mean over colours", "lpips": "network "}


def perceptual_net(net: PerceptualNet = "alex") -> Perceptual:
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924) of the package ``lpips``; "alex" is what its authors evaluate with.

    Args:
        net: backbone: "alex", "vgg" or "squeeze".

    Raises:
        ImportError: without the package.
        ConnectionError: the backbone's weights are neither on disk nor can be downloaded.
    """
    try:
        return Perceptual(net)
    except ConnectionError as error:
        told = str(error).replace(" of the perceptual loss", " of LPIPS").rpartition(", or choose")[0]
        raise ConnectionError(f"{told}, or leave lpips out of settings.metrics") from None
    except ImportError:
        raise ImportError('LPIPS needs the package lpips: pip install "maskgen[train]"') from None


def frame_psnr(original: Tensor, rebuilt: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture or frame, as 8-bit pictures: what people see, and what is saved.

    Args:
        original: float ``[B, 3, H, W]`` or ``[B, 3, T, H, W]`` in [0, 1].
        rebuilt: the same shape.

    Returns:
        dB, at most 120, ``[B]`` or ``[B, T]``.

    Raises:
        ValueError: two shapes.
    """
    _check_pair(original, rebuilt)
    return psnr((_eight_bit(original) - _eight_bit(rebuilt)).square().mean((1, -2, -1)))


def clip_psnr(original: Tensor, rebuilt: Tensor, counted: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of the mean squared error of each clip, as 8-bit pictures.

    Over the frames together: where things come back to where they were, one frame of a repeated picture is infinitely good,
    and a mean over frames would be made of that.

    Args:
        original: float ``[B, 3, T, H, W]`` in [0, 1].
        rebuilt: the same shape.
        counted: bool, which pixels count, a shape that expands to theirs; all by default.

    Returns:
        dB, at most 120, ``[B]``.

    Raises:
        ValueError: two shapes, or a clip of which nothing counts.
    """
    _check_pair(original, rebuilt)
    squares = (_eight_bit(original) - _eight_bit(rebuilt)).square().flatten(1)
    if counted is None:
        return psnr(squares.mean(1))
    weights = counted.expand_as(original).flatten(1)
    number = weights.sum(1)
    if int(number.min()) == 0:
        raise ValueError("reconstruction: got a clip of which no pixel counts, expected at least one")
    return psnr((squares * weights).sum(1) / number)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) as torchmetrics computes it: Gaussian window of 11 pixels, sigma 1.5,
    borders mirrored (the original leaves them out).

    Args:
        first: float ``[B, 3, H, W]`` in [0, 1]; each colour by itself, then their mean.
        second: the same shape.

    Returns:
        ``[B]``, 1 for equal pictures.

    Raises:
        ValueError: pictures smaller than the window, or two shapes.
        ImportError: without torchmetrics.
    """
    if first.shape != second.shape or first.ndim != 4 or min(first.shape[-2:]) < _SMALLEST:
        raise ValueError(
            f"ssim: got shapes {tuple(first.shape)} and {tuple(second.shape)}, expected equal ones [B, 3, H, W] of at least "
            f"{_SMALLEST} pixels a side; leave ssim out of settings.metrics for smaller pictures"
        )
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise ImportError('SSIM comes with torchmetrics: pip install "maskgen[eval]"') from None
    found: Any = structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
    similarity: Tensor = found
    return similarity.reshape(len(first))


class PixelScores(PairScores):
    """PSNR, SSIM and LPIPS of pairs that come some at a time.

    Every picture, or frame of a clip, counts alike: PSNR is the mean of the pictures' PSNRs, not that of the mean error. A
    clip's number is the mean over its frames, and intervals are over clips. Equal pictures have an infinite PSNR: among
    others they are left out of the mean and counted.

    Args:
        measures: which of ``psnr``, ``ssim``, ``lpips``.
        perceptual: for LPIPS, see ``perceptual_net``.

    Raises:
        ValueError: an unknown measure, or LPIPS without its network.
    """

    def __init__(self, measures: Sequence[str] = ("psnr", "ssim"), perceptual: Perceptual | None = None) -> None:
        check_measures(measures, tuple(_NOTES))
        notes = dict(_NOTES)
        if perceptual is not None:
            notes["lpips"] += type(perceptual.lpips.net).__name__
        elif "lpips" in measures:
            raise ValueError(f"measures: got {list(measures)}, expected others, and for lpips its network")
        super().__init__("reconstruction", {name: notes[name] for name in measures}, ["psnr"])
        self.perceptual = perceptual

    def update(self, original: Tensor, rebuilt: Tensor) -> None:
        """Compare pairs, see ``compare``."""
        self.add(self.compare(original, rebuilt))

    @torch.no_grad()
    def compare(self, original: Tensor, rebuilt: Tensor) -> dict[str, Tensor]:
        """The numbers of pairs by name, ``[B]``.

        Args:
            original: float ``[B, 3, H, W]`` or ``[B, 3, T, H, W]`` in [0, 1].
            rebuilt: the same shape; compared as 8-bit pictures, which is what people see and what is saved.

        Raises:
            ValueError: two shapes.
        """
        _check_pair(original, rebuilt)
        first, second = (_frames(_eight_bit(tensor)) for tensor in (original, rebuilt))
        each = {
            "psnr": lambda: frame_psnr(original, rebuilt),
            "ssim": lambda: ssim(first, second),
            "lpips": lambda: self._distances(first, second),
        }
        found = {name: each[name]().reshape(len(original), -1).double() for name in self.notes}
        return {name: _mean_psnr(values) if name == "psnr" else values.mean(1) for name, values in found.items()}

    def _distances(self, first: Tensor, second: Tensor) -> Tensor:
        assert self.perceptual is not None
        device = next(self.perceptual.parameters()).device
        found: Tensor = self.perceptual.lpips(first.to(device) * 2 - 1, second.to(device) * 2 - 1)
        return found.reshape(len(first)).cpu()


class CodeUse:
    """How evenly a tokenizer's codes are used, over tokens that come some at a time.

    Args:
        vocab_size: V.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._codes: list[Tensor] = []
        self._kind = torch.int16 if vocab_size <= 1 << 15 else torch.int32

    def update(self, tokens: Tensor) -> None:
        """Add tokens, long ``[B, N, K]``."""
        self._codes.append(tokens.detach().cpu().to(self._kind))

    def metrics(self) -> dict[str, Metric]:
        """``codebook_usage``, the share of codes that occur, and ``codebook_perplexity``; see
        ``maskgen.tokenizers.quantizers.usage``.

        Raises:
            ValueError: no tokens.
        """
        count = sum(map(len, self._codes))
        codes = torch.cat(self._codes).long() if self._codes else torch.zeros(0, 1, 1, dtype=torch.long)
        usage = codebook_usage(codes, self.vocab_size)
        positions = int(np.prod(codes.shape[:2]))
        note = f"{positions} positions, {self.vocab_size} codes" + (
            ", mean over codebooks" if codes.shape[2] > 1 else ""
        )
        return {
            "codebook_usage": Metric(value=usage.share, count=count, note=note),
            "codebook_perplexity": Metric(value=usage.perplexity, count=count, note=note),
        }


def _check_pair(original: Tensor, rebuilt: Tensor) -> None:
    if original.shape != rebuilt.shape or original.ndim not in (4, 5):
        raise ValueError(
            f"reconstruction: got shapes {tuple(original.shape)} and {tuple(rebuilt.shape)}, expected equal ones, "
            "[B, 3, H, W] or [B, 3, T, H, W]"
        )


def _mean_psnr(frames: Tensor) -> Tensor:
    """``[B, T]`` to ``[B]``: over the frames that differ, since equal ones are infinite; ``CEILING`` for equal clips."""
    differs = frames < CEILING - 1e-6
    means = (frames * differs).sum(1) / differs.sum(1).clamp(min=1)
    return torch.where(differs.any(1), means, CEILING)


def _eight_bit(signal: Tensor) -> Tensor:
    return (signal.float().clamp(0, 1) * 255).round() / 255


def _frames(signal: Tensor) -> Tensor:
    """``[B, 3, T, H, W]`` as ``[B T, 3, H, W]``; pictures as they are."""
    return signal if signal.ndim == 4 else rearrange(signal, "b c t h w -> (b t) c h w")
