"""Whole decodings of lucidrains' Muse, id for id, its tokenizers and the cascade from text features to the large picture.

Shapes: B batch, N tokens.
"""

import functools

import pytest
import torch
from torch import Tensor

from maskgen.published.muse.sampler import MuseSampling, kept_codes, muse_critic_scores, muse_guided_logits, sample_muse
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.loop import SampleStep
from maskgen.tokenizers.published.image.muse import MuseVQGAN, MuseVQGANConfig, config_from, convert
from tests.parity.muse.lucidrains import GUIDED, LATE, Recorded, conditions, network, recorded, weights
from tests.parity.support import recordings

IMAGES = {"atol": 1e-4, "rtol": 0.0}  # README
# The repository keeps one of the two tokenizers, to stay small.
STAGES = sorted({path.name.split("_")[1] for path in recordings("muse", "muse_*_vae.weights*.safetensors")})
RUNS = [
    (kind, run)
    for kind in ("muse_base", "muse_superres")
    for run in recorded(kind)[1]["runs"]
    if f"{run}/ids_in" in recorded(kind)[0]
]


@functools.cache
def tokenizer(stage: str) -> MuseVQGAN:
    state, settings = weights(f"muse_{stage}_vae")
    told = settings["config"]
    blocks = told["num_resnet_blocks"]  # of each level, or of the last
    config = config_from(state, groups=told["resnet_groups"])
    assert config == MuseVQGANConfig(
        channels=told["dim"],
        multipliers=tuple(2**level for level in range(told["layers"])),
        res_blocks=tuple(blocks) if isinstance(blocks, list) else (0,) * (told["layers"] - 1) + (blocks,),
        groups=told["resnet_groups"],
        first_kernel=told["first_conv_kernel_size"],
        codebook_size=told["codebook_size"],
    )
    model = MuseVQGAN(config)
    model.load_state_dict(convert(state, config))
    return model.eval()


@pytest.mark.parametrize(("kind", "run"), RUNS, ids=[run for _, run in RUNS])
def test_every_step_of_a_decoding(kind: str, run: str) -> None:
    io, settings = recorded(kind)
    chosen, model = settings["runs"][run], network(kind)
    trace = {key.removeprefix(f"{run}/"): tensor for key, tensor in io.items() if key.startswith(f"{run}/")}
    cond = conditions(io, trace.get("conditioning_token_ids"))
    steps, mask_id, weight = chosen["timesteps"], model.vocab_size, chosen["cond_scale"] - 1
    start = trace["ids_in"][0][..., None]
    guided = muse_guided_logits(model, cond, [weight] * steps)
    seen: list[Tensor] = []
    logits: list[Tensor] = []
    sampled: list[SampleStep] = []

    def logits_fn(tokens: Tensor, step: int) -> Tensor:
        seen.append(tokens[..., 0])
        logits.append(guided(tokens, step)[:, :, 0])
        return logits[-1][:, :, None]

    critic = None
    if "u_critic" in trace:
        critic = muse_critic_scores(network("muse_critic"), cond, [weight] * steps)
    result = sample_muse(
        logits_fn,
        start,
        start == mask_id,
        MuseSampling(
            steps=steps,
            temperature=chosen["temperature"],
            filter=TokenFilter(top_k=kept_codes(mask_id, chosen["topk_filter_thres"])),
            critic_noise=chosen.get("critic_noise_scale", 0.0),
        ),
        critic=critic,
        noise=Recorded(trace["u"], trace.get("u_critic")),
        callback=sampled.append,
    )
    for step, official in enumerate(trace["ids_in"]):
        assert torch.equal(seen[step], official), step
        drawn = torch.where(official == mask_id, trace["pred"][step], official)
        assert torch.equal(sampled[step].tokens[..., 0], drawn), step
    torch.testing.assert_close(logits[0], trace["logits_first"], **GUIDED)
    torch.testing.assert_close(logits[-1], trace["logits_last"], **LATE)
    assert torch.equal(result[..., 0], trace["ids_out"])
    stage = "high" if "conditioning_token_ids" in trace else "low"
    if stage in STAGES:
        with torch.no_grad():
            image = tokenizer(stage).decode(result, model.config.axes)
        torch.testing.assert_close(image, trace["image"], **IMAGES)


@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_tokenizers(stage: str) -> None:
    io, _ = recorded("muse_vae")
    model = tokenizer(stage)
    pictures = io["vae/low_pictures" if stage == "low" else "vae/pictures"]
    ids = io[f"vae/{stage}/ids"]
    latents = model.encoder(pictures)
    torch.testing.assert_close(latents, io[f"vae/{stage}/encoded"], **IMAGES)
    bits = model.quantizer.project_in(latents.movedim(1, -1))
    torch.testing.assert_close(bits, io[f"vae/{stage}/bits_in"], **IMAGES)
    tokens = model.encode(pictures)
    assert model.axes(pictures.shape) == tuple(ids.shape[1:])
    assert torch.equal(tokens[..., 0], ids.flatten(1))
    # Channel 0 is the most significant bit.
    powers = 2 ** torch.arange(bits.shape[-1] - 1, -1, -1)
    assert torch.equal(((bits > 0) * powers).sum(-1), ids)
    torch.testing.assert_close(model.decode(tokens, ids.shape[1:]), io[f"vae/{stage}/recon"], **IMAGES)
    if stage == "low":  # the cascade: the original tokenizes the first stage's picture again
        io, settings = recorded("muse_superres")
        for run, chosen in settings["runs"].items():
            if "cond_images" in chosen:
                again = model.encode(io[chosen["cond_images"]])
                assert torch.equal(again[..., 0], io[f"{run}/conditioning_token_ids"].flatten(1))
