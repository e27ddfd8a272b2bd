"""Transformers: tokens and conditions in, logits out."""

from maskgen.models.base import MaskedTransformer, PartialTransformer
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer

__all__ = [
    "BertConfig",
    "BertTransformer",
    "MaskedTransformer",
    "ModernConfig",
    "ModernTransformer",
    "PartialTransformer",
]
