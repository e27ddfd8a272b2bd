"""Gaps in sounds: where they are, the answers beside the model's, and what is measured inside of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.tasks.audio.infilling import infill
from maskgen.tasks.evaluation.made.gaps import GapScores, GapSettings, is_kept, middle_gap, repeated, silenced
from maskgen.tasks.evaluation.metrics.audio import stft_distance
from maskgen.tasks.evaluation.models import evaluate_model
from maskgen.tasks.evaluation.samples import Target
from maskgen.tasks.evaluation.sets.base import open_samples
from maskgen.tasks.evaluation.settings import Evaluation, EvaluationSettings
from maskgen.tasks.media.audio.features import log_mel_distance
from maskgen.tasks.media.audio.files import load_sound, save_sound
from maskgen.tokenizers.training.losses.audio import si_sdr
from tests.support import tiny_audio_pipeline
from tests.tasks.evaluation.support import ONE_AT_A_TIME, evaluation_run, together

RATE, HOP = 800, 8
GAP = GapSettings(share=0.25, crossfade=0.01, loudness=None)


def sound(seed: int, samples: int = 320) -> torch.Tensor:
    return 0.3 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


def test_the_gap_is_in_the_middle_on_whole_frames() -> None:
    assert middle_gap(320, 0.25, 8) == (120, 200)
    assert middle_gap(2048, 0.125, 32) == (896, 1152)
    assert middle_gap(100, 0.01, 8) == (40, 48)  # one frame at least
    with pytest.raises(ValueError, match=r"got a sound of 20 samples, in whose middle a gap of 8 \(frames of 8\)"):
        middle_gap(20, 0.5, 8)
    for changes in ({"share": 0.0}, {"share": 0.6}, {"crossfade": -1.0}):
        with pytest.raises(ValueError, match="expected a share above 0 and at most 0.5"):
            GapSettings(**changes)


def test_answers_without_a_model() -> None:
    before = torch.arange(10.0)[None]
    assert silenced(before, (4, 6)).tolist() == [[0, 1, 2, 3, 0, 0, 6, 7, 8, 9]]
    assert repeated(before, (4, 6)).tolist() == [[0, 1, 2, 3, 2, 3, 6, 7, 8, 9]]
    assert before.tolist() == [list(range(10))]
    other = before.clone()
    other[:, 3:7] = -1
    assert is_kept(before, other, (4, 6), 1)
    assert not is_kept(before, other, (4, 6), 0)
    assert not is_kept(before, other[:, :9], (4, 6), 1)


def test_distances_are_those_inside_the_gap() -> None:
    gap, scores = (120, 200), GapScores(RATE, crossfade=0.01)
    pairs = [(sound(seed), sound(seed + 10), sound(seed + 20)) for seed in range(3)]
    for truth, filled, rebuilt in pairs:
        mixed = truth.clone()
        mixed[:, 120:200] = filled[:, 120:200]
        scores.update(truth, mixed, rebuilt, gap)
    found = scores.metrics(draws=20)
    inside = slice(120, 200)
    expected = {
        "filled": [filled for _, filled, _ in pairs],
        "silence": [torch.zeros_like(truth) for truth, _, _ in pairs],
        "repeated": [truth.roll(80, 1) for truth, _, _ in pairs],
        "codec": [rebuilt for _, _, rebuilt in pairs],
    }
    for name, answers in expected.items():
        each = [(answer[:, inside], truth[:, inside]) for answer, (truth, _, _) in zip(answers, pairs, strict=True)]
        mel = sum(log_mel_distance(a, b, RATE) for a, b in each) / 3
        assert found[f"gap_log_mel_{name}"].value == pytest.approx(mel), name
        stft = sum(float(stft_distance(a[None], b[None])) for a, b in each) / 3
        assert found[f"gap_stft_{name}"].value == pytest.approx(stft), name
        if name != "silence":
            ratio = sum(float(si_sdr(a[None], b[None])) for a, b in each) / 3
            assert found[f"gap_si_sdr_{name}"].value == pytest.approx(ratio), name
    assert "gap_si_sdr_silence" not in found
    assert found["gap_kept_identical"].value == 1
    assert found["gap_log_mel_filled"].note.startswith("the gap as the model filled it; dB")
    pairs[0][1][:, 0] = 9
    scores.update(pairs[0][0], pairs[0][1], pairs[0][2], gap)
    assert scores.metrics(draws=1)["gap_kept_identical"].value == 0.75
    other = GapScores(RATE)
    other.load(scores.values())
    assert other.metrics(draws=20) == scores.metrics(draws=20)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Seven sounds of different lengths, one of them damaged."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(6):
        save_sound(sound(number, 300 + 40 * number), folder / f"{number}.wav", 800, bits=32)
    (folder / "3x.wav").write_bytes(b"RIFF")
    return folder


def evaluated(sounds: Path, out: Path, count: int = 1, **changes: Any) -> Evaluation:
    settings = EvaluationSettings(
        **{"metrics": ("log_mel", "stft", "si_sdr"), "gap": GAP, "draws": 20, "batch_size": 2, "broken": 0.2} | changes
    )

    def work(state: Any) -> Evaluation | None:
        with ONE_AT_A_TIME:
            pipe = tiny_audio_pipeline()
        target = Target(held_out=open_samples(sounds, "audio"))
        run = evaluation_run(out, settings=settings, state=state)
        return evaluate_model(pipe, "tiny", target, run, task="infill")

    first, *others = together(count, work)
    assert others == [None] * (count - 1)
    return first


def test_an_audio_model_fills_gaps(sounds: Path, tmp_path: Path) -> None:
    """The same numbers on one process and on three; a damaged file is counted and left out."""
    found = evaluated(sounds, tmp_path / "one")
    assert found.metrics["gap_log_mel_filled"].count == 6
    assert found.metrics["gap_kept_identical"].value == 1
    assert found.metrics["gap_log_mel_filled"].value > 0
    assert "1 of the held-out samples could not be read and were left out" in found.warnings
    three = evaluated(sounds, tmp_path / "three", 3)
    assert three.metrics == found.metrics
    manifest = json.loads((tmp_path / "one" / "samples" / "manifest.json").read_text("utf-8"))
    assert (manifest["completed"], manifest["gap"]["share"], manifest["complete"]) == ("infill", 0.25, True)
    pipe = tiny_audio_pipeline()
    rate = pipe.tokenizer.sample_rate  # type: ignore[attr-defined]
    assert rate == 800
    truth, _ = load_sound(sounds / "4.wav")  # the sixth file, the fifth that can be read
    filled, _ = load_sound(tmp_path / "one" / "samples" / manifest["items"][4]["file"])
    first, last = middle_gap(truth.shape[1], 0.25, pipe.tokenizer.stride[0])
    where = {"start": first / rate, "stop": last / rate, "crossfade": 0.01}
    (expected,) = infill(pipe, truth, rate, seeds=[4], loudness=None, **where)
    torch.testing.assert_close(filled, expected, rtol=0, atol=0)
    assert is_kept(truth, filled, (first, last), round(0.01 * rate) + 1)


def test_what_is_refused(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sounds: 1 of 7 samples cannot be read, expected at most a share of 0.1"):
        evaluated(sounds, tmp_path / "out", broken=0.1)
    save_sound(sound(0, 20), sounds / "5.wav", 800)
    with pytest.raises(
        ValueError, match=r"sounds, sound number 5: gap: got a sound of 20 samples, in whose middle a gap"
    ):
        evaluated(sounds, tmp_path / "short")
    pipe, target = tiny_audio_pipeline(), Target()
    run = evaluation_run(tmp_path, settings=EvaluationSettings(metrics=("stft",)))
    with pytest.raises(ValueError, match="task: needs held-out sounds to complete; give --held_out"):
        evaluate_model(pipe, "m", target, run, task="infill")
    with pytest.raises(ValueError, match="task: got 'FP5', but an audio model does infill only"):
        evaluate_model(pipe, "m", target, run, task="FP5")
