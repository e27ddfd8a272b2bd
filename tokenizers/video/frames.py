"""MAGVIT's 2D tokenizer, on every frame of a clip alone: the baseline of its paper, and what 3D weights are inflated from.

Shapes: B batch, C channels, T frames, H W pixels.
"""

from einops import rearrange
from torch import Tensor

from maskgen.tokenizers.video.vq3d import VQ3D, VQ3DConfig

__all__ = ["FrameVQ"]


class FrameVQ(VQ3D):
    """``VQ3D`` with kernels of one frame, on every frame alone. One token frame is one frame.

    Its weights are where ``maskgen.tokenizers.video.inflation`` starts a ``VQ3D`` from.

    Args:
        config: settings; no step may halve time.

    Raises:
        ValueError: when one does.
    """

    _flat = True

    def __init__(self, config: VQ3DConfig) -> None:
        if any(config.temporal_downsample):
            raise ValueError(
                f"temporal_downsample: got {config.temporal_downsample}, expected all False: frames are on their own"
            )
        super().__init__(config)

    def _latents(self, signal: Tensor) -> Tensor:
        return _clips(super()._latents(_frames(signal)), len(signal))

    def _signal(self, latents: Tensor) -> Tensor:
        return _clips(super()._signal(_frames(latents)), len(latents)).contiguous()


def _frames(x: Tensor) -> Tensor:
    """Clips of one frame, so that norms cannot see the others."""
    return rearrange(x, "b c t h w -> (b t) c 1 h w")


def _clips(x: Tensor, batch: int) -> Tensor:
    return rearrange(x, "(b t) c 1 h w -> b c t h w", b=batch)
