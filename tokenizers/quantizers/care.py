"""What a codebook needs while it is trained: how evenly it is used, codes that nobody uses, an entropy term that fades.

Shapes: B batch, N positions, M rows = B x N, D width of a latent, K codebooks, V codes.
"""

import dataclasses
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from maskgen.tokenizers.quantizers.vector import ResidualQuantizer, VectorQuantizer
from maskgen.training.distributed.whole_batch import mean_over_processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookSettings:
    """Help for a codebook; the defaults give none, as the official recipes.

    Attributes:
        entropy_boost: the quantizer's entropy term starts this many times stronger, and falls back to its weight in a line.
        entropy_boost_steps: how long that takes.
        revive_every: steps between looks at the codebooks: codes that the whole batch has not used since the last look move
            onto random latents (Williams et al. 2020, arXiv 2002.08111), level by level of a residual quantizer; 0 = never.
            For ``vq`` and ``rvq`` quantizers.
        revive_last: step after which codes stay where they are, so that the decoder can get used to them.
        revive_all: step of a first look that moves all codes, so that codebooks begin as latents; None has no such look.
    """

    entropy_boost: float = 0.0
    entropy_boost_steps: int = 2000
    revive_every: int = 0
    revive_last: int = 100_000
    revive_all: int | None = None

    def __post_init__(self) -> None:
        for name in ("entropy_boost", "revive_every", "revive_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.entropy_boost_steps < 1:
            raise ValueError(f"entropy_boost_steps: got {self.entropy_boost_steps}, expected 1 or more")

    def looks(self, step: int) -> bool:
        """Whether unused codes move at this step."""
        since = step - (self.revive_all or 0)
        begun = since > 0 if self.revive_all is None else since >= 0
        return self.revive_every > 0 and begun and since % self.revive_every == 0 and step <= self.revive_last


class CodebookCare(nn.Module):
    """Watches and helps the codebook of one model; its buffer is what a resumed run needs.

    Args:
        model: a tokenizer; with ``quantizer`` where it shall be helped.
        settings: see ``CodebookSettings``.

    Raises:
        ValueError: help for a quantizer that cannot have it.
    """

    used: Tensor

    def __init__(self, model: Any, settings: CodebookSettings) -> None:
        super().__init__()
        self.settings = settings
        self._model = [model]  # in a list, so that it is no part of this module
        self.register_buffer("used", torch.zeros(int(model.num_codebooks), int(model.vocab_size)))
        self._looked_at = -1
        quantizer = getattr(model, "quantizer", None)
        if settings.revive_every and not isinstance(quantizer, VectorQuantizer | ResidualQuantizer):
            raise ValueError("revive_every: only quantizers of kind 'vq' or 'rvq' have codes that can die; set it to 0")
        if settings.entropy_boost:
            config = getattr(quantizer, "config", None)
            self._entropy_weight = float(getattr(config, "entropy_weight", 0.0))
            if not self._entropy_weight or getattr(config, "kind", None) in ("fsq", "rvq"):
                raise ValueError("entropy_boost: the model's quantizer has no entropy term; set it to 0")

    @property
    def keeps_state(self) -> bool:
        """Whether a resumed run needs the buffer."""
        return self.settings.revive_every > 0

    def begin(self, signal: Tensor, step: int, chances: torch.Generator | None) -> None:
        """Before the forward pass of a micro-batch.

        Args:
            signal: of this process.
            step: optimiser steps done.
            chances: the same state on every process, on the signal's device; None for torch's global generator.
        """
        settings = self.settings
        if settings.entropy_boost:
            left = max(0.0, 1 - step / settings.entropy_boost_steps)
            quantizer = self._model[0].quantizer
            weight = self._entropy_weight * (1 + settings.entropy_boost * left)
            quantizer.config = dataclasses.replace(quantizer.config, entropy_weight=weight)
        if settings.looks(step) and step != self._looked_at:  # once a step, whatever its number of micro-batches
            self._looked_at = step
            self._revive(signal, chances, all_of_them=step == settings.revive_all)

    def watch(self, codes: Tensor) -> dict[str, Tensor]:
        """Count codes, and say how evenly the whole batch uses them; nothing is read from the device.

        Args:
            codes: long [B, N, K].

        Returns:
            ``codebook_usage``, the share of codes that occur, and ``codebook_perplexity``, exp of the entropy of their
            frequencies; means over codebooks.
        """
        rows = rearrange(codes.detach(), "b n k -> k (b n)")
        counts = torch.zeros_like(self.to(codes.device).used).scatter_add_(
            1, rows, torch.ones_like(rows, dtype=torch.float32)
        )
        counts = mean_over_processes(counts)
        if self.keeps_state:
            self.used += counts
        frequency = counts / counts.sum(1, keepdim=True)
        entropy = torch.special.entr(frequency).sum(1)
        return {"codebook_perplexity": entropy.exp().mean(), "codebook_usage": (counts > 0).float().mean()}

    @torch.no_grad()
    def _revive(self, signal: Tensor, chances: torch.Generator | None, *, all_of_them: bool) -> None:
        """Put unused codes where latents are: the same ones on every process, from anywhere in the whole batch."""
        quantizer = self._model[0].quantizer
        levels = [quantizer] if isinstance(quantizer, VectorQuantizer) else list(quantizer.inner.layers)
        if hasattr(levels[0].codebook, "placements"):
            raise ValueError(
                "revive_every: codes of a sharded model cannot be moved; set it to 0 or launch without FSDP"
            )
        unused = torch.ones_like(self.used, dtype=torch.bool) if all_of_them else self.used == 0
        self.used.zero_()
        rest = self._latents(signal)
        for level, dead in zip(levels, unused, strict=True):
            codebook = level.codebook  # the weights themselves, or a view of them
            count = int(dead.sum())
            if count:
                codebook[dead] = _rows_of_all(rest, count, chances).to(codebook.dtype)
            if level is not levels[-1]:
                rest = rest - codebook[torch.cdist(rest, codebook).argmin(1)]

    def _latents(self, signal: Tensor) -> Tensor:
        """What the quantizer sees of a signal of this process, float32 ``[M, D]``."""
        model, seen = self._model[0], []
        hook = model.quantizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            model(signal)
        finally:
            hook.remove()
        return rearrange(seen[0].detach(), "b d ... -> (b ...) d").float()


def _rows_of_all(rows: Tensor, count: int, chances: torch.Generator | None) -> Tensor:
    """Random rows of the whole batch, the same ones on every process.

    Args:
        rows: [M, D] of this process, as many on each.
        count: how many to take.
        chances: the same state on every process, on the rows' device; None for torch's global generator.

    Returns:
        [count, D].
    """
    many = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if many else (0, 1)
    chosen = (
        torch.rand(count, generator=chances, device=rows.device, dtype=torch.float64) * (world * len(rows))
    ).long()
    mine = chosen // len(rows) == rank
    vectors = rows[chosen % len(rows)] * mine[:, None]
    return mean_over_processes(vectors) * world
