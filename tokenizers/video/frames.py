"""MAGVIT's 2D tokenizer, on every frame of a clip alone: the baseline of its paper, and what 3D weights are inflated from.

Shapes: B batch, C channels, T frames, H W pixels.
"""

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

    def _latents(self, video: Tensor) -> Tensor:
        return _unfold(super()._latents(_fold(video)), len(video))

    def _video(self, latents: Tensor) -> Tensor:
        return _unfold(super()._video(_fold(latents)), len(latents)).contiguous()


def _fold(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B * T, C, 1, H, W]: clips of one frame, so that norms cannot see the others."""
    return x.transpose(1, 2).flatten(0, 1).unsqueeze(2)


def _unfold(x: Tensor, batch: int) -> Tensor:
    """[B * T, C, 1, H, W] -> [B, C, T, H, W]."""
    return x.squeeze(2).unflatten(0, (batch, -1)).transpose(1, 2)
