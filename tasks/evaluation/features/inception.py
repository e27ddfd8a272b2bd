"""Inception v3 as FID knows it: the network of torch-fidelity, whose weights are those of the original TensorFlow graph.

Shapes: B batch, H W pixels.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from maskgen.tasks.evaluation.features.base import FeatureBatch, FeatureExtractor, weights_digest
from maskgen.weights.files import read_weights

Layer = Literal["64", "192", "768", "2048"]

_SIDE = 299


# The network's own modules up to each layer; the numbers are widths, and names of the features in torch-fidelity.
_STAGES: dict[str, tuple[str, ...]] = {
    "64": ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1"),
    "192": ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    "768": (*(f"Mixed_5{letter}" for letter in "bcd"), *(f"Mixed_6{letter}" for letter in "abcde")),
    "2048": (*(f"Mixed_7{letter}" for letter in "abc"), "AvgPool"),
}


class InceptionFeatures(FeatureExtractor):
    """Inception v3 of 2015, what FID, KID and the Inception score are defined on.

    The network and its weights are torch-fidelity's. Images are resized outside of it, by the rule of the protocol, so that
    one network serves protocols that differ in this alone. Logits go without the bias of the last layer, as in the original
    Inception score, in torch-fidelity and in ADM.

    Args:
        weights: torch-fidelity's file; None looks into the cache of ``torch.hub`` and downloads it there the first time.
        layer: width of the features, which names where they are taken; published numbers are of 2048.

    Raises:
        ImportError: without torch-fidelity.
        ConnectionError: the weights are neither on disk nor can be downloaded.
        FileNotFoundError, ValueError: a file that is not there, or no such weights.
    """

    def __init__(self, weights: Path | None = None, layer: Layer = "2048") -> None:
        if layer not in _STAGES:
            raise ValueError(f"layer: got {layer!r}, expected one of {', '.join(_STAGES)}")
        self.layer, self.input_size = layer, (_SIDE, _SIDE)
        self.name = "inception-v3-2015-12-05" if layer == "2048" else f"inception-v3-layer-{layer}"
        self._network = _load(weights)
        self._digest = weights_digest(self._network)

    def identity(self) -> str:
        """The name and a hash of the weights."""
        return f"{self.name}-{self._digest}"

    @torch.no_grad()
    def embed(self, batch: Tensor) -> FeatureBatch:
        """See ``FeatureExtractor``; images are 299 x 299.

        Raises:
            ValueError: another size.
        """
        if batch.shape[1:] != (3, _SIDE, _SIDE):
            raise ValueError(f"Inception: got shape {tuple(batch.shape)}, expected [B, 3, {_SIDE}, {_SIDE}]")
        x = (batch * 255 - 128) / 128
        for layer, names in _STAGES.items():
            for name in names:
                x = getattr(self._network, name)(x)
            if layer == self.layer:
                break
        features = x.mean((2, 3))
        logits = features @ self._network.fc.weight.T if self.layer == "2048" else None
        return FeatureBatch(features, logits)

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Move the network."""
        self._network.to(device)
        return self


def _load(weights: Path | None) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ImportError('Inception comes with torch-fidelity: pip install "maskgen[eval]"') from None
    path = _fetch() if weights is None else weights
    # torch-fidelity reads the file as a pickle that may run code. What passes here is plain tensors, and then cannot.
    read_weights(path)
    try:
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        ).eval()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: not torch-fidelity's weights of Inception v3 ({reason})") from None


def _fetch() -> Path:
    """torch-fidelity's file in the cache of ``torch.hub``, downloaded the first time."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Its name ends in the beginning of its hash: a login page in its place is no network either.
        digest = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=digest, progress=True)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"cannot download the weights of Inception ({error}): put {URL_INCEPTION_V3} into {path.parent}, give the file "
            "as features.weights, or name other features "
            "(maskgen.tasks.evaluation.features.classifier.ClassifierFeatures: your own network)"
        ) from None
    return path
