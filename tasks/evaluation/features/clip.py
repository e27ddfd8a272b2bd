"""CLIP as what compares pictures with their captions: any ``CLIPModel`` of ``transformers`` with its processor.

Shapes: B batch, F features, H W pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.tasks.conditions.text.pretrained import quiet
from maskgen.tasks.data.identity import short_hash
from maskgen.tasks.evaluation.features.base import FeatureBatch, FeatureExtractor, JointFeatures, weights_digest

_TEXTS = 256  # at a time


class ClipFeatures(JointFeatures):
    """The projected features of both towers, as unit vectors.

    Pictures go through the processor that comes with the model (resize, crop, scale), texts through its tokenizer, cut at
    the window. Nothing that comes with a model is run.

    Args:
        source: folder, or name on the Hugging Face Hub, as ``openai/clip-vit-large-patch14``.
        revision: branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: no such folder, and the Hub cannot be reached or has no such name.
        ImportError: ``transformers`` is not installed.
        ValueError: no CLIP, or one that lacks weights.
    """

    score, precision = "clip_score", "clip_r_precision"

    def __init__(self, source: str, revision: str | None = None) -> None:
        self.name = f"CLIP {source}"
        self._model, self._processor, self._tokenizer = _load(source, revision)
        self._model.float().eval().requires_grad_(False)
        self._window: int = self._model.config.text_config.max_position_embeddings
        told = [self._processor.to_json_string(), sorted(self._tokenizer.get_vocab().items())]
        self._digest = f"{weights_digest(self._model)}-{short_hash(told)[:8]}"

    def identity(self) -> str:
        """The name and a hash of weights, processor and vocabulary."""
        return f"{self.name}-{self._digest}"

    @torch.no_grad()
    def embed(self, batch: Tensor) -> FeatureBatch:
        """See ``FeatureExtractor``."""
        pictures = list((batch * 255).round().to(torch.uint8).cpu())
        read = self._processor(pictures, return_tensors="pt", input_data_format="channels_first")
        found = self._model.get_image_features(pixel_values=read["pixel_values"].to(batch.device)).pooler_output
        return FeatureBatch(F.normalize(found, dim=1))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """See ``JointFeatures``."""
        found = []
        for first in range(0, len(texts), _TEXTS):
            part = list(texts[first : first + _TEXTS])
            read = self._tokenizer(
                part, padding=True, truncation=True, max_length=self._window, return_tensors="pt"
            ).to(self._model.device)
            given = {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"]}
            found.append(self._model.get_text_features(**given).pooler_output)
        return F.normalize(torch.cat(found), dim=1)

    def cut(self, texts: Sequence[str]) -> int:
        """See ``JointFeatures``."""
        long = [text for text in texts if len(text) > self._window - 3]  # no token is less than a character
        return sum(len(ids) > self._window for ids in self._tokenizer(long, verbose=False)["input_ids"]) if long else 0

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Move the model."""
        self._model.to(device)
        return self


def _load(source: str, revision: str | None) -> tuple[Any, Any, Any]:
    """Model, image processor and tokenizer."""
    try:
        import transformers
        from transformers import AutoConfig, AutoTokenizer, CLIPImageProcessor, CLIPModel
    except ImportError:
        raise ImportError('CLIP needs the package transformers: pip install "maskgen[text]"') from None
    model_kind: Any = CLIPModel
    asked: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **asked)
        if config.model_type != "clip":
            raise ValueError(
                f"dual_encoder: got {source!r}, a model of type {config.model_type!r}; expected a CLIP with both towers "
                "(its config.json says model_type clip), or a folder of `maskgen train dual-encoder`"
            )
        with quiet(transformers):
            model, told = model_kind.from_pretrained(
                source, revision=revision, use_safetensors=True, output_loading_info=True
            )
        processor = CLIPImageProcessor.from_pretrained(source, **asked)
        tokenizer = AutoTokenizer.from_pretrained(source, **asked)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"dual_encoder: {source!r} is no folder with a CLIP (config.json, model.safetensors, preprocessor_config.json "
            f"and its tokenizer), and could not be fetched from the Hub ({reason}); give a folder that has them all"
        ) from None
    if told["missing_keys"]:
        lacks = sorted(told["missing_keys"])
        raise ValueError(
            f"dual_encoder: {source!r} lacks {len(lacks)} weights of a CLIP, such as {lacks[0]}; get the whole model"
        )
    return model, processor, tokenizer
