"""Our own sound codec and its training."""

import dataclasses
from pathlib import Path

import pytest
import torch

from maskgen.data import TensorSource
from maskgen.tokenizers.audio.codec import AudioCodec, AudioCodecConfig
from maskgen.tokenizers.training.audio import CodecLossSettings, CodecTraining
from maskgen.tokenizers.training.losses.audio import SpectralLoss, mel_filters, si_sdr
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings
from maskgen.training.trainer import Trainer

CONFIG = AudioCodecConfig(
    sample_rate=1000,
    hop=16,
    width=32,
    encoder_dilations=(1,),
    decoder_dilations=(1,),
    codebook_size=16,
    codebooks=2,
    dim=8,
)
LOSS = CodecLossSettings(windows=(64, 32), bands=(10, 6), quantize_from=20, revive_every=20, revive_last=100)


def tones(count: int = 4, samples: int = 256) -> torch.Tensor:
    time = torch.arange(samples) / 1000
    return torch.stack([0.5 * torch.sin(2 * torch.pi * (60 + 45 * number) * time) for number in range(count)])[:, None]


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 100])
def test_any_length(samples: int) -> None:
    codec = AudioCodec(CONFIG).eval()
    sound = torch.randn(2, 1, samples)
    axes = codec.axes(sound.shape)
    tokens = codec.encode(sound)
    assert tokens.shape == (2, -(-samples // 16), 2)
    assert codec.decode(tokens, axes).shape == (2, 1, axes[0] * 16)


def test_untrained_decoder_is_quiet_and_stereo_channels_differ() -> None:
    codec = AudioCodec(dataclasses.replace(CONFIG, channels=2)).eval()
    sound = torch.randn(1, 2, 160) * 0.1
    with torch.no_grad():
        decoded = codec.decode(codec.encode(sound), codec.axes(sound.shape))
    assert decoded.shape == (1, 2, 160)
    assert 1e-4 < float(decoded.square().mean().sqrt()) < 1e-2
    assert not torch.equal(decoded[0, 0], decoded[0, 1])


def test_refuses_sizes() -> None:
    with pytest.raises(ValueError, match="width 1 and hop 16, expected a positive rate and 2 or more"):
        dataclasses.replace(CONFIG, width=1)
    with pytest.raises(ValueError, match=r"dilations: got \(0,\) and \(1,\), expected positive"):
        dataclasses.replace(CONFIG, encoder_dilations=(0,))


def test_excerpts_begin_on_frames() -> None:
    settings = dataclasses.replace(LOSS, excerpt=64)
    objective = CodecTraining(AudioCodec(CONFIG), settings)
    ramp = torch.arange(256.0).view(1, 1, -1).repeat(8, 1, 1)
    starts = objective._excerpt(ramp)[:, 0, 0]
    assert set((starts % 16).tolist()) == {0.0}
    assert len(set(starts.tolist())) > 1


def test_overfits_one_batch(tmp_path: Path) -> None:
    sounds = tones()
    objective = CodecTraining(AudioCodec(CONFIG), LOSS, held_out=TensorSource(audio=sounds))
    before = objective.validate(objective.model, torch.device("cpu"))
    settings = TrainSettings(
        steps=400,
        batch_size=4,
        optimizer=OptimizerSettings(lr=3e-3, weight_decay=0.0, warmup_steps=10),
        ema_decay=0.9,
        validate_every=0,
        show_every=0,
        checkpoint_every=0,
        tracker=None,
    )
    model = Trainer(objective, TensorSource(audio=sounds), settings, tmp_path).fit()
    after = objective.validate(model, torch.device("cpu"))
    assert after["score"] < 0.5 * before["score"]
    assert after["si_sdr"] > 5, after


def test_dead_codes_come_back() -> None:
    codec = AudioCodec(CONFIG)
    far = torch.full((16, 8), 100.0)
    with torch.no_grad():
        for layer in codec.quantizer.inner.layers:
            layer.codebook[:] = far
    objective = CodecTraining(codec, LOSS)
    objective.loss("model", {"model": codec}, {"audio": tones()}, LOSS.quantize_from)
    assert codec.code_tables().abs().max() < 50


def test_si_sdr() -> None:
    target = torch.randn(2, 1, 500)
    noise = torch.randn(2, 1, 500)
    noise = noise - (noise * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True) * target
    noise = noise * (target.square().sum(-1, keepdim=True) / noise.square().sum(-1, keepdim=True) / 100).sqrt()
    torch.testing.assert_close(si_sdr(3 * (target + noise), target), torch.full((2,), 20.0), atol=1e-3, rtol=0)


def test_mel_filters_and_the_loss() -> None:
    filters = mel_filters(16000, 512, 40)
    torch.testing.assert_close(filters.sum(0), torch.ones(40))
    assert (filters >= 0).all()
    loss = SpectralLoss(1000, (64, 32), (10, 6))
    sounds = tones()
    assert float(loss(sounds, sounds)) == 0
    assert float(loss(torch.zeros_like(sounds), sounds)) > float(loss(0.9 * sounds, sounds)) > 0
    with pytest.raises(ValueError, match="expected 1 to 33"):
        mel_filters(1000, 64, 40)
    with pytest.raises(ValueError, match="one each for each scale"):
        SpectralLoss(1000, (64,), (10, 6))


def test_validation_hears_every_class() -> None:
    codec, quiet = AudioCodec(CONFIG).eval(), torch.full((12, CONFIG.channels, 256), 0.1)
    settings = dataclasses.replace(LOSS, validation=6)
    late = [quiet, torch.rand(quiet.shape, generator=torch.Generator().manual_seed(0)) - 0.5]
    found = [
        CodecTraining(codec, settings, held_out=TensorSource(audio=torch.cat((quiet, one)))).validate(
            codec, torch.device("cpu")
        )
        for one in late
    ]
    assert found[0]["score"] != found[1]["score"]
