"""Small models of lucidrains' Muse, their conditions, and their weights under the published names."""

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.published.muse.transformer import MuseConfig, MuseNetwork, MuseTransformer, official_name
from tests.core.toys import shaken

SIZES = {"codebook_size": 11, "axes": (2, 3), "width": 12, "layers": 2, "heads": 2, "head_width": 4, "mlp_width": 9}
BASE = MuseConfig(**SIZES, text_width=5)
CASES = {
    "base": BASE,
    "same-width": MuseConfig(**SIZES, text_width=12),
    "self-conditioned": MuseConfig(**SIZES, text_width=5, self_conditioned=True),
    "super-resolution": MuseConfig(**SIZES, text_width=5, coarse_size=4),
}


def model_of(config: MuseConfig, kind: type[MuseNetwork] = MuseTransformer) -> MuseNetwork:
    torch.manual_seed(0)
    model = shaken(kind(config))
    assert isinstance(model, kind)
    return model


def conditions(config: MuseConfig, count: int = 3, text: int = 4, seed: int = 0) -> Cond:
    """Texts of 4, 3, 2, ... words; the rest is padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(text) < (text - torch.arange(count))[:, None].clamp(min=1)
    coarse = torch.randint(config.codebook_size, (count, config.coarse_size, 1), generator=generator)
    return Cond(
        context=torch.randn(count, text, config.text_width, generator=generator) * mask[..., None],
        context_mask=mask,
        coarse=coarse if config.coarse_size else None,
    )


def tokens_of(config: MuseConfig, count: int = 3, masked: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    most = config.codebook_size + int(masked)
    return torch.randint(most, (count, config.axes[0] * config.axes[1], 1), generator=generator)


def published_state(model: MuseNetwork) -> dict[str, Tensor]:
    """Weights as a file has them: with shifts of zeros, a norm nobody uses, and always a way in of self-conditioning."""
    state = {official_name(name): tensor for name, tensor in model.state_dict().items()}
    width = model.config.width
    state["norm.gamma"] = torch.ones(width)
    if not model.config.self_conditioned:
        hidden = int(width * 8 / 3)
        state |= {"self_cond_to_init_embed.0.gamma": torch.ones(width)}
        state |= {"self_cond_to_init_embed.1.weight": torch.ones(2 * hidden, width)}
        state |= {"self_cond_to_init_embed.3.gamma": torch.ones(hidden)}
        state |= {"self_cond_to_init_embed.4.weight": torch.ones(width, hidden)}
    return state | {n.replace(".gamma", ".beta"): torch.zeros_like(t) for n, t in state.items() if ".gamma" in n}
