"""What a run writes now and then: signals as they are, and below or beside them what became of them.

Shapes: B batch, C channels, T frames, H W pixels, S samples.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from maskgen.data import Batch, draw_numbers
from maskgen.tasks.data.base import AudioData, SignalData
from maskgen.tasks.data.video.folders import VideoData
from maskgen.tasks.media.audio.backends import check_writing
from maskgen.tasks.media.images import image_grid, save_gif, save_image, to_images
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.training.base import crop_like
from maskgen.training.objective import Show

_SHOWN = {"image": 8, "video": 4, "audio": 4}  # signals that a first stage writes

_FRAME_RATE = 8.0  # of clips, where the data do not say


def some_signals(data: SignalData, count: int) -> Batch:
    """Some examples, the same ones every time, of the held-out ones where there are any."""
    source = data.test() or data.train()
    numbers = draw_numbers(len(source), count)
    return source.batch(numbers, numbers)


def show_reconstructions(data: SignalData) -> Show | None:
    """Writes some signals as they are and as the tokenizer gives them back; None for a modality without files here."""
    if data.modality not in _SHOWN:
        return None
    if isinstance(data, AudioData):
        check_writing()

    def show(model: nn.Module, folder: Path, step: int) -> None:
        assert isinstance(model, Tokenizer)
        signals = some_signals(data, _SHOWN[data.modality])[data.key]
        device = next(model.parameters()).device
        rebuilt = crop_like(model.decode(model.encode(signals.to(device)), model.axes(signals.shape)), signals)
        rebuilt = rebuilt.float().cpu()
        if isinstance(data, AudioData):
            save_sounds(signals, rebuilt, data.sample_rate, folder, step)
        else:
            save_rows([signals, rebuilt], folder / f"reconstructions-{step:08d}", data)

    return show


def save_rows(rows: Sequence[Tensor], path: Path, data: SignalData) -> None:
    """Rows of images ``[B, 3, H, W]`` as one picture, of clips ``[B, 3, T, H, W]`` as one animation.

    Args:
        rows: float, one below the other.
        path: of the file, without its suffix.
        data: what they are from.
    """
    signals, columns = torch.cat(list(rows)).clamp(0, 1), len(rows[0])
    if isinstance(data, VideoData):
        frames = [image_grid(to_images(frame), columns) for frame in signals.unbind(2)]
        save_gif(frames, path.with_suffix(".gif"), 1 / (data.frame_rate or _FRAME_RATE))
    else:
        save_image(image_grid(to_images(signals), columns), path.with_suffix(".png"))


def save_sounds(originals: Tensor, made: Tensor, sample_rate: int, folder: Path, step: int) -> None:
    """Each sound ``[C, S]`` once as it was, and as it is made at this step."""
    from maskgen.tasks.media.audio.files import save_sound  # needs soundfile

    for number, (original, sound) in enumerate(zip(originals, made, strict=True)):
        path = folder / f"sound-{number}-original.wav"
        if not path.exists():
            save_sound(original.clamp(-1, 1), path, sample_rate)
        save_sound(sound.clamp(-1, 1), folder / f"sound-{number}-{step:08d}.wav", sample_rate)
