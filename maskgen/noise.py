"""Per-item seeded noise: item i with seed s sees the same numbers in any batch, in any order, on any device.

torch's generators give one stream for the whole batch and another on each device. Here every number is a hash of
(seed, step, stream, position in the item): SplitMix64 (Steele, Lea and Flood 2014) in wrapping 64-bit integer
arithmetic, which is the same on every device. Each 64-bit hash gives two 23-bit uniforms.

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)

_MIX_1 = _signed(0xBF58476D1CE4E5B9)

_MIX_2 = _signed(0x94D049BB133111EB)

_SAMPLE, _CHOICE = 1, 2

_PIECE = 1 << 16  # numbers; even, as two share a word

_Law = Callable[[Tensor], Tensor]
"""From 23 random bits, int32, to a number, float32."""


class Noise(Protocol):
    """Where the sampler's randomness comes from; tests feed recorded noise through this door.

    Every call returns new memory: the sampler writes into what it gets.
    """

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        """Gumbel noise ``[B, N, K, V]`` that turns an argmax into a sample from the softmax."""
        ...

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        """Gumbel noise ``[B, N, K]`` that ranks the sampled tokens."""
        ...


def check_seeds(seeds: Sequence[int], count: int) -> list[int]:
    """The seeds as a list of ``count`` integers in [0, 2^63).

    Raises:
        ValueError: wrong number or out of range.
        TypeError: not integers.
    """
    listed = list(seeds)
    if len(listed) != count:
        raise ValueError(f"seeds: got {len(listed)}, expected one for each of the {count} items")
    for seed in listed:
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise TypeError(f"seeds: got {seed!r} ({type(seed).__name__}), expected integers")
        if not 0 <= int(seed) < 1 << 63:
            raise ValueError(f"seeds: got {seed}, expected 0 <= seed < 2^63")
    return [int(seed) for seed in listed]


class SeededNoise:
    """Counter-based Gumbel noise, one integer seed an item.

    Args:
        seeds: one integer in [0, 2^63) an item.
        device: where the noise is made; the numbers do not depend on it.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        listed = check_seeds(seeds, len(seeds))
        self._keys = _mix(torch.tensor(listed, dtype=torch.int64, device=device) + _GOLDEN)

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        """Gumbel noise for sampling token ids; ``shape`` is ``[B, ...]``."""
        return self._gumbel(_SAMPLE, step, shape)

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        """Gumbel noise for choosing what to keep; ``shape`` is ``[B, ...]``."""
        return self._gumbel(_CHOICE, step, shape)

    def uniform(self, stream: int, step: int, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in (0, 1), float32 of ``shape`` ``[B, ...]``, bit-equal on every device."""
        return self._numbers(stream, step, shape, _uniform)

    def _gumbel(self, stream: int, step: int, shape: Sequence[int]) -> Tensor:
        return self._numbers(stream, step, shape, _gumbel)

    def _numbers(self, stream: int, step: int, shape: Sequence[int], law: _Law) -> Tensor:
        if shape[0] != len(self._keys):
            raise ValueError(f"noise: got a batch of {shape[0]}, expected {len(self._keys)}, one item a seed")
        keys = self._streams(stream, step)
        return _runs(keys, torch.zeros_like(keys), math.prod(shape[1:]), law).reshape(tuple(shape))

    def _streams(self, stream: int, step: int) -> Tensor:
        """Where the counting begins, int64 ``[B]``."""
        keys = _mix(self._keys + _signed((step + 1) * 0x9E3779B97F4A7C15 % (1 << 64)))
        return _mix(keys + _signed(stream * 0x9E3779B97F4A7C15 % (1 << 64)))


def sample_noise(noise: Noise, step: int, shape: Sequence[int], positions: Tensor | None = None) -> Tensor:
    """``noise.sample(step, shape)`` at some positions, bit for bit.

    Args:
        noise: a source; of those that are not exactly ``SeededNoise``, all is made and the rest thrown away.
        step: counted from 0.
        shape: ``[B, N, ...]`` of the whole.
        positions: long ``[B, P]``, numbers below N; all if left out.

    Returns:
        Gumbel noise ``[B, P, ...]``, in new memory.
    """
    if positions is None:
        return noise.sample(step, shape)
    if type(noise) is not SeededNoise:
        index = positions.reshape(*positions.shape, *([1] * (len(shape) - 2)))
        return noise.sample(step, shape).take_along_dim(index, 1)
    # Every number is a hash of its position in the item, so any part of an item can be had alone.
    run = math.prod(shape[2:])  # numbers of a position
    keys = noise._streams(_SAMPLE, step)[:, None].expand(positions.shape)
    return _runs(keys.flatten(), (positions * run).flatten(), run, _gumbel).reshape(*positions.shape, *shape[2:])


def _runs(keys: Tensor, first: Tensor, run: int, law: _Law) -> Tensor:
    """The numbers ``first`` to ``first + run`` of each row, ``[R, run]``; int64 ``[R]`` both.

    On a CPU in pieces that stay in its cache: 20 passes over memory would cost more than the arithmetic.
    """
    if keys.device.type != "cpu" or keys.numel() * run <= _PIECE:
        return _run(keys, first, run, law)
    numbers = torch.empty(len(keys), run)
    rows, columns = max(1, _PIECE // run), min(run, _PIECE)
    for row in range(0, len(keys), rows):
        part = slice(row, row + rows)
        for column in range(0, run, columns):
            count = min(columns, run - column)
            numbers[part, column : column + count] = _run(keys[part], first[part] + column, count, law)
    return numbers


def _run(keys: Tensor, first: Tensor, run: int, law: _Law) -> Tensor:
    # A word holds two numbers, so a run may begin in the middle of one: all have a word more than they need.
    index = (first // 2 + 1)[:, None] + torch.arange(run // 2 + 1, device=keys.device)
    halves = _mix(keys[:, None] + index * _GOLDEN).view(torch.int32)
    bits = torch.where((first % 2 == 0)[:, None], halves[:, :run], halves[:, 1 : run + 1])
    return law(bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF))


def _uniform(bits: Tensor) -> Tensor:
    # 23 bits plus a half is the most float32 holds exactly; 0 and 1 are never hit, so both logarithms are finite.
    return bits.float().add_(0.5).mul_(2.0**-23)


def _gumbel(bits: Tensor) -> Tensor:
    # In float64 the devices' logarithms agree after rounding to float32, so equal bits stay equal numbers.
    return _uniform(bits).double().log_().neg_().log_().neg_().float()


def _mix(words: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 read as unsigned: torch shifts are arithmetic, hence the masks. Changes its input."""
    words.bitwise_xor_((words >> 30).bitwise_and_((1 << 34) - 1)).mul_(_MIX_1)
    words.bitwise_xor_((words >> 27).bitwise_and_((1 << 37) - 1)).mul_(_MIX_2)
    return words.bitwise_xor_((words >> 31).bitwise_and_((1 << 33) - 1))
