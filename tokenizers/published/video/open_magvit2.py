"""Open-MAGVIT2's tokenizers (TencentARC/SEED-Voken, Apache-2.0): settings and key map of the published weights.

Weights are Lightning files: our names under "state_dict", with ``.conv_1`` before the parameters of 3D convolutions. The
quantizer has none. Averaged weights lie beside them as ``model_ema.`` and the name without its dots;
``maskgen.weights.files.read_weights(path, ema=True)`` takes these, ``averaged`` does from a dictionary at hand. Its
authors reconstruct with averaged weights and train their generators on ids of the others, and ids differ: choose.

Shapes: K parts of an id, d bits of an id, L levels.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from maskgen.checkpoint import empty_shapes, renamed
from maskgen.tokenizers.magvit2.inflation import inflated_config
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2ImageConfig, Magvit2Video, Magvit2VideoConfig

_AVERAGED = "model_ema."

_IGNORED = ("loss.", _AVERAGED, "quantize.")

_CONVOLUTION = re.compile(r"\b(conv_in|conv_out|conv1|conv2|nin_shortcut|downsample)\.(weight|bias)$")

_IMAGE = Magvit2ImageConfig()

PUBLISHED: Final[dict[str, Magvit2ImageConfig | Magvit2VideoConfig]] = {
    "imagenet_128_L": dataclasses.replace(_IMAGE, multipliers=(1, 2, 2, 4)),
    "imagenet_256_L": _IMAGE,
    "pretrain256_262144": _IMAGE,
    "pretrain256_16384": dataclasses.replace(_IMAGE, token_bits=(7, 7)),
    "video_128_262144": Magvit2VideoConfig(),
}
"""File name of the release to settings. Ids are spoken as two sub-tokens, as MAGVIT-v2's masked transformers do."""


def official_name(name: str, *, video: bool) -> str:
    """Official name of one of our weights.

    Args:
        name: ours, e.g. "decoder.up.1.upsample.conv1.weight".
        video: whether it is of a video tokenizer.

    Returns:
        The official name; images have ours.
    """
    return _CONVOLUTION.sub(r"\1.conv_1.\2", name) if video else name


def averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights of a file's "state_dict", by the names of the weights they are averages of.

    Args:
        state: official name to tensor, both copies.

    Returns:
        Official name to averaged tensor; what has no average (``loss.*`` may, and is left out) is as it was.

    Raises:
        ValueError: when there are none, or not for every weight of the networks.
    """
    plain = {name: tensor for name, tensor in state.items() if not name.startswith(_IGNORED)}
    found = {name: state.get(_AVERAGED + name.replace(".", "")) for name in plain}
    missing = [name for name, tensor in found.items() if tensor is None]
    if missing or not plain:
        raise ValueError(
            f"averaged weights: {len(missing)} of {len(plain)} missing, such as {(missing or ['all'])[0]}; use the others"
        )
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def config_from(
    state: Mapping[str, Tensor], *, parts: int | None = None, groups: int = 32
) -> Magvit2ImageConfig | Magvit2VideoConfig:
    """Settings that official weights were made with, read from their names and shapes.

    Args:
        state: official name to tensor.
        parts: K, how many parts an id is to be spoken in: no property of the weights. Without it 2, or 1 for an odd number
            of bits.
        groups: not visible in the weights; 32 in the official code.

    Returns:
        Settings of the image or the video tokenizer. Strides of the latter follow the official rule from the multipliers.

    Raises:
        ValueError: when weights that fix a size are missing or make no network.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    video = "encoder.conv_in.conv_1.weight" in shapes
    needed = [official_name(f"encoder.{part}.weight", video=video) for part in ("conv_in", "conv_out")]
    missing = [name for name in (*needed, "decoder.adaptive.0.gamma.weight") if name not in shapes]
    if missing:
        raise ValueError(f"these are no Open-MAGVIT2 weights: {len(shapes)} found, without {', '.join(missing)}")
    channels, bits = shapes[needed[0]][0], shapes[needed[1]][0]

    def kernel(level: int, block: int) -> tuple[int, ...] | None:
        return shapes.get(official_name(f"encoder.down.{level}.block.{block}.conv1.weight", video=video))

    widths: list[int] = []
    while shape := kernel(len(widths), 0):
        widths.append(shape[0])
    res_blocks = 0
    while kernel(0, res_blocks):
        res_blocks += 1
    if any(width % channels for width in widths):
        raise ValueError(f"level widths: got {widths}, expected multiples of the first convolution's {channels}")
    parts = parts or (1 if bits % 2 else 2)
    if bits % parts:
        raise ValueError(f"parts: got {parts} for ids of {bits} bits, expected a divisor")
    config = Magvit2ImageConfig(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        res_blocks=res_blocks,
        token_bits=(bits // parts,) * parts,
        groups=groups,
    )
    return inflated_config(config) if video else config


def convert(state: Mapping[str, Tensor], config: Magvit2ImageConfig | Magvit2VideoConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``Magvit2Image(config)`` or ``Magvit2Video(config)``.

    ``loss.*`` (discriminator, perceptual loss), ``model_ema.*`` and ``quantize.*`` (constants) are dropped.

    Args:
        state: official name to tensor.
        config: settings of the model to fill, usually ``config_from(state)``.

    Returns:
        State dict: the given tensors themselves, in the precision they came in.

    Raises:
        ValueError: every official name that is missing, unexpected or mis-shaped.
    """
    video = isinstance(config, Magvit2VideoConfig)
    shapes = empty_shapes(Magvit2Video if video else Magvit2Image, config)
    found = {name: tensor for name, tensor in state.items() if not name.startswith(_IGNORED)}
    return renamed(found, shapes, functools.partial(official_name, video=video), "Open-MAGVIT2 weights")
