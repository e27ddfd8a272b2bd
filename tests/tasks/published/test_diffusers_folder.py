"""A whole aMUSEd in the layout of diffusers becomes a model folder: tokenizer, transformer, text encoder, settings."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

import maskgen.tasks.published.convert
from maskgen.checkpoint import load_module
from maskgen.conditioning import Cond
from maskgen.published.amused import transformer as uvit
from maskgen.published.amused.editing import OFFICIAL
from maskgen.published.amused.transformer import PUBLISHED, UVit2D
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.image.editing import edit
from maskgen.tasks.image.generation import generate
from maskgen.tasks.image.inpainting import inpaint
from maskgen.tasks.media.images import to_tensor
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.published.catalog import CATALOG
from maskgen.tasks.published.convert import convert_files
from maskgen.tasks.published.folders import told_settings, with_settings
from maskgen.tasks.published.text import obtain_text
from maskgen.tokenizers.published.image import amused as vq
from tests.parity.support import files, load, metadata, parity_folder
from tests.tasks.commandline import files as listing
from tests.tasks.commandline import refused, run

CLASSES = {"transformer": "UVit2DModel", "vqvae": "VQModel"}
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def recorded(part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    (path,) = files("muse", f"amused_{part}.weights.safetensors")
    return {name: tensor.float() for name, tensor in load(path).items()}, metadata(path)


def write_json(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded weights as diffusers saves a pipeline."""
    import transformers

    folder = tmp_path_factory.mktemp("official") / "amused"
    for part, kind in CLASSES.items():
        state, settings = recorded(part)
        write_json(folder / part / "config.json", {"_class_name": kind, **settings["config"]})
        save_file(state, folder / part / _WEIGHTS)
    state, settings = recorded("text_encoder")
    encoder = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**settings["config"]))
    encoder.load_state_dict(state)
    encoder.save_pretrained(folder / "text_encoder")
    shutil.copytree(parity_folder("muse") / "amused_tokenizer", folder / "tokenizer")
    scheduler = {"_class_name": "AmusedScheduler", "mask_token_id": settings["mask_id"], "masking_schedule": "cosine"}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", {"_class_name": "AmusedPipeline"})
    return folder


@pytest.fixture(scope="module")
def converted(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted from a copy that is gone afterwards."""
    copy = shutil.copytree(official, tmp_path_factory.mktemp("copy") / "amused")
    out = tmp_path_factory.mktemp("ours") / "model"
    run("convert", "--family", "amused-256", "--folder", copy, "--out", out, "--any_size", "true")
    shutil.rmtree(copy)
    return out


def test_a_whole_model_is_sampled(converted: Path) -> None:
    assert {"pipeline.json", "tokenizer", "transformer", "text"} <= set(listing(converted))
    told = recorded("transformer")[1]
    pipe = Pipeline.from_pretrained(converted, device="cpu")
    model = pipe.transformer
    assert isinstance(model, UVit2D)
    assert (model.config.heads, model.config.block_heads) == (
        told["config"]["num_attention_heads"],
        told["config"]["block_num_heads"],
    )
    assert model.config.mask_row == told["mask_id"]
    assert pipe.config.signal_size == (told["config"]["sample_size"] * told["vae_scale_factor"],) * 2
    own = pipe.config.sampling
    assert (own.sampler, own.steps, own.choice_temperature, own.guidance.scale) == ("amused", 12, 2.0, 9.0)
    cats = generate(pipe, prompt="a photo of a red cat", seeds=[1, 2], steps=3)
    again = generate(pipe, prompt=["a photo of a red cat", "blue house"], seeds=[2, 2], steps=3)
    assert [cat.size for cat in cats] == [pipe.config.signal_size[::-1]] * 2
    assert cats[1].tobytes() == again[0].tobytes()
    assert again[0].tobytes() != again[1].tobytes()
    # One negative prompt goes with any number of prompts, which the original refuses.
    others = generate(
        pipe, prompt=["a photo of a red cat", "blue house"], negative_prompt="blurry", seeds=[2, 2], steps=3
    )
    assert others[0].tobytes() != again[0].tobytes()
    (alone,) = generate(pipe, prompt="a photo of a red cat", negative_prompt="blurry", seeds=[2], steps=3)
    gap = np.abs(np.asarray(alone).astype(int) - np.asarray(others[0]))  # of batches the last bit may differ
    assert gap.max() <= 1


def test_pictures_are_edited_as_published_or_better(converted: Path) -> None:
    """Strength 1 makes all of a picture anew, where the original keeps nearly all of it; both paint a hole."""
    pipe = Pipeline.from_pretrained(converted, device="cpu")
    (picture,) = generate(pipe, prompt="a cat", seeds=[5], steps=2)
    kept = pipe.encode(to_tensor([picture]))

    def changed(sampling: Sampling | None) -> float:
        states: list[SampleStep] = []
        edit(pipe, picture, strength=1.0, prompt="a dog", sampling=sampling, steps=4, callback=states.append)
        return (states[-1].tokens != kept).float().mean().item()

    assert changed(None) > 0.5
    assert 0 < changed(OFFICIAL["image-to-image"]) <= 3 / kept.numel()  # one a step, but for the last
    hole = np.zeros((picture.height, picture.width), dtype=bool)
    hole[: picture.height // 2] = True
    for sampling in (None, OFFICIAL["inpainting"]):
        (painted,) = inpaint(pipe, picture, hole, prompt="a dog", sampling=sampling, steps=3, feather=0)
        assert np.array_equal(np.asarray(painted)[~hole], np.asarray(picture)[~hole])
        assert not np.array_equal(np.asarray(painted)[hole], np.asarray(picture)[hole])


def test_its_conditions_are_the_recorded_ones(converted: Path) -> None:
    (path,) = files("muse", "amused_pipeline.io.safetensors")
    io, settings = load(path), metadata(path)
    pipe = Pipeline.from_pretrained(converted, device="cpu")
    cond = pipe.request({"prompt": settings["prompts"], "negative_prompt": settings["negative_prompts"]}).cond
    assert cond.null is not None
    for kind, made in (("prompt", cond), ("negative", cond.null)):
        torch.testing.assert_close(made.context, io[f"text/{kind}/hidden_used"], atol=2e-5, rtol=0)
        torch.testing.assert_close(made.pooled, io[f"text/{kind}/pooled"], atol=2e-5, rtol=0)
    height, width = pipe.config.signal_size
    assert cond.micro is not None
    assert cond.micro.tolist() == [[width, height, 0, 0, 6]] * len(settings["prompts"])


def test_it_is_saved_and_read_again(converted: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(converted, device="cpu")
    pipe.save_pretrained(tmp_path / "m")
    assert listing(tmp_path / "m") == listing(converted)
    again = Pipeline.from_pretrained(tmp_path / "m", device="cpu")
    assert again.config == pipe.config
    assert again.config.text_identity


def test_it_is_fetched_by_name(
    official: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and text encoder come from the repository that the catalog names."""
    usual = Pipeline.from_pretrained(converted, device="cpu")
    monkeypatch.setitem(uvit.PUBLISHED, "tiny-amused", usual.transformer.config)
    monkeypatch.setitem(vq.PUBLISHED, "tiny-amused", usual.tokenizer.config)
    entry = CATALOG["amused-256"]
    tiny = {
        part: dataclasses.replace(weights, sizes="tiny-amused", repository="some/one")
        for part, weights in entry.parts.items()
    }
    assert entry.text is not None
    text = dataclasses.replace(entry.text, repository="some/one")
    monkeypatch.setitem(CATALOG, "tiny-amused", dataclasses.replace(entry, name="tiny-amused", text=text, **tiny))
    monkeypatch.setattr(maskgen.tasks.published.convert, "cache_folder", lambda: tmp_path / "cache")
    asked: list[str] = []

    def download(repository: str, file: str) -> str:
        asked.append(f"{repository}/{file}")
        return str(official / file)

    def snapshot(repository: str, *, allow_patterns: list[str]) -> str:
        if repository != "some/one":
            raise LocalEntryNotFoundError("offline")
        asked.append(f"{repository}: {' '.join(allow_patterns)}")
        return str(official)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    fetched = Pipeline.from_pretrained("tiny-amused", device="cpu")
    assert fetched.config == usual.config
    assert asked == [
        f"some/one/vqvae/{_WEIGHTS}",
        f"some/one/transformer/{_WEIGHTS}",
        "some/one: text_encoder/*.json text_encoder/model.safetensors tokenizer/*",
    ]
    with pytest.raises(
        ConnectionError, match="gone/away: not in the cache, and the Hugging Face Hub cannot be reached"
    ):
        obtain_text(dataclasses.replace(text, repository="gone/away"))


def test_open_muses_names_are_read_too(official: Path, tmp_path: Path) -> None:
    """It is the same network, and its own settings stand beside it."""
    (source,) = files("muse", "openmuse_uvit.weights.safetensors")
    settings = metadata(source)
    shutil.copyfile(source, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"_class_name": "MaskGiTUViT_v2", **settings["config"]})
    assert settings["mask_id"] == settings["config"]["vocab_size"] - 1
    convert_files("amused-256", tmp_path / "m", transformer=tmp_path / "model.safetensors", any_size=True)
    model = load_module(tmp_path / "m", UVit2D)
    assert (model.config.heads, model.config.mask_row) == (
        settings["config"]["num_attention_heads"],
        settings["mask_id"],
    )
    (path,) = files("muse", "openmuse_uvit.io.safetensors")
    io = load(path)
    ids = io["ids"].masked_fill(io["ids"] == settings["mask_id"], model.vocab_size)[..., None]
    cond = Cond(context=io["encoder_hidden_states"], pooled=io["pooled"], micro=io["micro_conds"])
    with torch.no_grad():
        logits = model(ids, cond, (settings["grid"], settings["grid"]))
    torch.testing.assert_close(logits[:, :, 0], io["logits"], atol=5e-5, rtol=0)


def copied(official: Path, to: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(official, to)
    change(to)
    return to


def halve(folder: Path) -> None:
    """What ``variant="fp16"`` is saved as."""
    for path in [folder / part / _WEIGHTS for part in CLASSES] + [folder / "text_encoder" / "model.safetensors"]:
        half = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(half, path.with_name(f"{path.stem}.fp16.safetensors"), metadata={"format": "pt"})
        path.unlink()


def test_half_precision_is_taken_where_there_is_no_other(official: Path, converted: Path, tmp_path: Path) -> None:
    folder = copied(official, tmp_path / "half", halve)
    with pytest.warns(UserWarning, match="weights in half precision, as no others are there") as told:
        convert_files("amused-256", tmp_path / "m", folder=folder, any_size=True)
    assert len(told) == 3
    ours, usual = (Pipeline.from_pretrained(path, device="cpu") for path in (tmp_path / "m", converted))
    # The recorded weights are exact in half precision.
    for name, tensor in usual.transformer.state_dict().items():
        assert torch.equal(ours.transformer.state_dict()[name], tensor), name
    (picture,), (expected,) = (generate(pipe, prompt="a cat", seeds=[3], steps=2) for pipe in (ours, usual))
    assert picture.tobytes() == expected.tobytes()


def test_parts_alone_and_without_text(official: Path, tmp_path: Path) -> None:
    files_ = {"tokenizer": official / "vqvae" / _WEIGHTS, "transformer": official / "transformer" / _WEIGHTS}
    with pytest.warns(
        UserWarning, match="converted without its text encoder, so that it takes no prompts; give --text"
    ):
        convert_files("amused-256", tmp_path / "m", **files_, any_size=True)
    pipe = Pipeline.from_pretrained(tmp_path / "m", device="cpu")
    with pytest.raises(ValueError, match="prompt: got one, but this model takes none"):
        generate(pipe, prompt="a cat")
    convert_files("amused-256", tmp_path / "t", **files_, text=official, any_size=True)
    assert Pipeline.from_pretrained(tmp_path / "t", device="cpu").text is not None
    convert_files("amused-256", tmp_path / "u", transformer=files_["transformer"], any_size=True)
    assert load_module(tmp_path / "u", UVit2D).config == pipe.transformer.config


def without(path: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("vqvae"), f"vqvae/{_WEIGHTS}: no such file; give a whole copy"),
        (without("text_encoder"), "has no config.json; give a folder with text_encoder/ and tokenizer/"),
        (without("tokenizer"), "has no tokenizer_config.json; give a folder with text_encoder/ and tokenizer/"),
        (
            lambda folder: write_json(folder / "transformer" / "config.json", {}),
            "config.json: not the settings of these",
        ),
        (
            lambda folder: write_json(folder / "transformer" / "config.json", [1]),
            "config.json: not the settings of these",
        ),
    ],
)
def test_what_is_wrong_is_said(
    change: Callable[[Path], None], message: str, official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(official, tmp_path / "broken", change)
    words = ("--family", "amused-256", "--folder", folder, "--out", tmp_path / "m", "--any_size", "true")
    assert message in refused(capsys, "convert", *words)
    assert not (tmp_path / "m").exists()


def test_sizes_are_those_published_unless_told_otherwise(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "convert", "--family", "amused-256", "--folder", official, "--out", tmp_path / "m")
    assert "sizes that amused-256 has not" in message


def test_settings_beside_the_weights_are_taken_and_a_difference_is_said(official: Path) -> None:
    file = official / "transformer" / _WEIGHTS
    told = told_settings("maskgen.published.amused.transformer", file)
    assert told_settings("maskgen.published.amused.transformer", official / _WEIGHTS) == {}
    assert told_settings("maskgen.published.maskgit", file) == {}
    with pytest.warns(UserWarning, match=r"transformer: says .*heads \d+, .*other than what was published"):
        config = with_settings(PUBLISHED["amused-256"], {**told, "micro_width": 256, "mask_row": 8255}, file)
    assert (config.heads, config.axes) == (told["heads"], (16, 16))
    usual = {"heads": 16, "block_heads": 12, "micro_width": 256, "mask_row": 8255, "axes": (64, 64)}
    assert with_settings(PUBLISHED["amused-256"], usual, file) == PUBLISHED["amused-256"]


def test_a_text_or_folder_for_another_model_is_refused(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--family", "maskgit-imagenet256", "--out", tmp_path / "m")
    assert "text: got" in refused(capsys, "convert", *words, "--text", official, "--tokenizer", official / "x")
    assert "is not in one repository" in refused(capsys, "convert", *words, "--folder", official)
