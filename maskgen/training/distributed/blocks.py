"""The repeated blocks of a model: what is checkpointed, compiled and sharded one by one.

By convention they stand in a ``nn.ModuleList`` whose name ends in ``blocks``.
"""

import functools
from collections.abc import Iterator
from typing import Any

from torch import is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks, outermost first come; none for a model without a list of that name."""
    return list(_blocks(module))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) and name.endswith("blocks"):
            yield from child
        else:
            yield from _blocks(child)


def checkpoint_blocks(module: nn.Module) -> None:
    """Keep only each block's inputs for the backward pass and compute the rest again (Chen et al. 2016, arXiv 1604.06174).

    Weights keep their names, dropout has the same random numbers twice, and nothing changes where no gradients are taken.

    Raises:
        ValueError: a model without blocks.
    """
    for block in _required(module, "gradient_checkpointing"):
        forward = block.forward

        @functools.wraps(forward)
        def again(*args: Any, _forward: Any = forward, **kwargs: Any) -> Any:
            if not is_grad_enabled():
                return _forward(*args, **kwargs)
            return checkpoint(_forward, *args, use_reentrant=False, **kwargs)

        block.forward = again


def compile_blocks(module: nn.Module) -> None:
    """Compile each block in place: equal blocks share one compilation, and weights keep their names.

    Raises:
        ValueError: a model without blocks.
    """
    for block in _required(module, "compile"):
        block.compile()


def _required(module: nn.Module, what: str) -> list[nn.Module]:
    found = blocks_of(module)
    if not found:
        raise ValueError(f"{what}: {type(module).__name__} has no list of blocks; set it to false")
    return found
