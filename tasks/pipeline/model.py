"""A tokenizer and a transformer that belong together: loading, saving, and the one way from masked tokens to tokens.

Sound may take two transformers: a coarse one for the first codebooks, and a fine one that adds the others to them. Pictures
may take two models, a cascade: the first makes the tokens of small pictures, from which the second makes large ones.

Shapes: B batch, N tokens, K codebooks of the tokenizer, k of them the coarse ones, C channels, S samples, T frames.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from maskgen.models.attention import AttentionBackend
from maskgen.models.base import MaskedTransformer
from maskgen.noise import check_seeds
from maskgen.precision import fast_matmul
from maskgen.published.loops import Decoding, decide
from maskgen.sampling.critics import check_critic
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.conditions.text.base import TextEncoder
from maskgen.tasks.conditions.text.prompts import Prompts
from maskgen.tasks.model_folder import (
    FIRST_STAGE,
    PARTS,
    PipelineConfig,
    check_codec,
    check_parts,
    check_text,
    read_description,
    read_parts,
    upload,
    write_description,
    write_parts,
)
from maskgen.tasks.pipeline.calls import Calls
from maskgen.tasks.pipeline.cascade import check_stages, first_tokens
from maskgen.tasks.published.find import find_model
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.base import OwnModality, Tokenizer, check_contract

_FINE = 0xF17E  # stream of the fine stage's seeds
_SECOND = 0xCA5C  # stream of the seeds of a cascade's second stage


class Pipeline(Calls):
    """A tokenizer, a transformer, and how to sample from them.

    Args:
        tokenizer: signal to tokens and back.
        transformer: predicts tokens; must have the tokenizer's vocabulary and number of codebooks. For sound it may have the
            first codebooks only: what the others would add is left out, or decided by ``fine``.
        config: see ``PipelineConfig``.
        device: where to run; CUDA if there is any, else the CPU.
        fine: for sound, predicts all codebooks of the tokenizer from those of ``transformer``.
        critic: scores what ``transformer`` draws, for the order ``critic``; see ``maskgen.objectives.critic``.
        text: encodes prompts, for a transformer that was trained with texts.
        coarse: first stage of a cascade, for a transformer that takes the tokens of smaller pictures (``coarse_size``).
            Everything else is about the second stage: sizes, tokens and results are its own.

    Raises:
        ValueError: the parts do not fit each other, class names not their number of classes, or the codec or text encoder is
            not the one that the transformers were trained with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: MaskedTransformer,
        config: PipelineConfig,
        device: torch.device | str | None = None,
        *,
        fine: MaskedTransformer | None = None,
        critic: MaskedTransformer | None = None,
        text: TextEncoder | None = None,
        coarse: Pipeline | None = None,
    ) -> None:
        check_contract(tokenizer)
        check_parts(tokenizer, transformer, fine)
        if critic is not None:
            check_critic(critic, transformer)
        if config.class_names and len(config.class_names) != transformer.num_classes:
            raise ValueError(
                f"class_names: got {len(config.class_names)}, expected {transformer.num_classes}, one for each class"
            )
        if isinstance(tokenizer, AudioTokenizer):
            config = dataclasses.replace(config, tokenizer_identity=check_codec(tokenizer, config.tokenizer_identity))
        config = dataclasses.replace(config, text_identity=check_text(text, transformer, config.text_identity))
        if fine is not None and config.fine_sampling is None:
            config = dataclasses.replace(config, fine_sampling=Sampling())
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        for part in (tokenizer, transformer, fine, critic, text):
            if part is not None:
                part.eval().requires_grad_(False).to(self.device)
        self.tokenizer, self.transformer, self.fine, self.critic = tokenizer, transformer, fine, critic
        self.text, self.prompts = text, None if text is None else Prompts(text)
        self.config = config
        channels = tokenizer.channels if isinstance(tokenizer, AudioTokenizer | OwnModality) else 3
        self.axes = tokenizer.axes((1, channels, *config.signal_size))
        self._coarse = coarse
        if coarse is not None:
            check_stages(coarse, transformer, config, self.modality)
            coarse._follow(self)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: torch.device | str | None = None,
        attention: AttentionBackend | None = None,
        revision: str | None = None,
    ) -> Pipeline:
        """Load a model.

        Args:
            name: a folder; a published name (``maskgen models`` lists them), which is downloaded and converted the first
                time; or ``owner/name`` of a Hugging Face Hub repository of ours.
            device: where to run.
            attention: back-end to use instead of the saved one.
            revision: branch, tag or commit on the Hub.

        Raises:
            FileNotFoundError: no such folder, or it is not a model folder.
            ValueError: files that are damaged or do not fit each other.
            ConnectionError: neither cached nor to be reached.
            OSError: the cache cannot be written to.
        """
        folder = find_model(name, revision)
        parts = read_parts(folder, attention)
        first = folder / FIRST_STAGE
        if (first / "pipeline.json").is_file():
            parts["coarse"] = cls.from_pretrained(first, device=device, attention=attention)
        return cls(config=read_description(folder), device=device, **parts)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``pipeline.json`` and a folder for each of ``PARTS`` that there is, and a model folder for a first stage.

        Each file is written whole or not at all. Parts of an earlier save are replaced or taken away.
        """
        write_parts(Path(folder), self.parts)
        first = Path(folder) / FIRST_STAGE
        if self.coarse is not None:
            self.coarse.save_pretrained(first)
        elif (first / "pipeline.json").is_file():
            (first / "pipeline.json").unlink()
            write_parts(first, dict.fromkeys(self.parts))
        write_description(Path(folder), self.modality, self.config)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload the model to the Hugging Face Hub; returns its address.

        Args:
            repository: ``owner/name``; made if missing.
            private: whether a new repository is private.
        """
        return upload(self.save_pretrained, repository, private=private)

    @property
    def parts(self) -> dict[str, Any]:
        """The parts by their names in ``PARTS``; None where this model has none."""
        return {part.name: getattr(self, part.name) for part in PARTS}

    @property
    def coarse(self) -> Pipeline | None:
        """See ``Calls``."""
        return self._coarse

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Signal units that the model's token grid covers: ``signal_size`` rounded up to whole tokens."""
        return tuple(cells * step for cells, step in zip(self.axes, self.tokenizer.stride, strict=True))

    @property
    def modality(self) -> str:
        """``image``, ``video`` or ``audio``."""
        return self.tokenizer.modality

    def require(self, modality: str, task: str, *, regions: bool = False) -> None:
        """Refuse a task of another modality, or of regions where tokens have none.

        Args:
            modality: what the task is for.
            task: its name.
            regions: whether the task keeps a part of the signal, so that tokens must belong to parts of it.

        Raises:
            ValueError: another modality, or a tokenizer that is not spatial.
        """
        if self.modality != modality:
            kind = f"{'a' if modality == 'video' else 'an'} {modality}"
            raise ValueError(f"{task} needs {kind} model, but this model's modality is {self.modality}")
        if regions and not self.tokenizer.is_spatial:
            raise ValueError(
                f"{task} keeps a part of the signal, but each token of {type(self.tokenizer).__name__} describes all of it; "
                "use a model whose tokens form a grid"
            )

    @torch.no_grad()
    def encode(self, signal: Tensor) -> Tensor:
        """Tokens ``[B, N, K]`` of a signal in the tokenizer's layout."""
        return self.tokenizer.encode(signal.to(self.device))

    @torch.no_grad()
    def encode_scaled(self, signal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens ``[B, N, K]`` of sound ``[B, C, S]`` and what ``decode`` wants as ``scale``.

        Raises:
            ValueError: the model is none for sound.
        """
        return self._codec("encode_scaled").encode_scaled(signal.to(self.device))

    @torch.no_grad()
    def decode(self, tokens: Tensor, axes: Sequence[int] | None = None, scale: Tensor | None = None) -> Tensor:
        """Signal of tokens ``[B, N, K]``, on the CPU in float32.

        Images and video are clamped to [0, 1]. Sound has whole hops, ``[B, C, T x hop]``: crop to S samples yourself.

        Args:
            tokens: long ``[B, N, K]``; for sound the first codebooks alone will do.
            axes: their grid; the model's own if left out.
            scale: for sound, float ``[B]`` from ``encode_scaled``.
        """
        grid = axes or self.axes
        with fast_matmul(self.device):
            if scale is None:
                parts = [self.tokenizer.decode(part, grid).float().cpu() for part in tokens.split(32)]
            else:
                codec, pairs = self._codec("scale"), zip(tokens.split(32), scale.split(32), strict=True)
                parts = [codec.decode(part, grid, factor.to(part.device)).float().cpu() for part, factor in pairs]
        signal = torch.cat(parts)
        return signal if self.modality == "audio" else signal.clamp(0, 1)

    def fill(
        self,
        tokens: Tensor,
        mask: Tensor,
        request: Request,
        *,
        axes: Sequence[int] | None = None,
        start_step: int = 0,
        batch_size: int = 64,
        picture: Tensor | None = None,
    ) -> Tensor:
        """Decide the masked tokens, with the sampler ``commit`` all; rows may mask different positions.

        Without a fine transformer, tokens have the transformer's codebooks. With one, they may have k codebooks, and only
        the first transformer runs, or all K: then the first transformer decides the first k codebooks without seeing the
        others, and the fine one the others with the first k given.

        In a cascade the first stage runs before that, where the small grid has masked cells in the area of masked tokens;
        with ``request.cond.coarse`` it does not run. It draws with the seeds of the request, the second stage with others.

        Args:
            tokens: long ``[B, N, k]`` or ``[B, N, K]``; what stands at masked positions is ignored.
            mask: bool of the same shape, True = to be decided.
            request: seeds, conditions and settings of B rows; its callback sees the coarse steps first.
            axes: grid of the tokens, where the transformer takes others than its own, which is the default.
            start_step: see ``maskgen.sampling.sample``; the fine transformer starts at 0.
            batch_size: rows at a time; does not change the result.
            picture: for a cascade, float ``[B or 1, 3, H, W]``, what the tokens are of, which the first stage sees made
                smaller by area; by default what the tokens that are not masked decode to.

        Returns:
            long, of the shape of ``tokens``.

        Raises:
            ValueError: another number of codebooks, seeds or conditions; in a cascade another grid.
        """
        check_seeds(request.seeds, len(tokens))
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
        if self.transformer.coarse_size:
            if axes is not None and tuple(axes) != tuple(self.axes):
                raise ValueError(f"axes: got {tuple(axes)}, but a cascade works on its own grid {tuple(self.axes)}")
            if request.cond.coarse is None:
                small = first_tokens(self, tokens, mask, request, picture, batch_size, start_step)
                request = request.told(coarse=small)
            request = request.window(_SECOND)
        grid, split = axes or self.axes, self._coarse_codebooks(tokens.shape[-1])
        inputs = (tokens[..., :split], mask[..., :split])
        coarse = self._decide(self.transformer, *inputs, request, grid, batch_size, start_step)
        if self.fine is None or split == tokens.shape[-1]:
            return coarse
        given = torch.cat((coarse, tokens[..., split:].to(coarse.device)), dim=-1)
        masked = torch.cat((torch.zeros_like(mask[..., :split]), mask[..., split:]), dim=-1)
        cond = self.fine.taken(request.cond)
        settings = request.fine_sampling or self.config.fine_sampling or Sampling()
        # Seeds of their own: the noise of both stages must not be the same numbers.
        fine = dataclasses.replace(request.window(_FINE), cond=cond, sampling=settings)
        return self._decide(self.fine, given, masked, fine, grid, batch_size)

    def generate(self, request: Request, *, batch_size: int = 64) -> Tensor:
        """Signals of the model's size from nothing but conditions, in the tokenizer's layout; see ``fill``."""
        shape = (len(request.seeds), math.prod(self.axes), (self.fine or self.transformer).num_codebooks)
        masked = torch.ones(shape, dtype=torch.bool)
        return self.decode(self.fill(torch.zeros(shape, dtype=torch.long), masked, request, batch_size=batch_size))

    def enlarge(self, small: Tensor, request: Request) -> Tensor:
        """Tokens ``[B, N, K]`` of a cascade's second stage for those of the first, long ``[B, M, 1]``."""
        shape = (len(request.seeds), math.prod(self.axes), self.transformer.num_codebooks)
        masked = torch.ones(shape, dtype=torch.bool)
        return self.fill(torch.zeros(shape, dtype=torch.long), masked, request.told(coarse=small))

    def edit(self, signal: Tensor, region: Tensor, request: Request) -> Tensor:
        """Decide anew what a region of a signal touches; all else comes back bit for bit.

        Tasks of one modality do more: they empty the region before it is encoded, scale, and blend at the edges.

        Args:
            signal: float ``[1, C, ...]`` in the tokenizer's layout.
            region: bool of the signal's shape after the channels, True = to be made anew.
            request: of B rows.

        Returns:
            float ``[B, C, ...]``.

        Raises:
            ValueError: a tokenizer that is not spatial, or see ``fill``.
        """
        self.require(self.modality, "editing", regions=True)
        cells = region
        for axis, step in enumerate(self.tokenizer.stride):
            cells = torch.cat([part.any(axis, keepdim=True) for part in cells.split(step, axis)], axis)
        tokens = self.encode(signal)[..., : (self.fine or self.transformer).num_codebooks]
        rows = tokens.expand(len(request.seeds), -1, -1)
        masked = rearrange(cells, "... -> 1 (...) 1").to(rows.device).expand_as(rows)
        axes = self.tokenizer.axes(tuple(signal.shape))
        picture = signal if self.transformer.coarse_size else None
        made = self.decode(self.fill(rows, masked, request, axes=axes, picture=picture), axes)
        for axis, size in enumerate(region.shape, start=2):
            made = made.narrow(axis, 0, size)
        return torch.where(region, made, signal)

    def _decide(
        self,
        model: MaskedTransformer,
        tokens: Tensor,
        mask: Tensor,
        request: Request,
        axes: Sequence[int],
        batch_size: int,
        start_step: int = 0,
    ) -> Tensor:
        """Run one transformer's sampler, some rows at a time."""
        done = []
        with fast_matmul(self.device):
            for first in range(0, len(tokens), batch_size):
                part = slice(first, first + batch_size)
                masked = mask[part].to(self.device)
                done.append(
                    decide(
                        Decoding(
                            model=model,
                            cond=request.cond.rows(part).to(self.device),
                            tokens=tokens[part].to(self.device).masked_fill(masked, model.vocab_size),
                            mask=masked,
                            axes=axes,
                            seeds=request.seeds[part],
                            start_step=start_step,
                            critic=self.critic if model is self.transformer else None,
                            callback=request.callback,
                        ),
                        request.sampling,
                    )
                )
        return torch.cat(done)

    def _follow(self, second: Pipeline) -> None:
        """Go to the device of a second stage, and share its text encoder where it is the same one."""
        self.device = second.device
        if self.text is not None and second.text is not None and self.text.identity() == second.text.identity():
            self.text, self.prompts = second.text, second.prompts
        for part in self.parts.values():
            if part is not None:
                part.to(self.device)
        if self.coarse is not None:
            self.coarse._follow(self)

    def _coarse_codebooks(self, given: int) -> int:
        """How many of the given codebooks the first transformer decides: all it has, or the given number is refused."""
        own = self.transformer.num_codebooks
        allowed = {own} if self.fine is None else {own, self.fine.num_codebooks}
        if given not in allowed:
            raise ValueError(f"tokens: got {given} codebooks, expected {' or '.join(map(str, sorted(allowed)))}")
        return own

    def _codec(self, what: str) -> AudioTokenizer:
        if not isinstance(self.tokenizer, AudioTokenizer):
            raise ValueError(f"{what}: only sound has it, but this model's modality is {self.modality}")
        return self.tokenizer
