"""Text encoders of ``transformers``: CLIP's text tower, T5's encoder, any ``AutoModel`` with its tokenizer.

A model folder keeps the encoder by reference (a folder or a Hub name), or with its weights in ``text/encoder/``. Either way
its identity is a hash of weights, vocabulary and settings, so that another encoder under the same name is noticed.

Shapes: B texts, L tokens of the window, D width of the context, P width of the pooled vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskgen.conditioning import Cond
from maskgen.tasks.conditions.text.base import TextEncoder

Pooled = Literal["none", "projection", "first", "mean"]

OWN_FOLDER = "encoder"
"""Sub-folder of the part ``text`` of a model folder that holds an encoder's own files."""


@dataclass(frozen=True, kw_only=True)
class PretrainedTextConfig:
    """Which encoder, and what of it is used.

    Attributes:
        source: folder, or name on the Hugging Face Hub, with config, weights and tokenizer.
        revision: branch, tag or commit on the Hub.
        length: L, tokens of the window, special ones included; longer texts are cut, shorter ones padded.
        layer: hidden state that is the context: -1 the encoder's output (after its last norm), -2 what the last layer but
            one gives (CLIP in aMUSEd and Meissonic), and so on.
        pooled: the vector of the whole text: ``projection`` (CLIP's text embedding), ``first`` token, ``mean`` of the real
            tokens (sentence encoders), or ``none``.
        attend_padding: whether padding belongs to the context, as in aMUSEd and Meissonic; else ``context_mask`` leaves
            it out and its features are 0.
        keep_weights: whether a model folder gets a copy of the encoder instead of its name.
    """

    source: str
    revision: str | None = None
    length: int = 77
    layer: int = -1
    pooled: Pooled = "none"
    attend_padding: bool = False
    keep_weights: bool = False

    def __post_init__(self) -> None:
        if self.length < 3 or self.layer >= 0:
            raise ValueError(
                f"got length {self.length}, layer {self.layer}; expected a length of 3 or more and a layer counted from "
                "the end (-1, -2, ...)"
            )


class PretrainedText(TextEncoder):
    """An encoder of ``transformers``.

    Raises:
        FileNotFoundError: no such folder, and the Hub cannot be reached or has no such name.
        ImportError: ``transformers`` is not installed.
        ValueError: a window longer than the encoder has positions, a hidden state or projection that it does not have.
    """

    def __init__(self, config: PretrainedTextConfig) -> None:
        super().__init__()
        self.model: Any
        self.model, self.tokenizer = _load(config.source, config.revision)
        self._identity = _identity(self.model, self.tokenizer, config)
        self.model.float().eval().requires_grad_(False)  # float16 overflows in T5, and is slow on CPUs
        self._check(config)
        self.config = replace(config, source="", revision=None) if config.keep_weights else config
        self.context_width = _sizes(self.model)["width"]
        self.pooled_width = {"none": 0, "projection": _sizes(self.model)["projection"]}.get(
            config.pooled, self.context_width
        )

    def encode(self, texts: Sequence[str]) -> Cond:
        """See ``TextEncoder``; in bfloat16 on GPUs that have it."""
        device = self.model.device
        read = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.config.length, return_tensors="pt"
        ).to(device)
        mask = read["attention_mask"].bool()
        mask[:, 0] |= ~mask.any(1)  # without special tokens the empty text is nothing but padding
        given = {"input_ids": read["input_ids"]} | ({} if self.config.attend_padding else {"attention_mask": mask})
        reduced = device.type == "cuda" and torch.cuda.is_bf16_supported()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=reduced):
            out = self.model(**given, output_hidden_states=self.config.layer != -1)
        context = out.last_hidden_state if self.config.layer == -1 else out.hidden_states[self.config.layer]
        pooled = self._pooled(out, mask)
        if self.config.attend_padding:
            return Cond(context=context.float(), pooled=pooled)
        return Cond(context=context.float() * mask[..., None], context_mask=mask, pooled=pooled)

    def identity(self) -> str:
        """See ``TextEncoder``."""
        return self._identity

    def cut(self, text: str) -> str:
        """See ``TextEncoder``."""
        if (
            len(text) < self.config.length - self.tokenizer.num_special_tokens_to_add()
        ):  # no token is less than a character
            return ""
        read = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=self.tokenizer.is_fast, verbose=False
        )
        room = self.config.length - self.tokenizer.num_special_tokens_to_add()
        if len(read["input_ids"]) <= room:
            return ""
        if "offset_mapping" in read:
            return text[read["offset_mapping"][room][0] :]
        return str(self.tokenizer.decode(read["input_ids"][room:]))

    def save_files(self, folder: Path) -> None:
        """See ``TextEncoder``."""
        if self.config.keep_weights:
            import transformers

            with quiet(transformers):
                self.model.save_pretrained(folder / OWN_FOLDER)
                self.tokenizer.save_pretrained(folder / OWN_FOLDER)

    # The weights are the encoder's own files, not those that a model folder writes for its parts.

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Nothing."""
        return None

    def _pooled(self, out: Any, mask: Tensor) -> Tensor | None:
        kind = self.config.pooled
        if kind == "none":
            return None
        if kind == "projection":
            return out.text_embeds.float()
        last = out.last_hidden_state.float()
        if kind == "first":
            return last[:, 0]
        return (last * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def _check(self, config: PretrainedTextConfig) -> None:
        sizes = _sizes(self.model)
        if sizes["positions"] and config.length > sizes["positions"]:
            raise ValueError(f"text.length: got {config.length}, but this encoder has {sizes['positions']} positions")
        if config.layer < -sizes["layers"] - 1:
            raise ValueError(f"text.layer: got {config.layer}, but this encoder has {sizes['layers']} layers")
        if config.pooled == "projection" and not sizes["projection"]:
            raise ValueError(
                f"text.pooled: got 'projection', but {type(self.model).__name__} has none; use first, mean or none"
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token


def _load(source: str, revision: str | None) -> tuple[nn.Module, Any]:
    """Model and tokenizer as they are saved; no code that comes with them is run."""
    try:
        import transformers
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
    except ImportError:
        raise ImportError('text encoders need the package transformers: pip install "maskgen[text]"') from None
    trusted = {"revision": revision, "trust_remote_code": False}
    try:
        with quiet(transformers):
            found = AutoConfig.from_pretrained(source, **trusted)
            # T5's encoder saved alone says of itself that it has no decoder.
            encodes = type(found) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
            kind: Any = AutoModelForTextEncoding if encodes or found.is_encoder_decoder else AutoModel
            if found.model_type in ("clip", "clip_text_model"):
                kind = transformers.CLIPTextModelWithProjection
            if found.model_type == "clip":  # a whole CLIP: the part on text may say 512, whatever its projection is
                found.text_config.projection_dim = found.projection_dim
                found = found.text_config
            model = kind.from_pretrained(source, config=found, dtype="auto", **trusted)
            return model, AutoTokenizer.from_pretrained(source, **trusted)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"text.source: {source!r} is no folder with a text encoder and its tokenizer, and could not be fetched from the "
            f"Hub ({reason}); give the folder, or put its files into text/{OWN_FOLDER}/ of the model folder"
        ) from None


class quiet:  # noqa: N801 (used like a function)
    """Without the library's bars and reports: a sentence encoder brings heads that nobody asked for."""

    def __init__(self, transformers: Any) -> None:
        self._logging = transformers.utils.logging

    def __enter__(self) -> None:
        self._before = self._logging.get_verbosity()
        self._logging.set_verbosity_error()
        self._logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        self._logging.set_verbosity(self._before)
        self._logging.enable_progress_bar()


def _sizes(model: Any) -> dict[str, int]:
    """Width of the features and of the projection, number of layers, and of positions where there is a limit."""
    config = model.config
    config = getattr(config, "text_config", config)
    relative = hasattr(config, "relative_attention_num_buckets")  # T5 has no learned positions
    projection = getattr(model, "text_projection", None)
    return {
        "width": config.hidden_size,
        "projection": 0 if projection is None else projection.out_features,
        "layers": config.num_hidden_layers,
        "positions": 0 if relative else getattr(config, "max_position_embeddings", 0),
    }


def _identity(model: nn.Module, tokenizer: Any, config: PretrainedTextConfig) -> str:
    used = (config.length, config.layer, config.pooled, config.attend_padding)
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    digest = hashlib.sha256(repr((used, special, sorted(tokenizer.get_vocab().items()))).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"{type(model).__name__}-{digest.hexdigest()[:16]}"
