"""``maskgen tokenize``: the same tokens as in memory, whatever was killed in between; and training on them."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import maskgen.tasks.commands.tokenize
import maskgen.tasks.data.patience
import maskgen.tasks.data.tokens.cache
from maskgen.checkpoint import read_json, save_module, write_json
from maskgen.data import DataUnavailable
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.masked import MaskingSettings
from maskgen.tasks.commands.tokenize import ShardSettings, tokenize_data
from maskgen.tasks.data.images.digits import Digits
from maskgen.tasks.data.tokens.cache import tokenize
from maskgen.tasks.data.tokens.shards import TokenShards
from maskgen.tasks.training.transformer import train_transformer
from maskgen.tokenizers.audio.toy import ToyAudioTokenizer, ToyAudioTokenizerConfig
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings
from tests.tasks.commandline import refused, run

ROOT = Path(__file__).resolve().parents[3]
CODES = ToyTokenizer(ToyTokenizerConfig(levels=4, patch=2))
SETTINGS = {"views": 2, "seed": 7, "shard_size": 1000, "batch_size": 300}


def sharding(**changes: int) -> dict[str, Any]:
    """The settings as the Python function takes them."""
    *own, size = ({**SETTINGS, **changes}[name] for name in ("views", "seed", "shard_size", "batch_size"))
    return {"shards": ShardSettings(views=own[0], seed=own[1], shard_size=own[2]), "batch_size": size}


SHARDING = sharding()
SHARDS = ["test-00000", "train-00000", "train-00001", "train-00002"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskgen.tasks.data.patience, "PAUSE", 0.0)


@pytest.fixture(scope="module")
def data() -> Digits:
    return Digits(size=8, max_shift=1)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    save_module(CODES, folder)
    return folder


@pytest.fixture(scope="module")
def made(toy: Path, data: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenize_data(
        tokenizer=toy, data=data, out=tmp_path_factory.mktemp("made") / "tokens", say=_ignore, **SHARDING
    )


def _ignore(text: str) -> None:
    pass


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_tokens_are_those_in_memory(made: Path, data: Digits) -> None:
    assert {name.removesuffix(".safetensors") for name in content(made)} == {*SHARDS, "tokens.json"}
    shards = TokenShards(made)
    assert (shards.modality, shards.size, shards.class_names, shards.views) == ("image", (8, 8), data.class_names, 2)
    memory = tokenize(data.train(), CODES, views=2, seed=7)
    train, test = shards.train(), shards.test()
    assert len(train) == 2 * 1437
    rows = [0, 2873, 999, 1000, 1999, 2000, 1000]  # both ends of every shard
    for name, tensor in train.batch(rows, rows).items():
        assert torch.equal(tensor, memory.tensors[name][rows])
        assert tensor.dtype == torch.long
    assert test is not None
    whole = test.batch(range(360), range(360))
    assert torch.equal(whole["tokens"], tokenize(data.test(), CODES).tensors["tokens"])


def test_killed_in_the_middle_of_a_file(made: Path, toy: Path, data: Digits, tmp_path: Path) -> None:
    """SIGKILL while the third shard is being written, then the first again: the folder ends up the same, byte for byte."""
    out = tmp_path / "tokens"

    def die() -> None:
        real, calls = maskgen.tasks.data.tokens.cache.save_file, []

        def save(tensors: Any, path: Any, **rest: Any) -> None:
            real(tensors, path, **rest)
            calls.append(path)
            if len(calls) == 3:
                Path(path).write_bytes(Path(path).read_bytes()[:100])
                os.kill(os.getpid(), signal.SIGKILL)

        maskgen.tasks.data.tokens.cache.save_file = save  # type: ignore[assignment] # in a process of its own
        tokenize_data(tokenizer=toy, data=data, out=out, say=_ignore, **SHARDING)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in out.glob("[!.]*")) == [
        "tokens.json",
        *(f"{s}.safetensors" for s in SHARDS[1:3]),
    ]
    assert len(list(out.glob(".*"))) == 1
    with pytest.raises(ValueError, match="its tokens are not complete; run the same maskgen tokenize again"):
        TokenShards(out)
    before = content(out)
    (out / "train-00000.safetensors").write_bytes(b"damaged")
    said: list[str] = []
    tokenize_data(tokenizer=toy, data=data, out=out, say=said.append, **SHARDING)
    assert said[0] == "tokenize: 3 of 4 shards to make, 2 view(s) of 1437 examples"
    assert content(out) == content(made)
    assert content(out)["train-00001.safetensors"] == before["train-00001.safetensors"]
    tokenize_data(tokenizer=toy, data=data, out=out, say=said.append, **SHARDING)
    assert said[2] == "tokenize: 0 of 4 shards to make, 2 view(s) of 1437 examples"
    assert content(out) == content(made)


def test_two_processes_and_workers_make_the_same_files(made: Path, toy: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "maskgen", "tokenize"]
    options = [f"--{name}={value}" for name, value in SETTINGS.items()]
    chosen = ["--data=maskgen.tasks.data.images.digits.Digits", "--data.size=8", "--data.max_shift=1", "--workers=1"]
    command = [sys.executable, *launch, f"--tokenizer={toy}", f"--out={tmp_path / 'tokens'}", *chosen, *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert content(tmp_path / "tokens") == content(made)


def train(toy: Path, out: Path, data: Any, views: int = 1) -> Path:
    sizes = {"vocab_size": 4, "num_classes": 10, "axes": (4, 4), "width": 16, "layers": 1, "heads": 2}
    never = {"validate_every": 0, "show_every": 0, "checkpoint_every": 0, "tracker": None}
    optimizer = OptimizerSettings(lr=3e-3, warmup_steps=1)
    return train_transformer(
        tokenizer=toy,
        transformer=ModernTransformer(ModernConfig(**sizes)),
        data=data,
        masking=MaskingSettings(),
        settings=TrainSettings(steps=4, batch_size=32, seed=7, log_every=2, optimizer=optimizer, **never),
        out=out,
        views=views,
        say=_ignore,
    )


def test_training_on_shards_is_training_on_the_data(made: Path, toy: Path, data: Digits, tmp_path: Path) -> None:
    train(toy, tmp_path / "memory", data, views=2)
    train(toy, tmp_path / "shards", TokenShards(made))
    weights = [(tmp_path / kind / "transformer/model.safetensors").read_bytes() for kind in ("memory", "shards")]
    assert weights[0] == weights[1]
    for name in ("pipeline.json", "tokenizer/config.json"):
        assert (tmp_path / "memory" / name).read_bytes() == (tmp_path / "shards" / name).read_bytes()
    with pytest.raises(ValueError, match=r"views: got 2, but the token shards hold 2 view\(s\) already; leave it out"):
        train(toy, tmp_path / "again", TokenShards(made), views=2)


def test_another_tokenizer(made: Path, toy: Path, data: Digits, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_module(ToyTokenizer(ToyTokenizerConfig(levels=5, patch=2)), other)
    with pytest.raises(ValueError, match=r"its tokens were made by the tokenizer \w{16}, but this one is \w{16}; name"):
        train(other, tmp_path / "out", TokenShards(made))
    assert not (tmp_path / "out").exists()
    out = tmp_path / "tokens"
    shutil.copytree(made, out)
    with pytest.raises(
        ValueError, match=r"holds other tokens \(tokenizer: \w+ before, .*vocab_size: 4 before, 5 now\); give"
    ):
        tokenize_data(tokenizer=other, data=data, out=out, say=_ignore, **SHARDING)
    with pytest.raises(ValueError, match=r"holds other tokens \(views: 2 before, 3 now\)"):
        tokenize_data(tokenizer=toy, data=data, out=out, say=_ignore, **sharding(views=3))
    found = read_json(out / "tokens.json")
    write_json(out / "tokens.json", found | {"tokenizer": "someone else's"})
    with pytest.raises(ValueError, match=r"train-00000\.safetensors: its tokens were made by the tokenizer"):
        TokenShards(out).train().batch([0], [0])


def test_shards_that_go_away(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    shutil.copytree(made, out)
    shards = TokenShards(out)
    source = shards.train()
    source.batch([0], [0])
    (out / "train-00001.safetensors").unlink()
    source.batch([1], [0])
    message = r"train-00001\.safetensors: cannot be read, 6 times in a row \(No such file or directory\)"
    with pytest.raises(DataUnavailable, match=message):
        source.batch([1000], [0])
    with pytest.raises(FileNotFoundError, match=r"train-00001\.safetensors: 1 token shard\(s\) missing"):
        TokenShards(out)
    shutil.copy(out / "train-00002.safetensors", out / "train-00001.safetensors")
    with pytest.raises(ValueError, match=r"train-00001\.safetensors: expected 1000 examples; delete it and run"):
        source.batch([1000], [0])
    (out / "train-00001.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"train-00001\.safetensors: truncated or not a file of tokens"):
        source.batch([1000], [0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": 0}, "views: got 0, expected at least 1"),
        ({"shard_size": 0}, "shard_size: got 0"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_settings_out_of_range(changes: dict[str, int], message: str, toy: Path, data: Digits, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize_data(tokenizer=toy, data=data, out=tmp_path / "o", say=_ignore, **sharding(**changes))
    assert not (tmp_path / "o").exists()


def test_data_that_do_not_fit(made: Path, toy: Path, data: Digits, tmp_path: Path) -> None:
    def refuse(message: str, **changes: Any) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            tokenize_data(**{"tokenizer": toy, "data": data, "out": tmp_path / "o", "say": _ignore, **changes})

    refuse("data: got token shards, expected images or sounds", data=TokenShards(made))
    refuse(r"tokenizer: got .*nowhere, which holds none", tokenizer=tmp_path / "nowhere")
    save_module(ToyAudioTokenizer(ToyAudioTokenizerConfig()), tmp_path / "sound")
    refuse("data: got image data, but the tokenizer's modality is audio", tokenizer=tmp_path / "sound")
    for text, message in (("{}", "not written by maskgen tokenize"), ("[", "not a JSON file")):
        (tmp_path / "tokens.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            TokenShards(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no tokens \(no tokens\.json\); make them: maskgen tokenize"):
        TokenShards(tmp_path / "nowhere")


def limited(limit: int, act: Callable[[], Any]) -> Any:
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        return act()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_full_disk(made: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, no half a file; when there is room again, the same command goes on."""
    out = tmp_path / "tokens"
    words = [
        "tokenize",
        f"--tokenizer={toy}",
        f"--out={out}",
        "--data=maskgen.tasks.data.images.digits.Digits",
        "--data.size=8",
    ]
    words += ["--data.max_shift=1", *(f"--{name}={value}" for name, value in SETTINGS.items())]
    with pytest.raises(SystemExit) as stopped:
        limited(20_000, lambda: run(*words))
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("maskgen: error: ")
    assert "train-00000.safetensors" in last
    assert [path.name for path in out.iterdir()] == ["tokens.json"]
    run(*words)
    assert content(out) == content(made)
    assert "tokenize: 2874 and 360 held-out examples in" in capsys.readouterr().out


def test_the_command_line(made: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "transformer", "--tokenizer", toy, "--data", "maskgen.tasks.data.tokens.shards.TokenShards"]
    words += ["--data.root", made, "--transformer", "maskgen.models.modern.ModernTransformer", "--out", tmp_path / "m"]
    sizes = {"vocab_size": 4, "num_classes": 10, "axes": [4, 4], "width": 16, "layers": 1, "heads": 2}
    words += [f"--transformer.config={json.dumps(sizes)}", "--settings.steps=2", "--settings.batch_size=8"]
    words += ["--settings.tracker=null", "--masking.label_smoothing=0"]
    run(*words)
    assert "transformer: reading tokens, 2874" in capsys.readouterr().out
    words[7] = tmp_path / "nowhere"
    line = refused(capsys, *words)
    assert line.startswith(f"root: got {tmp_path / 'nowhere'}, which holds no tokens")
