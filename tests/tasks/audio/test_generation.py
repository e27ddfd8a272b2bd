"""Sounds from nothing but a class: each depends on its seed and class alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.tasks.audio import generate_sounds
from maskgen.tasks.media.audio.files import load_sound
from tests.support import tiny_audio_pipeline, tiny_pipeline
from tests.tasks.audio.test_infilling import HOP, RATE, WINDOW, toy_pipeline

PIPE, BY_CLASS = toy_pipeline(channels=2), toy_pipeline(classes=3)


def test_a_sound_depends_on_its_seed_and_class_alone() -> None:
    made = generate_sounds(PIPE, seeds=[3, 4, 5], batch_size=2)
    assert [sound.shape for sound in made] == [(2, WINDOW * HOP)] * 3
    assert not torch.equal(made[0], made[1])
    assert torch.equal(generate_sounds(PIPE, seeds=[5])[0], made[2])
    assert all(map(torch.equal, generate_sounds(PIPE, seeds=range(1)), generate_sounds(PIPE))), "seeds from 0"
    with torch.no_grad():
        for parameter in BY_CLASS.transformer.parameters():
            parameter.normal_()
    several = generate_sounds(BY_CLASS, [0, 1])
    assert not torch.equal(generate_sounds(BY_CLASS, 0, seeds=[1])[0], several[1])
    assert torch.equal(generate_sounds(BY_CLASS, 1, seeds=[1])[0], several[1])
    assert len(generate_sounds(BY_CLASS, 1, seeds=range(3))) == 3


def test_a_fine_model_decides_the_rest(tmp_path: Path) -> None:
    pipe = tiny_audio_pipeline()
    made = generate_sounds(pipe)
    made.write(tmp_path / "a.wav", bits=32)
    written, rate = load_sound(tmp_path / "a.wav")
    assert torch.equal(written, made[0])
    assert rate == made.sample_rate == pipe.tokenizer.sample_rate
    assert (generate_sounds(PIPE).sample_rate, generate_sounds(PIPE).channels) == (RATE, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"labels": 5}, "label: got 5, expected 0 to 2"),
        ({"labels": [0, 1], "seeds": [1, 2, 3]}, "got 2 labels, 3 seeds"),
        ({"steps": 0}, "steps: got 0"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_sounds(BY_CLASS, **options)


def test_a_model_of_another_modality() -> None:
    with pytest.raises(ValueError, match="generate needs an audio model, but this model's modality is image"):
        generate_sounds(tiny_pipeline())
