"""A whole Meissonic in the layout of diffusers becomes a model folder, and every task tells its transformer the time."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from maskgen.published.meissonic.transformer import MeissonicTransformer
from maskgen.sampling.settings import Sampling
from maskgen.tasks.image.editing import edit
from maskgen.tasks.image.generation import generate
from maskgen.tasks.image.inpainting import inpaint
from maskgen.tasks.model_folder import check_text
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.published.catalog import CATALOG
from maskgen.tasks.published.convert import convert_files
from maskgen.tasks.published.text import read_text
from tests.parity.support import load, metadata, parity_folder

FOLDER = parity_folder("muse")


def write_json(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def recorded(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = FOLDER / f"{kind}.weights.safetensors"
    return {name: tensor.float() for name, tensor in load(path).items()}, metadata(path)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Of the recorded weights as diffusers saves a pipeline, the transformer that does not halve its grid."""
    folder = tmp_path_factory.mktemp("official") / "meissonic"
    # The repository's own recordings have one tokenizer for both models.
    own = (FOLDER / "meissonic_vqvae.weights.safetensors").is_file()
    kinds = {"transformer": "meissonic_transformer_plain", "vqvae": "meissonic_vqvae" if own else "amused_vqvae"}
    for part, kind in kinds.items():
        state, settings = recorded(kind)
        write_json(folder / part / "config.json", settings["config"])
        save_file(state, folder / part / "diffusion_pytorch_model.safetensors")
    state, settings = recorded("meissonic_text_encoder")
    encoder = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**settings["config"]))
    encoder.load_state_dict(state)
    encoder.save_pretrained(folder / "text_encoder")
    shutil.copytree(FOLDER / "meissonic_tokenizer", folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", {"mask_token_id": settings["mask_id"]})
    out = folder.with_name("ours")
    convert_files("meissonic-1024", out, folder=folder, any_size=True)
    shutil.rmtree(folder)
    return Pipeline.from_pretrained(out, device="cpu")


def told_times(pipe: Pipeline) -> list[list[float]]:
    """Filled with the times that the transformer is told, a list a call."""
    times: list[list[float]] = []
    embed = pipe.transformer.get_submodule("time_text_embed")
    embed.register_forward_pre_hook(lambda module, inputs: times.append(inputs[0].tolist()))
    return times


def apart(a: Image.Image, b: Image.Image) -> int:
    """Largest difference of two pictures, in levels."""
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


def test_settings_are_the_published_ones(pipe: Pipeline) -> None:
    told = recorded("meissonic_transformer_plain")[1]
    model = pipe.transformer
    assert isinstance(model, MeissonicTransformer)
    assert model.config.rotary_widths == tuple(told["config"]["axes_dims_rope"])
    assert (model.config.mask_row, model.config.resample) == (told["mask_id"], told["config"]["downsample"])
    own = pipe.config.sampling
    assert (own.sampler, own.steps, own.choice_temperature, own.guidance.scale) == ("amused", 48, 2.0, 8.0)


def test_its_conditions_are_the_recorded_ones(pipe: Pipeline) -> None:
    path = FOLDER / "meissonic_pipeline.io.safetensors"
    io, settings = load(path), metadata(path)
    cond = pipe.request({"prompt": settings["prompts"], "negative_prompt": settings["negative_prompts"]}).cond
    assert cond.null is not None
    for kind, made in (("prompt", cond), ("negative", cond.null)):
        torch.testing.assert_close(made.context, io[f"text/{kind}/hidden_used"], atol=2e-5, rtol=0)
        torch.testing.assert_close(made.pooled, io[f"text/{kind}/pooled"], atol=2e-5, rtol=0)
    height, width = pipe.config.signal_size
    assert cond.micro is not None
    assert cond.micro.tolist() == [[width, height, 0, 0, 6]] * len(settings["prompts"])


def test_tasks_tell_the_time(pipe: Pipeline) -> None:
    times = told_times(pipe)
    (picture,) = generate(pipe, prompt="a photo of a red cat", seeds=[1], steps=3)
    assert times == [[2.0] * 2, [1.0] * 2, [0.0] * 2]  # both halves of guidance
    assert picture.size == pipe.config.signal_size[::-1]
    (again, house) = generate(pipe, prompt=["a photo of a red cat", "blue house"], seeds=[1, 1], steps=3)
    assert apart(again, picture) <= 1  # the tokenizer's sums depend on the batch
    assert apart(house, picture) > 1
    (other,) = generate(pipe, prompt="a photo of a red cat", negative_prompt="blurry", seeds=[1], steps=3)
    assert apart(other, picture) > 1


def test_our_own_loop_and_other_tasks_tell_it_too(pipe: Pipeline) -> None:
    times = told_times(pipe)
    (picture,) = generate(pipe, prompt="a cat", seeds=[1], steps=2, sampling=Sampling(sampler="maskgit"))
    assert [row[0] for row in times] == [1.0, 0.0]
    times.clear()
    mask = Image.new("L", picture.size)
    mask.paste(255, (0, 0, picture.width // 2, picture.height))
    (repainted,) = inpaint(pipe, picture, mask, prompt="a dog", seeds=[1], steps=3, feather=0)
    assert [row[0] for row in times] == [2.0, 1.0, 0.0]
    right = (picture.width // 2, 0, *picture.size)
    assert repainted.crop(right).tobytes() == picture.crop(right).tobytes()
    assert apart(repainted, picture) > 1
    times.clear()
    edit(pipe, picture, prompt="a dog", seeds=[1], steps=4, strength=0.5)
    assert [row[0] for row in times] == [1.0, 0.0]  # of the steps that are skipped, the time is skipped too


def test_a_whole_clip_is_an_encoder_too(pipe: Pipeline, tmp_path: Path) -> None:
    """The published scripts take one of another group. Its part on text says 512, whatever its projection is."""
    told = recorded("meissonic_text_encoder")[1]["config"]
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.CLIPConfig(
        text_config={name: value for name, value in told.items() if name != "projection_dim"},
        vision_config={**vision, "image_size": 8, "patch_size": 4},
        projection_dim=told["projection_dim"],
    )
    assert config.text_config.projection_dim == 512
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    transformers.CLIPTokenizer.from_pretrained(str(FOLDER / "meissonic_tokenizer")).save_pretrained(tmp_path)
    meissonic = CATALOG["meissonic-1024"].text
    assert meissonic is not None
    encoder = read_text(meissonic, tmp_path)
    check_text(encoder, pipe.transformer)
    words = encoder.tokenizer(["a cat"], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        out = model.text_model(words["input_ids"], output_hidden_states=True)
        pooled = model.text_projection(out.pooler_output)
    made = encoder.encode(["a cat"])
    torch.testing.assert_close(made.context, out.hidden_states[-2], atol=2e-5, rtol=0)
    torch.testing.assert_close(made.pooled, pooled, atol=2e-5, rtol=0)
