"""Meissonic's three pipelines against viiika/Meissonic: from words and pictures to pictures.

Shapes: B batch (prompts x pictures of each), H W token grid, N = H x W, K codes, L text tokens, S steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from maskgen.conditioning import Cond
from maskgen.published.amused.editing import first_step, share_hidden
from maskgen.published.amused.sampler import AmusedSampling, sample_amused
from maskgen.published.amused.transformer import micro_conditions
from maskgen.published.meissonic.sampler import meissonic_logits, with_time
from maskgen.sampling.loop import SampleStep
from maskgen.tasks.conditions.text import PretrainedText, PretrainedTextConfig
from maskgen.tasks.image.lanczos import lanczos_mask, lanczos_picture
from maskgen.tasks.media.images import to_images
from maskgen.tokenizers.published.image import amused as vq
from maskgen.tokenizers.published.image.amused import AmusedVQ
from tests.parity.families.test_amused import Recorded
from tests.parity.muse.test_muse_meissonic import make
from tests.parity.support import load, metadata, parity_folder, recordings

FOLDER = parity_folder("muse")
PATHS = recordings("muse", "meissonic_pipeline*.io.safetensors")
RUNS = [(path, run) for path in PATHS for run in metadata(path)["runs"]]
GROUPS = [(path, key.split("/")[1]) for path in PATHS for key in load(path) if key.endswith("/hidden_used")]
FROM_TEXT = [(path, run) for path, run in RUNS if run not in ("img2img", "inpaint")]
each_text_run = pytest.mark.parametrize(
    ("path", "run"), FROM_TEXT, ids=[f"{path.stem}-{run}" for path, run in FROM_TEXT]
)

GUIDED: dict[str, float] = {"atol": 2e-4, "rtol": 0.0}
PLAIN: dict[str, float] = {"atol": 5e-5, "rtol": 0.0}
TEXT: dict[str, float] = {"atol": 2e-5, "rtol": 0.0}
PICTURE: dict[str, float] = {"atol": 1e-4, "rtol": 0.0}


def runs(task: str) -> pytest.MarkDecorator:
    """The recorded runs of one pipeline; edits are named by theirs."""
    found = [
        (path, run)
        for path, run in RUNS
        if task == next((t for t in ("img2img", "inpaint") if t in run), "text-to-image")
    ]
    return pytest.mark.parametrize(("path", "run"), found, ids=[f"{path.stem}-{run}" for path, run in found])


make_transformer = cache(make)
io_of = cache(load)


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PretrainedText:
    """The recorded CLIP as a folder of transformers: the hidden states before the last layer, the projected end."""
    folder, settings = tmp_path_factory.mktemp("clip"), metadata(PATHS[0])
    model = CLIPTextModelWithProjection(CLIPTextConfig(**settings["text_config"]))
    model.load_state_dict(
        {name: tensor.float() for name, tensor in load(FOLDER / "meissonic_text_encoder.weights.safetensors").items()}
    )
    model.save_pretrained(folder)
    CLIPTokenizer.from_pretrained(FOLDER / "meissonic_tokenizer").save_pretrained(folder)
    return PretrainedText(
        PretrainedTextConfig(
            source=str(folder), length=settings["max_length"], layer=-2, pooled="projection", attend_padding=True
        )
    )


@dataclass(frozen=True)
class Call:
    """One call of a pipeline: its settings, its text, the place of its steps."""

    path: Path
    run: str
    encoder: PretrainedText

    @property
    def settings(self) -> dict[str, Any]:
        chosen: dict[str, Any] = metadata(self.path)["runs"][self.run]
        return chosen

    def io(self, name: str) -> Tensor:
        return io_of(self.path)[f"{self.run}/{name}"]

    @property
    def mask_id(self) -> int:
        number: int = metadata(self.path)["mask_id"]
        return number

    def conditions(self, kind: str) -> Cond:
        """Of the prompts or of the negative ones, each text repeated as a block, with the numbers of the picture."""
        told, texts = self.settings, metadata(self.path)
        if kind == "negative" and "negative_prompt" not in told:
            chosen = [""] * len(told["prompt"])
        else:
            names = ("prompt", "prompts") if kind == "prompt" else ("negative_prompt", "negative_prompts")
            chosen = [texts[names[1]][index] for index in told[names[0]]]
        cond = self.encoder.encode(chosen * told["num_images_per_prompt"])
        assert cond.pooled is not None
        height, width = (side * told["vae_scale_factor"] for side in self.io("ids_in").shape[2:])
        assert (told.get("height", height), told.get("width", width)) == (height, width)
        micro = micro_conditions(
            len(cond.pooled),
            width,
            height,
            crop=tuple(told["micro_conditioning_crop_coord"]),
            aesthetic_score=told["micro_conditioning_aesthetic_score"],
        )
        return Cond(context=cond.context, pooled=cond.pooled, micro=micro)

    def tokens(self, ids: Tensor, vocabulary: int) -> Tensor:
        """``[..., H, W]`` with the official mask id -> ``[..., N]`` with ours."""
        return ids.masked_fill(ids == self.mask_id, vocabulary).flatten(-2)

    def grid(self, logits: Tensor) -> Tensor:
        """``[B, N, 1, K]`` -> ``[B, K, H, W]``."""
        return logits[:, :, 0].transpose(1, 2).unflatten(2, self.io("ids_in").shape[2:])

    def sampling(self, **others: Any) -> AmusedSampling:
        told = self.settings
        temperature = told["temperature"]
        return AmusedSampling(
            steps=told["num_inference_steps"],
            schedule=told.get("schedule", "cosine"),
            temperature=tuple(temperature) if isinstance(temperature, list) else temperature,
            guidance=told["guidance_scale"],
            rehides=True,
            **others,
        )


def replay(call: Call, start: Tensor, settings: AmusedSampling, start_step: int = 0) -> Tensor:
    """The whole loop from tokens ``[B, N]``, every step compared; the ids ``[B, N]`` at its end."""
    model = make_transformer(call.settings["transformer"])
    cond, negative = call.conditions("prompt"), call.conditions("negative")
    axes = call.io("ids_in").shape[2:]
    guided = meissonic_logits(model, cond, negative, steps=settings.steps, scale=settings.guidance, axes=axes)
    seen: list[Tensor] = []
    logits: list[Tensor] = []
    sampled: list[Tensor] = []

    def logits_fn(tokens: Tensor, step: int) -> Tensor:
        seen.append(tokens[..., 0])
        logits.append(guided(tokens, step))
        return logits[-1]

    def watch(step: SampleStep) -> None:
        sampled.append(step.tokens[..., 0])

    noise = Recorded(*(late(call.io(name), start_step) for name in ("exp_noise", "u_conf")))
    tokens = start[..., None]
    result = sample_amused(
        logits_fn, tokens, tokens == model.vocab_size, settings, noise=noise, start_step=start_step, callback=watch
    )
    assert torch.equal(torch.stack(seen), call.tokens(call.io("ids_in"), model.vocab_size))
    assert torch.equal(torch.stack(sampled), call.io("pred").flatten(2))
    assert torch.equal(result[..., 0], call.io("ids_out").flatten(1))
    torch.testing.assert_close(call.grid(logits[0]), call.io("logits_first"), **GUIDED)
    torch.testing.assert_close(call.grid(logits[-1]), call.io("logits_last"), **GUIDED)
    check_first_call(call, start, start_step)
    return result[..., 0]


def late(noise: Tensor, start_step: int) -> Tensor:
    """Noise of the steps that were run, numbered as all steps are."""
    return torch.cat((noise[:1].expand(start_step, *noise.shape[1:]), noise))


@torch.no_grad()
def check_first_call(call: Call, start: Tensor, start_step: int) -> None:
    """The raw output of the model, both halves, and the numbers and the time it was told."""
    model, told = make_transformer(call.settings["transformer"]), call.settings
    halves = ["negative", "prompt"] if told["guidance_scale"] > 1 else ["prompt"]
    both = Cond.cat([call.conditions(kind) for kind in halves])
    assert both.micro is not None
    assert torch.equal(both.micro, call.io("micro_conds"))
    time = call.io("timesteps")[0]
    assert time == told["num_inference_steps"] - 1 - start_step
    out = model(start[..., None].repeat(len(halves), 1, 1), with_time(both, time), call.io("ids_in").shape[2:])
    torch.testing.assert_close(call.grid(out), call.io("model_first"), **PLAIN)


@cache
def make_tokenizer(path: Path) -> AmusedVQ | None:
    """aMUSEd's; the repository's own recordings are without its weights, and without pictures."""
    weights = FOLDER / "meissonic_vqvae.weights.safetensors"
    if not weights.is_file():
        return None
    state = {name: tensor.float() for name, tensor in load(weights).items()}
    config = vq.config_from(state, groups=metadata(path)["vqvae_config"]["norm_num_groups"])
    model = AmusedVQ(config)
    model.load_state_dict(vq.convert(state, config))
    return model.eval()


@torch.no_grad()
def check_picture(call: Call, ids: Tensor) -> None:
    """Decoded, and in 8 bits."""
    if f"{call.run}/decoded" not in io_of(call.path):
        return
    tokenizer = make_tokenizer(call.path)
    assert tokenizer is not None
    pixels = tokenizer.decode(ids[..., None], call.io("ids_out").shape[1:])
    torch.testing.assert_close(pixels, call.io("decoded"), **PICTURE)
    pictures = torch.from_numpy(np.stack([np.array(picture) for picture in to_images(pixels.clamp(0, 1))]))
    assert (pictures.int() - call.io("image_u8").int()).abs().max() <= 1


def edited_ids(call: Call) -> Tensor:
    """Ids of the picture that is edited ``[1, H, W]``, those of our tokenizer where its weights are there."""
    ids, tokenizer = io_of(call.path)["edit/image_ids"], make_tokenizer(call.path)
    if tokenizer is not None:
        picture = Image.fromarray(io_of(call.path)["edit/image_u8"].numpy())
        assert torch.equal(tokenizer.encode(lanczos_picture(picture, tokenizer.stride))[..., 0], ids.flatten(1))
    return ids


@torch.no_grad()
@pytest.mark.parametrize(("path", "group"), GROUPS, ids=[f"{path.stem}-{group}" for path, group in GROUPS])
def test_text(path: Path, group: str, encoder: PretrainedText) -> None:
    told, io = metadata(path), io_of(path)
    texts = {"prompt": told["prompts"], "negative": told["negative_prompts"], "empty": [""]}[group]
    read = encoder.tokenizer(texts, padding="max_length", truncation=True, max_length=told["max_length"])
    assert read["input_ids"] == io[f"text/{group}/ids"].tolist()
    cond = encoder.encode(texts)
    assert cond.context_mask is None  # padding is attended to
    torch.testing.assert_close(cond.context, io[f"text/{group}/hidden_used"], **TEXT)
    torch.testing.assert_close(cond.pooled, io[f"text/{group}/pooled"], **TEXT)


@runs("text-to-image")
def test_text_to_image(path: Path, run: str, encoder: PretrainedText) -> None:
    """Text, every id of every step, guided logits, the picture; at 1024 pixels with the model that halves its grid."""
    call = Call(path, run, encoder)
    vocabulary = make_transformer(call.settings["transformer"]).vocab_size
    check_picture(call, replay(call, torch.full(call.io("ids_out").flatten(1).shape, vocabulary), call.sampling()))


@runs("img2img")
def test_image_to_image(path: Path, run: str, encoder: PretrainedText) -> None:
    """aMUSEd's rule: the first steps are skipped, and the time of those that are run counts them."""
    call = Call(path, run, encoder)
    told, hidden = call.settings, edited_ids(call)
    first = first_step(told["num_inference_steps"], told["strength"], official=True)
    share = share_hidden(told["schedule"], first, told["num_inference_steps"], official=True)
    hidden = hidden.masked_fill(call.io("u_noise") < share, call.mask_id).expand(told["num_images_per_prompt"], -1, -1)
    vocabulary = make_transformer(told["transformer"]).vocab_size
    check_picture(call, replay(call, call.tokens(hidden, vocabulary), call.sampling(), first))


@runs("inpaint")
def test_inpainting(path: Path, run: str, encoder: PretrainedText) -> None:
    """White is repainted, by the linear schedule, counted by the share of the batch."""
    call = Call(path, run, encoder)
    told, ids = call.settings, edited_ids(call)
    mask = lanczos_mask(Image.fromarray(call.io("mask_u8").numpy()), tuple(ids.shape[1:]))
    assert mask.float().mean() == told["starting_mask_ratio"]
    hidden = ids.masked_fill(mask.view(1, *ids.shape[1:]), call.mask_id).expand(told["num_images_per_prompt"], -1, -1)
    first = first_step(told["num_inference_steps"], told["strength"], official=True)
    settings = call.sampling(starting_mask_ratio="batch")
    vocabulary = make_transformer(told["transformer"]).vocab_size
    check_picture(call, replay(call, call.tokens(hidden, vocabulary), settings, first))
