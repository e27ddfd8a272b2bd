"""CompVis VQGAN of taming-transformers (Esser et al. 2021): settings and key map of the f16 ImageNet weights.

Weights are a Lightning file: the names below under "state_dict", beside the discriminator's and the perceptual loss's,
which are dropped. Files made with ``remap`` (code ids renumbered) are refused.
"""

from dataclasses import dataclass
from typing import Final

from maskgen.tokenizers.published.image.attention_vqgan import AttentionVQGAN, Family, MultiplierConfig, NameMap
from maskgen.tokenizers.published.image.blocks import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class TamingConfig(MultiplierConfig):
    """Settings; the defaults are those of the f16 ImageNet weights with 1024 codes. See ``MultiplierConfig``.

    Attributes:
        attention_levels: levels with attentions, 0 being the full resolution. The official settings name resolutions
            instead (16 of a nominal 256), and resolve them once: other image sizes have them at the same levels.
        groups: groups of every normalisation; official 32.
    """

    attention_levels: tuple[int, ...] = (4,)
    groups: int = 32

    @property
    def network(self) -> NetworkConfig:
        """The shared network in these sizes."""
        return self._network(attention_levels=self.attention_levels, groups=self.groups)


class TamingVQGAN(AttentionVQGAN):
    """The VQGAN of taming-transformers: nearest code by squared distance, codes as stored.

    The network itself was trained on -1..1 (byte / 127.5 - 1). See ``AttentionVQGAN`` for the signal.
    """

    def __init__(self, config: TamingConfig) -> None:
        super().__init__(config)


# Our names follow this family's, but for the codebook and the way to the next level.
NAMES: Final = NameMap(
    family="CompVis VQGAN",
    rules=(
        (r"^(encoder\..*)\bresample\b", r"\1downsample"),
        (r"^(decoder\..*)\bresample\b", r"\1upsample"),
        (r"^quantizer\.codebook$", "quantize.embedding.weight"),
    ),
    run_order=False,
    ignored=("loss.",),
)

PUBLISHED: Final[dict[str, TamingConfig]] = {
    "vqgan-imagenet-f16-1024": TamingConfig(codebook_size=1024),
    "vqgan-imagenet-f16-16384": TamingConfig(codebook_size=16384),
}

_FAMILY: Final = Family(names=NAMES, config=TamingConfig, model=TamingVQGAN)
config_from, convert = _FAMILY.config_from, _FAMILY.convert
