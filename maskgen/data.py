"""Streams of training batches in an order that depends on nothing but (seed, position).

Batch b of a run is the same on one process or many, in any worker, before and after a resume: the stream is the
concatenation of one permutation per epoch, batch b takes ``batch_size`` consecutive positions, rank r its share of them.
A source that is slow to read at random says in which order it is best read.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = dict[str, Tensor]


class Source(Protocol):
    """Examples of a stream."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """Some examples as stacked tensors; ``seeds[i]`` is all the randomness example ``indices[i]`` may use."""
        ...


@runtime_checkable
class OrderedSource(Source, Protocol):
    """Examples with an order of their own, for storage where neighbours are read faster than strangers."""

    def order(self, seed: int) -> Tensor:
        """The order of one epoch: a permutation, long ``[len]``, that depends on the seed alone."""
        ...


class DataUnavailable(OSError):  # noqa: N818 (a state of the place, which may pass)
    """Data that were there are out of reach, and trying again did not help; the run can go on once they are back."""


class TensorSource:
    """Examples held in memory.

    Args:
        **tensors: at least one, all with the same first size.

    Raises:
        ValueError: no tensor, none inside, or different first sizes.
    """

    def __init__(self, **tensors: Tensor) -> None:
        sizes = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(sizes.values())) != 1 or not all(sizes.values()):
            raise ValueError(
                f"TensorSource: got lengths {sizes}, expected the same positive length for at least one tensor"
            )
        self.tensors: Mapping[str, Tensor] = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``Source``; uses no randomness."""
        chosen = torch.as_tensor(indices)
        return {name: tensor[chosen] for name, tensor in self.tensors.items()}


def draw_numbers(total: int, most: int) -> list[int]:
    """Numbers of at most ``most`` of ``total`` examples, ascending: the same ones every time, drawn over all of them.

    Data come in an order, most often by class: the first so many are one class, and what is measured on them is its.
    """
    if total <= most:
        return list(range(total))
    return sorted(torch.randperm(total, generator=torch.Generator().manual_seed(0))[:most].tolist())


def item_seed(seed: int, position: int) -> int:
    """A seed in [0, 2^63) for one position of the stream; different positions get unrelated seeds (SplitMix64)."""
    word = (seed * 0x9E3779B97F4A7C15 + position + 1) * 0xBF58476D1CE4E5B9 % (1 << 64)
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % (1 << 64)
    return (word ^ (word >> 31)) >> 1


def training_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Batches ``start`` .. ``stop`` - 1 of the stream, this process's share of each.

    Args:
        source: where examples come from.
        batch_size: examples over all processes, a multiple of ``world``.
        seed: of the order and of all augmentation.
        start: first batch, for resuming.
        stop: one past the last batch.
        rank: this process.
        world: number of processes.
        workers: loader processes; the batches do not depend on it.

    Raises:
        ValueError: an empty source or a batch size that the processes cannot share.
    """
    if len(source) == 0:
        raise ValueError("training data: got 0 examples, expected at least one")
    if batch_size < 1 or batch_size % world:
        raise ValueError(f"batch_size: got {batch_size}, expected a positive multiple of the {world} processes")
    view = _Batches(source, batch_size, seed, rank, world)
    # Its own generator: torch's global one must not depend on how often a loader was started.
    generator = torch.Generator().manual_seed(0)
    return iter(
        DataLoader(
            view,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            generator=generator,
            persistent_workers=workers > 0,
        )
    )


class _Batches(Dataset[Batch]):
    """Batch number -> batch."""

    def __init__(self, source: Source, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.source, self.batch_size, self.seed, self.rank, self.world = source, batch_size, seed, rank, world
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __getitem__(self, number: int) -> Batch:
        share = self.batch_size // self.world
        first = number * self.batch_size + self.rank * share
        positions = range(first, first + share)
        indices = [self._index(position) for position in positions]
        return self.source.batch(indices, [item_seed(self.seed, position) for position in positions])

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.source))
        if epoch != self._epoch:
            seed = item_seed(self.seed ^ 0x5EED, epoch)
            if isinstance(self.source, OrderedSource):
                self._epoch, self._order = epoch, self.source.order(seed)
            else:
                generator = torch.Generator().manual_seed(seed)
                self._epoch, self._order = epoch, torch.randperm(len(self.source), generator=generator)
        return int(self._order[place])
