"""A network that reads scenes: which digit, colour and size stand at each place, and the colour of the ground.

It learns from real scenes of training digits. How well it reads real scenes of digits it never saw is the bound: no model
can be expected to be read better.

Shapes: B scenes, S side of a picture.
"""

import itertools
import random
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.tasks.data.images.digits import shifted
from maskgen.tasks.data.images.scenes import COLOURS, GROUNDS, PLACES, SIZES, Scene, SceneSource

_HEADS = {"digit": 11, "colour": len(COLOURS) + 1, "size": len(SIZES) + 1, "ground": len(GROUNDS)}
# The last digit, colour and size mean: nothing here.

_NOTHING = {"digit": 10, "colour": len(COLOURS), "size": len(SIZES)}

_BATCH = 32  # scenes


class SceneReader(nn.Module):
    """A small convolutional network that sees one place at a time."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96)
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(inner, outer, 3, padding=1, bias=False),
                nn.BatchNorm2d(outer),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.trunk = nn.Sequential(*layers[:-1], nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(128), nn.ReLU())
        self.head = nn.Linear(128, sum(_HEADS.values()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Scores ``[B, 4, number of answers]`` of pictures ``[B, 3, S, S]``, by what is asked; ``ground``: ``[B, 3]``."""
        places = rearrange(images, "b c (v h) (u w) -> (b v u) c h w", v=2, u=2)
        scores = rearrange(self.head(self.trunk(places - 0.5)), "(b p) n -> b p n", p=len(PLACES))
        found = dict(zip(_HEADS, scores.split(list(_HEADS.values()), dim=-1), strict=True))
        return {**found, "ground": found["ground"].mean(1)}


def answers(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """What is right, long ``[B, 4]`` by what is asked; ``ground``: ``[B]``."""
    found = {name: torch.full((len(scenes), len(PLACES)), nothing) for name, nothing in _NOTHING.items()}
    for row, scene in enumerate(scenes):
        for figure in scene.figures:
            for name, table in found.items():
                table[row, figure.place] = getattr(figure, name)
    return {**found, "ground": torch.tensor([scene.ground for scene in scenes])}


def train_reader(source: SceneSource, steps: int, seed: int = 0) -> SceneReader:
    """A reader of scenes.

    Args:
        source: real scenes of training digits.
        steps: batches of 32 scenes.
        seed: of its weights, and of the handwriting it sees.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = SceneReader()
        reader(source.batch([0], [0])["images"])  # its first linear layer learns its width here
        optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for step in range(steps):
            numbers = range(step * _BATCH, (step + 1) * _BATCH)
            indices = [number % len(source) for number in numbers]
            images = source.batch(indices, [number + seed for number in numbers])["images"]
            scores = reader(shifted(images, map(random.Random, numbers), 1))
            right = answers(source.scenes(indices))
            loss = torch.stack([F.cross_entropy(scores[name].flatten(0, -2), right[name].flatten()) for name in right])
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            schedule.step()
    return reader.eval()


@torch.no_grad()
def read_scenes(reader: SceneReader, images: Tensor) -> dict[str, Tensor]:
    """What the reader sees in pictures ``[B, 3, S, S]``: as ``answers``."""
    parts = [reader(part) for part in images.split(256)]
    return {name: torch.cat([part[name].argmax(-1) for part in parts]) for name in _HEADS}


def count_right(reader: SceneReader, images: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Shares of what is right in pictures.

    Args:
        reader: who reads them.
        images: ``[B, 3, S, S]``.
        scenes: what was asked for.

    Returns:
        Shares of digits: ``digit``, ``colour`` and ``size``, those asked for at the place asked for; ``place``, something is
        there and nothing at the places that the scene leaves empty. Shares of scenes: ``ground``, and ``scene``, everything.
    """
    read, right = read_scenes(reader, images), answers(scenes)
    asked = right["digit"] != _NOTHING["digit"]
    occupied = read["digit"] != _NOTHING["digit"]
    correct = {name: read[name] == right[name] for name in _NOTHING}
    correct["place"] = occupied & (occupied <= asked).all(-1, keepdim=True)
    ground = read["ground"] == right["ground"]
    whole = (torch.stack(list(correct.values())).all(0) | ~asked).all(-1) & ground
    shares = {name: found[asked] for name, found in correct.items()} | {"ground": ground, "scene": whole}
    return {name: float(found.float().mean()) for name, found in shares.items()}
