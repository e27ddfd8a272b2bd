"""``maskgen train``: both stages from YAML, slips in it, interruptions, full disks and damaged checkpoints."""

import errno
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

import maskgen.training.state
from maskgen.tokenizers.training.reconstruction import ReconstructionTraining
from tests.tasks.commandline import TOKENIZER, TRANSFORMER, files, pixels, refused, run, write_yaml


def test_train_both_stages(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "tokenizer", "--config", "tokenizer.yaml", "--out", "m/tokenizer", "--settings.steps", 3)
    run("train", "transformer", "--config", "transformer.yaml", "--tokenizer", "m/tokenizer", "--out", "m")
    assert "transformer: tokenizing 6 images, 1 view(s) each" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in Path("m/tokenizer/log.jsonl").read_text("utf-8").splitlines()]
    assert steps == [2, 3]
    run("generate", "--model", "m", "--labels", "cat,dog", "--out", "out")
    assert pixels("out/label-0001_seed-00000001.png").shape == (8, 8, 3)
    run("train", "tokenizer", "--config", "tokenizer.yaml", "--out", "m/tokenizer", "--settings.steps", 3)
    run("train", "transformer", "--config", "transformer.yaml", "--tokenizer", "m/tokenizer", "--out", "m")
    said = capsys.readouterr().out
    assert "tokenizer: finished before, reused from m/tokenizer" in said
    assert "transformer: finished before, reused from m/transformer" in said
    line = refused(
        capsys, "train", "tokenizer", "--config", "tokenizer.yaml", "--out", "m/tokenizer", "--settings.steps", 2
    )
    assert line.startswith(
        "m/tokenizer: holds another run (settings.steps: 3 before, 2 now); give --again to train anew"
    )
    run("train", "tokenizer", "--config", "tokenizer.yaml", "--out", "m/tokenizer", "--settings.steps", 2, "--again")
    assert "tokenizer: the run of before is in m/tokenizer/earlier-1" in capsys.readouterr().out
    line = refused(
        capsys, "train", "transformer", "--config", "transformer.yaml", "--tokenizer", "m/tokenizer", "--out", "m"
    )
    assert line.startswith("m/transformer: holds another run (tokenizer: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings__stepz": 1}, "stepz"),
        ({"settings__optimizer__learning_rate": 1}, "learning_rate"),
        ({"tokenizer__init_args__config__quantizer__size": 1}, "size"),
        ({"stepz": 1}, "stepz"),
        ({"data__init_args__sise": 8}, "sise"),
        ({"data__class_path": "maskgen.tasks.data.images.digits.Digitz"}, "Digitz"),
        ({"settings__steps": "many"}, "settings.steps: expected int, got many"),
        ({"settings__steps": 2.5}, "settings.steps: expected int, got 2.5"),
        ({"settings__steps": 0}, "steps: got 0, expected at least 1"),
        ({"settings__batch_size": 0}, "batch_size: got 0, expected at least 1"),
        ({"settings__optimizer__lr": -1.0}, "optimizer: got lr -1.0"),
        ({"settings__mixed_precision": "half"}, "settings.mixed_precision: expected no, bf16 or fp16, got half"),
        ({"tokenizer__init_args__config__shortcut": "none"}, "config.shortcut: expected branch or input, got none"),
        (
            {"tokenizer__init_args__config__channels": 6},
            "channels: got level widths (6, 12), expected multiples of groups=4",
        ),
        ({"tokenizer": 5}, "tokenizer: expected Tokenizer, got 5"),
        (
            {"tokenizer": {"channels": 8}},
            "tokenizer: got settings (tokenizer.channels) without a class; name one, as in",
        ),
        ({"tokenizer__init_args__config": 5}, "tokenizer.init_args.config: got 5, expected settings (channels, mult"),
        (
            {"codec": {"hop": 4}},
            "codec: this option is called tokenizer (as class_path: maskgen.tokenizers.audio.AudioCodec",
        ),
        ({"settings__guard": {"most_in_a_row": 3}}, "is called settings.guard.max_consecutive_skips now"),
        ({"settings__optimizer": 5}, "settings.optimizer: got 5, expected settings (lr, betas"),
        ({"loss": None}, "loss: got None, expected settings (pixel, "),
        ({"settings__steps": None}, "settings.steps: got nothing, expected int; leave the key out for its default"),
        ({"data__init_args__size": None}, "data.init_args.size: got nothing, expected int"),
        ({"data__init_args__broken": None}, "data.init_args.broken: got nothing, expected float"),
        ({"data__init_args__root": "nowhere"}, "data folder: got nowhere, expected a folder of images"),
        ({"loss__gan_weight": 0.1}, "loss.discriminator.image_size: got 256, but the images are 8 x 8"),
    ],
)
def test_mistakes_in_a_config(
    changes: dict[str, Any], message: str, configs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yaml(TOKENIZER, configs / "wrong.yaml", **changes)
    assert message in refused(capsys, "train", "tokenizer", "--config", "wrong.yaml", "--out", "out")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking__schedule": "cosinus"}, "schedule: got 'cosinus', expected 'cosine'"),
        ({"masking__label_smothing": 0.1}, "label_smothing"),
        ({"sampling__schedule": "cosinus"}, "schedule: got 'cosinus', expected 'cosine'"),
        ({"sampling__select": "best"}, "selector: got 'best', expected one of"),
        ({"sampling__stepz": 1}, "stepz"),
        ({"transformer__init_args__config__vocabsize": 16}, "vocabsize"),
        ({"transformer__init_args__config__width": "wide"}, "config.width: expected int, got wide"),
        ({"transformer__init_args__config": 3}, "transformer.init_args.config: got 3, expected settings (vocab_size"),
        ({"transformer__init_args__config__heads": 3}, "width 16 must be a multiple of 2 x heads = 6"),
        ({"transformer__init_args__config__vocab_size": 17}, "vocab_size is 17, expected 16"),
        ({"views": 0}, "views: got 0, expected at least 1"),
        ({"tokenizer": "nowhere"}, "tokenizer: got nowhere, which holds none"),
    ],
)
def test_mistakes_in_the_second_config(
    changes: dict[str, Any], message: str, model: Path, configs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"tokenizer": str(model / "tokenizer"), "data__init_args__size": 16}
    grid = {"transformer__init_args__config__vocab_size": 32}
    write_yaml(TRANSFORMER, configs / "wrong.yaml", **{**small, **grid, **changes})
    if "expected 16" in message:
        message = "vocab_size is 17, expected 32"
    assert message in refused(capsys, "train", "transformer", "--config", "wrong.yaml", "--out", "out")
    assert not Path("out").exists()


def test_configs_that_are_none(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("a.yaml", b"a: [1,"), ("b.yaml", b"\x89PNG\xff"), ("c.yaml", b"- 1\n- 2\n")):
        Path(name).write_bytes(content)
        assert "see `maskgen train tokenizer --help`" in refused(
            capsys, "train", "tokenizer", "--config", name, "--out", "out"
        )
    assert "nowhere.yaml" in refused(capsys, "train", "tokenizer", "--config", "nowhere.yaml", "--out", "out")
    assert "out" in refused(capsys, "train", "tokenizer", "--config", "tokenizer.yaml")
    assert not Path("out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_training_image_is_named(workers: int, configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/dog/broken.png").write_bytes(Path("data/dog/0.png").read_bytes()[:60])
    with pytest.raises(SystemExit) as stopped:
        run("train", "tokenizer", "--config", "tokenizer.yaml", "--out", "out", "--settings.workers", workers)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith(
        f"maskgen: error: {configs}/data: 1 of 7 examples cannot be used, expected at most a share of 0.05 (broken): "
        f"{configs}/data/dog/broken.png: got a damaged image"
    )


def test_interrupted_training(
    configs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ReconstructionTraining.loss
    words = ("train", "tokenizer", "--config", "tokenizer.yaml", "--out")

    def interrupt(self: Any, network: str, modules: Any, batch: Any, step: int) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, network, modules, batch, step)

    run(*words, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(ReconstructionTraining, "loss", interrupt)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(*words, "parts")
    assert stopped.value.code == 75
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "maskgen: tokenizer: stopped after step 3 and saved; run it again to go on"
    run(*words, "parts")
    whole, parts = (Path(name, "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_a_full_disk_keeps_the_checkpoint_before(
    configs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", "tokenizer", "--config", "tokenizer.yaml", "--out")
    real, calls = maskgen.training.state.save_file, []

    def full(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 6:  # four files a checkpoint
            raise OSError(errno.ENOSPC, "No space left on device", str(args[1]))
        real(*args)

    run(*words, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(maskgen.training.state, "save_file", full)
        with pytest.raises(SystemExit) as stopped:
            run(*words, "parts")
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("maskgen: error: ")
    assert "No space left on device" in last
    assert files(Path("parts/checkpoints"))[0] == "step-00000002"
    assert len(list(Path("parts/checkpoints").iterdir())) == 1
    run(*words, "parts")
    assert Path("whole/model.safetensors").read_bytes() == Path("parts/model.safetensors").read_bytes()


@pytest.mark.parametrize("limit", [50_000, 150_000], ids=["weights", "optimizer"])
def test_a_disk_that_really_is_full(limit: int, configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files; the libraries that write checkpoints have errors of their own for it."""
    run("train", "tokenizer", "--config", "tokenizer.yaml", "--out", "fits")
    kept = Path("fits/checkpoints/step-00000002")
    assert (kept / "model.safetensors").stat().st_size < 150_000 < (kept / "optimizer.safetensors").stat().st_size
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        with pytest.raises(SystemExit) as stopped:
            run("train", "tokenizer", "--config", "tokenizer.yaml", "--out", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("maskgen: error: ")
    assert "out/checkpoints/step-00000002" in last
    assert not any(Path("out/checkpoints").iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "run.json"])
def test_a_truncated_checkpoint(name: str, configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "tokenizer", "--config", "tokenizer.yaml", "--out", "out")
    run(*words)
    description = Path("out/run.json")
    unfinished = description.read_text(encoding="utf-8").replace('"finished": true', '"finished": false')
    description.write_text(unfinished, encoding="utf-8")
    damaged = Path("out/checkpoints/step-00000004", name)
    damaged.write_bytes(damaged.read_bytes()[:10])
    line = refused(capsys, *words)
    assert "out/checkpoints/step-00000004" in line
    assert "delete" in line


def test_a_perceptual_loss_without_its_weights(
    configs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(configs))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    words = ("train", "tokenizer", "--config", "tokenizer.yaml", "--loss.perceptual", "squeeze", "--out", "out")
    line = refused(capsys, *words)
    assert "put squeezenet1_1-b8a52dc0.pth into" in line
    assert "or choose perceptual=None" in line
    assert not Path("out").exists()
