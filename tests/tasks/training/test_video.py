"""Training on video: tokenizer and transformer, tokens kept on disk, what is refused, resumed, shown and learned.

Shapes: T frames, H W pixels, t h w token grid.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.checkpoint import load_module, save_module
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.commit import CommitModeling, CommitSettings
from maskgen.sampling.commit import Prompt
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.trained import TrainedTasks
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.tokenizer import train_tokenizer
from maskgen.tasks.training.transformer import train_transformer
from maskgen.tasks.training.video import train_video_transformer
from maskgen.tasks.video.completion import complete_clips
from maskgen.tasks.video.generation import generate_video
from maskgen.tasks.video.inpainting import inpaint_video
from maskgen.tasks.video.interpolation import interpolate
from maskgen.tasks.video.prediction import predict_frames
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2ImageConfig, Magvit2Video, Magvit2VideoConfig
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.training.discriminators.video import VideoDiscriminatorConfig
from maskgen.tokenizers.training.magvit2 import Magvit2Settings
from maskgen.tokenizers.training.reconstruction import ReconstructionTraining, VideoReconstructionSettings
from maskgen.tokenizers.training.settings import loss_settings
from maskgen.tokenizers.video.vq3d import VQ3D, VQ3DConfig
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.run import Interrupted
from maskgen.training.settings import TrainSettings
from tests.tasks.training.test_image import Squares
from tests.tasks.video.toys import CLASS_NAMES, LENGTH, LEVELS, SIDE, Boxes, boxes, tokenizer

QUANTIZER = QuantizerConfig(codebook_size=16, dim=4)
PLAIN = VideoReconstructionSettings(perceptual=None, gan_weight=0.0)
MASKING = CommitSettings(label_smoothing=0.0, ratios="row")
TASKS = {"FP2": 2.0, "FI": 1.0, "IPC": 1.0}


def vq3d(**changes: Any) -> VQ3D:
    sizes = {"channels": 8, "multipliers": (1, 2), "temporal_downsample": (True,), "groups": 4, "quantizer": QUANTIZER}
    return VQ3D(VQ3DConfig(**{**sizes, "encoder_blocks": 1, "decoder_blocks": 1, **changes}))


def model(**changes: Any) -> ModernTransformer:
    sizes = {"vocab_size": LEVELS, "num_classes": 0, "axes": (4, 4, 4), "width": 24, "num_tasks": len(Prompt)}
    return ModernTransformer(ModernConfig(**{**sizes, "layers": 1, "heads": 2, **changes}))


def settings(**changes: Any) -> TrainSettings:
    optimizer = OptimizerSettings(lr=3e-3, warmup_steps=1, weight_decay=0.0, betas=(0.9, 0.98))
    never = {"validate_every": 0, "show_every": 0, "checkpoint_every": 0, "tracker": None}
    plain = {"optimizer": optimizer, "steps": 4, "batch_size": 4, "log_every": 2}
    return TrainSettings(**{**plain, **never, **changes})


def toy(folder: Path) -> Path:
    save_module(tokenizer(), folder)
    return folder


def stage1(out: Path, **changes: Any) -> Path:
    plain = {"tokenizer": vq3d(), "data": Boxes(), "loss": PLAIN, "settings": settings(), "say": _ignore}
    return train_tokenizer(out=out, **{**plain, **changes})


def stage2(codes: Path, out: Path, **changes: Any) -> Path:
    plain = {"transformer": model(), "data": Boxes(), "tasks": TASKS, "masking": MASKING, "settings": settings()}
    return train_video_transformer(tokenizer=codes, out=out, **{**plain, "say": _ignore, **changes})


def _ignore(text: str) -> None:
    pass


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_tokenizer_and_transformer_make_a_model(tmp_path: Path) -> None:
    said: list[str] = []
    assert stage1(tmp_path / "tokenizer", say=said.append) == tmp_path / "tokenizer"
    assert load_module(tmp_path / "tokenizer", VQ3D).config == vq3d().config
    tasks = {**TASKS, "OPC": 1.0, "CG": 1.0}
    chosen = {"transformer": model(vocab_size=16, num_classes=2), "tasks": tasks}
    stage2(tmp_path / "tokenizer", tmp_path, say=said.append, **chosen)
    assert said == ["video transformer: tokenizing 4 clips for 5 task(s), 1 view(s) each"]
    assert names(tmp_path) == {"tokenizer", "transformer", "tokens", "pipeline.json"}
    assert names(tmp_path / "tokens") == {"train.safetensors", "test.safetensors"}
    pipe = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert (pipe.modality, pipe.axes, pipe.config.signal_size) == ("video", (4, 4, 4), (LENGTH, SIDE, SIDE))
    assert pipe.config.sampling == Sampling(sampler="commit", steps=12)
    assert pipe.config.class_names == CLASS_NAMES
    expected = TrainedTasks(names=tuple(tasks), inpainting_prompt=True, unconditional=True)
    assert pipe.config.video == expected
    assert generate_video(pipe, "right")[0].shape == (LENGTH, SIDE, SIDE, 3)
    before, again = (tmp_path / "pipeline.json").stat().st_mtime_ns, []
    stage1(tmp_path / "tokenizer", say=again.append)
    stage2(tmp_path / "tokenizer", tmp_path, say=again.append, **chosen)
    assert [line.split(",")[0] for line in again] == [
        "tokenizer: finished before",
        "video transformer: finished before",
    ]
    assert (tmp_path / "pipeline.json").stat().st_mtime_ns == before


def test_what_is_shown(tmp_path: Path) -> None:
    """Clips in the first row; below, what came of them: every frame of the animation is a grid."""
    stage1(tmp_path / "tokenizer")
    tasks = {"FP2": 1.0, "CFP": 1.0}
    stage2(tmp_path / "tokenizer", tmp_path, transformer=model(vocab_size=16, num_classes=2), tasks=tasks)
    grid = 4 * (SIDE + 2) + 2
    for path, rows in (
        (tmp_path / "tokenizer" / "samples" / "reconstructions-00000004.gif", 2),
        (tmp_path / "transformer" / "samples" / "samples-00000004.gif", 3),
    ):
        with Image.open(path) as shown:
            assert (shown.n_frames, shown.size) == (LENGTH, (grid, rows * (SIDE + 2) + 2))
            shown.seek(LENGTH - 1)
            frame = np.asarray(shown.convert("RGB"))
        expected = boxes(1)[-1]
        assert np.abs(frame[2 : 2 + SIDE, 12 : 12 + SIDE].astype(int) - expected).max() < 8
    with Image.open(tmp_path / "transformer" / "samples" / "samples-00000004.gif") as shown:
        first = np.asarray(shown.convert("RGB")).astype(int)
    assert np.abs(first[12 : 12 + SIDE] - first[2 : 2 + SIDE]).max() < 8, "frame prediction gives back the first frame"


def test_default_samplers(tmp_path: Path) -> None:
    codes = toy(tmp_path / "toy")
    stage2(codes, tmp_path / "keep", masking=CommitSettings(condition_mode="keep"))
    config = Pipeline.from_pretrained(tmp_path / "keep", device="cpu").config
    assert config.sampling == Sampling(steps=12)
    assert config.video is not None
    assert not config.video.unconditional
    chosen = Sampling(sampler="commit", steps=3)
    masking = CommitSettings(condition_dropout=0.2)
    stage2(codes, tmp_path / "own", sampling=chosen, masking=masking, inpainting_prompt=False)
    config = Pipeline.from_pretrained(tmp_path / "own", device="cpu").config
    assert config.sampling == chosen
    assert config.video == TrainedTasks(names=tuple(TASKS), inpainting_prompt=False, unconditional=True)


def test_a_single_task_without_prompts(tmp_path: Path) -> None:
    bert = BertTransformer(
        BertConfig(
            vocab_size=LEVELS, num_classes=0, axes=(4, 4, 4), width=16, layers=1, heads=2, mlp_width=16, null_class=True
        )
    )
    stage2(
        toy(tmp_path / "toy"), tmp_path, transformer=bert, tasks={"FP2": 1.0}, data=Boxes(labels=False, tested=False)
    )
    pipe = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert predict_frames(pipe, boxes()[:2])[0].shape == (LENGTH, SIDE, SIDE, 3)
    assert not (tmp_path / "transformer" / "best").exists()
    assert names(tmp_path / "tokens") == {"train.safetensors"}


def test_it_learns_one_clip_by_heart(tmp_path: Path) -> None:
    """Each modality overfits one example: here prediction, interpolation and inpainting restore the clip."""
    data = Boxes(1, labels=False)
    chosen = settings(steps=150, batch_size=8, log_every=150, ema_decay=0.9)
    stage2(toy(tmp_path / "toy"), tmp_path, data=data, transformer=model(width=48), settings=chosen, views=12)
    lines = [json.loads(line) for line in (tmp_path / "transformer/log.jsonl").read_text("utf-8").splitlines()]
    assert lines[-1]["validation/accuracy"] > 0.95
    pipe, clip = Pipeline.from_pretrained(tmp_path, device="cpu"), boxes(0)
    sure = Sampling(sampler="commit", steps=8, temperature=0.0, choice_temperature=0.0)
    for made in (
        predict_frames(pipe, clip[:2], sampling=sure)[0],
        interpolate(pipe, clip[:1], clip[-1:], sampling=sure)[0],
        inpaint_video(pipe, clip, "central", sampling=sure)[0],
    ):
        assert (made == clip).mean() > 0.97
    whole = complete_clips(pipe, data.train().batch([0], [0])["video"], "FP2", seeds=[1], paste=False)
    assert (whole - data.train().batch([0], [0])["video"]).abs().mean() < 0.05


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage1(tmp_path / "whole", settings=settings(steps=5))
    _interrupt(monkeypatch, ReconstructionTraining, 2, lambda: stage1(tmp_path / "parts", settings=settings(steps=5)))
    with pytest.raises(ValueError, match=r"holds another run \(settings\.steps: 5 before, 4 now\)"):
        stage1(tmp_path / "parts", settings=settings(steps=4))
    stage1(tmp_path / "parts", settings=settings(steps=5))
    assert _weights(tmp_path / "whole") == _weights(tmp_path / "parts")


def test_an_interrupted_run_does_not_tokenize_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, data = toy(tmp_path / "toy"), Boxes(count=9)
    chosen = {"data": data, "views": 3, "transformer": model(dropout=0.1), "settings": settings(steps=5)}
    stage2(codes, tmp_path / "whole", **chosen)
    once = data.asked
    _interrupt(monkeypatch, CommitModeling, 2, lambda: stage2(codes, tmp_path / "parts", **chosen))
    assert data.asked == 2 * once
    stage2(codes, tmp_path / "parts", **chosen)
    assert data.asked <= 2 * once + 4  # only what tells whether the tokens are still theirs
    assert _weights(tmp_path / "whole/transformer") == _weights(tmp_path / "parts/transformer")
    with pytest.raises(ValueError, match=r"holds another run \(tasks\.FI: \d\.0 before, 3\.0 now\)"):
        stage2(codes, tmp_path / "parts", **chosen, tasks={**TASKS, "FI": 3.0})


def _interrupt(monkeypatch: pytest.MonkeyPatch, kind: Any, step: int, train: Any) -> None:
    """Send Ctrl-C to this process in the middle of one step."""
    real = kind.loss

    def loss(self: Any, network: str, modules: Any, batch: Any, at: int) -> Any:
        if at == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, network, modules, batch, at)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "loss", loss)
        with pytest.raises(Interrupted):
            train()


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_inflation(tmp_path: Path) -> None:
    sizes = {"channels": 8, "multipliers": (1, 2), "res_blocks": 1, "groups": 4, "shortcut": "input"}
    images = VQGAN(VQGANConfig(quantizer=QUANTIZER, **sizes))  # type: ignore[arg-type]
    save_module(images, tmp_path / "images")
    said: list[str] = []
    slow = settings(steps=1, optimizer=OptimizerSettings(lr=1e-9, warmup_steps=1))
    stage1(tmp_path / "out", inflate=tmp_path / "images", settings=slow, say=said.append)
    assert said == [f"tokenizer: inflated from {tmp_path / 'images'}; 0 weights start anew"]
    video = load_module(tmp_path / "out", VQ3D)
    assert torch.allclose(video.quantizer.codebook, images.quantizer.codebook, atol=1e-6)
    assert "inflate" in json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=r"holds another run \(inflate: \w{16} before, nothing now\)"):
        stage1(tmp_path / "out", settings=slow)
    with pytest.raises(FileNotFoundError, match="inflate: got .* which holds none"):
        stage1(tmp_path / "other", inflate=tmp_path / "nowhere")
    save_module(ToyTokenizer(ToyTokenizerConfig()), tmp_path / "pictures")
    with pytest.raises(ValueError, match="inflate: got a ToyTokenizer, expected an image tokenizer: VQGAN or FrameVQ"):
        stage1(tmp_path / "other", inflate=tmp_path / "pictures")
    assert not (tmp_path / "other").exists()


def test_magvit2_is_trained_too(tmp_path: Path) -> None:
    """By the settings of its own, from an image tokenizer's weights on."""
    sizes: dict[str, Any] = {"channels": 8, "multipliers": (1, 1), "res_blocks": 1, "token_bits": (4,), "groups": 4}
    save_module(Magvit2Image(Magvit2ImageConfig(**sizes)), tmp_path / "images")
    loss = Magvit2Settings(perceptual=None, discriminator=None)
    video = Magvit2Video(Magvit2VideoConfig(**sizes, strides=((2, 2, 2),)))
    data, said = Boxes(frames=9), []
    plain = {"tokenizer": video, "data": data, "loss": loss, "inflate": tmp_path / "images"}
    stage1(tmp_path / "out", say=said.append, **plain)
    assert said == [f"tokenizer: inflated from {tmp_path / 'images'}; 0 weights start anew"]
    trained = load_module(tmp_path / "out", Magvit2Video)
    assert trained.config == video.config
    lines = (tmp_path / "out" / "log.jsonl").read_text("utf-8").splitlines()
    assert {"pixel", "entropy", "commitment"} <= json.loads(lines[0]).keys()
    assert loss_settings(Magvit2Video) is loss_settings(Magvit2Image) is Magvit2Settings
    with pytest.raises(ValueError, match="inflate: got a Magvit2Image, expected an image tokenizer: VQGAN or FrameVQ"):
        stage1(tmp_path / "other", inflate=tmp_path / "images")
    with pytest.raises(ValueError, match="inflate: a Magvit2Image cannot start from an image tokenizer; only VQ3D and"):
        stage1(
            tmp_path / "other", tokenizer=Magvit2Image(Magvit2ImageConfig(**sizes)), data=Squares(), inflate=tmp_path
        )


def test_stage_1_refuses(tmp_path: Path) -> None:
    judge = VideoDiscriminatorConfig(size=(4, 8, 8), channels=4, multipliers=(1,))
    adversarial = VideoReconstructionSettings(perceptual=None, discriminator=judge)
    with pytest.raises(ValueError, match=r"size: got \[4, 8, 8\], but the clips are \[8, 8, 8\] \(frames, height"):
        stage1(tmp_path / "out", loss=adversarial)
    with pytest.raises(ValueError, match=r"tokenizer: ToyVideoTokenizer has no forward to train; add forward"):
        stage1(tmp_path / "out", tokenizer=tokenizer())
    assert not (tmp_path / "out").exists()
    frames = VideoDiscriminatorConfig(kind="frame", size=(99, 8, 8), channels=4, multipliers=(1,))
    stage1(tmp_path / "frames", loss=VideoReconstructionSettings(perceptual=None, discriminator=frames))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {}}, "tasks: task weights: got .*, expected at least one"),
        ({"tasks": {"FP": 0.0}}, "tasks: task weights: got .*, all positive numbers"),
        ({"tasks": {"FX": 1.0}}, "got 'FX', expected one of FP"),
        ({"tasks": {"FP8": 1.0}}, "tasks: got FP8, which gives 8 frames; expected fewer than the 8 of a clip"),
        ({"tasks": {"FI4": 1.0}}, "tasks: got FI4, which gives 8 frames"),
        (
            {"tasks": {"CFP": 1.0}, "data": Boxes(labels=False)},
            "tasks: got CFP, which is given the class, but the data",
        ),
        (
            {"transformer": model(num_classes=2)},
            r"num_classes is 2, expected 0 \(none of the tasks is given the class\)",
        ),
        ({"tasks": {"CG": 1.0}}, "num_classes is 0, expected 2$"),
        ({"transformer": model(num_tasks=0)}, "num_tasks is 0, expected 5, the prompts that tell the tasks apart"),
        ({"transformer": model(num_tasks=3)}, "num_tasks is 3, expected 5"),
        (
            {"transformer": model(vocab_size=5, axes=(2, 4, 4))},
            r"vocab_size is 5, expected 4; axes is \(2, 4, 4\), expec",
        ),
        ({"data": Boxes(frames=6)}, r"axes is \(4, 4, 4\), expected \(3, 4, 4\)"),
        ({"masking": CommitSettings(block=(3, 1, 1))}, "block: got"),
    ],
)
def test_stage_2_refuses(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage2(toy(tmp_path / "toy"), tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "transformer").exists()


def test_stage_2_refuses_other_things(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"name a folder made by `maskgen train tokenizer`"):
        stage2(tmp_path / "nowhere", tmp_path / "out")
    save_module(ToyTokenizer(ToyTokenizerConfig()), tmp_path / "images")
    with pytest.raises(ValueError, match="tokenizer: got one of modality image, expected one of video"):
        stage2(tmp_path / "images", tmp_path / "out")
    sizes = {"vocab_size": LEVELS, "num_classes": 2, "axes": (4, 4, 4), "width": 16, "layers": 1, "heads": 2}
    bert = BertTransformer(BertConfig(**sizes, mlp_width=16, num_tasks=5))  # type: ignore[arg-type]
    codes = toy(tmp_path / "toy")
    with pytest.raises(ValueError, match="got one without a null class, but FP has no class; set null_class"):
        stage2(codes, tmp_path / "out", transformer=bert, tasks={"FP": 1.0, "CG": 1.0})
    with pytest.raises(ValueError, match="use `maskgen train video-transformer`"):
        train_transformer(
            tokenizer=codes,
            transformer=model(),
            data=Squares(),
            masking=None,  # type: ignore[arg-type]
            settings=settings(),
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()
