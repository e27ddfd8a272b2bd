"""Models, recordings and noise of lucidrains' Muse, as its parity tests need them."""

import functools
from typing import Any

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.published.muse.transformer import (
    MuseConfig,
    MuseCritic,
    MuseNetwork,
    MuseTransformer,
    config_from,
    convert,
)
from tests.parity.support import files, load, metadata

UNGUIDED, GUIDED, LATE = ({"atol": atol, "rtol": 0.0} for atol in (5e-5, 2e-4, 2e-3))  # README


@functools.cache
def recorded(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What one file of outputs holds, and its settings."""
    (path,) = files("muse", f"{kind}.io.safetensors")
    return load(path), metadata(path)


def weights(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All parts of a weights file in float32 (float16 there is exact), and the settings."""
    paths = files("muse", f"{kind}.weights*.safetensors")
    merged = {name: tensor for path in paths for name, tensor in load(path).items()}
    return {n: t.float() if t.is_floating_point() else t for n, t in merged.items()}, metadata(paths[0])


def network(kind: str) -> MuseNetwork:
    """The transformer or critic of a weights file, whose sizes are checked against the recorded ones."""
    state, settings = weights(kind)
    told, made = settings["config"], MuseCritic if kind == "muse_critic" else MuseTransformer
    coarse = recorded("muse_superres")[0]["superres/conditioning_token_ids"] if kind == "muse_superres" else None
    size = 0 if coarse is None else coarse[0].numel()
    config = config_from(state, kind=made, self_conditioned=told.get("self_cond", False), coarse_size=size)
    side = round(told["seq_len"] ** 0.5)
    assert config == MuseConfig(
        codebook_size=told["num_tokens"],
        axes=(side, side),
        width=told["dim"],
        layers=told["depth"],
        heads=told["heads"],
        head_width=told["dim_head"],
        mlp_width=int(told["dim"] * told.get("ff_mult", 4) * 2 / 3),
        text_width=settings["text_width"],
        self_conditioned=told.get("self_cond", False),
        coarse_size=size,
    )
    model = made(config)
    model.load_state_dict(convert(state, config, made))
    return model.eval()


def conditions(io: dict[str, Tensor], coarse: Tensor | None = None) -> Cond:
    """Text features whose padding is zeros, and the small picture's tokens ``[B, H, W]``."""
    return Cond(context=io["text_embeds"], coarse=None if coarse is None else coarse.flatten(1)[..., None])


def gumbel(u: Tensor) -> Tensor:
    """The recorded uniform numbers as the noise they were made into."""
    return -(-u.clamp(min=1e-20).log()).clamp(min=1e-20).log()


class Recorded:
    """The official numbers of a decoding."""

    def __init__(self, sample: Tensor, critic: Tensor | None) -> None:
        self._sample, self._critic = sample, critic

    def sample(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return gumbel(self._sample[step]).reshape(shape)

    def choice(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape) if self._critic is None else gumbel(self._critic[step]).reshape(shape)
