"""A tokenizer and a transformer that belong together: loading, saving, and the one way from hidden tokens to tokens.

Shapes: B batch, N tokens, K codebooks, V vocabulary, H W pixels.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from maskgen.attention import AttentionBackend, check_backend
from maskgen.checkpoint import build_config, load_module, read_json, save_module, write_json
from maskgen.conditioning import NO_LABEL, Cond
from maskgen.noise import check_seeds
from maskgen.precision import fast_matmul
from maskgen.sampler import SampleStep
from maskgen.tasks.samplers import decide
from maskgen.tasks.sampling import Sampling
from maskgen.tokenizers.base import Tokenizer
from maskgen.transformer import MaskedTransformer

__all__ = ["Label", "Pipeline", "PipelineConfig", "Sampling", "write_description"]

Label = int | str
_FORMAT = "maskgen-pipeline"
_FILES = ["pipeline.json", "tokenizer/*", "transformer/*"]


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What a model folder says besides its weights.

    Attributes:
        signal_size: size of the signal the model was trained on, for images (H, W).
        class_names: one name a class, or none.
        sampling: settings used when a call names none.
    """

    signal_size: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


class Pipeline:
    """A tokenizer, a transformer, and how to sample from them.

    Args:
        tokenizer: signal to tokens and back.
        transformer: predicts tokens; must have the tokenizer's vocabulary and number of codebooks.
        config: see ``PipelineConfig``.
        device: where to run; CUDA if there is any, else the CPU.

    Raises:
        ValueError: tokenizer and transformer do not fit each other, or class names their number of classes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: MaskedTransformer,
        config: PipelineConfig,
        device: torch.device | str | None = None,
    ) -> None:
        got = (tokenizer.vocab_size, tokenizer.num_codebooks)
        expected = (transformer.vocab_size, transformer.num_codebooks)
        if got != expected:
            raise ValueError(
                f"tokenizer and transformer do not fit: {got[0]} codes x {got[1]} against {expected[0]} x {expected[1]}"
            )
        if config.class_names and len(config.class_names) != transformer.num_classes:
            raise ValueError(
                f"class_names: got {len(config.class_names)}, expected {transformer.num_classes}, one for each class"
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer = tokenizer.eval().requires_grad_(False).to(self.device)
        self.transformer = transformer.eval().requires_grad_(False).to(self.device)
        self.config = config
        self.axes = tokenizer.axes((1, 3, *config.signal_size))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: torch.device | str | None = None,
        attention: AttentionBackend | None = None,
        revision: str | None = None,
    ) -> Pipeline:
        """Load a model folder, a published model by its name, or a Hugging Face Hub repository of ours.

        Args:
            name: a folder; a name of the catalog (``maskgen models`` lists them), which is downloaded and converted the
                first time; or ``owner/name`` on the Hub.
            device: where to run.
            attention: back-end to use instead of the saved one.
            revision: branch, tag or commit on the Hub.

        Raises:
            FileNotFoundError: no such folder, or it is not a model folder.
            ValueError: files that are damaged or do not fit each other.
            ConnectionError: neither cached nor to be reached.
            OSError: the cache cannot be written to.
        """
        folder = _find(name, revision)
        description = read_json(folder / "pipeline.json")
        if not isinstance(description, dict) or description.get("format") != _FORMAT:
            raise ValueError(f'{folder / "pipeline.json"}: not a maskgen model (expected "format": "{_FORMAT}")')
        config = build_config(PipelineConfig, description.get("config"), str(folder / "pipeline.json"))
        if attention is not None:
            check_backend(attention)
        adjust = None if attention is None else lambda found: dataclasses.replace(found, attention=attention)
        transformer = load_module(folder / "transformer", MaskedTransformer, adjust)  # type: ignore[type-abstract]
        tokenizer = load_module(folder / "tokenizer", Tokenizer)  # type: ignore[type-abstract]
        return cls(tokenizer, transformer, config, device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``pipeline.json``, ``tokenizer/`` and ``transformer/``; each file whole or not at all."""
        target = Path(folder)
        save_module(self.tokenizer, target / "tokenizer")
        save_module(self.transformer, target / "transformer")
        write_description(target, self.modality, self.config)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload the model to the Hugging Face Hub; returns its address.

        Args:
            repository: ``owner/name``; made if missing.
            private: whether a new repository is private.
        """
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repository, folder_path=folder))

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Signal units that the model's token grid covers: ``signal_size`` rounded up to whole tokens."""
        return tuple(cells * step for cells, step in zip(self.axes, self.tokenizer.stride, strict=True))

    @property
    def modality(self) -> str:
        """``image``, ``video`` or ``audio``."""
        return self.tokenizer.modality

    def require(self, modality: str, task: str) -> None:
        """Refuse a task of another modality.

        Raises:
            ValueError: naming both.
        """
        if self.modality != modality:
            raise ValueError(f"{task} needs an {modality} model, but this model's modality is {self.modality}")

    def class_ids(self, labels: Label | Sequence[Label] | None) -> list[int]:
        """Class ids of ids or names (case does not matter); None is "no class", for models that know it.

        Raises:
            ValueError: out of range, unknown name, a class asked of a model without, or none of a model that needs one.
        """
        if labels is None:
            if self.transformer.num_classes and not self.transformer.null_class:
                raise ValueError(
                    "label: got none, but this model has no unconditional mode (it was trained without label dropout); "
                    "give a class"
                )
            return [NO_LABEL]
        listed = [labels] if isinstance(labels, int | str) else list(labels)
        return [self._class_id(label) for label in listed]

    def sampling(self, settings: Sampling | None, steps: int | None = None, guidance: float | None = None) -> Sampling:
        """The settings of a call: its own or the model's, with the two usual overrides.

        Raises:
            ValueError: guidance asked of a model that was trained without label dropout.
        """
        chosen = (settings or self.config.sampling).override(steps=steps, guidance=guidance)
        if chosen.guidance and not self.transformer.null_class:
            raise ValueError(
                f"guidance: got {chosen.guidance}, but this model has no unconditional mode (it was trained without label "
                "dropout); use 0"
            )
        return chosen

    @torch.no_grad()
    def encode(self, signal: torch.Tensor) -> torch.Tensor:
        """Tokens ``[B, N, K]`` of a signal in the tokenizer's layout."""
        return self.tokenizer.encode(signal.to(self.device))

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, axes: Sequence[int] | None = None) -> torch.Tensor:
        """Signal of tokens ``[B, N, K]``, on the CPU in float32; images are clamped to [0, 1]."""
        with fast_matmul(self.device):
            parts = [self.tokenizer.decode(part, axes or self.axes).float().cpu() for part in tokens.split(32)]
        signal = torch.cat(parts)
        return signal.clamp(0, 1) if self.modality == "image" else signal

    def fill(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        *,
        labels: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        start_step: int = 0,
        batch_size: int = 64,
        callback: Callable[[SampleStep], None] | None = None,
    ) -> torch.Tensor:
        """Decide the hidden tokens on the model's own grid; rows may hide different places.

        Args:
            tokens: long ``[B, N, K]``; what stands at masked places is ignored.
            mask: bool ``[B, N, K]``, True = to be decided.
            labels: B class ids.
            seeds: B integers; an item's result depends on its own seed alone.
            sampling: see ``Sampling``.
            start_step: see ``maskgen.sampler.sample``.
            batch_size: rows at a time; does not change the result.
            callback: sees each step of each part.

        Returns:
            long ``[B, N, K]``.
        """
        listed = check_seeds(seeds, len(tokens))
        done = []
        with fast_matmul(self.device):
            for first in range(0, len(tokens), batch_size):
                part = slice(first, first + batch_size)
                cond = Cond(labels=torch.tensor(labels[part], device=self.device) if labels else None)
                hidden = mask[part].to(self.device)
                known = tokens[part].to(self.device).masked_fill(hidden, self.transformer.vocab_size)
                done.append(
                    decide(
                        self.transformer,
                        cond,
                        known,
                        hidden,
                        sampling=sampling,
                        axes=self.axes,
                        seeds=listed[part],
                        start_step=start_step,
                        callback=callback,
                    )
                )
        return torch.cat(done)

    def _class_id(self, label: Label) -> int:
        count, names = self.transformer.num_classes, self.config.class_names
        if not count:
            raise ValueError(f"label: got {label!r}, but this model has no classes; give none")
        if isinstance(label, str) and re.fullmatch(r"[+-]?[0-9]+", label.strip()):
            label = int(label)
        if isinstance(label, int):
            if not 0 <= label < count:
                raise ValueError(f"label: got {label}, expected 0 to {count - 1}")
            return label
        wanted = str(label).strip().casefold()
        exact = [number for number, name in enumerate(names) if name.casefold() == wanted]
        close = exact or [number for number, name in enumerate(names) if wanted and wanted in name.casefold()]
        if len(close) != 1:
            known = (
                f"known: {', '.join(names[:12])}{', ...' if names[12:] else ''}" if names else "this model has no names"
            )
            could = ", ".join(f"{names[number]} ({number})" for number in close[:8])
            hint = f"it could be {could}{', ...' if close[8:] else ''}" if close else known
            raise ValueError(f"label: got {label!r}, expected a number from 0 to {count - 1} or a class name; {hint}")
        return close[0]


def write_description(folder: Path, modality: str, config: PipelineConfig) -> None:
    """Write ``pipeline.json``, which makes a folder with ``tokenizer/`` and ``transformer/`` a model."""
    content = {"format": _FORMAT, "modality": modality, "config": dataclasses.asdict(config)}
    write_json(folder / "pipeline.json", content)


def _find(name: str | Path, revision: str | None) -> Path:
    """A local folder, a published model, or the cached copy of a Hub repository."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "pipeline.json").is_file():
            raise FileNotFoundError(f"{folder}: not a model folder (no pipeline.json); train one or name another")
        return folder
    text = str(name)
    if "/" not in text and (found := _published(text)) is not None:
        return found
    if isinstance(name, Path) or text.count("/") != 1 or text.startswith((".", "/", "~", "runs" + os.sep)):
        raise FileNotFoundError(
            f"{name}: no such model folder; train one (maskgen demo) or name a Hub repository (owner/name) or a published "
            "model (maskgen models lists them)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=_FILES))
    except LocalEntryNotFoundError:
        raise ConnectionError(
            f"{name}: no such folder, not in the cache, and the Hugging Face Hub cannot be reached"
        ) from None
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"{name}: no such folder, and the Hugging Face Hub answers: {error}") from None


def _published(name: str) -> Path | None:
    """The cached folder of a name of the catalog; None for any other name."""
    from maskgen.tasks.catalog import CATALOG  # it needs this module's Sampling
    from maskgen.tasks.convert import fetch

    entry = CATALOG.get(name)
    if entry is None:
        return None
    if len(entry.parts) < 2:
        (part,) = entry.parts
        raise ValueError(
            f"{name}: a {part} alone, not a whole model; maskgen.tasks.convert.fetch({name!r}) gives its folder for "
            "maskgen.checkpoint.load_module"
        )
    return fetch(name)
