"""The key map of the official MaskGIT weights: what it refuses."""

import pytest
import torch

from maskgen.tokenizers.image.vqgan import VQGANConfig
from maskgen.tokenizers.published.image.maskgit import config_from, convert
from maskgen.tokenizers.quantizers.vector import QuantizerConfig


def test_errors_name_everything() -> None:
    small = VQGANConfig(channels=8, multipliers=(1, 2), res_blocks=1, groups=4)
    wrong = r"missing decoder/Conv_0/bias \(16,\).*missing encoder/ResBlock_1/Conv_2/kernel .*; unexpected what \(1,\)$"
    with pytest.raises(ValueError, match=wrong):
        convert({"what": torch.zeros(1)}, small)
    with pytest.raises(ValueError, match=r"these are no MaskGIT tokenizer weights: 0 levels, 0 encoder and 0 decoder"):
        config_from({"what": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"got quantizer 'lfq' and shortcut 'branch', expected 'vq' and 'branch'"):
        convert({}, VQGANConfig(quantizer=QuantizerConfig(kind="lfq")))
