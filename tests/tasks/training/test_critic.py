"""``maskgen train critic`` on a tiny model: what is written, reused, resumed and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.critic import CriticSettings
from maskgen.objectives.masked import MaskingSettings
from maskgen.sampling.settings import Sampling
from maskgen.tasks.commands.tokenize import ShardSettings, tokenize_data
from maskgen.tasks.data.tokens.shards import TokenShards
from maskgen.tasks.image.generation import generate
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.critic import train_critic
from maskgen.training.optim.optimizers import OptimizerSettings
from tests.tasks.commandline import refused, run
from tests.tasks.training.test_image import Squares, settings, stage1, stage2, state


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("critic") / "model"
    return stage2(stage1(out / "tokenizer"), out)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(trained, tmp_path / "model")
    return tmp_path / "model"


def train(model: Path, out: Path, **changes: Any) -> Path:
    plain = {"data": Squares(), "settings": settings(steps=3), "say": lambda text: None}
    return train_critic(model=model, out=out, **{**plain, **changes})


def test_into_the_same_folder(folder: Path) -> None:
    before = state(folder)
    assert train(folder, folder) == folder
    after = state(folder)
    assert {name: after[name] for name in before} == before  # nothing else was touched
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    assert pipe.critic is not None
    assert len(generate(pipe, [0, 1], sampling=Sampling(select="critic", steps=3))) == 2
    said: list[str] = []
    train(folder, folder, say=said.append)
    assert said == [f"critic: finished before, reused from {folder / 'critic'}"]
    with pytest.raises(
        ValueError, match=r"critic: holds another run \(critic_settings\.temperature: 1\.0 before, 0\.5 now\)"
    ):
        train(folder, folder, critic_settings=CriticSettings(temperature=0.5))


def test_into_another_folder_with_other_sizes(folder: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 16, "num_classes": 3, "axes": (4, 4), "width": 8, "layers": 1, "heads": 2}
    out = train(folder, tmp_path / "judged", critic=ModernTransformer(ModernConfig(**sizes)), views=2)
    pipe = Pipeline.from_pretrained(out, device="cpu")
    assert pipe.critic is not None
    assert pipe.critic.config.width == 8
    first = Pipeline.from_pretrained(folder, device="cpu")
    assert first.critic is None
    again = [image.tobytes() for image in generate(pipe, [0, 1, 2])]
    assert again == [image.tobytes() for image in generate(first, [0, 1, 2])]


def test_on_token_shards(folder: Path, tmp_path: Path) -> None:
    """The same weights as on the data that the shards were made of."""
    settings_of = ShardSettings(views=2, seed=42)
    shards = tokenize_data(settings_of, tokenizer=folder / "tokenizer", data=Squares(), out=tmp_path / "tokens")
    on_data = train(folder, tmp_path / "data", views=2)
    on_shards = train(folder, tmp_path / "shards", data=TokenShards(shards))
    weights = [(out / "critic" / "model.safetensors").read_bytes() for out in (on_data, on_shards)]
    assert weights[0] == weights[1]
    with pytest.raises(ValueError, match=r"views: got 2, but the token shards hold 2 view\(s\) already"):
        train(folder, tmp_path / "again", data=TokenShards(shards), views=2)
    other = Pipeline.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        next(iter(other.tokenizer.parameters())).add_(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="its tokens were made by the tokenizer"):
        train(tmp_path / "other", tmp_path / "judged", data=TokenShards(shards))


def test_a_critic_of_the_same_sizes_begins_as_a_copy(folder: Path, tmp_path: Path) -> None:
    slow = settings(steps=1, optimizer=OptimizerSettings(lr=1e-6, warmup_steps=0, weight_decay=0.0))
    copy = Pipeline.from_pretrained(train(folder, tmp_path / "copy", settings=slow), device="cpu")
    assert copy.critic is not None
    weights = copy.transformer.state_dict()
    assert all((value - weights[name]).abs().max() < 1e-5 for name, value in copy.critic.state_dict().items())
    named = type(copy.transformer)(copy.transformer.config)
    new = Pipeline.from_pretrained(train(folder, tmp_path / "new", settings=slow, critic=named), device="cpu")
    assert new.critic is not None
    assert any((value - weights[name]).abs().max() > 1e-3 for name, value in new.critic.state_dict().items())


def test_a_model_that_learns_to_judge_itself(folder: Path, tmp_path: Path) -> None:
    train(folder, folder)
    out = train(folder, tmp_path / "self", kind="self", masking=MaskingSettings(label_smoothing=0.0))
    before, after = (Pipeline.from_pretrained(path, device="cpu") for path in (folder, out))
    assert after.critic is None  # it judged the other model
    assert after.config == before.config
    weights = [pipe.transformer.state_dict() for pipe in (before, after)]
    changes = [float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]]
    assert 0 < max(changes) < 0.1  # it went on from where the other was
    assert len(generate(after, [0, 1], sampling=Sampling(select="self-critic", steps=3))) == 2
    lines = (out / "transformer" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"validation/accuracy", "validation/critic_accuracy"} <= json.loads(lines[-1]).keys()


def test_the_critics_validation_is_logged(folder: Path) -> None:
    train(folder, folder)
    lines = (folder / "critic" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"validation/score", "validation/accuracy"} <= json.loads(lines[-1]).keys()


def test_on_the_command_line(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "tokenizer", "--config", "tokenizer.yaml", "--out", "model/tokenizer")
    run("train", "transformer", "--config", "transformer.yaml", "--tokenizer", "model/tokenizer", "--out", "model")
    data = {"class_path": "maskgen.tasks.data.Folder", "init_args": {"root": "data", "size": 8}}
    words = ("train", "critic", "--model", "model", "--out", "model", "--data", json.dumps(data))
    short = ("--settings.steps", 2, "--settings.batch_size", 2, "--settings.tracker", "null")
    run(*words, *short, "--critic_settings.temperature", 0.9, "--critic_settings.label_dropout", 0.0)
    run("generate", "--model", "model", "--labels", "0", "--sampling.select", "critic", "--sampling.steps", 2)
    assert Path("out/manifest.json").is_file()
    told = "holds another run (critic_settings.temperature: 0.9 before, 1.0 now; critic_settings.label_dropout"
    assert told in refused(capsys, *words, *short)
    assert "out: a self-critic is another model" in refused(capsys, *words, "--kind", "self")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "self"}, "out: a self-critic is another model than the one it comes from; name another folder"),
        ({"masking": MaskingSettings()}, "masking: only the kind 'self' goes on learning"),
        (
            {"data": Squares(size=16)},
            r"data: got .*'size': \(16, 16\).* expected .*'size': \(8, 8\).* the model was trained on",
        ),
        ({"data": Squares(classes=2)}, "data: got .*'classes': 2}, expected .*'classes': 3}"),
        ({"critic": 5}, "the critic does not fit the generator: vocab_size is 5, expected 16"),
    ],
)
def test_mistakes_are_explained(trained: Path, change: dict[str, Any], message: str) -> None:
    if "critic" in change:
        sizes: dict[str, Any] = {"vocab_size": 5, "num_classes": 3, "axes": (4, 4), "width": 8, "layers": 1, "heads": 2}
        change = {"critic": ModernTransformer(ModernConfig(**sizes))}
    before = state(trained)
    with pytest.raises(ValueError, match=message):
        train(trained, trained, **change)
    assert state(trained) == before


def test_two_ways_at_once_are_refused(trained: Path, tmp_path: Path) -> None:
    critic = Pipeline.from_pretrained(trained, device="cpu").transformer
    with pytest.raises(
        ValueError, match="critic: got a second transformer, but the kind 'self' has none; leave it out"
    ):
        train(trained, tmp_path / "self", kind="self", critic=critic)
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "nothing", tmp_path / "out")


def test_the_same_seed_gives_the_same_critic(folder: Path, tmp_path: Path) -> None:
    twice = [train(folder, tmp_path / name) for name in ("first", "second")]
    weights = [Pipeline.from_pretrained(out, device="cpu").critic for out in twice]
    assert all(model is not None for model in weights)
    states = [model.state_dict() for model in weights if model is not None]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
