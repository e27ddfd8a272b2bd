"""Which settings a tokenizer's stage 1 has."""

import importlib

from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.training.audio import CodecLossSettings
from maskgen.tokenizers.training.base import TrainingLoss, check_forward
from maskgen.tokenizers.training.reconstruction import ReconstructionSettings, VideoReconstructionSettings

_OF_MODALITY: dict[str, type[TrainingLoss]] = {
    "image": ReconstructionSettings,
    "video": VideoReconstructionSettings,
    "audio": CodecLossSettings,
}


def loss_settings(tokenizer: type[Tokenizer]) -> type[TrainingLoss]:
    """The settings that a class of tokenizers is trained with: its own ``training_loss``, or those of its modality.

    Raises:
        ValueError: it has none of its own and is of another modality or has no forward pass, or names settings that are not
            there.
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
    check_forward(tokenizer)
    return _OF_MODALITY[tokenizer.modality]
