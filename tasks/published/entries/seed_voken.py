"""Published tokenizers of SEED-Voken (TencentARC): Open-MAGVIT2's for images and video, and IBQ's.

Nothing heavy is imported here.
"""

from maskgen.tasks.published.entries.base import Published, Weights, image_tokenizer

_LICENCE, _README = "Apache-2.0", "TencentARC/SEED-Voken"


def _weights(family: str, hub: str, sizes: str, parameters: int) -> Weights:
    return Weights(
        family=family,
        sizes=sizes,
        repository=f"TencentARC/{hub}",
        file=f"{sizes}.ckpt",
        parameters=parameters,
        averaged=True,
    )


def _open_magvit2(name: str, hub: str, file: str, parameters: int, fid: float, fid_note: str, side: int) -> Published:
    weights = _weights("open-magvit2-image", f"Open-MAGVIT2-Tokenizer-{hub}", file, parameters)
    return image_tokenizer(f"open-magvit2-{name}", weights, _LICENCE, fid, f"{_README}, {fid_note}", side)


def _ibq(codes: int, parameters: int, fid: float) -> Published:
    weights = _weights("ibq", f"IBQ-Tokenizer-{codes}", f"imagenet256_{codes}", parameters)
    return image_tokenizer(f"ibq-{codes}", weights, _LICENCE, fid, _README)


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
        tokenizer=_weights(
            "open-magvit2-video", "Open-MAGVIT2-Tokenizer-262144-Video", "video_128_262144", 370_547_349
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
