"""A model made faster as a whole: compiled, or in bf16. Neither changes its files, its weights or its interface.

``torch.compile`` fuses the small operators around the products and, on CUDA in its mode "reduce-overhead", records each
forward as one graph, so that no kernel waits for Python. Shapes are static: a graph is made for every number of rows, the
first time it is seen. What is compiled is the trunk, everything up to the last layer, whose shape the sampler does not
change; other models than ``PartialTransformer`` are compiled whole.

Neither has run on a GPU yet.
"""

import copy
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.models.base import MaskedTransformer, PartialTransformer

_made: weakref.WeakKeyDictionary[MaskedTransformer, dict[Any, MaskedTransformer]] = weakref.WeakKeyDictionary()


def accelerated(model: MaskedTransformer, *, compiled: bool = False, bfloat16: bool = False) -> MaskedTransformer:
    """The model compiled, in bf16, or both; the same object at every call.

    Args:
        model: left as it is. What comes back shares its weights; in bf16 it has copies of them, written anew at every call.
        compiled: through ``torch.compile``. Where no compiler is found a warning says so, and it goes on as it was.
        bfloat16: weights and activations in bf16. Logits are still float32 (``maskgen.precision.linear_float32``).
    """
    if not (compiled or bfloat16):
        return model
    key = (compiled, bfloat16, model.training, _first(model).device)
    kept = _made.setdefault(model, {})
    if key not in kept or _first(kept[key]).is_inference():  # which cannot be written outside inference mode
        kept[key] = copy.deepcopy(model).to(torch.bfloat16) if bfloat16 else copy.copy(model)
        if compiled:
            _compile(kept[key])
    elif bfloat16:
        _copy_weights(model, kept[key])
    return kept[key]


def _first(model: nn.Module) -> Tensor:
    return next(model.parameters(), torch.empty(0))


@torch.no_grad()
def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    """One pass over the weights, no more than finding out whether they changed would take."""
    for values, copied in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        copied.copy_(values)


def _compile(model: MaskedTransformer) -> None:
    """Replace the method that does the work on this very object."""
    name = "trunk" if isinstance(model, PartialTransformer) and model.is_partial else "forward"
    plain = getattr(model, name)
    if isinstance(model, PartialTransformer):
        object.__setattr__(model, "is_static", True)
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    object.__setattr__(model, name, _Compiled(plain, "reduce-overhead" if on_gpu else None))


class _Compiled:
    """A function through ``torch.compile``, or as it was from the moment that compiling fails."""

    def __init__(self, plain: Callable[..., Any], mode: str | None) -> None:
        self._plain, self._mode = plain, mode
        self._use: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self._use is self._plain:
            return self._plain(*arguments)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of its own parts
                if self._use is None:
                    self._use = torch.compile(self._plain, mode=self._mode, dynamic=False)
                return self._use(*arguments)
        except Exception as error:  # compilers fail in ways of their own: missing, too old, no Triton
            result = self._plain(*arguments)  # if it was not the compiler's fault, this fails in the same way
            self._use = self._plain
            warnings.warn(
                f"compile: torch.compile does not work here ({type(error).__name__}: {_first_line(error)}); going on "
                "without it. On the CPU it needs a C++ compiler such as g++, on CUDA Triton",
                stacklevel=2,
            )
            return result


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:200]
