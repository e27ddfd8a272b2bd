"""The video benchmark runs: what it measures, never how fast it is."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import video_speed

from maskgen.published.magvit import PUBLISHED as TRANSFORMERS
from maskgen.tokenizers.published.video.magvit import PUBLISHED as TOKENIZERS

SIZES = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16, "vocab_size": 8}


def test_runs_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("magvit-ucf101-b", "magvit-ucf101-l"):
        monkeypatch.setitem(TRANSFORMERS, name, dataclasses.replace(TRANSFORMERS[name], **SIZES))
    plain = TOKENIZERS["magvit-ucf101-l"]
    quantizer = dataclasses.replace(plain.quantizer, codebook_size=8, dim=4)
    tiny = dataclasses.replace(plain, channels=2, groups=1, encoder_blocks=1, decoder_blocks=1, quantizer=quantizer)
    monkeypatch.setitem(TOKENIZERS, "magvit-ucf101-l", tiny)
    out = tmp_path / "numbers.json"
    video_speed.main(["--frames", "12", "--repeats", "1", "--steps", "2", "--json", str(out)])
    reading, loop, clip = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert reading["frames"] == 12
    assert len(reading["frames_per_second"]) == 6
    assert loop["axes"] == [4, 16, 16]
    assert loop["steps"] == clip["steps"] == 2
    assert clip["peak_resident_mb"] > 0
