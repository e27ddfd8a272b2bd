"""The decoding loop of aMUSEd as diffusers runs it (Patil et al. 2024, arXiv 2401.01808), on random weights.

diffusers is no part of our environment: where it is missing the comparison says so in one line and goes on without the
row. The transformer has the size nearest to ours that its class allows, that of ``../shared/peers/CPU_SPEEDS.md``: the
same width, layers and heads, a gated feed-forward of two thirds, cross-attention to 77 text tokens, one convolutional
block at each end.

Shapes: B batch, (h, w) token grid.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from maskgen.models.bert import BertConfig

__all__ = ["MISSING", "amused_forward", "amused_model", "is_installed", "sample_amused_loop"]

MISSING = "diffusers is not installed (pip install diffusers): no row for aMUSEd's loop"
TEXT_TOKENS, TEXT_WIDTH, MICRO_WIDTH, MICRO_CONDITIONS = 77, 768, 256, 5
TEMPERATURE = (2, 0)  # of the published pipeline

Forward = Callable[[torch.Tensor], torch.Tensor]


def is_installed() -> bool:
    """Whether diffusers can be imported."""
    return importlib.util.find_spec("diffusers") is not None


def amused_model(config: BertConfig) -> Any:
    """The ``UVit2DModel`` nearest in size to ``config``, random weights; the last row of its table is the mask."""
    from diffusers import UVit2DModel

    return UVit2DModel(
        hidden_size=config.width,
        cond_embed_dim=TEXT_WIDTH,
        encoder_hidden_size=TEXT_WIDTH,
        micro_cond_encode_dim=MICRO_WIDTH,
        micro_cond_embed_dim=MICRO_CONDITIONS * MICRO_WIDTH,
        vocab_size=config.vocab_size + 1,
        codebook_size=config.vocab_size,
        in_channels=config.width,
        block_out_channels=config.width,
        num_res_blocks=1,
        block_num_heads=config.heads,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width * 2 // 3,
    ).eval()


def amused_forward(model: Any, batch: int) -> Forward:
    """Logits ``[B, V, h, w]`` of ids ``[B, h, w]`` under random text; the loop and the FLOP count share it."""
    like = next(model.parameters())
    text = like.new_ones(batch, TEXT_TOKENS, TEXT_WIDTH)
    pooled, micro = like.new_ones(batch, TEXT_WIDTH), like.new_ones(batch, MICRO_CONDITIONS)
    return lambda ids: model(ids, encoder_hidden_states=text, pooled_text_emb=pooled, micro_conds=micro)


@torch.no_grad()
def sample_amused_loop(
    forward: Forward, config: BertConfig, *, batch: int, steps: int, seed: int, device: str = "cpu"
) -> torch.Tensor:
    """The pipeline's loop without guidance and without its decoder: ids, long ``[B, h, w]``."""
    from diffusers import AmusedScheduler

    scheduler = AmusedScheduler(mask_token_id=config.vocab_size)
    generator = torch.Generator(device).manual_seed(seed)
    scheduler.set_timesteps(steps, TEMPERATURE, device)
    ids = torch.full((batch, *config.axes), config.vocab_size, device=device)
    for timestep in scheduler.timesteps:
        logits = forward(ids)
        ids = scheduler.step(model_output=logits, timestep=timestep, sample=ids, generator=generator).prev_sample
    return ids
