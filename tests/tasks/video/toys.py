"""Toy video models: a lossless grey tokenizer under random weights, or under a model that knows one answer.

Shapes: T frames, H W pixels, t h w token grid, N its product.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maskgen.conditioning import Cond
from maskgen.data import Source, TensorSource
from maskgen.models.base import MaskedTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.sampling.commit import Prompt
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.trained import TrainedTasks
from maskgen.tasks.data.video.folders import VideoData
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.testing import OracleModel
from maskgen.tokenizers.video.toy import ToyVideoTokenizer, ToyVideoTokenizerConfig

LENGTH, SIDE, LEVELS = 8, 8, 4
CLASS_NAMES = ("left", "right")
COMMIT = Sampling(sampler="commit", steps=3)
Frames = NDArray[np.uint8]


def tokenizer(alone: bool = False) -> ToyVideoTokenizer:
    """Boxes of 2 frames of 2 x 2 pixels."""
    return ToyVideoTokenizer(ToyVideoTokenizerConfig(levels=LEVELS, patch=2, frames=2, first_alone=alone))


def pipeline(
    *,
    alone: bool = False,
    classes: int = 0,
    num_tasks: int = len(Prompt),
    names: Sequence[str] = (),
    sampling: Sampling = COMMIT,
    **known: Any,
) -> Pipeline:
    """Random weights, under which every token, place, class and task matters; 9 frames if the first is ``alone``."""
    length = LENGTH + 1 if alone else LENGTH
    made = tokenizer(alone)
    axes = made.axes((1, 3, length, SIDE, SIDE))
    config = ModernConfig(
        vocab_size=LEVELS, num_classes=classes, axes=axes, width=24, layers=1, heads=2, num_tasks=num_tasks
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ModernTransformer(config)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
    video = TrainedTasks(names=tuple(names), **known)
    described = PipelineConfig(
        signal_size=(length, SIDE, SIDE), class_names=CLASS_NAMES[:classes], sampling=sampling, video=video
    )
    return Pipeline(made, model, described, "cpu")


class Spy(MaskedTransformer):
    """Answers with one clip's tokens ``[N, 1]`` and keeps what it was shown."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.oracle = OracleModel(answer, LEVELS)
        self.vocab_size, self.num_codebooks, self.num_classes, self.null_class = LEVELS, 1, 0, True
        self.num_tasks = len(Prompt)
        self.seen: list[Tensor] = []
        self.tasks: list[list[int]] = []

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        assert cond.task is not None
        self.seen.append(tokens.clone())
        self.tasks.append(cond.task.tolist())
        return self.oracle(tokens)


def spy_pipeline(
    answer: Frames, *, names: Sequence[str] = (), sampling: Sampling | None = None
) -> tuple[Pipeline, Spy]:
    """A model that answers with a clip of the tokenizer's domain, in one step."""
    made = tokenizer()
    spy = Spy(made.encode(tensor(answer))[0])
    config = PipelineConfig(
        signal_size=(LENGTH, SIDE, SIDE),
        sampling=sampling or Sampling(sampler="commit", steps=1),
        video=TrainedTasks(names=tuple(names)),
    )
    return Pipeline(made, spy, config, "cpu"), spy


def boxes(seed: int = 0, frames: int = LENGTH) -> Frames:
    """A clip that the tokenizer gives back as it is."""
    levels = np.random.default_rng(seed).integers(0, LEVELS, (-(-frames // 2), SIDE // 2, SIDE // 2, 1))
    video = (levels * 85).astype(np.uint8)
    for axis in range(3):
        video = video.repeat(2, axis=axis)
    return video[:frames].repeat(3, axis=3)


def noise(frames: int, height: int = SIDE, width: int = SIDE, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def tensor(frames: Frames) -> Tensor:
    """Float ``[1, 3, T, H, W]``."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255


class Boxes(VideoData):
    """Clips of the toy's domain in memory, two classes of them; ``asked`` counts how many examples are asked for."""

    def __init__(
        self, count: int = 4, labels: bool = True, frames: int = LENGTH, shift: int = 0, tested: bool = True
    ) -> None:
        self.size, self.count, self.labels, self.tested = (frames, SIDE, SIDE), count, labels, tested
        clips = torch.cat([tensor(boxes(shift + seed, frames)) for seed in range(count)])
        kept = {"video": clips} | ({"labels": torch.arange(count) % 2} if labels else {})
        self._source, self._asked = TensorSource(**kept), [0]

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES if self.labels else ()

    @property
    def asked(self) -> int:
        return self._asked[0]

    def train(self) -> Source:
        return _Counted(self._source, self._asked)

    def test(self) -> Source | None:
        return self._source if self.tested else None


class _Counted:
    def __init__(self, source: Source, asked: list[int]) -> None:
        self.source, self._asked = source, asked

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> dict[str, Tensor]:
        self._asked[0] += len(indices)
        return self.source.batch(indices, seeds)
