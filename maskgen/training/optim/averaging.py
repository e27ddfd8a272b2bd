"""Averaged weights of a training, whole or spread over the processes like the model itself."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def warm_average(decay: float) -> Any:
    """Averaging rule with warm-up, so that short runs do not average in their random start."""

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor) -> None:
        done = int(count)
        weight = 1 - min(decay, (1 + done) / (10 + done))
        floats = [(a, c) for a, c in zip(averaged, current, strict=True) if a.is_floating_point()]
        if floats:  # one call per type and device: a quantizer's flags come without any
            torch._foreach_lerp_([a for a, _ in floats], [c.to(a.dtype) for a, c in floats], weight)
        for a, c in zip(averaged, current, strict=True):
            if not a.is_floating_point():
                a.copy_(c)

    return update


class AveragedWeights(AveragedModel):
    """Exponential averages of a model's weights and buffers.

    ``module`` is what gets validated and exported. Where the model is sharded, so is ``module``: a process averages only the
    part of the weights that it holds, and ``whole`` puts them together.

    Args:
        model: not yet prepared by Accelerate; copied.
        rule: from ``maskgen.training.optim.averaging.warm_average``.
    """

    def __init__(self, model: nn.Module, rule: Any) -> None:
        super().__init__(model, multi_avg_fn=rule, use_buffers=True)
        self.requires_grad_(False).eval()
        self._skeleton: list[nn.Module] = []  # in a list, so that it is no part of this module

    def shard(self, how: Callable[[nn.Module], nn.Module]) -> None:
        """Spread ``module`` over the processes; a copy on the CPU stays for ``whole``."""
        self._skeleton.append(copy.deepcopy(self.module))
        self.module = how(self.module)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the averages towards the model's weights; the first call copies them.

        Args:
            model: as it is inside Accelerate's wrappers, sharded like ``module``.
        """
        averaged, current = _tensors(self.module), _tensors(model)
        if self.n_averaged == 0:
            for mine, new in zip(averaged, current, strict=True):
                mine.copy_(new)
        else:
            assert self.multi_avg_fn is not None
            self.multi_avg_fn(averaged, current, self.n_averaged)
        self.n_averaged += 1

    def whole(self) -> nn.Module:
        """The averaged model as a plain module. All processes must call it where weights are sharded."""
        if not self._skeleton:
            return self.module
        plain = self._skeleton[0]
        # One tensor at a time is whole on the device.
        for name, tensor in self.module.state_dict().items():
            value = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            _set(plain, name, value)
        return plain

    def put_away(self) -> None:
        """Whatever ``whole`` gave goes back to the CPU where it is a copy: a device has no room to spare for it."""
        for plain in self._skeleton:
            plain.to("cpu")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, unless it is sharded."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _tensors(module: nn.Module) -> list[Tensor]:
    return [local(tensor.detach()) for tensor in (*module.parameters(), *module.buffers())]


@torch.no_grad()
def _set(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    getattr(module.get_submodule(owner), leaf).copy_(value)
