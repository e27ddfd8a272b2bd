"""open-muse: the weights of aMUSEd before diffusers, and how they were sampled (huggingface/open-muse, MaskGiTUViT_v2).

The network is ``maskgen.published.amused.UVit2D``; only the names of the weights differ, and the feed-forward's two wide
layers, which are one there. The loop is that of ``maskgen.published.amused.sampler``; only the guidance differs, which may
grow from nothing, and two more schedules.

The original masks after the last step too and throws that away; a guidance of 0 raises there, and here gives the prediction
for the empty prompt, which the formula says.

Shapes: B batch.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.published.amused import transformer as amused
from maskgen.published.amused.transformer import UVit2DConfig
from maskgen.sampling.guidance import Guidance, TokenModel, weighted_logits
from maskgen.sampling.speed.query import PartialLogits

PUBLISHED: dict[str, UVit2DConfig] = {
    "openmuse-256": amused.PUBLISHED["amused-256"],
    "openmuse-512": amused.PUBLISHED["amused-512"],
}
"""Name -> sizes of the two research runs at 512 pixels; the names are ours, those of the repositories were not read."""

# Parts of names, theirs -> diffusers', in the order in which they are replaced.
_RENAMED = (
    (r"^cond_embed\.0\.", "cond_embed.linear_1."),
    (r"^cond_embed\.2\.", "cond_embed.linear_2."),
    (r"^(down|up)_blocks\.0\.", r"\1_block."),
    (r"\.(down|up)sample\.0\.norm\.", r".\1sample.norm."),
    (r"\.(down|up)sample\.1\.", r".\1sample.conv."),
    (r"^(mlm_layer\.layer_norm|.*\.res_blocks\.\d+\.norm)\.norm\.", r"\1."),
    (r"\.channelwise\.0\.", ".channelwise_linear_1."),
    (r"\.channelwise\.2\.", ".channelwise_norm."),
    (r"\.channelwise\.4\.", ".channelwise_linear_2."),
    (r"(res_blocks\.\d+)\.adaLN_modulation\.mapper\.", r"\1.cond_embeds_mapper."),
    (r"(attention_blocks\.\d+)\.attn_layer_norm\.", r"\1.norm1."),
    (r"(attention_blocks\.\d+)\.crossattn_layer_norm\.", r"\1.norm2."),
    (r"^(transformer_layers\.\d+)\.attn_layer_norm\.", r"\1.norm1.norm."),
    (r"^(transformer_layers\.\d+)\.self_attn_adaLN_modulation\.mapper\.", r"\1.norm1.linear."),
    (r"^(transformer_layers\.\d+)\.crossattn_layer_norm\.", r"\1.norm2.norm."),
    (r"^(transformer_layers\.\d+)\.cross_attn_adaLN_modulation\.mapper\.", r"\1.norm2.linear."),
    (r"^(transformer_layers\.\d+)\.ffn\.pre_mlp_layer_norm\.", r"\1.norm3.norm."),
    (r"^(transformer_layers\.\d+)\.ffn\.adaLN_modulation\.mapper\.", r"\1.norm3.linear."),
    (r"^(transformer_layers\.\d+)\.ffn\.wo\.", r"\1.ff.net.2."),
    (r"\.attention\.out\.", ".attn1.to_out.0."),
    (r"\.crossattention\.out\.", ".attn2.to_out.0."),
    (r"\.attention\.(query|key|value)\.", r".attn1.\1."),
    (r"\.crossattention\.(query|key|value)\.", r".attn2.\1."),
    (r"\.(attn\d)\.query\.", r".\1.to_q."),
    (r"\.(attn\d)\.key\.", r".\1.to_k."),
    (r"\.(attn\d)\.value\.", r".\1.to_v."),
)

_VALUE, _GATE = ".ffn.wi_1.weight", ".ffn.wi_0.weight"  # value x GELU(gate); diffusers stacks them in this order


def diffusers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of diffusers' ``UVit2DModel``; what is unknown keeps its name.

    Args:
        state: open-muse's name to tensor.

    Raises:
        ValueError: one half of a gated layer, or a tensor that two names stand for.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_GATE):
            continue
        new = name
        for pattern, replacement in _RENAMED:
            new = re.sub(pattern, replacement, new)
        if name.endswith(_VALUE):
            gate = name.removesuffix(_VALUE) + _GATE
            if gate not in state:
                raise ValueError(f"open-muse transformer: {name} is there, but {gate} is missing")
            new, tensor = name.removesuffix(_VALUE) + ".ff.net.0.proj.weight", torch.cat((tensor, state[gate]))
        if new in made:
            raise ValueError(f"open-muse transformer: {name} and another name both mean {new}")
        made[new] = tensor
    return made


def convert(state: Mapping[str, Tensor], config: UVit2DConfig) -> dict[str, Tensor]:
    """See ``maskgen.published.amused.transformer.convert``; errors name tensors as diffusers does."""
    return amused.convert(diffusers_names(state), config)


def config_from(state: Mapping[str, Tensor], **known: Any) -> UVit2DConfig:
    """See ``maskgen.published.amused.transformer.config_from``."""
    return amused.config_from(diffusers_names(state), **known)


def settings_from(model: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes do not show, as arguments of ``config_from``, from the ``config.json`` beside the weights."""
    heads = model["block_num_heads"]
    return {
        "heads": model["num_attention_heads"],
        "block_heads": heads[0] if isinstance(heads, list) else heads,
        "micro_width": model["micro_cond_encode_dim"],
        "mask_row": model["vocab_size"] - 1,
    }


def openmuse_weights(guidance: Guidance, steps: int) -> list[float]:
    """Weight w of every step k of S in c + w (c - u), for the official s = 1 + ``guidance.scale`` of u + s (c - u).

    ``constant``: s; ``linear``: from 0 to s in equal parts, so that the first step does not see the text; ``cosine``:
    floor(s cos(pi / 2 (1 - (k + 1) / S))) in float32; each less 1.

    Raises:
        ValueError: a ramp that open-muse does not have.
    """
    scale = 1 + guidance.scale
    if guidance.ramp == "constant":
        return [guidance.scale] * steps
    if guidance.ramp == "linear":
        return [float(value) - 1 for value in torch.linspace(0, scale, steps)]
    if guidance.ramp == "cosine":
        left = torch.tensor([1 - (step + 1) / steps for step in range(steps)])
        return [float(value) - 1 for value in (torch.cos(left * math.pi * 0.5) * scale).floor()]
    raise ValueError(
        f"guidance.ramp: got {guidance.ramp!r} with the sampler 'openmuse', expected 'constant', 'linear' or 'cosine'"
    )


def openmuse_guided_logits(
    model: TokenModel, cond: Cond, guidance: Guidance, *, steps: int, axes: Sequence[int] | None = None
) -> PartialLogits:
    """A ``logits_fn`` with ``openmuse_weights``; see ``maskgen.sampling.guidance.guided_logits``."""
    return weighted_logits(model, cond, cond.unconditional(), openmuse_weights(guidance, steps), axes)


def visible_weights(ratio: Tensor) -> Tensor:
    """What a visible token counts in the loss where masked ones count 1 (official ``predict_all_tokens``).

    Args:
        ratio: mask ratio of each row, float ``[B]``.

    Returns:
        float ``[B]``: 1 - 0.7 (1 - ratio), for ``maskgen.objectives.loss.masked_cross_entropy``.
    """
    return 1 - 0.7 * (1 - ratio)
