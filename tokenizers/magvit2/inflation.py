"""A video tokenizer that begins as an image tokenizer (Yu et al. 2024, arXiv 2310.05737, as Open-MAGVIT2 does it).

Every 2D kernel becomes the last time slice of a 3D one, the others are zero: on one frame the video network then gives what
the image network gives. Where time doubles, both frames get the image's kernel.

Shapes: C channels, k side of a kernel.
"""

from collections.abc import Mapping, Sequence

from einops import repeat
from torch import Tensor

from maskgen.checkpoint import empty_shapes
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2ImageConfig, Magvit2Video, Magvit2VideoConfig
from maskgen.tokenizers.video.inflation import place_kernel


def inflated_config(
    config: Magvit2ImageConfig, strides: Sequence[tuple[int, int, int]] | None = None
) -> Magvit2VideoConfig:
    """Settings of the video tokenizer of an image tokenizer's sizes.

    Args:
        config: the image tokenizer's.
        strides: (frames, rows, columns) from each level to the next. Without them the official rule: time is halved after
            each level but the last whose multiplier is not 1.

    Returns:
        Settings.

    Raises:
        ValueError: for strides that the network cannot have, or that do not halve rows and columns.
    """
    steps = tuple(strides) if strides else tuple((1 if times == 1 else 2, 2, 2) for times in config.multipliers[:-1])
    if any(step[1:] != (2, 2) for step in steps):
        raise ValueError(
            f"strides: got {steps}, expected (1, 2, 2) or (2, 2, 2); the image network halves both pixel axes"
        )
    return Magvit2VideoConfig(**vars(config), strides=steps)


def inflated_state(state: Mapping[str, Tensor], config: Magvit2VideoConfig) -> dict[str, Tensor]:
    """Weights of a video tokenizer from those of an image tokenizer.

    Args:
        state: state dict of a ``Magvit2Image``; averaged weights are inflated alike.
        config: settings of the ``Magvit2Video`` to fill.

    Returns:
        State dict of ``Magvit2Video(config)``; weights without a time axis are the given tensors themselves.

    Raises:
        ValueError: when the two have other sizes; names the first weight that does not fit.
    """
    shapes = empty_shapes(Magvit2Video, config)
    differ = sorted(shapes.keys() ^ state.keys())
    if differ:
        raise ValueError(
            f"state: {differ[0]} is in one network only; channels, levels, blocks and bits must be the same"
        )
    return {name: _inflate(name, state[name], shape) for name, shape in shapes.items()}


def inflate(image: Magvit2Image, strides: Sequence[tuple[int, int, int]] | None = None) -> Magvit2Video:
    """A video tokenizer whose single frames are encoded and decoded as by an image tokenizer.

    Args:
        image: the image tokenizer; it is copied, not changed.
        strides: see ``inflated_config``.

    Returns:
        New video tokenizer, in the mode (training or evaluation) of the other.

    Raises:
        ValueError: for strides that it cannot have.
    """
    video = Magvit2Video(inflated_config(image.config, strides))
    video.load_state_dict(inflated_state(image.state_dict(), video.config))
    return video.train(image.training)


def _inflate(name: str, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """A weight of the image network in the shape of the video network's."""
    if tuple(weight.shape) == tuple(shape):
        return weight
    # Where time doubles there are twice the channels out, and frames are the slow part of the channel.
    times = shape[0] // weight.shape[0]
    tiled = repeat(weight, "o ... -> (s o) ...", s=times)
    if len(shape) == 5 and weight.ndim == 4:
        tiled = place_kernel(tiled, shape[2], -1)
    if tuple(tiled.shape) != tuple(shape):
        raise ValueError(
            f"{name}: got shape {tuple(weight.shape)}, which cannot become {tuple(shape)}; channels, levels, blocks and "
            "bits must be the same"
        )
    return tiled
