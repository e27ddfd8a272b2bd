"""What data say that their examples are brought to: of every modality, of tokens made of them, and of one's own."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from maskgen.checkpoint import save_module
from maskgen.data import TensorSource
from maskgen.tasks.commands.tokenize import tokenize_data
from maskgen.tasks.conditions.preparation import Preparation
from maskgen.tasks.data.audio.folders import SoundFolder
from maskgen.tasks.data.audio.melodies import Melodies
from maskgen.tasks.data.base import AudioData
from maskgen.tasks.data.images.digits import Digits
from maskgen.tasks.data.images.folders import Folder
from maskgen.tasks.data.tokens.shards import TokenShards
from maskgen.tasks.data.video.moving_digits import MovingDigits
from maskgen.tasks.media.audio.files import save_sound
from maskgen.tokenizers.audio.toy import ToyAudioTokenizer, ToyAudioTokenizerConfig


class Mine(AudioData):
    """A data set of one's own that says nothing of loudness."""

    sample_rate, channels, size, class_names = 800, 1, (80,), ()

    def train(self) -> TensorSource:
        return TensorSource(audio=torch.zeros(1, 1, 80))

    def test(self) -> None:
        return None


def test_every_modality_says_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(2):
        Image.new("RGB", (12, 12)).save(tmp_path / "a" / f"{number}.png")
    assert Folder(tmp_path, 8, crop="resized").prepared == Preparation(size=(8, 8), crop="resized")
    assert Digits(size=8).prepared == Preparation(size=(8, 8))
    clips = MovingDigits(frames=4, size=32, digits=1)
    assert clips.prepared == Preparation(size=(4, 32, 32), frame_rate=clips.frame_rate)
    sounds = Preparation(size=(800,), sample_rate=800, channels=1)
    tune = Melodies(count=2, held_out=1, seconds=1.0, sample_rate=800, grid=0.02, tempi=(5,))
    assert tune.prepared == sounds
    assert Mine().prepared == Preparation(size=(80,), sample_rate=800, channels=1)


@pytest.mark.parametrize("loudness", [-30.0, None])
def test_tokens_say_what_their_sounds_were_brought_to(tmp_path: Path, loudness: float | None) -> None:
    for number in range(3):
        noise = torch.rand(1, 900, generator=torch.Generator().manual_seed(number)) - 0.5
        save_sound(noise, tmp_path / "sounds" / f"{number}.wav", 800)
    data = SoundFolder(tmp_path / "sounds", 800, 0.5, loudness=loudness, held_out=0.0)
    save_module(ToyAudioTokenizer(ToyAudioTokenizerConfig(sample_rate=800, hop=8, levels=8)), tmp_path / "codec")
    tokenize_data(tokenizer=tmp_path / "codec", data=data, out=tmp_path / "tokens", device="cpu", say=lambda _: None)
    made = TokenShards(tmp_path / "tokens").prepared
    assert made == data.prepared == Preparation(size=(400,), sample_rate=800, channels=1, loudness=loudness)
    assert made.differences(Preparation(loudness=-24.0)) == f"loudness {loudness} against -24.0"
