"""LlamaGen's VQ-16 and VQ-8 (Sun et al. 2024), the tokenizers of Halton-MaskGIT: settings and key map.

Weights stand under "model" in the official files; ``quantize.codebook_used`` is dropped.

Shapes: B batch, N positions, M tokens, D width of a code, V codes.
"""

from dataclasses import dataclass
from typing import Final

import torch.nn.functional as F
from torch import Tensor

from maskgen.tokenizers.published.image.attention_vqgan import AttentionVQGAN, Family, MultiplierConfig, NameMap
from maskgen.tokenizers.published.image.blocks import NetworkConfig
from maskgen.tokenizers.quantizers.vector import NormalizedQuantizer


@dataclass(frozen=True, kw_only=True)
class LlamaGenConfig(MultiplierConfig):
    """Settings; the defaults are VQ-16. See ``MultiplierConfig``.

    Attributes:
        groups: groups of every normalisation; official 32.
    """

    code_dim: int = 8
    codebook_size: int = 16384
    groups: int = 32

    @property
    def network(self) -> NetworkConfig:
        """The shared network in these sizes, with attention at the lowest resolution only."""
        lowest = (len(self.multipliers) - 1,) if self.multipliers else ()
        return self._network(attention_levels=lowest, groups=self.groups)


class DirectionQuantizer(NormalizedQuantizer):
    """Nearest code by direction, and what the look-up returns has length 1 as well; the stored rows need not have it."""

    def _vectors(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self._table())


class LlamaGenVQ(AttentionVQGAN):
    """LlamaGen's tokenizer: nearest code by direction, attention at the lowest resolution whatever the image size.

    The network itself was trained on -1..1; the official samplers clamp what it decodes. See ``AttentionVQGAN`` for the
    signal.
    """

    quantizer_type = DirectionQuantizer

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__(config)


NAMES: Final = NameMap(
    family="LlamaGen VQ",
    rules=(
        (r"^(encoder\..*)\bresample\b", r"\1downsample"),
        (r"^(decoder\..*)\bresample\b", r"\1upsample"),
        (r"^(encoder|decoder)\.(down|up)\b", r"\1.conv_blocks"),
        (r"\bblock\b", "res"),
        (r"\bmid\.block_1\b", "mid.0"),
        (r"\bmid\.attn_1\b", "mid.1"),
        (r"\bmid\.block_2\b", "mid.2"),
        (r"^quantizer\.codebook$", "quantize.embedding.weight"),
    ),
    run_order=True,
    ignored=("quantize.codebook_used",),  # a training statistic
)

PUBLISHED: Final[dict[str, LlamaGenConfig]] = {
    "llamagen-vq-ds16": LlamaGenConfig(multipliers=(1, 1, 2, 2, 4)),
    "llamagen-vq-ds8": LlamaGenConfig(multipliers=(1, 2, 2, 4)),
}

_FAMILY: Final = Family(names=NAMES, config=LlamaGenConfig, model=LlamaGenVQ)
config_from, convert = _FAMILY.config_from, _FAMILY.convert
