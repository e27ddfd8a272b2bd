"""What every stage 1 shares: networks, help for the codebook, validation, and whose gradients count when.

Shapes: B batch, N tokens, K codebooks, ... the axes of a signal.
"""

import contextlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Unpack

import torch
from torch import Tensor, nn

from maskgen.data import Batch, draw_numbers
from maskgen.tokenizers.quantizers.care import CodebookCare, CodebookSettings
from maskgen.tokenizers.quantizers.usage import codebook_usage
from maskgen.training.objective import Objective, ObjectiveOptions

_AT_A_TIME = 8  # signals of a validation


class TrainingLoss(Protocol):
    """Settings of a stage 1, a frozen dataclass, which know the objective that they are of."""

    def objective(self, model: Any, size: tuple[int, ...], **options: Unpack[ObjectiveOptions]) -> Objective:
        """The objective that trains a tokenizer.

        Args:
            model: the tokenizer.
            size: of a training signal without batch and channels, e.g. (H, W) or (S,).
            options: see ``maskgen.training.objective.ObjectiveOptions``.

        Raises:
            ValueError: settings that do not fit the tokenizer or the size.
        """


class TokenizerTraining(Objective):
    """Reconstruct signals through codes; optionally fool a discriminator.

    The tokenizer is updated first; the discriminator then sees the same reconstructions, which saves a second forward.

    Args:
        model: a tokenizer whose ``forward`` gives a ``reconstruction`` and the codes (see ``maskgen.tokenizers.base``).
        key: name of the signal in a batch.
        discriminator: tells real signals from reconstructions; None trains without.
        lecam: running means to keep in checkpoints.
        care: of the codebook; by default it is only watched.
        validation: how many signals a validation takes at most.
        options: see ``maskgen.training.objective.ObjectiveOptions``.

    Raises:
        ValueError: a tokenizer without a forward pass, or help for a codebook that it does not have.
    """

    def __init__(
        self,
        model: Any,
        *,
        key: str,
        validation: int,
        discriminator: nn.Module | None = None,
        lecam: nn.Module | None = None,
        care: CodebookSettings | None = None,
        **options: Unpack[ObjectiveOptions],
    ) -> None:
        check_forward(type(model))
        super().__init__(model, **options)
        self.key, self.discriminator, self._lecam = key, discriminator, lecam
        self.care = CodebookCare(model, care or CodebookSettings())
        self.validation = validation
        self._pair: tuple[Tensor, Tensor] | None = None

    def networks(self) -> dict[str, nn.Module]:
        """The tokenizer and, where there is one, the discriminator."""
        if self.discriminator is None:
            return {"model": self.model}
        return {"model": self.model, "discriminator": self.discriminator}

    def state(self) -> nn.Module | None:
        """LeCam's running means, and which codes were used since the last look where unused ones are revived."""
        if not self.care.keeps_state:
            return self._lecam
        return nn.ModuleDict({"care": self.care} | ({} if self._lecam is None else {"lecam": self._lecam}))

    def loss(
        self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the tokenizer or of the discriminator; see ``maskgen.training.objective.Objective``."""
        if network == "discriminator":
            assert self._pair is not None, "the tokenizer comes first"
            return self._discriminator_loss(modules["discriminator"], *self._pair, step)
        signal = self._excerpt(batch[self.key])
        self.care.begin(signal, step, self.rows.generator)
        loss, terms, fake, codes = self._generator_loss(modules, signal, step)
        self._pair = (signal, fake.detach())
        terms = terms | self.care.watch(codes)
        return loss, {name: term.detach() for name, term in terms.items()}

    def _excerpt(self, signal: Tensor) -> Tensor:
        """The part of a batch's signal that a step sees."""
        return signal

    @abstractmethod
    def _generator_loss(
        self, modules: Mapping[str, nn.Module], signal: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """Loss, its terms, what the discriminator shall see, and the codes ``[B, N, K]``."""

    def _discriminator_loss(
        self, discriminator: nn.Module, signal: Tensor, fake: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its terms."""
        raise NotImplementedError(f"{type(self).__name__} has no discriminator")

    def _codes(self, out: Any) -> Tensor:
        """Codes of a pass of the model, ``[B, N, K]``."""
        return out.quantized.codes

    def _errors(self, difference: Tensor) -> Tensor:
        """Mean squared errors of what a PSNR is taken of: whole signals, ``[B, ...]`` to ``[B]``."""
        return difference.square().flatten(1).mean(1)

    def units(self, batch: Batch) -> int:
        """Tokens in the batch."""
        signal = batch[self.key]
        return len(signal) * math.prod(self.model.axes(signal.shape)) * int(self.model.num_codebooks)

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Held-out squared error (``score``), PSNR in dB, and how evenly the codes are used."""
        if self.held_out is None:
            return {}
        numbers = draw_numbers(len(self.held_out), self.validation)
        errors, codes = [], []
        for first in range(0, len(numbers), _AT_A_TIME):
            part = numbers[first : first + _AT_A_TIME]
            signal = self.held_out.batch(part, part)[self.key].to(device)
            out = model(signal)
            errors.append(self._errors(crop_like(out.reconstruction, signal).float().clamp(0, 1) - signal).cpu())
            codes.append(self._codes(out).cpu())
        error = torch.cat(errors)
        return {"score": float(error.mean()), "psnr": float(psnr(error).mean()), **self._usage(torch.cat(codes))}

    def _usage(self, codes: Tensor) -> dict[str, float]:
        usage = codebook_usage(codes, self.model.vocab_size)
        return {"codebook_usage": usage.share, "codebook_perplexity": usage.perplexity}


def check_forward(tokenizer: type[nn.Module]) -> None:
    """Refuse a class of tokenizers without a forward pass, which is no part of the contract but needed here.

    Raises:
        ValueError: saying what to add.
    """
    if tokenizer.forward is nn.Module.forward:
        raise ValueError(
            f"tokenizer: {tokenizer.__name__} has no forward to train; add forward(signal), which gives reconstruction and "
            "quantized, or name a training of its own in training_loss (see maskgen.tokenizers.base)"
        )


def psnr(squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors of signals in [0, 1]: -10 log10(error)."""
    return -10 * torch.log10(squared_error.clamp(min=1e-12))


def crop_like(reconstruction: Tensor, signal: Tensor) -> Tensor:
    """Sizes the stride does not divide decode to larger signals; only the real part is compared."""
    return reconstruction[:, :, *(slice(size) for size in signal.shape[2:])]


@contextlib.contextmanager
def frozen(module: nn.Module | None) -> Iterator[nn.Module | None]:
    """The discriminator sees reconstructions without collecting gradients of its own."""
    if module is not None:
        module.requires_grad_(False)
    try:
        yield module
    finally:
        if module is not None:
            module.requires_grad_(True)
