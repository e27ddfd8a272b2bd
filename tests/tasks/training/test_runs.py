"""Runs that are found again: of earlier versions, whose descriptions are read in today's words, and with other weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.tasks.data.identity import describe
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.runs import finished_before
from maskgen.tokenizers.audio.codec import AudioCodec
from maskgen.tokenizers.image.vqgan import VQGAN
from maskgen.tokenizers.training.audio import CodecLossSettings
from maskgen.tokenizers.training.reconstruction import ReconstructionSettings
from tests.tasks.training import test_audio, test_image


def written_before(now: dict[str, Any], first: str) -> dict[str, Any]:
    """A description of today as the version before wrote it."""
    found: dict[str, Any] = json.loads(json.dumps(now))
    guard = found["settings"]["guard"]
    guard["most_in_a_row"] = guard.pop("max_consecutive_skips")
    tokenizer = found.pop("tokenizer")["config"]
    if first == "codec":
        return {**found, "codec": tokenizer, "loss": found["loss"] | {"waveform_weight": 1.0, "spectral_weight": 1.0}}
    loss = {name: value for name, value in found["loss"].items() if name not in ("lecam_decay", "validation")}
    return {**found, "tokenizer": tokenizer, "loss": loss}


@pytest.mark.parametrize("first", ["tokenizer", "codec"])
def test_a_finished_run_of_before_is_reused(first: str, tmp_path: Path) -> None:
    now = describe(
        tokenizer=AudioCodec(test_audio.CODEC) if first == "codec" else VQGAN(test_image.VQGAN_CONFIG),
        data=test_audio.Tones() if first == "codec" else test_image.Squares(),
        loss=CodecLossSettings() if first == "codec" else ReconstructionSettings(),
        settings=test_image.settings(),
    )
    said: list[str] = []
    for written in (now, written_before(now, first)):
        (tmp_path / "run.json").write_text(json.dumps({**written, "finished": True}), encoding="utf-8")
        assert finished_before(tmp_path, now, "tokenizer", said.append)
    assert said == [f"tokenizer: finished before, reused from {tmp_path}"] * 2
    other = {**written_before(now, first), "finished": True}
    other["loss"] = other["loss"] | {"spectral_weight" if first == "codec" else "lecam_decay": 0.5}
    (tmp_path / "run.json").write_text(json.dumps(other), encoding="utf-8")
    name = r"spectral_weight: 0\.5 before, nothing" if first == "codec" else r"lecam_decay: 0\.5 before, 0\.999"
    with pytest.raises(ValueError, match=rf"holds another run \(loss\.{name} now\); give --again"):
        finished_before(tmp_path, now, "tokenizer", said.append)


def test_a_second_stage_of_before_is_reused(tmp_path: Path) -> None:
    now = describe(masking={"loss_on": "masked"}, critic_settings={"weight": 1.0}, transformer=test_image.model())
    transformer = {**now["transformer"], "config": dict(now["transformer"]["config"])}
    del transformer["config"]["context"]  # the modern family had none
    masking, judging = {"loss_on": "hidden"}, {"weight": 1.0}
    before = {"masking": masking, "judging": judging, "transformer": transformer, "finished": True}
    (tmp_path / "run.json").write_text(json.dumps(before), encoding="utf-8")
    assert finished_before(tmp_path, now, "critic", lambda text: None)


def test_weights_that_changed_after_their_run(tmp_path: Path) -> None:
    """A finished run is used again only with the weights it ended with; a model says that its tokenizer is another now."""
    codes, run = tmp_path / "tokenizer", tmp_path / "transformer"
    test_image.stage1(codes)
    test_image.stage2(codes, tmp_path)
    pipe, kept = Pipeline.from_pretrained(tmp_path), (run / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(pipe.transformer.parameters()).add_(1)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"other weights than its run ended with \(weights: \w{16} before, \w{16} now\)"
    ):
        test_image.stage2(codes, tmp_path)
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="before, none now.*--again"):
        test_image.stage2(codes, tmp_path)
    (run / "model.safetensors").write_bytes(kept)
    test_image.stage2(codes, tmp_path)
    test_image.stage1(codes, settings=test_image.settings(seed=7), again=True)
    with pytest.warns(UserWarning, match=r"tokenizer is not the one whose codes.*\w{16} then, \w{16} now"):
        pipe = Pipeline.from_pretrained(tmp_path)
    with torch.no_grad():
        next(pipe.transformer.parameters()).add_(1)
    pipe.save_pretrained(tmp_path)
    Pipeline.from_pretrained(tmp_path)  # a model of its own: the run beside it says nothing of it
