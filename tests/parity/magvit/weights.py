"""Official MAGVIT weights in new memory, those of the discriminators, and sizes of which nothing was released."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from maskgen.tokenizers.published.flax_names import bare_shapes, convert_flax, count, norm_of
from maskgen.tokenizers.published.video.magvit import convert
from maskgen.tokenizers.training.discriminators.video import VideoDiscriminatorConfig, build_video_discriminator
from maskgen.tokenizers.video.vq3d import VQ3DConfig
from tests.parity.maskgit.weights import discriminator_modules, owned

# The 2D tokenizers on frames (``FrameVQ``); 13.8 and 53.1 M parameters.
FRAME_TOKENIZERS: dict[str, VQ3DConfig] = {
    "magvit-ucf101-frames-b": VQ3DConfig(temporal_downsample=(False, False, False)),
    "magvit-ucf101-frames-l": VQ3DConfig(channels=128, temporal_downsample=(False, False, False)),
}

# What each tokenizer was trained against.
DISCRIMINATORS: dict[str, VideoDiscriminatorConfig] = {
    "magvit-ucf101-b": VideoDiscriminatorConfig(),
    "magvit-ucf101-l": VideoDiscriminatorConfig(channels=128),
    "magvit-bair-b": VideoDiscriminatorConfig(size=(16, 64, 64), multipliers=(2, 4, 4, 4)),
    "magvit-bair-l": VideoDiscriminatorConfig(channels=128, size=(16, 64, 64), multipliers=(2, 4, 4, 4)),
    "magvit-ucf101-frames-b": VideoDiscriminatorConfig(kind="frame"),
    "magvit-ucf101-frames-l": VideoDiscriminatorConfig(kind="frame", channels=128),
}


def tokenizer_state_dict(params: Mapping[str, Tensor], config: VQ3DConfig) -> dict[str, Tensor]:
    """``convert`` in new memory."""
    return owned(convert(params, config))


def discriminator_config(
    params: Mapping[str, Tensor], size: tuple[int, int, int], *, groups: int = 32, blur_size: int = 0
) -> VideoDiscriminatorConfig:
    """Settings of official discriminator weights, read from their names and shapes.

    Args:
        params: official name to array.
        size: frames, height and width of the clips; the weights show only the product of the last map's axes.
        groups: not visible in the weights; 32 in the official code.
        blur_size: not visible in the weights; 4 where the official 2D one blurs.
    """
    shapes = bare_shapes(params)
    blocks = count(shapes, r"ResBlock_(\d+)/")
    assert blocks, f"these are no MAGVIT discriminator weights: {sorted(shapes)}"
    channels = shapes["Conv_0/kernel"][-1]
    kind: Literal["clip", "frame"] = "frame" if len(shapes["Conv_0/kernel"]) == 4 else "clip"
    config = VideoDiscriminatorConfig(
        kind=kind,
        size=size,
        channels=channels,
        multipliers=tuple(shapes[f"ResBlock_{index}/Conv_2/kernel"][-1] // channels for index in range(blocks)),
        norm={"GroupNorm": "group", "LayerNorm": "layer", None: None}[norm_of(shapes)],
        groups=groups,
        blur_size=blur_size,
    )
    cells = math.prod(config.last_map if kind == "clip" else config.last_map[1:])
    assert shapes["Dense_0/kernel"][0] == cells * shapes["Dense_0/kernel"][1], size
    return config


def discriminator_state_dict(params: Mapping[str, Tensor], config: VideoDiscriminatorConfig) -> dict[str, Tensor]:
    """Official discriminator weights as the state dict of ``build_video_discriminator(config)``, in new memory."""
    with torch.device("meta"):
        model = build_video_discriminator(config)
    norm = "LayerNorm" if config.norm == "layer" else "GroupNorm"
    modules = discriminator_modules(len(model.blocks)) | {"norm_out": f"{norm}_0"}
    for index in range(len(model.blocks)):
        for number in (1, 2):
            modules[f"blocks.{index}.norm{number}"] = f"ResBlock_{index}/{norm}_{number - 1}"
    return owned(convert_flax(params, model, modules, "MAGVIT discriminator"))
