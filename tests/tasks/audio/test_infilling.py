"""Gaps, continuations and loops: what is kept is the input's, bit for bit; what is new depends on seed and surroundings."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.sampling.settings import Sampling
from maskgen.tasks.audio.infilling import continue_audio, infill, loop, vary
from maskgen.tasks.media.audio.features import loudness
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.audio.toy import ToyAudioTokenizer, ToyAudioTokenizerConfig

RATE, HOP, WINDOW = 8000, 40, 32  # 200 frames a second, a context of 0.16 s


def toy_pipeline(
    *, channels: int = 1, codebooks: int = 2, model_codebooks: int | None = None, classes: int = 0
) -> Pipeline:
    """A lossless codec (to its step) and an untrained model."""
    torch.manual_seed(3)
    codec = ToyAudioTokenizer(
        ToyAudioTokenizerConfig(sample_rate=RATE, channels=channels, hop=HOP, codebooks=codebooks, levels=8)
    )
    model = ModernTransformer(
        ModernConfig(
            vocab_size=8,
            num_codebooks=model_codebooks or codebooks,
            num_classes=classes,
            axes=(WINDOW,),
            width=8,
            layers=1,
            heads=2,
        )
    )
    return Pipeline(codec, model, PipelineConfig(signal_size=(WINDOW * HOP,), sampling=Sampling(steps=2)), device="cpu")


def sound(seconds: float, rate: int = RATE, channels: int = 1) -> Tensor:
    """Two slow sines with a little noise."""
    time = torch.arange(round(seconds * rate)) / rate
    tones = [0.3 * torch.sin(2 * math.pi * (5 + 3 * channel) * time) for channel in range(channels)]
    noise = torch.rand(channels, len(time), generator=torch.Generator().manual_seed(1)) - 0.5
    return torch.stack(tones) + 0.02 * noise


PIPE = toy_pipeline()


def untouched(new: Tensor, old: Tensor, start: float, stop: float, rate: int, crossfade: float) -> bool:
    """Whether all samples farther than the cross-fade from the span are the input's."""
    first = round(start * rate) - round(crossfade * rate)
    last = round(stop * rate) + round(crossfade * rate)
    return bool((new[:, : max(first, 0)] == old[:, : max(first, 0)]).all() and (new[:, last:] == old[:, last:]).all())


@given(
    rate=st.sampled_from([8000, 11025, 16000, 44100]),
    channels=st.sampled_from([1, 2]),
    codec_channels=st.sampled_from([1, 2]),
    start=st.floats(0, 0.27),
    length=st.floats(0.0001, 0.3),
    crossfade=st.sampled_from([0.0, 0.01]),
    level=st.sampled_from([None, -24.0]),
)
def test_what_is_kept_is_the_input(
    rate: int, channels: int, codec_channels: int, start: float, length: float, crossfade: float, level: float | None
) -> None:
    pipe = PIPE if codec_channels == 1 else STEREO
    waveform = sound(0.3, rate, channels)
    stop = min(start + length, waveform.shape[1] / rate)
    (new,) = infill(pipe, waveform, rate, start=start, stop=stop, crossfade=crossfade, loudness=level)
    assert new.shape == waveform.shape
    assert torch.isfinite(new).all()
    assert untouched(new, waveform, start, max(stop, start + 1.5 / rate), rate, crossfade)
    inside = slice(round(start * rate), max(round(stop * rate), round(start * rate) + 1))
    assert (new[:, inside] != waveform[:, inside]).any()


STEREO = toy_pipeline(channels=2)


def test_the_gap_is_decided_by_seed_and_surroundings_alone() -> None:
    waveform = sound(0.3)
    gap: dict[str, Any] = {"start": 0.1, "stop": 0.15}
    both = infill(PIPE, waveform, RATE, seeds=[4, 5], **gap)
    (alone,) = infill(PIPE, waveform, RATE, seeds=[5], **gap)
    assert torch.equal(both[1], alone)
    assert not torch.equal(both[0], both[1])
    damaged = waveform.clone()
    damaged[:, 800:1200] = torch.linspace(-0.9, 0.9, 400)
    (other,) = infill(PIPE, damaged, RATE, seeds=[5], **gap)
    assert torch.equal(other, alone), "what stood in the gap has no part in the result"


def test_the_crossfade_mixes_the_codecs_version_outside_the_gap() -> None:
    waveform = sound(0.3)
    (soft,) = infill(PIPE, waveform, RATE, start=0.1, stop=0.15, crossfade=0.01, loudness=None)
    (hard,) = infill(PIPE, waveform, RATE, start=0.1, stop=0.15, crossfade=0.0, loudness=None)
    assert torch.equal(soft[:, 800:1200], hard[:, 800:1200])
    decoded = PIPE.decode(PIPE.encode(waveform[None]), (60,))[0]
    changed = (soft != waveform)[0, 720:800]
    assert changed.float().mean() > 0.5
    low = torch.minimum(waveform, decoded)[:, 720:800] - 1e-6
    high = torch.maximum(waveform, decoded)[:, 720:800] + 1e-6
    assert ((soft[:, 720:800] >= low) & (soft[:, 720:800] <= high)).all()


def test_a_gap_longer_than_the_context_is_filled_in_windows() -> None:
    waveform = sound(1.0)
    calls: list[int] = []
    (new,) = infill(PIPE, waveform, RATE, start=0.2, stop=0.8, callback=lambda step: calls.append(step.step))
    assert untouched(new, waveform, 0.2, 0.8, RATE, 0.01)
    frames = new[0, 1600:6400].reshape(-1, HOP)
    # The windows' cross-fades mix equal samples: one loudness for all of them.
    assert torch.allclose(frames, frames[:, :1].expand_as(frames), atol=1e-6), "each frame comes from one token"
    assert len(calls) > 4
    assert len(calls) % 2 == 0


def test_equal_channels_stay_equal_on_a_mono_codec_and_others_do_not_mix() -> None:
    mono = sound(0.3)
    (new,) = infill(PIPE, mono.expand(2, -1), RATE, start=0.1, stop=0.15)
    assert torch.equal(new[0], new[1])
    silent = torch.cat((mono, torch.zeros_like(mono)))
    (new,) = infill(PIPE, silent, RATE, start=0.1, stop=0.15, loudness=None)
    (first,) = infill(PIPE, mono, RATE, start=0.1, stop=0.15, loudness=None)
    assert torch.equal(new[:1], first)


@pytest.mark.parametrize("level", [None, -24.0])
def test_silence_is_no_division_by_zero(level: float | None) -> None:
    for waveform in (torch.zeros(1, 2400), torch.full((1, 2400), 1e-9)):
        (new,) = infill(PIPE, waveform, RATE, start=0.1, stop=0.2, loudness=level)
        assert torch.isfinite(new).all()


def test_loudness_is_undone() -> None:
    quiet = sound(0.3) / 50
    (new,) = infill(PIPE, quiet, RATE, start=0.1, stop=0.15)
    (plain,) = infill(PIPE, quiet, RATE, start=0.1, stop=0.15, loudness=None)
    assert new[:, 800:1200].abs().max() < plain[:, 800:1200].abs().max()


def test_a_coarse_model_alone_decodes_its_codebooks() -> None:
    coarse = toy_pipeline(codebooks=3, model_codebooks=2)
    waveform = sound(0.3)
    (new,) = infill(coarse, waveform, RATE, start=0.1, stop=0.15, loudness=None)
    values = ((new[0, 800:1200:HOP] + 1) / 2 * 64 - 0.5).round()
    assert torch.allclose((values + 0.5) / 64 * 2 - 1, new[0, 800:1200:HOP], atol=1e-6)
    assert untouched(new, waveform, 0.1, 0.15, RATE, 0.01)


def test_float64_and_whole_gaps() -> None:
    waveform = sound(0.05).double()
    (new,) = infill(PIPE, waveform, RATE, start=0, stop=0.05)
    assert new.dtype == torch.float64
    assert new.shape == waveform.shape
    (one,) = infill(PIPE, torch.zeros(1, 1), RATE, start=0, stop=1 / RATE)
    assert one.shape == (1, 1)


@given(seconds=st.floats(0.001, 0.6), rate=st.sampled_from([8000, 22050]), channels=st.sampled_from([1, 2]))
def test_continuing_adds_what_is_asked(seconds: float, rate: int, channels: int) -> None:
    waveform = sound(0.25, rate, channels)
    (new,) = continue_audio(PIPE, waveform, rate, seconds=seconds)
    assert new.shape == (channels, waveform.shape[1] + max(round(seconds * rate), 1))
    kept = waveform.shape[1] - round(0.01 * rate)
    assert torch.equal(new[:, :kept], waveform[:, :kept])
    assert torch.isfinite(new).all()
    assert (new[:, waveform.shape[1] :] != 0).any()


def test_a_longer_continuation_begins_like_a_shorter_one_window_by_window() -> None:
    waveform = sound(0.3)
    (once,) = continue_audio(PIPE, waveform, RATE, seconds=0.4)
    (longer,) = continue_audio(PIPE, waveform, RATE, seconds=0.8)
    # Windows of 32 frames hear 16 known ones; the first adds 16 frames in both, and the cross-fade lies in the middle.
    first = waveform.shape[1] + 8 * HOP - 40
    assert torch.equal(once[:, :first], longer[:, :first])


def test_a_loop_changes_only_its_seam() -> None:
    waveform = sound(0.4)
    (new,) = loop(PIPE, waveform, RATE, seam=0.1)
    kept = slice(round(0.06 * RATE), round(0.34 * RATE))
    assert torch.equal(new[:, kept], waveform[:, kept])
    ends = torch.cat((new[:, -400:], new[:, :400]), dim=1)
    frames = ends.reshape(-1, HOP)
    assert torch.equal(frames, frames[:, :1].expand_as(frames)), "one run of frames over the change from end to start"


def test_the_seam_is_filled_like_a_gap() -> None:
    waveform = sound(0.4)
    (new,) = loop(PIPE, waveform, RATE, seam=0.1, seeds=[9])
    turned = waveform.roll(1600, -1)
    (filled,) = infill(PIPE, turned, RATE, start=0.15, stop=0.25, seeds=[9])
    assert torch.equal(new, filled.roll(-1600, -1))


class ConstantModel(MaskedTransformer):
    """Always says the same code."""

    def __init__(self, config: ModernConfig, code: int) -> None:
        super().__init__()
        self.config, self.code = config, code
        self.vocab_size, self.num_codebooks = config.vocab_size, config.num_codebooks
        self.num_classes, self.null_class = 0, False

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        logits = torch.zeros(*tokens.shape, self.vocab_size)
        logits[..., self.code] = 100.0
        return logits


class ScaledCodec(ToyAudioTokenizer):
    """Keeps the peak aside, as EnCodec at 48 kHz its loudness."""

    def encode_scaled(self, signal: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        scale = signal.abs().amax(dim=(1, 2)).clamp(min=1e-8)
        return super().encode_scaled(signal / scale[:, None, None])[0], scale


def constant_pipeline(codec: type[ToyAudioTokenizer], code: int) -> tuple[Pipeline, float]:
    """A model that fills gaps with one amplitude, and that amplitude."""
    built = codec(ToyAudioTokenizerConfig(sample_rate=RATE, hop=HOP, codebooks=2, levels=8))
    model = ConstantModel(
        ModernConfig(vocab_size=8, num_codebooks=2, num_classes=0, axes=(WINDOW,), width=8, heads=2), code
    )
    amplitude = built.decode(torch.full((1, 1, 2), code), (1,))[0, 0, 0].item()
    config = PipelineConfig(signal_size=(WINDOW * HOP,), sampling=Sampling(steps=2))
    return Pipeline(built, model, config, device="cpu"), amplitude


@pytest.mark.parametrize("target", [-24.0, -40.0])
def test_the_gain_is_undone_exactly(target: float) -> None:
    pipe, amplitude = constant_pipeline(ToyAudioTokenizer, 5)
    waveform = sound(0.15) / 10
    around = torch.cat((waveform[:, :400], waveform[:, 800:]), dim=1)
    wanted, highest = 10 ** ((target - loudness(around, RATE)) / 20), 1 / float(around.abs().max())
    assert (wanted > highest) == (target == -24), "one target is limited by the peak, the other is not"
    (new,) = infill(pipe, waveform, RATE, start=0.05, stop=0.1, loudness=target)
    assert torch.allclose(new[:, 400:800], torch.tensor(amplitude / min(wanted, highest)), rtol=1e-4)
    (plain,) = infill(pipe, waveform, RATE, start=0.05, stop=0.1, loudness=None)
    assert torch.allclose(plain[:, 400:800], torch.tensor(amplitude))


def test_the_codecs_scale_comes_back_for_every_item() -> None:
    pipe, amplitude = constant_pipeline(ScaledCodec, 5)
    waveform = torch.cat((sound(0.15), sound(0.15) / 8))
    results = infill(pipe, waveform, RATE, start=0.05, stop=0.1, loudness=None, seeds=[1, 2])
    for new in results:
        loud, quiet = new[0, 400:800], new[1, 400:800]
        assert torch.allclose(loud, loud[:1])
        assert torch.allclose(quiet, loud / 8, rtol=1e-4)
        assert abs(loud[0]) < abs(amplitude)
    long = infill(pipe, sound(1.0), RATE, start=0.2, stop=0.8, loudness=None)[0][0, 1600:6400]
    assert torch.isfinite(long).all()
    assert long.min() > 0.5 * long.max(), "windows inside the gap go on as loud as those before"


def test_a_fine_model_fills_in_the_detail() -> None:
    coarse = toy_pipeline(codebooks=2, model_codebooks=1)
    fine = ConstantModel(
        ModernConfig(vocab_size=8, num_codebooks=2, num_classes=0, axes=(WINDOW,), width=8, heads=2), 3
    )
    pipe = Pipeline(coarse.tokenizer, coarse.transformer, coarse.config, device="cpu", fine=fine)
    waveform = sound(0.3)
    (new,) = infill(pipe, waveform, RATE, start=0.1, stop=0.15, loudness=None)
    (rough,) = infill(coarse, waveform, RATE, start=0.1, stop=0.15, loudness=None)
    tokens = pipe.encode(new[None, :, 800:1200])[0]
    assert (tokens[:, 1] == 3).all()
    assert torch.equal(tokens[:, 0], pipe.encode(rough[None, :, 800:1200])[0][:, 0])


@pytest.mark.parametrize("rate", [16000, 11025, 44100])
def test_windows_stay_in_time_at_other_rates(rate: int) -> None:
    time = torch.arange(rate) / rate
    waveform = 0.5 * torch.sin(2 * math.pi * 5 * time)[None]
    (new,) = vary(PIPE, waveform, rate, period=1, loudness=None)
    inside = slice(rate // 20, -rate // 20)
    late = HOP / RATE / 2  # the codec holds each frame's mean, which lies half a frame earlier at its end
    assert (new - waveform)[:, inside].abs().max() < 0.5 * 2 * math.pi * 5 * late + 0.05


def test_classes_are_passed_on() -> None:
    pipe = toy_pipeline(classes=3)
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.normal_()
    one, two = (infill(pipe, sound(0.3), RATE, start=0.1, stop=0.15, label=label)[0] for label in (0, 1))
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": 0.2, "stop": 0.1}, "start before stop"),
        ({"start": 0.1, "stop": 0.1}, "start before stop"),
        ({"start": -0.1, "stop": 0.1}, "start: got -0.1"),
        ({"start": 0.1, "stop": 0.4}, "0.3 s long"),
        ({"start": 0.3, "stop": 0.31}, "continue_audio"),
        ({"start": math.nan, "stop": 0.2}, "start: got nan"),
        ({"crossfade": -1.0}, "crossfade: got -1.0"),
        ({"context": math.inf}, "context: got inf"),
        ({"seeds": []}, "got 1 labels, 0 seeds"),
        ({"loudness": math.nan}, "loudness: got nan"),
        ({"label": 0}, "no classes"),
        ({"waveform": torch.full((1, 2400), math.nan)}, "NaN"),
        ({"waveform": torch.zeros(8, 2400)}, "8 channels"),
        ({"waveform": torch.zeros(1, 0)}, "at least one sample"),
        ({"rate": 0}, "0"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"start": 0.1, "stop": 0.2, **change}
    waveform, rate = settings.pop("waveform", sound(0.3)), settings.pop("rate", RATE)
    with pytest.raises(ValueError, match=message):
        infill(PIPE, waveform, rate, **settings)  # type: ignore[arg-type]


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="seconds: got 0"):
        continue_audio(PIPE, sound(0.1), RATE, seconds=0)
    with pytest.raises(ValueError, match="seam: got 0.1 s, expected less than the 0.1 s"):
        loop(PIPE, sound(0.1), RATE, seam=0.1)
    with pytest.raises(TypeError, match="floating point"):
        infill(PIPE, torch.zeros(1, 100, dtype=torch.int16), RATE, start=0, stop=0.001)


def test_a_variation_of_everything_kept_is_the_codecs_version() -> None:
    waveform = sound(0.5)
    (new,) = vary(PIPE, waveform, RATE, period=1, loudness=None)
    decoded = PIPE.decode(PIPE.encode(waveform[None]), (100,))[0]
    assert torch.allclose(new, decoded, atol=1e-6)


def test_a_variation_keeps_its_prompt() -> None:
    waveform = sound(0.5)
    decoded = PIPE.decode(PIPE.encode(waveform[None]), (100,))[0]
    one, two = vary(PIPE, waveform, RATE, period=5, loudness=None, seeds=[1, 2])
    assert not torch.equal(one, two)
    for seed, new in ((1, one), (2, two)):
        same = torch.isclose(new, decoded, atol=1e-6)[0].reshape(100, HOP).all(1)
        shift = next(place for place in range(5) if bool(same[place::5].all()))
        assert same[shift::5].all(), seed
        assert same.float().mean() < 0.6
    assert torch.equal(vary(PIPE, waveform, RATE, period=5, loudness=None, seeds=[2])[0], two)


def test_a_variation_keeps_the_coarse_codebooks_it_is_told_to() -> None:
    waveform = sound(0.15)
    known = PIPE.encode(waveform[None])[0]
    (new,) = vary(PIPE, waveform, RATE, period=1, keep_codebooks=1, loudness=None)
    tokens = PIPE.encode(new[None])[0]
    assert torch.equal(tokens[:, 0], known[:, 0])
    assert not torch.equal(tokens[:, 1], known[:, 1])
    (free,) = vary(PIPE, waveform, RATE, period=1, keep_codebooks=0, loudness=None)
    assert not torch.equal(PIPE.encode(free[None])[0][:, 0], known[:, 0])


def test_a_variation_keeps_its_onsets() -> None:
    waveform = torch.zeros(1, 4000)
    waveform[:, 2000:2400] = 0.5 * torch.sin(torch.arange(400) * 0.8)
    decoded = PIPE.decode(PIPE.encode(waveform[None]), (100,))[0]
    (new,) = vary(PIPE, waveform, RATE, period=0, onset_width=3, loudness=None)
    same = torch.isclose(new, decoded, atol=1e-6)[0].reshape(100, HOP).all(1)
    assert same[48:52].all(), "the sound begins with frame 50"
    assert not same.all()


@given(rate=st.sampled_from([8000, 11025, 44100]), channels=st.sampled_from([1, 2]), samples=st.integers(1, 6000))
def test_a_variation_is_as_long_as_the_sound(rate: int, channels: int, samples: int) -> None:
    waveform = sound(1.0, 8000, channels)[:, :samples]
    (new,) = vary(PIPE, waveform, rate)
    assert new.shape == waveform.shape
    assert torch.isfinite(new).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"period": -1}, "period: got -1"),
        ({"keep_codebooks": 3}, "keep_codebooks: got 3, expected 0 to 2"),
        ({"onset_width": -1}, "onset_width: got -1"),
        ({"seeds": [-1]}, "seeds: got -1"),
    ],
)
def test_variations_refuse(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vary(PIPE, sound(0.1), RATE, **change)
