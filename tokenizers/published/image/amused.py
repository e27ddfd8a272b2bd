"""The VQ model of aMUSEd (Patil et al. 2024), in diffusers' layout: settings and key map."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from maskgen.tokenizers.published.image.attention_vqgan import AttentionVQGAN, AttentionVQGANConfig, Family, NameMap
from maskgen.tokenizers.published.image.blocks import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class AmusedVQConfig(AttentionVQGANConfig):
    """Settings; the defaults are the released model, which serves 256 and 512 pixels.

    Attributes are those of ``NetworkConfig``; the first convolution is as wide as the first level, no level has attentions,
    and neither has the middle of the release.
    """

    widths: tuple[int, ...] = (128, 256, 256, 512, 768)
    res_blocks: int = 2
    latent_channels: int = 64
    code_dim: int = 64
    codebook_size: int = 8192
    middle_attention: bool = False
    groups: int = 32

    @property
    def network(self) -> NetworkConfig:
        """The shared network in these sizes, without attention at the levels."""
        return NetworkConfig(stem=self.widths[0] if self.widths else 0, attention_levels=(), **vars(self))


class AmusedVQ(AttentionVQGAN):
    """aMUSEd's tokenizer: nearest code by distance, codes as stored, convolutions only in the release.

    The network itself was trained on pixels in [0, 1]; the official pipeline clamps what it decodes. See
    ``AttentionVQGAN`` for the signal.

    Keep the weights in float32 or bfloat16: in float16 the activations of the released model overflow, which diffusers
    avoids by its ``force_upcast``, and here ``encode`` and ``decode`` refuse it with a ``TypeError``.
    """

    signed = False

    def __init__(self, config: AmusedVQConfig) -> None:
        super().__init__(config)

    def _latents(self, signal: Tensor) -> Tensor:
        self._refuse_float16()
        return super()._latents(signal)

    def _signal(self, latents: Tensor) -> Tensor:
        self._refuse_float16()
        return super()._signal(latents)

    def _refuse_float16(self) -> None:
        if self.last_layer.dtype == torch.float16:
            raise TypeError("weights: got torch.float16, in which this model overflows; use .float() or .bfloat16()")


NAMES: Final = NameMap(
    family="aMUSEd VQ (diffusers VQModel)",
    rules=(
        (r"^(encoder\..*)\bresample\b", r"\1downsamplers.0"),
        (r"^(decoder\..*)\bresample\b", r"\1upsamplers.0"),
        (r"^(encoder|decoder)\.(down|up)\b", r"\1.\2_blocks"),
        (r"\bblock\b", "resnets"),
        (r"\bmid\b", "mid_block"),
        (r"\bblock_1\b", "resnets.0"),
        (r"\bblock_2\b", "resnets.1"),
        (r"\battn_1\.norm\b", "attn_1.group_norm"),
        (r"\battn_1\.([qkv])\b", r"attn_1.to_\1"),
        (r"\battn_1\.proj_out\b", "attn_1.to_out.0"),
        (r"\battn_1\b", "attentions.0"),
        (r"\bnin_shortcut\b", "conv_shortcut"),
        (r"\bnorm_out\b", "conv_norm_out"),
        (r"^quantizer\.codebook$", "quantize.embedding.weight"),
    ),
    run_order=True,
    linear_attention=True,
)


def settings_from(model: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes do not show, as arguments of ``config_from``, from ``vqvae/config.json`` of a folder of diffusers."""
    return {"groups": model["norm_num_groups"]}


PUBLISHED: Final[dict[str, AmusedVQConfig]] = {"amused-vqvae": AmusedVQConfig()}

_FAMILY: Final = Family(names=NAMES, config=AmusedVQConfig, model=AmusedVQ)
config_from, convert = _FAMILY.config_from, _FAMILY.convert
