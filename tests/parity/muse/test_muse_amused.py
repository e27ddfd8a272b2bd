"""aMUSEd's three pipelines against diffusers, from text and pixels to ids and pixels.

Shapes: B batch, H W grid, N = H x W, K codes, S' steps that were run.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.published.amused import transformer as uvit
from maskgen.published.amused.blocks import frequency_features
from maskgen.published.amused.editing import first_step, share_hidden
from maskgen.published.amused.sampler import AmusedSampling, amused_guided_logits, sample_amused
from maskgen.published.amused.transformer import UVit2D, micro_conditions
from maskgen.sampling.guidance import Guidance, guided_logits
from maskgen.sampling.loop import SampleStep
from maskgen.tasks.conditions.text import PretrainedText, PretrainedTextConfig
from maskgen.tasks.image.lanczos import lanczos_mask, lanczos_picture
from maskgen.tasks.media.images import to_images
from maskgen.tokenizers.published.image import amused as vq
from maskgen.tokenizers.published.image.amused import AmusedVQ
from tests.parity.support import facts, files, load, metadata, parity_folder, recordings

TEXT, UNGUIDED, GUIDED, PIXELS = 2e-5, 5e-5, 2e-4, 1e-4  # tolerances of the README, absolute


def runs_of(kind: str) -> list[str]:
    return [run for path in recordings("muse", f"{kind}.io.safetensors") for run in metadata(path)["runs"]]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def state_of(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    (path,) = files("muse", f"{kind}.weights.safetensors")
    return {name: tensor.float() for name, tensor in load(path).items()}, metadata(path)


@cache
def recorded(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    (path,) = files("muse", f"{kind}.io.safetensors")
    return load(path), metadata(path)


@cache
def transformer() -> UVit2D:
    state, settings = state_of("amused_transformer")
    told = settings["config"]
    config = uvit.config_from(
        state,
        heads=told["num_attention_heads"],
        block_heads=told["block_num_heads"],
        micro_width=told["micro_cond_encode_dim"],
        mask_row=settings["mask_id"],
        axes=(told["sample_size"], told["sample_size"]),
    )
    model = UVit2D(config)
    model.load_state_dict(uvit.convert(state, config))
    assert (model.context_width, model.pooled_width) == (told["encoder_hidden_size"], told["cond_embed_dim"])
    return model.eval()


@cache
def tokenizer() -> AmusedVQ:
    state, settings = state_of("amused_vqvae")
    config = vq.config_from(state, groups=settings["config"]["norm_num_groups"])
    model = AmusedVQ(config)
    model.load_state_dict(vq.convert(state, config))
    assert model.stride == (settings["vae_scale_factor"],) * 2
    return model.eval()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PretrainedText:
    """The recorded CLIP as a folder of transformers, with its tokenizer beside it."""
    import transformers

    folder = tmp_path_factory.mktemp("clip")
    state, settings = state_of("amused_text_encoder")
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**settings["config"]))
    model.load_state_dict(state)
    model.save_pretrained(folder)
    words = transformers.CLIPTokenizer.from_pretrained(str(parity_folder("muse") / "amused_tokenizer"))
    words.save_pretrained(folder)
    length = settings["config"]["max_position_embeddings"]
    assert words.model_max_length == length
    return PretrainedText(
        PretrainedTextConfig(source=str(folder), length=length, layer=-2, pooled="projection", attend_padding=True)
    )


def conditions(encoder: PretrainedText, kind: str, run: str) -> tuple[Cond, Cond]:
    """Text and what is not wanted (the empty prompt where nothing else is named), a row an image as in the original."""
    io, settings = recorded(kind)
    chosen = settings["runs"][run]
    micro = io.get(f"{run}/micro_conds")
    if micro is None:
        micro = micro_conditions(1, *reversed(size_of(kind, run)))
    times = chosen.get("num_images_per_prompt", 1)
    wanted = [settings["prompts"][number] for number in chosen["prompt"]]
    unwanted = [settings["negative_prompts"][number] for number in chosen.get("negative_prompt", [])]
    with torch.no_grad():
        made = [encoder.encode(texts * times) for texts in (wanted, unwanted or [""] * len(wanted))]
    rows = len(wanted) * times
    return tuple(  # type: ignore[return-value]
        Cond(context=cond.context, pooled=cond.pooled, micro=micro[:1].expand(rows, -1)) for cond in made
    )


def size_of(kind: str, run: str) -> tuple[int, int]:
    """Height and width of the pictures of a run."""
    made = recorded(kind)[0][f"{run}/image_u8"]
    return made.shape[1], made.shape[2]


class Recorded:
    """The noise that was drawn from the first step on: Exp(1) for the ids, uniform for the ranking."""

    def __init__(self, exponential: Tensor, uniform: Tensor, first: int = 0) -> None:
        self.exponential, self.uniform, self.first = exponential, uniform, first

    def sample(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return -self.exponential[step - self.first].log().view(shape)

    def choice(self, step: int, shape: tuple[int, ...]) -> Tensor:
        doubled = -self.uniform[step - self.first].clamp(min=1e-20).log()
        return -doubled.clamp(min=1e-20).log().view(shape)


def check_run(
    kind: str, run: str, cond: tuple[Cond, Cond], ids: Tensor, settings: AmusedSampling, first: int = 0
) -> Tensor:
    """Decode from ``ids`` ``[B, H, W]`` (the official mask id where hidden), and compare all that was recorded."""
    io, told = recorded(kind)
    mask_id, model = told["mask_id"], transformer()
    guidance, axes = told["runs"][run]["guidance_scale"], ids.shape[1:]
    rows = len(cond[0].context)  # type: ignore[arg-type]
    ids = ids.expand(rows, -1, -1)
    logits_fn = amused_guided_logits(model, *cond, scale=guidance, axes=tuple(axes))
    seen: list[Tensor] = []
    guesses: list[Tensor] = []
    logits: list[Tensor] = []

    def watched(tokens: Tensor, step: int) -> Tensor:
        seen.append(tokens)
        logits.append(logits_fn(tokens, step))
        return logits[-1]

    def watch(step: SampleStep) -> None:
        guesses.append(step.tokens)

    flat = ids.flatten(1)[..., None]
    result = sample_amused(
        watched,
        flat.masked_fill(flat == mask_id, model.vocab_size),
        flat == mask_id,
        settings,
        noise=Recorded(io[f"{run}/exp_noise"], io[f"{run}/u_conf"], first),
        start_step=first,
        callback=watch,
    )
    assert len(seen) == len(io[f"{run}/ids_in"]) == told["runs"][run].get("steps_run", len(seen))
    official = io[f"{run}/ids_in"].flatten(2)
    assert torch.equal(torch.stack(seen)[..., 0], official.masked_fill(official == mask_id, model.vocab_size))
    assert torch.equal(torch.stack(guesses)[..., 0], io[f"{run}/pred"].flatten(2))
    assert torch.equal(result[..., 0], io[f"{run}/ids_out"].flatten(1))
    for name, own in (("first", logits[0]), ("last", logits[-1])):
        if f"{run}/logits_{name}" in io:
            grid = rearrange(own, "B (H W) 1 K -> B K H W", H=axes[0])
            tolerance = GUIDED if guidance > 1 else UNGUIDED
            torch.testing.assert_close(grid, io[f"{run}/logits_{name}"], atol=tolerance, rtol=0)
    check_pictures(kind, run, result, tuple(axes))
    return result


@torch.no_grad()
def check_pictures(kind: str, run: str, tokens: Tensor, axes: tuple[int, ...]) -> None:
    io, _ = recorded(kind)
    decoded = tokenizer().decode(tokens, axes)
    if f"{run}/decoded" in io:  # before clipping
        torch.testing.assert_close(decoded, io[f"{run}/decoded"], atol=PIXELS, rtol=0)
    pictures = torch.from_numpy(np.stack([np.array(one) for one in to_images(decoded.clamp(0, 1))]))
    assert pictures.shape == io[f"{run}/image_u8"].shape
    assert (pictures.int() - io[f"{run}/image_u8"].int()).abs().max() <= 1


def settings_of(kind: str, run: str, **more: Any) -> AmusedSampling:
    chosen = recorded(kind)[1]["runs"][run]
    heat = chosen["temperature"]
    return AmusedSampling(
        steps=chosen["num_inference_steps"],
        temperature=tuple(heat) if isinstance(heat, list) else heat,
        rehides=True,
        **more,
    )


@torch.no_grad()
def test_text_features(encoder: PretrainedText) -> None:
    io, settings = recorded("amused_pipeline")
    for name, texts in (("prompt", settings["prompts"]), ("negative", settings["negative_prompts"]), ("empty", [""])):
        made = encoder.encode(texts)
        read = encoder.tokenizer(texts, padding="max_length", truncation=True, max_length=encoder.config.length)
        assert read["input_ids"] == io[f"text/{name}/ids"].tolist()
        torch.testing.assert_close(made.context, io[f"text/{name}/hidden_used"], atol=TEXT, rtol=0)
        torch.testing.assert_close(made.pooled, io[f"text/{name}/pooled"], atol=TEXT, rtol=0)
        assert made.context_mask is None  # padding is attended to


def test_micro_conditions() -> None:
    io, settings = recorded("amused_pipeline")
    values, config = io["micro/values"], transformer().config
    ours = frequency_features(values, config.micro_width).flatten(1)
    torch.testing.assert_close(ours, io["micro/embedding"], atol=1e-6, rtol=0)
    torch.testing.assert_close(frequency_features(values, 256).flatten(1), io["micro/embedding_256"], atol=1e-6, rtol=0)
    for run, chosen in settings["runs"].items():
        if f"{run}/micro_conds" not in io:
            continue
        made = micro_conditions(
            len(io[f"{run}/micro_conds"]),
            *reversed(size_of("amused_pipeline", run)),
            crop=tuple(chosen["micro_conditioning_crop_coord"]),
            aesthetic_score=chosen["micro_conditioning_aesthetic_score"],
        )
        assert torch.equal(made, io[f"{run}/micro_conds"])


@pytest.mark.parametrize("run", runs_of("amused_pipeline"))
def test_text_to_image(run: str, encoder: PretrainedText) -> None:
    io, settings = recorded("amused_pipeline")
    height, width = size_of("amused_pipeline", run)
    stride, mask_id = settings["vae_scale_factor"], settings["mask_id"]
    blank = torch.full((1, height // stride, width // stride), mask_id)
    ids = io[f"{run}/ids_in"][0] if run == "latents" else blank
    cond = conditions(encoder, "amused_pipeline", run)
    if f"{run}/encoder_hidden_states" in io:
        texts = [cond[1], cond[0]] if settings["runs"][run]["guidance_scale"] > 1 else [cond[0]]
        both = Cond.cat(texts)
        torch.testing.assert_close(both.context, io[f"{run}/encoder_hidden_states"], atol=TEXT, rtol=0)
        torch.testing.assert_close(both.pooled, io[f"{run}/pooled"], atol=TEXT, rtol=0)
    check_run("amused_pipeline", run, cond, ids, settings_of("amused_pipeline", run))


@pytest.mark.parametrize("run", runs_of("amused_img2img"))
@torch.no_grad()
def test_image_to_image(run: str, encoder: PretrainedText) -> None:
    kind = "amused_img2img"
    io, settings = recorded(kind)
    chosen = settings["runs"][run]
    picture, steps = chosen["image"], chosen["num_inference_steps"]
    pixels = lanczos_picture(Image.fromarray(io[f"{picture}_u8"].numpy()), tokenizer().stride)
    assert torch.equal(pixels, io[f"{picture}_pixels"])
    ids = io[f"{picture}_ids"]
    assert torch.equal(tokenizer().encode(pixels)[..., 0], ids.flatten(1))
    first = first_step(steps, chosen["strength"], official=True)
    assert steps - first == chosen["steps_run"]
    if first == steps:
        check_pictures(kind, run, ids.flatten(1)[..., None], tuple(ids.shape[1:]))
        return
    share = share_hidden(settings["schedule"], first, steps, official=True)
    hidden = ids.masked_fill(io[f"{run}/u_noise"] < share, settings["mask_id"])
    check_run(kind, run, conditions(encoder, kind, run), hidden, settings_of(kind, run), first)


@pytest.mark.parametrize("name", sorted({key.split("/")[1] for key in recorded("amused_inpaint")[0] if "mask/" in key}))
def test_mask_grids(name: str) -> None:
    io, settings = recorded("amused_inpaint")
    expected = io[f"mask/{name}/tokens"]
    if f"mask/{name}/values" in io:
        mask: Any = io[f"mask/{name}/values"][0]
    else:
        mode = settings["mask_kinds"][name].rpartition(" ")[2]
        mask = Image.fromarray(io[f"mask/{name}/pil_u8"].numpy()).convert(mode)
    assert torch.equal(lanczos_mask(mask, tuple(expected.shape)), expected.flatten())


@pytest.mark.parametrize("run", runs_of("amused_inpaint"))
@torch.no_grad()
def test_inpainting(run: str, encoder: PretrainedText) -> None:
    kind = "amused_inpaint"
    io, settings = recorded(kind)
    chosen = settings["runs"][run]
    pictures = [Image.fromarray(io["image_u8"][number].numpy()) for number in chosen["image"]]
    pixels = torch.cat([lanczos_picture(picture, tokenizer().stride) for picture in pictures])
    grid = io["image_ids"].shape[1:]
    ids = rearrange(tokenizer().encode(pixels), "B (H W) 1 -> B H W", H=grid[0])
    assert torch.equal(ids, io["image_ids"][chosen["image"]])
    names = chosen["mask"] if isinstance(chosen["mask"], list) else [chosen["mask"]]
    masks = torch.stack([io[f"mask/{name}/tokens"] for name in names])
    hidden = ids.masked_fill(masks, settings["mask_id"])
    own = settings_of(kind, run, schedule=settings["schedule"].partition(" ")[0], starting_mask_ratio="batch")
    assert own.shares(masks.flatten(1))[0].item() == pytest.approx(chosen["starting_mask_ratio"], abs=0)
    first = first_step(own.steps, chosen["strength"], official=True)
    check_run(kind, run, conditions(encoder, kind, run), hidden, own, first)


@pytest.mark.parametrize("path", facts("muse", "full_shapes_amused_*.json"), ids=lambda path: path.stem[12:])
def test_full_size(path: Path) -> None:
    tree = json.loads(path.read_text(encoding="utf-8"))
    state = {name: torch.empty(shape, device="meta") for name, shape in tree["state_dict"].items()}
    name = "-".join(path.stem.split("_")[2:4])
    with torch.device("meta"):
        if path.stem.endswith("transformer"):
            config: Any = uvit.config_from(state)
            assert config == uvit.PUBLISHED[name]
            model: Any = UVit2D(config)
            model.load_state_dict(uvit.convert(state, config), assign=True)
        else:
            config = vq.config_from(state)
            assert config == vq.PUBLISHED[name]
            model = AmusedVQ(config)
            model.load_state_dict(vq.convert(state, config), assign=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == tree["num_params"]


# Where ours is right by default.


def start_of(kind: str, run: str) -> tuple[Tensor, Tensor, Any]:
    """Tokens and mask of a run as ours, of a few rows with their own noise."""
    io, settings = recorded(kind)
    ids = io[f"{run}/ids_in"][0].flatten(1)[..., None]
    mask = ids == settings["mask_id"]
    table = torch.randn(*ids.shape, transformer().vocab_size, generator=torch.Generator().manual_seed(0))
    return ids.masked_fill(mask, transformer().vocab_size), mask, lambda tokens, step: table


def test_strength_1_decides_everything_anew() -> None:
    """The original reads it as the end of the schedule: 'one' begins with nothing hidden."""
    runs = [run for run, chosen in recorded("amused_img2img")[1]["runs"].items() if chosen["strength"] == 1.0]
    for run in runs:
        steps = recorded("amused_img2img")[1]["runs"][run]["num_inference_steps"]
        tokens, mask, logits_fn = start_of("amused_img2img", run)
        assert not mask.any()
        assert share_hidden("cosine", first_step(steps, 1.0), steps) == 1
        kept = sample_amused(logits_fn, tokens, mask, AmusedSampling(steps=steps), seeds=[0] * len(mask))
        assert torch.equal(kept, tokens)
        lost = sample_amused(logits_fn, tokens, mask, AmusedSampling(steps=steps, rehides=True), seeds=[0] * len(mask))
        assert 1 <= (lost != tokens).sum() < steps
    assert runs


def test_a_strength_without_a_step_runs_one() -> None:
    assert first_step(12, 0.05) == 11
    assert first_step(12, 0.05, official=True) == 12
    with pytest.raises(ValueError, match="strength: got 0, expected a number over 0"):
        first_step(12, 0)
    with pytest.raises(ValueError, match="strength: got 1.5, expected"):
        first_step(12, 1.5, official=True)


def test_a_row_plans_its_own_steps() -> None:
    """The original takes the share from the whole batch: beside a large mask a small one is decided in the last steps."""
    mask = torch.zeros(2, 100, 1, dtype=torch.bool)
    mask[0, :90], mask[1, :10] = True, True
    tokens = torch.zeros(2, 100, 1, dtype=torch.long).masked_fill(mask, 9)
    table = torch.randn(2, 100, 1, 9, generator=torch.Generator().manual_seed(0))

    def hidden_after(rows: slice, start: Any) -> list[list[int]]:
        states: list[SampleStep] = []
        chosen = AmusedSampling(steps=4, schedule="linear", starting_mask_ratio=start)
        sample_amused(
            lambda seen, step: table[rows], tokens[rows], mask[rows], chosen, seeds=[1, 2][rows], callback=states.append
        )
        return [state.mask.flatten(1).sum(1).tolist() for state in states]

    assert hidden_after(slice(2), "row") == [[67, 7], [45, 5], [22, 2], [0, 0]]
    assert hidden_after(slice(2), "batch") == [[37, 9], [25, 8], [12, 7], [0, 0]]
    assert [counts[1] for counts in hidden_after(slice(2), "row")] == [
        counts[0] for counts in hidden_after(slice(1, 2), "row")
    ]


@torch.no_grad()
def test_guidance_is_that_of_all_models(encoder: PretrainedText) -> None:
    """S of the original is a weight of s - 1."""
    model, run = transformer(), runs_of("amused_pipeline")[0]
    wanted, unwanted = conditions(encoder, "amused_pipeline", run)
    places = model.config.axes[0] * model.config.axes[1]
    tokens = torch.full((len(wanted.context), places, 1), model.vocab_size)  # type: ignore[arg-type]
    official = amused_guided_logits(model, wanted, unwanted, scale=7.0)(tokens, 0)
    cond = Cond(context=wanted.context, pooled=wanted.pooled, micro=wanted.micro, null=unwanted)
    ours = guided_logits(model, cond, Guidance(scale=6.0), steps=3)(tokens, 0)
    torch.testing.assert_close(ours, official, atol=GUIDED, rtol=0)
