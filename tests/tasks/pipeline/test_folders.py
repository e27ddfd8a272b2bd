"""Model folders: a round trip changes no sample, and whatever is wrong with a folder is said in one line."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgen.checkpoint import save_module
from maskgen.conditioning import NO_LABEL
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.image.generation import generate
from maskgen.tasks.image.inpainting import inpaint
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from tests.selections import flat_sampling
from tests.support import CLASS_NAMES, make_tiny_pipeline, oracle_pipeline, tiny_pipeline, toy_pipeline


@dataclass(frozen=True)
class SoundConfig:
    """Nothing to set."""

    levels: int = 8


class Sound(Tokenizer):
    """One token a sample: just enough of another modality."""

    modality, is_spatial = "audio", True
    vocab_size, num_codebooks, stride = 8, 1, (1,)

    def __init__(self, config: SoundConfig) -> None:
        super().__init__()
        self.config = config

    def axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        return (signal_shape[-1],)

    def encode(self, signal: Tensor) -> Tensor:
        return (signal * 7).round().long().flatten(1)[..., None]

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        return tokens[..., 0] / 7 - 5.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiny_pipeline(tmp_path / "model")
    return tmp_path / "model"


def filled(pipe: Pipeline, count: int = 3, **changes: Any) -> Tensor:
    """Samples of the labels 0, 1, 2..., half of the first item given."""
    shape = (count, int(torch.Size(pipe.axes).numel()), 1)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0, : shape[1] // 2] = False
    batch_size = changes.pop("batch_size", 64)
    plain = Request(cond=pipe.cond(range(count)), seeds=range(count), sampling=Sampling(steps=3))
    request = dataclasses.replace(plain, **changes)
    return pipe.fill(torch.zeros(shape, dtype=torch.long), mask, request, batch_size=batch_size)


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; dots in a name go deeper."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, value in changes.items():
        *outer, last = name.split("__")
        inner = content
        for key in outer:
            inner = inner[key]
        inner[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_round_trip_changes_nothing(folder: Path) -> None:
    before, loaded = tiny_pipeline(), Pipeline.from_pretrained(folder, device="cpu")
    assert loaded.config == before.config
    assert torch.equal(filled(loaded), filled(before))
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.encode(image), before.encode(image))
    assert torch.equal(loaded.decode(loaded.encode(image)), before.decode(before.encode(image)))
    loaded.save_pretrained(folder.parent / "again")
    for path in folder.rglob("*"):
        if path.is_file():
            assert (folder.parent / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert not any(weight.requires_grad for weight in loaded.transformer.parameters())
    assert not loaded.transformer.training


def test_saving_over_a_model(folder: Path) -> None:
    other = tiny_pipeline(seed=1)
    assert not torch.equal(filled(other), filled(tiny_pipeline()))
    other.save_pretrained(folder)
    assert torch.equal(filled(Pipeline.from_pretrained(str(folder), device="cpu")), filled(other))
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == sorted(
        ["pipeline.json", *["config.json", "model.safetensors"] * 2]
    )


def test_attention_override(folder: Path) -> None:
    plain = Pipeline.from_pretrained(folder, device="cpu")
    eager = Pipeline.from_pretrained(folder, device="cpu", attention="eager")
    assert (plain.transformer.config.attention, eager.transformer.config.attention) == ("sdpa", "eager")
    assert torch.equal(filled(plain), filled(eager))
    with pytest.raises(ValueError, match="attention back-end: got 'flash'"):
        Pipeline.from_pretrained(folder, attention="flash")  # type: ignore[arg-type]


def test_folders_that_are_no_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the checkout may hold a runs/demo
    for name in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", "nowhere", "a/b/c", "runs/demo"):
        with pytest.raises(FileNotFoundError, match=r"no such model folder; train one \(maskgen demo\) or name a Hub"):
            Pipeline.from_pretrained(name)
    with pytest.raises(FileNotFoundError, match=r"not a model folder \(no pipeline\.json\); train one or name another"):
        Pipeline.from_pretrained(folder / "tokenizer")


def test_the_hub_cannot_be_reached() -> None:
    with pytest.raises(
        ConnectionError, match="someone/something: no such folder, not in the cache, and .* reached"
    ) as e:
        Pipeline.from_pretrained("someone/something")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", 'not a maskgen model .expected "format": "maskgen-pipeline"'),
        ("[1]", "not a maskgen model"),
        ('{"_class_name": "StableDiffusionPipeline"}', "not a maskgen model"),
        ('{"format": "maskgen-pipe', "not a JSON file"),
        ("", "not a JSON file"),
        ('{"format": "maskgen-pipeline"}', "signal_size"),
        ('{"format": "maskgen-pipeline", "config": {"signal_size": [32, 32], "class_nams": []}}', "class_nams"),
        ('{"format": "maskgen-pipeline", "config": {"signal_size": "large"}}', "signal_size"),
        (
            '{"format": "maskgen-pipeline", "config": {"signal_size": [32, 32], "sampling": {"steps": 0}}}',
            "steps: got 0",
        ),
    ],
)
def test_foreign_descriptions(content: str, message: str, folder: Path) -> None:
    (folder / "pipeline.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Pipeline.from_pretrained(folder)
    assert "pipeline.json: " in str(caught.value)


@pytest.mark.parametrize("part", ["tokenizer", "transformer"])
def test_damaged_weights(part: str, folder: Path) -> None:
    path = folder / part / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], whole[:5], b"", b"PK\x03\x04 a zip file" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{part}/model\.safetensors: truncated or not a safetensors file"):
            Pipeline.from_pretrained(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{part}/model\.safetensors: no such file"):
        Pipeline.from_pretrained(folder)


def test_parts_of_another_kind(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")
    shutil.copytree(folder / "tokenizer", folder / "transformer")
    with pytest.raises(ValueError, match="transformer: holds a VQGAN, expected a MaskedTransformer"):
        Pipeline.from_pretrained(folder)


def test_weights_that_do_not_fit_their_config(folder: Path) -> None:
    edit(folder / "transformer" / "config.json", config__num_classes=11)
    with pytest.raises(ValueError, match=r"label_embedding\.weight has shape \(11, 32\), expected \(12, 32\)"):
        Pipeline.from_pretrained(folder)


def test_parts_that_do_not_fit_each_other(folder: Path) -> None:
    small = ModernTransformer(ModernConfig(vocab_size=31, num_classes=10, axes=(8, 8), width=16, layers=1, heads=2))
    save_module(small, folder / "transformer")
    with pytest.raises(ValueError, match="tokenizer and transformer do not fit: 32 codes x 1 against 31 x 1"):
        Pipeline.from_pretrained(folder)


def test_class_names_must_be_one_for_each_class(folder: Path) -> None:
    edit(folder / "pipeline.json", config__class_names=["zero", "one"])
    with pytest.raises(ValueError, match="class_names: got 2, expected 10, one for each class"):
        Pipeline.from_pretrained(folder)


def test_a_model_of_another_modality(tmp_path: Path) -> None:
    """Loads and samples, but no image task takes it."""
    model = ModernTransformer(ModernConfig(vocab_size=8, num_classes=2, axes=(6,), width=16, layers=1, heads=2))
    Pipeline(Sound(SoundConfig()), model, PipelineConfig(signal_size=(6,)), "cpu").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "pipeline.json").read_text(encoding="utf-8"))["modality"] == "audio"
    pipe = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert (pipe.modality, pipe.axes, pipe.grid_size) == ("audio", (6,), (6,))
    assert pipe.decode(filled(pipe, 2)).min() < -3  # not clamped, as images are
    with pytest.raises(ValueError, match="generate needs an image model, but this model's modality is audio"):
        generate(pipe, 0)
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="needs an image model, but this model's modality is audio"):
        inpaint(pipe, picture, np.eye(8, dtype=bool), label=0)


def named(*names: str) -> Pipeline:
    tokenizer = ToyTokenizer(ToyTokenizerConfig())
    model = ModernTransformer(ModernConfig(vocab_size=4, num_classes=3, axes=(4, 4), width=16, layers=1, heads=2))
    return Pipeline(tokenizer, model, PipelineConfig(signal_size=(8, 8), class_names=names), "cpu")


def test_labels_of_models_without_names_or_classes() -> None:
    with pytest.raises(ValueError, match="label: got 'cat', expected a number from 0 to 2 .*; this model has no names"):
        named().class_ids("cat")
    long = named("a", "b", "c")
    long.config = dataclasses.replace(long.config, class_names=tuple(f"kind {number}" for number in range(20)))
    with pytest.raises(ValueError, match=r"known: kind 0, .*, kind 11, \.\.\.$"):
        long.class_ids("zebra")
    model = ModernTransformer(ModernConfig(vocab_size=4, num_classes=0, axes=(4, 4), width=16, layers=1, heads=2))
    config = PipelineConfig(signal_size=(8, 8))
    plain = Pipeline(ToyTokenizer(ToyTokenizerConfig()), model, config, "cpu")
    with pytest.raises(ValueError, match="label: got 3, but this model has no classes; give none"):
        plain.class_ids(3)
    assert plain.class_ids(None) == [NO_LABEL]


def test_models_without_an_unconditional_mode() -> None:
    answer = torch.zeros(64, 1, dtype=torch.long)
    strict, usual = oracle_pipeline(answer, null_class=False), oracle_pipeline(answer)
    assert usual.sampling(None, guidance=2.0).guidance.scale == 2
    for call in (lambda: strict.sampling(None, guidance=2.0), lambda: strict.sampling(flat_sampling(guidance=0.1))):
        with pytest.raises(
            ValueError, match=r"guidance: got [\d.]+, but this model has no unconditional mode .* use 0"
        ):
            call()
    assert strict.sampling(None, guidance=0.0).guidance.scale == 0
    with pytest.raises(ValueError, match=r"label: got none, .* give a class"):
        strict.class_ids(None)


def test_settings_of_a_call() -> None:
    pipe = toy_pipeline()
    assert pipe.sampling(None) == pipe.config.sampling == Sampling(steps=3)
    assert pipe.sampling(None, steps=5, guidance=1.5) == flat_sampling(steps=5, guidance=1.5)
    # The steps stay the model's: settings of a call used to bring everything that they do not name back to the defaults.
    assert pipe.sampling(Sampling(temperature=0.5), guidance=0.0) == Sampling(temperature=0.5, steps=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps: got 0, expected at least 1"),
        ({"steps": -3}, "steps: got -3"),
        ({"schedule": "cosinus"}, "schedule: got 'cosinus', expected 'cosine'"),
        ({"select": "best"}, "got 'best', expected one of"),
        ({"guidance_ramp": "steep"}, "got 'steep'"),
        ({"temperature": -0.1}, "temperature: got -0.1, expected a finite number of 0 or more"),
        ({"choice_temperature": float("nan")}, "choice_temperature: got nan"),
        ({"guidance": float("inf")}, "guidance.scale: got inf"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flat_sampling(**settings)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_batch_size_does_not_change_the_result(guidance: float) -> None:
    pipe = tiny_pipeline()
    sampling = flat_sampling(steps=3, guidance=guidance)
    whole = filled(pipe, 5, sampling=sampling)
    for batch_size in (1, 2, 5, 64):
        assert torch.equal(filled(pipe, 5, sampling=sampling, batch_size=batch_size), whole)
    assert torch.equal(whole[0, :32], torch.zeros(32, 1, dtype=torch.long))  # what was given
    assert not torch.equal(filled(pipe, 5, sampling=sampling, seeds=[9, 8, 7, 6, 5]), whole)


def test_what_stands_at_hidden_places_is_ignored() -> None:
    pipe = toy_pipeline()
    shape = (2, 64, 1)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[:, :20] = False
    request = Request(cond=pipe.cond([1, 2]), seeds=[3, 4], sampling=Sampling(steps=3))
    first = pipe.fill(torch.zeros(shape, dtype=torch.long), mask, request)
    other = pipe.fill(torch.where(mask, 5, 0), mask, request)
    assert torch.equal(first, other)


def test_decoding_in_parts() -> None:
    pipe = tiny_pipeline()
    tokens = torch.randint(32, (70, 64, 1), generator=torch.Generator().manual_seed(0))
    images = pipe.decode(tokens)
    assert (images.shape, images.dtype) == ((70, 3, 32, 32), torch.float32)
    assert images.min() >= 0
    assert images.max() <= 1
    torch.testing.assert_close(images[40:41], pipe.decode(tokens[40:41]))


def test_learned_positions_hold_for_one_grid() -> None:
    """A model of the other family in the same folder format."""
    model = BertTransformer(
        BertConfig(
            vocab_size=4, num_classes=10, axes=(4, 4), width=16, heads=2, layers=1, mlp_width=32, null_class=True
        )
    )
    config = PipelineConfig(signal_size=(8, 8), class_names=CLASS_NAMES)
    pipe = Pipeline(ToyTokenizer(ToyTokenizerConfig()), model, config, "cpu")
    assert filled(pipe, 2, sampling=flat_sampling(steps=2, guidance=1.0)).shape == (2, 16, 1)
