"""The contract between signals and tokens: every tokenizer is one of these, and nothing else crosses the floor.

Shapes: B batch, N tokens (product of the token grid ``axes``), K codebooks, V vocabulary.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

__all__ = ["Tokenizer", "check_contract"]


class Tokenizer(nn.Module, ABC):
    """Signal to tokens and back.

    A concrete tokenizer is built as ``Class(config)`` from one frozen dataclass kept as ``config``; the dataclass
    survives ``Config(**asdict(config))`` and JSON. ``encode`` and ``decode`` do not switch gradients off: callers do.
    The layout and value range of the signal stand in the docstring of the concrete class.

    Attributes:
        modality: kind of signal: "image", "video" or "audio".
        is_spatial: whether neighbours on the grid are neighbours in the signal, a fixed stride apart along each axis. A
            set of tokens that each describe the whole signal (TiTok's 1-D tokens) is not: there is no token for a region,
            so regions can be neither kept nor replaced, and inpainting, outpainting and swaps refuse such a tokenizer.
        config: the frozen dataclass it was built from.
        training_loss: what ``maskgen train tokenizer`` trains it with: settings that know their objective (a class as
            ``maskgen.tokenizers.training.base.TrainingLoss`` describes it, or its import path). Left out, those of the
            modality, which need a ``forward(signal)`` that gives an object with ``reconstruction``, in the signal's layout,
            and ``quantized``, with ``codes`` long [B, N, K], ``loss`` and ``terms``
            (``maskgen.tokenizers.quantizers.vector.Quantized``).
    """

    modality: ClassVar[str]
    is_spatial: ClassVar[bool]
    training_loss: ClassVar[type | str] = ""
    config: Any

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """V: ids run from 0 to V - 1."""

    @property
    @abstractmethod
    def num_codebooks(self) -> int:
        """K: tokens at each position of the grid."""

    @property
    @abstractmethod
    def stride(self) -> tuple[int, ...]:
        """Signal units from one token to the next, for each axis of the grid; all 1 where the grid is not spatial."""

    @abstractmethod
    def axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        """Token grid of a signal.

        Args:
            signal_shape: full shape of the signal, batch included, e.g. (B, 3, H, W).

        Returns:
            Sizes of the grid, e.g. (h, w); their product is N.

        Raises:
            ValueError: when this tokenizer cannot take such a signal.
        """

    @abstractmethod
    def encode(self, signal: Tensor) -> Tensor:
        """Turn a signal into tokens.

        Args:
            signal: floating point signal in the layout and range of the class.

        Returns:
            Long [B, N, K], ids in [0, V), the grid in raster order.

        Raises:
            TypeError: when the signal is not floating point.
            ValueError: when its shape does not fit.
        """

    @abstractmethod
    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        """Turn tokens back into a signal.

        Args:
            tokens: long [B, N, K], ids in [0, V).
            axes: token grid, whose product is N.

        Returns:
            The signal, in the layout of the class.

        Raises:
            TypeError: when tokens are not long.
            ValueError: when shape, grid or ids do not fit.
        """

    def _check_tokens(self, tokens: Tensor, axes: Sequence[int]) -> None:
        """Refuse tokens that ``decode`` cannot look up, before a kernel does so less clearly."""
        if tokens.dtype != torch.long:
            raise TypeError(f"tokens: got {tokens.dtype}, expected torch.int64 ids; convert them with .long()")
        if len(axes) != len(self.stride) or any(size < 1 for size in axes):
            raise ValueError(f"axes: got {tuple(axes)}, expected {len(self.stride)} positive sizes")
        expected = (math.prod(axes), self.num_codebooks)
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != expected:
            raise ValueError(
                f"tokens: got shape {tuple(tokens.shape)}, expected [B, {expected[0]}, {expected[1]}] "
                f"for axes {tuple(axes)}"
            )
        if tokens.numel() == 0:
            return
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"tokens: got ids from {low} to {high}, expected 0 to {self.vocab_size - 1}; "
                "the mask id and class ids must be replaced before decoding"
            )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# Each member: how to add it, what it must be, and whether a value is that.
_MEMBERS: Final[dict[str, tuple[str, str, Callable[[Any], bool]]]] = {
    "modality": ('modality: ClassVar[str] = "image"', "a str", lambda value: isinstance(value, str)),
    "is_spatial": (
        "is_spatial: ClassVar[bool] = True (False if a token has no region of the signal to itself)",
        "a bool",
        lambda value: isinstance(value, bool),
    ),
    "config": (
        "self.config = config in __init__(self, config: YourConfig)",
        "a dataclass instance",
        lambda value: dataclasses.is_dataclass(value) and not isinstance(value, type),
    ),
    "vocab_size": ("a property vocab_size -> int", "a positive int", _is_count),
    "num_codebooks": ("a property num_codebooks -> int", "a positive int", _is_count),
    "stride": (
        "a property stride -> tuple[int, ...]",
        "a tuple of positive ints",
        lambda value: isinstance(value, tuple) and len(value) > 0 and all(map(_is_count, value)),
    ),
    "axes": ("axes(self, signal_shape) -> tuple[int, ...]", "a method", callable),
    "encode": ("encode(self, signal) -> Tensor", "a method", callable),
    "decode": ("decode(self, tokens, axes) -> Tensor", "a method", callable),
}


def check_contract(tokenizer: Tokenizer | type[Tokenizer]) -> None:
    """Refuse what lacks a member of the contract, or has one of another type.

    Call it where a tokenizer of somebody else comes in: Python's own refusal of an abstract class does not know of
    attributes.

    Args:
        tokenizer: an instance, or a class before it is built, which is checked as far as a class shows.

    Raises:
        TypeError: it is no ``Tokenizer``, members are missing (all are named, with what to add), or have wrong types.
    """
    kind = tokenizer if isinstance(tokenizer, type) else type(tokenizer)
    if not issubclass(kind, Tokenizer):
        raise TypeError(
            f"tokenizer: got {kind.__name__}, expected a subclass of maskgen.tokenizers.base.Tokenizer; derive the class "
            "from it"
        )
    missing = [name for name in _MEMBERS if _is_missing(tokenizer, name)]
    missing += sorted(kind.__abstractmethods__ - _MEMBERS.keys())  # what a base of one modality adds
    if missing:
        adds = "; ".join(_MEMBERS[name][0] if name in _MEMBERS else f"a definition of {name}" for name in missing)
        raise TypeError(f"{kind.__name__}: {', '.join(missing)} missing from the contract of a tokenizer; add {adds}")
    for name, (_, expected, fits) in _MEMBERS.items():
        value = getattr(tokenizer, name, None)
        if tokenizer is kind and (name == "config" or (hasattr(value, "__get__") and not callable(value))):
            continue  # a property, known once it is built
        if not fits(value):
            raise TypeError(f"{kind.__name__}.{name}: got {value!r}, expected {expected}")


def _is_missing(tokenizer: Tokenizer | type[Tokenizer], name: str) -> bool:
    """Whether a member is not there; of a class ``config`` cannot be told, and a property is not read."""
    if isinstance(tokenizer, type):
        return name != "config" and getattr(
            getattr(tokenizer, name, None), "__isabstractmethod__", not hasattr(tokenizer, name)
        )
    return not hasattr(tokenizer, name)
