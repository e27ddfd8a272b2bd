"""Published tokenizers of SEED-Voken (TencentARC): Open-MAGVIT2's for images and video, and IBQ's.

Nothing heavy is imported here.
"""

from __future__ import annotations

from maskgen.tasks.published.entries.base import Published, Weights

__all__ = ["SEED_VOKEN"]

_LICENCE = "Apache-2.0"


def _open_magvit2(name: str, hub: str, file: str, parameters: int, fid: float, fid_note: str, side: int) -> Published:
    return Published(
        name=f"open-magvit2-{name}",
        tokenizer=Weights(
            family="open-magvit2-image",
            sizes=file,
            repository=f"TencentARC/Open-MAGVIT2-Tokenizer-{hub}",
            file=f"{file}.ckpt",
            parameters=parameters,
            averaged=True,
        ),
        licence=_LICENCE,
        signal_size=(side, side),
        fid=fid,
        fid_note=f"README of TencentARC/SEED-Voken, {fid_note}, reconstruction",
        pixel_range=(-1, 1),
    )


def _ibq(codes: int, parameters: int, fid: float) -> Published:
    return Published(
        name=f"ibq-{codes}",
        tokenizer=Weights(
            family="ibq",
            sizes=f"imagenet256_{codes}",
            repository=f"TencentARC/IBQ-Tokenizer-{codes}",
            file=f"imagenet256_{codes}.ckpt",
            parameters=parameters,
            averaged=True,
        ),
        licence=_LICENCE,
        signal_size=(256, 256),
        fid=fid,
        fid_note="README of TencentARC/SEED-Voken, reconstruction",
        pixel_range=(-1, 1),
    )


SEED_VOKEN: tuple[Published, ...] = (
    _open_magvit2("128", "128-resolution", "imagenet_128_L", 112_021_653, 1.18, "ImageNet at 128", 128),
    _open_magvit2("256", "256-resolution", "imagenet_256_L", 115_127_829, 1.17, "ImageNet", 256),
    _open_magvit2(
        "pretrain-18bit", "262144-Pretrain", "pretrain256_262144", 115_127_829, 1.67, "ImageNet, zero-shot", 256
    ),
    _open_magvit2(
        "pretrain-14bit", "16384-Pretrain", "pretrain256_16384", 115_094_033, 2.55, "ImageNet, zero-shot", 256
    ),
    Published(
        name="open-magvit2-video",
        tokenizer=Weights(
            family="open-magvit2-video",
            sizes="video_128_262144",
            repository="TencentARC/Open-MAGVIT2-Tokenizer-262144-Video",
            file="video_128_262144.ckpt",
            parameters=370_547_349,
            averaged=True,
        ),
        licence=_LICENCE,
        signal_size=(17, 128, 128),
        pixel_range=(-1, 1),
        modality="video",
    ),
    _ibq(1024, 107_049_859, 2.24),
    _ibq(8192, 108_884_867, 1.87),
    _ibq(16384, 110_982_019, 1.37),
    _ibq(262144, 173_896_579, 1.00),
)
