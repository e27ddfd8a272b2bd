"""IBQ, index backpropagation quantization (Shi et al. 2024, arXiv 2412.02692; TencentARC/SEED-Voken): settings and key map.

The network is CompVis's VQGAN with four residual blocks a level; the quantizer chooses the code with the largest scalar
product and lets gradients reach every code. Weights are Lightning files, and have the very names of ``taming.py``;
``loss.*`` and ``model_ema.*`` are dropped.

Shapes: B batch, N positions, M tokens, D width of a code, V codes.
"""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from maskgen.checkpoint import settings_from
from maskgen.tokenizers.published.image.attention_vqgan import AttentionVQGAN, Family, NameMap
from maskgen.tokenizers.published.image.taming import NAMES as TAMING_NAMES
from maskgen.tokenizers.published.image.taming import TamingConfig
from maskgen.tokenizers.quantizers.lookup_free import entropies
from maskgen.tokenizers.quantizers.vector import QuantizerConfig, VectorQuantizer

_LOGITS = 2**26  # most scalar products held at once where only ids are needed


@dataclass(frozen=True, kw_only=True)
class IBQConfig(TamingConfig):
    """Settings; the defaults are those of the published weights with 16384 codes. See ``TamingConfig`` for the network's.

    Attributes:
        commitment_weight: of the term that pulls latents to their codes.
        entropy_weight: of the entropy term.
        entropy_temperature: of the softmax in that term.
    """

    res_blocks: int = 4
    codebook_size: int = 16384
    commitment_weight: float = 0.25
    entropy_weight: float = 0.05
    entropy_temperature: float = 0.01

    @property
    def quantizer(self) -> QuantizerConfig:
        """Settings of the quantizer."""
        return settings_from(self, QuantizerConfig, dim=self.code_dim)


class IndexQuantizer(VectorQuantizer):
    """The code with the largest scalar product; gradients go through a softmax over all of them.

    With p = softmax(z E^T) and h its one-hot choice, the output is (h - sg p + p) E: the chosen code, with a gradient for
    every code and for the latent. loss = mean (out - z)^2 + mean (sg code - z)^2 + commitment_weight * mean (code - sg z)^2
    + entropy_weight * entropy of the scalar products / temperature. Memory is M x V in training. Codes start N(0, 1).

    Args:
        config: settings of kind "vq".
        sample_weight: of the entropy of a token within the entropy term.
        batch_weight: of the entropy of the mean distribution within it.
    """

    def __init__(self, config: QuantizerConfig, *, sample_weight: float = 1.0, batch_weight: float = 1.0) -> None:
        super().__init__(config)
        self.sample_weight, self.batch_weight = sample_weight, batch_weight
        torch.nn.init.normal_(self.codebook)

    def _quantize(self, rows: Tensor, *, with_loss: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        tokens, codebook = rearrange(rows, "b n d -> (b n) d"), self._table()
        if not with_loss:
            step = max(1, _LOGITS // len(codebook))
            codes = torch.cat([(part @ codebook.t()).argmax(-1) for part in tokens.split(step)])
            return self._rows_and_codes(F.embedding(codes, codebook), codes, len(rows), {})
        config, logits = self.config, tokens @ codebook.t()
        codes = logits.argmax(-1)
        chances = logits.softmax(-1)
        choice = F.one_hot(codes, len(codebook)).to(chances.dtype)
        out = (choice - chances.detach() + chances) @ codebook
        hard = F.embedding(codes, codebook)
        terms = {
            "quantize": (out - tokens).square().mean(),
            "q_latent": (hard.detach() - tokens).square().mean(),
            "e_latent": config.commitment_weight * (hard - tokens.detach()).square().mean(),
        }
        if config.entropy_weight:
            found = entropies(logits, temperature=config.entropy_temperature)
            entropy = self.sample_weight * found.sample - self.batch_weight * found.batch
            terms["entropy"] = config.entropy_weight * entropy
        return self._rows_and_codes(out, codes, len(rows), terms)

    @staticmethod
    def _rows_and_codes(
        rows: Tensor, codes: Tensor, batch: int, terms: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows = rearrange(rows, "(b n) d -> b n d", b=batch)
        return rows, rearrange(codes, "(b n) -> b n 1", b=batch), terms


class IBQTokenizer(AttentionVQGAN):
    """IBQ's tokenizer; the network itself was trained on -1..1. See ``AttentionVQGAN`` for the signal."""

    quantizer_type = IndexQuantizer

    def __init__(self, config: IBQConfig) -> None:
        super().__init__(config)


NAMES: Final = NameMap(family="IBQ", rules=TAMING_NAMES.rules, run_order=False, ignored=("loss.", "model_ema."))

PUBLISHED: Final[dict[str, IBQConfig]] = {
    f"imagenet256_{codes}": IBQConfig(codebook_size=codes) for codes in (1024, 8192, 16384, 262144)
}
"""File name of the release to settings."""

_FAMILY: Final = Family(names=NAMES, config=IBQConfig, model=IBQTokenizer)
config_from, convert = _FAMILY.config_from, _FAMILY.convert
