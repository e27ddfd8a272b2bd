"""Which settings a tokenizer's stage 1 has."""

from __future__ import annotations

import importlib

from torch import nn

from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.training.audio import CodecLossSettings
from maskgen.tokenizers.training.base import TrainingLoss
from maskgen.tokenizers.training.reconstruction import ReconstructionSettings, VideoReconstructionSettings

__all__ = ["loss_settings"]

_OF_MODALITY: dict[str, type[TrainingLoss]] = {
    "image": ReconstructionSettings,
    "video": VideoReconstructionSettings,
    "audio": CodecLossSettings,
}


def loss_settings(tokenizer: type[Tokenizer]) -> type[TrainingLoss]:
    """The settings that a class of tokenizers is trained with: its own ``training_loss``, or those of its modality.

    Raises:
        ValueError: it has none of its own and is of another modality, cannot be trained by those of its modality, or names
            settings that are not there.
    """
    own = tokenizer.training_loss
    if isinstance(own, type):
        return own
    if own:
        module, _, name = own.rpartition(".")
        try:
            found: type[TrainingLoss] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"{tokenizer.__name__}.training_loss: got {own!r}, which is not there ({error})") from None
        return found
    if tokenizer.modality not in _OF_MODALITY:
        raise ValueError(
            f"tokenizer: {tokenizer.__name__} is of modality {tokenizer.modality!r}, which has no training; name one in "
            f"{tokenizer.__name__}.training_loss (see maskgen.tokenizers.base)"
        )
    if tokenizer.forward is nn.Module.forward:
        raise ValueError(
            f"tokenizer: {tokenizer.__name__} has no forward to train; add forward(signal), which gives reconstruction and "
            "quantized, or name a training of its own in training_loss (see maskgen.tokenizers.base)"
        )
    return _OF_MODALITY[tokenizer.modality]
