"""Both stages on 3,000 real spoken digits (Free Spoken Digit Dataset), where they lie beside the checkout."""

from pathlib import Path

import pytest
import torch

from maskgen.checkpoint import load_module
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.masked import MaskingSettings
from maskgen.sampling.settings import Sampling
from maskgen.tasks.audio.infilling import infill
from maskgen.tasks.data.audio.folders import SoundFolder
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.tokenizer import train_tokenizer
from maskgen.tasks.training.transformer import train_transformer
from maskgen.tokenizers.audio.codec import AudioCodec, AudioCodecConfig
from maskgen.tokenizers.training.audio import CodecLossSettings
from maskgen.tokenizers.training.losses.audio import SpectralLoss
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings

DIGITS = Path(__file__).resolve().parents[4] / "shared" / "data" / "free-spoken-digits.zip"
RATE, SECONDS = 8000, 0.512


@pytest.mark.skipif(not DIGITS.is_file(), reason="the recordings are not beside the checkout; they are never committed")
def test_codec_and_model_learn_from_spoken_digits(tmp_path: Path) -> None:
    data = SoundFolder(DIGITS, RATE, SECONDS, loudness=None, cutoff=-60.0, held_out=0.9, labels=True)
    assert len(data.class_names) == 10
    config = AudioCodecConfig(
        sample_rate=RATE,
        hop=128,
        width=32,
        encoder_dilations=(1,),
        decoder_dilations=(1,),
        codebook_size=32,
        codebooks=2,
    )
    settings = TrainSettings(
        steps=30,
        batch_size=8,
        optimizer=OptimizerSettings(lr=3e-3, warmup_steps=2, weight_decay=0.0),
        ema_decay=0.5,
        log_every=30,
        validate_every=0,
        show_every=0,
        checkpoint_every=0,
        tracker=None,
    )
    loss = CodecLossSettings(windows=(256, 64), bands=(20, 8), quantize_from=5, revive_every=5, validation=8)
    out = tmp_path / "codec"
    train_tokenizer(tokenizer=AudioCodec(config), data=data, loss=loss, settings=settings, out=out, say=print)
    codec = load_module(tmp_path / "codec", AudioCodec)
    sounds = data.test().batch(range(8), range(8))["audio"]  # type: ignore[union-attr]
    with torch.no_grad():
        rebuilt = codec.decode(codec.encode(sounds), codec.axes(sounds.shape))[..., : sounds.shape[-1]]
    measure = SpectralLoss(RATE, (256, 64), (20, 8))
    assert float(measure(rebuilt, sounds)) < 0.5 * float(measure(torch.zeros_like(sounds), sounds))

    frames = codec.axes((1, 1, *data.size))
    sizes = ModernConfig(vocab_size=32, num_codebooks=2, num_classes=10, axes=frames, width=32, layers=1, heads=2)
    train_transformer(
        tokenizer=tmp_path / "codec",
        transformer=ModernTransformer(sizes),
        data=data,
        masking=MaskingSettings(),
        settings=settings,
        out=tmp_path / "model",
        sampling=Sampling(steps=2),
    )
    log = (tmp_path / "model" / "transformer" / "log.jsonl").read_text(encoding="utf-8")
    assert '"accuracy"' in log
    pipe = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    (filled,) = infill(pipe, sounds[0], RATE, start=0.1, stop=0.2, label=3, loudness=None)
    assert filled.isfinite().all()
    assert torch.equal(filled[:, :700], sounds[0][:, :700])
