"""EnCodec through its authors' package ``encodec``: the same weights, the same codes, another library.

Shapes: B batch, C channels, S samples, T frames, K codebooks in use.
"""

import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.tokenizers.published.audio.encodec import EncodecBase, EncodecTokenizerConfig
from maskgen.tokenizers.published.audio.encodec_files import transformers_names


class EncodecPackageTokenizer(EncodecBase):
    """EnCodec through the ``encodec`` package.

    Its state dict has the names of ``EncodecTokenizer``, so one weights file serves both; loading also takes the package's
    own names.

    Args:
        config: sizes.

    Raises:
        ImportError: the package is not installed.
    """

    def __init__(self, config: EncodecTokenizerConfig) -> None:
        super().__init__(config)
        try:
            from encodec.model import EncodecModel
            from encodec.modules.seanet import SEANetDecoder, SEANetEncoder
            from encodec.quantization.vq import ResidualVectorQuantizer
        except ImportError as error:
            raise ImportError('EnCodec\'s own package is missing: pip install "maskgen[audio]"') from error
        sizes: dict[str, Any] = {
            "channels": config.channels,
            "dimension": config.dim,
            "n_filters": config.filters,
            "n_residual_layers": config.residual_layers,
            "ratios": list(config.ratios),
            "norm": config.norm,
            "causal": config.causal,
            "true_skip": not config.conv_shortcut,
            "lstm": config.lstm_layers,
        }
        with warnings.catch_warnings():
            # The package norms with torch's old function, whose replacement has other names of weights.
            warnings.filterwarnings("ignore", r".*weight_norm.* is deprecated", FutureWarning)
            encoder, decoder = SEANetEncoder(**sizes), SEANetDecoder(**sizes)
        quantizer = ResidualVectorQuantizer(dimension=config.dim, n_q=config.quantizers, bins=config.codebook_size)
        self.codec: Any = EncodecModel(
            encoder,
            decoder,
            quantizer,
            list(config.bandwidths),
            config.sample_rate,
            config.channels,
            normalize=config.normalize,
        )
        self.codec.set_target_bandwidth(config.bandwidth)
        own = list(self.codec.state_dict(prefix="codec."))
        self._own_names = {new: name for name in own for new in transformers_names({name: torch.empty(0)})}
        self.register_state_dict_post_hook(_rename_saved)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_rename_loaded)  # type: ignore[no-untyped-call]
        self._fill_tables()

    def _books(self) -> list[nn.Module]:
        return [layer._codebook for layer in self.codec.quantizer.vq.layers]

    def _encode(self, signal: Tensor) -> tuple[Tensor, Tensor | None]:
        ((codes, scale),) = self.codec.encode(signal)
        return codes, scale

    def _decode(self, codes: Tensor) -> Tensor:
        return self.codec.decode([(codes, None)])


def _rename_saved(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """The package's names, which the modules inside have written, become ours."""
    assert isinstance(module, EncodecPackageTokenizer)
    for new, name in module._own_names.items():
        state[prefix + new] = state.pop(prefix + name)


def _rename_loaded(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    """Names of either layout become the package's before the modules inside look for them."""
    assert isinstance(module, EncodecPackageTokenizer)
    inside = {name: state.pop(name) for name in list(state) if re.match(re.escape(prefix), name)}
    for new, tensor in transformers_names({name[len(prefix) :]: tensor for name, tensor in inside.items()}).items():
        state[prefix + module._own_names.get(new, new)] = tensor
