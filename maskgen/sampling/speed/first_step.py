"""The first step, at which rows are often equal: which are, and what is known of them from earlier calls.

Where everything is hidden a row depends on its conditions alone. So its logits are kept as long as the weights stay what
they are: later calls with that class find them, and all guided calls share the row that has no class. They are kept the
second time they are computed: telling that weights are still the same takes a pass over them, which a single call saves.

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import nn

from maskgen.conditioning import Cond

__all__ = ["KnownRows", "RowKinds", "forget", "known_rows", "row_kinds", "weights_state"]

_MOST_BYTES = 64 * 2**20  # for one model; 64 classes at the size of ImageNet 256

_MOST_MET = 4096  # keys of 32 bytes that came once


@dataclass(frozen=True, kw_only=True)
class RowKinds:
    """Which rows of a batch are alike, tokens and conditions.

    Attributes:
        keys: one a kind, the same in every call.
        first: the first row of each kind.
        hidden: whether all tokens of each kind are hidden.
        of: the kind of each row, B of them.
    """

    keys: list[bytes]
    first: list[int]
    hidden: list[bool]
    of: list[int]


def row_kinds(tokens: torch.Tensor, cond: Cond, mask_id: int, axes: Sequence[int] | None = None) -> RowKinds | None:
    """Sort rows by what stands in them.

    Args:
        tokens: long ``[B, N, K]``.
        cond: conditions of B rows.
        mask_id: V, the id of a hidden token.
        axes: token grid.

    Returns:
        The kinds, in the order in which they first come; None where nobody knows (tensors on the meta device hold nothing).
    """
    if tokens.is_meta:
        return None
    named = [("tokens", tokens)]
    named += [(item.name, part) for item in fields(cond) if (part := getattr(cond, item.name)) is not None]
    parts = [(f"{name} {tuple(part.shape[1:])} {part.dtype}", _bytes(part)) for name, part in named]
    hidden = (tokens == mask_id).flatten(1).all(1).tolist()
    kinds: dict[bytes, int] = {}
    first: list[int] = []
    of: list[int] = []
    for row in range(len(tokens)):
        digest = hashlib.blake2b(repr(axes and tuple(axes)).encode(), digest_size=32)
        for name, rows in parts:
            digest.update(name.encode())
            digest.update(rows[row])
        kind = kinds.setdefault(digest.digest(), len(kinds))
        if kind == len(first):
            first.append(row)
        of.append(kind)
    return RowKinds(keys=list(kinds), first=first, hidden=[hidden[row] for row in first], of=of)


def _bytes(part: torch.Tensor) -> list[bytes]:
    """The rows of a tensor as they lie in memory."""
    rows = part.detach().reshape(len(part), -1).contiguous().cpu()
    return [row.tobytes() for row in rows.view(torch.uint8).numpy()]


class KnownRows:
    """Logits ``[N, K, V]`` of rows, those used last; together they take at most 64 MiB.

    Args:
        model: what makes them. Its weights are looked at when rows are used, once an object.
        before: what an earlier call left, of the same places and versions.
    """

    def __init__(self, model: nn.Module, before: KnownRows | None = None) -> None:
        self._model, self._checked = weakref.ref(model), False
        self._norms: list[float] | None = None if before is None else before._norms
        self._rows: OrderedDict[bytes, torch.Tensor] = OrderedDict() if before is None else before._rows
        self._met: OrderedDict[bytes, None] = OrderedDict() if before is None else before._met

    def get(self, key: bytes) -> torch.Tensor | None:
        """The logits, if they are known."""
        if key in self._rows:
            self._check()
        if key in self._rows:
            self._rows.move_to_end(key)
        return self._rows.get(key)

    def meets(self, key: bytes) -> bool:
        """Whether the row came before, so that its logits are worth keeping; to be asked of rows that are not known."""
        before = key in self._met
        self._met[key] = None
        if len(self._met) > _MOST_MET:
            self._met.popitem(last=False)
        return before

    def put(self, key: bytes, logits: torch.Tensor) -> None:
        """Keep a copy, and forget what was not used for longest."""
        self._check()
        if logits.nbytes > _MOST_BYTES or key in self._rows:
            return
        self._rows[key] = logits.detach().clone()
        while sum(row.nbytes for row in self._rows.values()) > _MOST_BYTES:
            self._rows.popitem(last=False)

    def _check(self) -> None:
        """Let go of all rows if the weights are not those that made them."""
        if self._checked:
            return
        model = self._model()
        assert model is not None
        norms = _norms(model)
        if norms != self._norms:
            self._rows.clear()
        self._norms, self._checked = norms, True


_known: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], KnownRows]] = weakref.WeakKeyDictionary()


def known_rows(model: nn.Module) -> KnownRows:
    """What is known of a model; nothing if its weights changed since, or if it cannot be told whether they did.

    Hooks want to see every forward, and may change it.
    """
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    places = None if hooked or model.training or torch.is_grad_enabled() else _places(model)
    if places is None:
        return KnownRows(model)
    before = _known.get(model)
    known = KnownRows(model, before[1] if before is not None and before[0] == places else None)
    _known[model] = (places, known)
    return known


def forget(model: nn.Module) -> None:
    """Let go of what is known of a model, as if it had never been run."""
    _known.pop(model, None)


def weights_state(model: nn.Module) -> tuple[float, ...] | None:
    """What changes whenever weights are trained, loaded or moved: place, version and norm of each tensor.

    Versions do not count what is written through ``weight.data``, hence the norms: one pass over the weights, about a tenth
    of the time of one row at 24 layers of width 768.

    None where that cannot be told: under FSDP, which gathers weights behind our back, in inference mode, on several devices.
    """
    places = _places(model)
    return None if places is None else (*places, *_norms(model))


def _places(model: nn.Module) -> tuple[int, ...] | None:
    """Place and version of each tensor; None as in ``weights_state``."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule  # a second to import, of use here only

        if any(isinstance(part, FSDPModule) for part in model.modules()):
            return None
    tensors = _tensors(model)
    if any(tensor.is_inference() for tensor in tensors) or len({tensor.device for tensor in tensors}) != 1:
        return None
    return tuple(number for tensor in tensors for number in (tensor.data_ptr(), tensor._version))


def _norms(model: nn.Module) -> list[float]:
    floating = [tensor.detach() for tensor in _tensors(model) if tensor.is_floating_point()]
    norms: list[float] = torch.stack(torch._foreach_norm(floating)).tolist()
    return norms


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
