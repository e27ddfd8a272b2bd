"""Official MAGVIT recordings as our models: weights, settings and layouts. The fixtures are channels last."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskgen.tokenizers.published.video.magvit import config_from
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.video.frames import FrameVQ
from maskgen.tokenizers.video.vq3d import VQ3D, VQ3DConfig
from tests.parity.magvit.weights import tokenizer_state_dict
from tests.parity.support import files, load, metadata

NORMS = {"GN": "group", "LN": "layer", None: None}


def first(x: Tensor) -> Tensor:
    """Channels last to channels first."""
    return x.movedim(-1, 1).contiguous()


def last(x: Tensor) -> Tensor:
    """Channels first to channels last."""
    return x.movedim(1, -1)


def group(data: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under one prefix, which is cut off; half precision holds float32 values exactly (README)."""
    found = {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}
    assert found, f"nothing under {prefix!r}"
    return {key: value.float() if value.dtype == torch.float16 else value for key, value in found.items()}


@functools.cache
def recording(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, inputs with outputs, and settings of one set, be it one file or several."""
    data: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for path in files("magvit", f"{name}.*safetensors"):
        part = load(path)
        plain = ".params_" in path.name or ".io." in path.name
        prefix = ("params/" if ".params_" in path.name else "io/") if plain else ""
        data |= {key if key.startswith(prefix) else prefix + key: value for key, value in part.items()}
        settings |= metadata(path)
    return group(data, "params/"), group(data, "io/"), settings


def tokenizer_config(official: Mapping[str, Any]) -> VQ3DConfig:
    """Settings as the official configs have them; every key is looked at."""
    rest = dict(official)
    multipliers = tuple(rest.pop("channel_multipliers"))
    flat = rest.pop("architecture") == "2dcnn"
    flags = (False,) * (len(multipliers) - 1) if flat else tuple(rest.pop("temporal_downsample"))
    config = VQ3DConfig(
        channels=rest.pop("filters"),
        multipliers=multipliers,
        temporal_downsample=flags[: len(multipliers) - 1],
        encoder_blocks=rest.pop("num_enc_res_blocks"),
        decoder_blocks=rest.pop("num_dec_res_blocks"),
        quantizer=QuantizerConfig(
            codebook_size=rest.pop("codebook_size"),
            dim=rest.pop("embedding_dim"),
            commitment_weight=rest.pop("commitment_cost"),
            entropy_weight=rest.pop("entropy_loss_ratio"),
            entropy_temperature=rest.pop("entropy_temperature"),
            entropy_loss=rest.pop("entropy_loss_type"),
        ),
        normalize_latents=rest.pop("latent_normalize", False),
        downsample="conv" if rest.pop("conv_downsample") else "average",
        upsample={"nearest+conv": "nearest", "deconv": "deconv"}[rest.pop("upsample", "nearest+conv")],
        activation=rest.pop("activation_fn"),
        norm=NORMS[rest.pop("norm_type")],
        padding=rest.pop("custom_conv_padding", "zeros"),
    )
    # The first is ignored by the official 3D model (spec, trap 18); the others save memory and change no number.
    for name in ("deconv_upsample", "num_enc_remat_blocks", "num_dec_remat_blocks"):
        rest.pop(name, None)
    assert not rest, f"settings nobody read: {rest}"
    return config


def read_config(params: Mapping[str, Tensor], official: Mapping[str, Any]) -> VQ3DConfig:
    """What the weights say, given what they cannot say; it must be what the settings say."""
    config = config_from(
        params,
        temporal_downsample=tuple(official.get("temporal_downsample", ())),
        activation=official["activation_fn"],
        padding=official.get("custom_conv_padding", "zeros"),
        normalize_latents=official.get("latent_normalize", False),
    )
    assert config == tokenizer_config(official)
    return config


def tokenizer(params: Mapping[str, Tensor], official: Mapping[str, Any]) -> VQ3D:
    """The model with these weights."""
    config = read_config(params, official)
    kind = FrameVQ if official["architecture"] == "2dcnn" else VQ3D
    with torch.device("meta"):  # drawing weights that are replaced at once takes longer than the tests
        model = kind(config)
    model.load_state_dict(tokenizer_state_dict(params, config), assign=True)
    return model.eval()
