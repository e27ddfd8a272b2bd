"""Both stages of video on a real clip (a pancake being flipped, 310 frames), where it lies beside the checkout."""

import os
from pathlib import Path

import numpy as np
import pytest

from maskgen.checkpoint import load_module
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.commit import CommitSettings
from maskgen.tasks.data.video.folders import VideoFolder
from maskgen.tasks.media.video.files import load_video, to_video_tensor
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.tokenizer import train_tokenizer
from maskgen.tasks.training.video import train_video_transformer
from maskgen.tasks.video.prediction import predict_frames
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.training.base import psnr
from maskgen.tokenizers.training.reconstruction import VideoReconstructionSettings
from maskgen.tokenizers.video.vq3d import VQ3D, VQ3DConfig
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings

CLIP = Path(__file__).resolve().parents[4] / "shared" / "data" / "flipping_a_pancake.mkv"


@pytest.mark.skipif(not CLIP.is_file(), reason="the clip is not beside the checkout; it is never committed")
def test_tokenizer_and_model_take_a_real_clip(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    os.symlink(CLIP, tmp_path / "clips" / CLIP.name)
    data = VideoFolder(tmp_path / "clips", frames=8, height=16, stride=2, held_out=0.0)
    config = VQ3DConfig(
        channels=8,
        multipliers=(1, 2, 2),
        temporal_downsample=(True, False),
        encoder_blocks=1,
        decoder_blocks=1,
        groups=4,
        quantizer=QuantizerConfig(kind="rvq", codebook_size=32, num_quantizers=2, dim=8),
    )
    settings = TrainSettings(
        steps=120,
        batch_size=4,
        optimizer=OptimizerSettings(lr=5e-3, warmup_steps=5, weight_decay=0.0),
        ema_decay=0.5,
        log_every=120,
        validate_every=0,
        show_every=0,
        checkpoint_every=0,
        tracker=None,
    )
    loss = VideoReconstructionSettings(perceptual=None, gan_weight=0.0)
    train_tokenizer(tokenizer=VQ3D(config), data=data, loss=loss, settings=settings, out=tmp_path / "codes", say=print)
    frames, rate = load_video(CLIP, start=2.0, frames=8, size=(16, 16))
    assert float(rate) > 0
    real = to_video_tensor(frames)
    codes = load_module(tmp_path / "codes", VQ3D)
    rebuilt = codes.decode(codes.encode(real), codes.axes(real.shape)).detach()
    flat = real.mean((2, 3, 4), keepdim=True).expand_as(real)
    # Better than one colour for the whole clip: something of the picture is in the tokens.
    assert psnr((rebuilt - real).square().mean()) > psnr((flat - real).square().mean()) + 2

    sizes = ModernConfig(
        vocab_size=32, num_codebooks=2, num_classes=0, num_tasks=5, axes=(4, 4, 4), width=16, layers=1, heads=2
    )
    train_video_transformer(
        tokenizer=tmp_path / "codes",
        transformer=ModernTransformer(sizes),
        data=data,
        tasks={"FP2": 1.0},
        masking=CommitSettings(),
        settings=settings,
        out=tmp_path / "model",
        say=print,
    )
    pipe = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    (longer,) = predict_frames(pipe, frames[:2], total=12, seeds=[0])
    assert longer.shape == (12, 16, 16, 3)
    np.testing.assert_array_equal(longer[:2], frames[:2])
