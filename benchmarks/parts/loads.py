"""What ``compare_samplers.py`` asks for, the random weights it is done with, and the work as a contestant hands it over.

Shapes: B batch, N tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from parts.baselines.amused import amused_model
from parts.baselines.autoregressive import Autoregressive

from maskgen.conditioning import Cond
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig

__all__ = [
    "Job",
    "LeftOutError",
    "Load",
    "Models",
    "cache_memory",
    "eager_memory",
    "guided_memory",
    "loop_memory",
    "pixel_memory",
]


class LeftOutError(Exception):
    """This contestant cannot take part here, and why; its row says so."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of every contestant.

    Attributes:
        config: sizes of the transformer; ``axes`` is the token grid. It must have a null class, for guidance.
        batch: B, images at a time.
        steps: of parallel decoding.
        scale: weight of guidance in guided rows.
        device: ``cpu``, ``cuda`` or ``meta``.
        dtype: of the weights.
        decoder: sizes of the tokenizer, for rows that end in pixels.
    """

    config: BertConfig
    batch: int = 8
    steps: int = 8
    scale: float = 3.0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    decoder: VQGANConfig = field(default_factory=VQGANConfig)

    @property
    def places(self) -> int:
        """N."""
        return torch.Size(self.config.axes).numel()

    @property
    def cond(self) -> Cond:
        """A class of its own for every image."""
        return Cond(labels=torch.arange(self.batch, device=self.device) % self.config.num_classes)

    @property
    def one_class(self) -> Cond:
        """All images of one class."""
        return self.cond.map(torch.zeros_like)

    @property
    def tokens(self) -> torch.Tensor:
        """A grid in which everything is hidden, ``[B, N, 1]``."""
        return torch.full((self.batch, self.places, 1), self.config.vocab_size, device=self.device)

    @property
    def mask(self) -> torch.Tensor:
        """All True, ``[B, N, 1]``."""
        return torch.ones(self.batch, self.places, 1, dtype=torch.bool, device=self.device)

    @property
    def seeds(self) -> range:
        """One an image."""
        return range(self.batch)


class Models:
    """Random weights of one load, made when first asked for."""

    def __init__(self, load: Load) -> None:
        self.load = load

    @cached_property
    def bert(self) -> BertTransformer:
        """The masked model all parallel loops share."""
        return self._made(lambda: BertTransformer(self.load.config))

    @cached_property
    def eager(self) -> BertTransformer:
        """The same weights with attention written out."""
        with torch.device("meta"):
            model = BertTransformer(replace(self.load.config, attention="eager"))
        model.load_state_dict(self.bert.state_dict(), assign=True)
        return model.eval().requires_grad_(False)

    @cached_property
    def autoregressive(self) -> Autoregressive:
        """The causal model of the same size."""
        return self._made(lambda: Autoregressive(self.load.config))

    @cached_property
    def amused(self) -> Any:
        """Diffusers' model."""
        return self._made(lambda: amused_model(self.load.config))

    @cached_property
    def tokenizer(self) -> VQGAN:
        """MaskGIT's image tokenizer, for its decoder."""
        return self._made(lambda: VQGAN(self.load.decoder))

    def _made(self, make: Callable[[], Any]) -> Any:
        torch.manual_seed(0)
        with torch.device(self.load.device):
            return make().to(self.load.dtype).eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The work of one contestant for one load.

    Attributes:
        units: how many forwards follow each other: steps, or tokens of the autoregressive sampler.
        run: does the units it is given; ``run(range(units))`` makes all images.
        held: bytes that live outside ``run``, weights and caches.
        divisible: whether a part of the units, evenly spread, costs its share of the whole. Then a machine too slow for all
            of them measures a part and the report says so. A loop whose steps differ in cost is not divisible.
        least: the fewest units that stand for all.
        quadratic: see ``meters.count_units``.
        warm: called once before measuring; by default one unit of a divisible job.
    """

    units: int
    run: Callable[[Sequence[int]], Any]
    held: int
    divisible: bool = True
    least: int = 1
    quadratic: bool = False
    warm: Callable[[], Any] | None = None


def loop_memory(load: Load) -> int:
    """Rough bytes of a loop beyond its weights: hidden layers, logits, the noise in float64; generous by a third or so."""
    hidden = 3 * load.config.mlp_width * load.dtype.itemsize
    return load.batch * load.places * (hidden + 24 * load.config.vocab_size)


def guided_memory(load: Load) -> int:
    """The same for twice the rows."""
    return 2 * loop_memory(load)


def eager_memory(load: Load) -> int:
    """The same with the attention weights of a layer in memory, before and after the softmax."""
    return loop_memory(load) + 3 * load.batch * load.config.heads * (load.places + 1) ** 2 * load.dtype.itemsize


def pixel_memory(load: Load) -> int:
    """The loop, or the decoder at its finest level: seven tensors of its width, by a run of the official size."""
    finest = load.places * 4 ** (len(load.decoder.multipliers) - 1) * load.decoder.channels * load.dtype.itemsize
    return max(loop_memory(load), 7 * load.batch * finest)


def cache_memory(load: Load) -> int:
    """Keys and values of every place and layer."""
    return 2 * load.batch * load.places * load.config.layers * load.config.width * load.dtype.itemsize
