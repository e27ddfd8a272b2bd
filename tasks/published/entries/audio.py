"""The published models of sound in the catalog: codecs, and VampNet with its own.

Sizes in bytes were not published; EnCodec's files carry the start of their hash in their names.
"""

from fractions import Fraction
from typing import Any

from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.preparation import USUAL_LOUDNESS
from maskgen.tasks.published.entries.base import Published, Weights

_ENCODEC = "https://dl.fbaipublicfiles.com/encodec/v0/{}.th"

_DAC = "https://github.com/descriptinc/descript-audio-codec/releases/download/{}.pth"

_VAMPNET = "hugggof/vampnet"


def _codec(name: str, weights: Weights, licence: str, rate: int, hop: int, codebooks: int) -> Published:
    return Published(
        name=name,
        tokenizer=weights,
        licence=licence,
        signal_size=(),
        modality="audio",
        sample_rate=rate,
        frame_rate=Fraction(rate, hop),
        codebooks=codebooks,
    )


def _encodec(name: str, source: dict[str, Any], parameters: int, rate: int, hop: int, codebooks: int) -> Published:
    """The number of codebooks is that of 6 kbps, where there is a choice; see ``EncodecTokenizerConfig.bandwidth``."""
    weights = Weights(family="encodec", sizes=name, parameters=parameters, **source)
    return _codec(name, weights, "CC BY-NC 4.0", rate, hop, codebooks)


def _dac(name: str, file: str, parameters: int | None, rate: int, hop: int, codebooks: int) -> Published:
    weights = Weights(family="dac", sizes=name, url=_DAC.format(file), parameters=parameters)
    return _codec(name, weights, "MIT", rate, hop, codebooks)


def _official(file: str) -> dict[str, str]:
    return {"url": _ENCODEC.format(file), "sha256": file.rpartition("-")[2]}


AUDIO: tuple[Published, ...] = (
    _encodec("encodec_24khz", _official("encodec_24khz-d7cc33bc"), 14_851_810, 24_000, 320, codebooks=8),
    _encodec("encodec_48khz", _official("encodec_48khz-7e698e3e"), 14_856_294, 48_000, 320, codebooks=4),
    _encodec(
        "encodec_32khz",
        {"repository": "facebook/encodec_32khz", "file": "model.safetensors"},
        56_884_674,
        32_000,
        640,
        codebooks=4,
    ),
    _dac("dac_16khz", "0.0.5/weights_16khz", None, 16_000, 320, codebooks=12),
    _dac("dac_24khz", "0.0.4/weights_24khz", None, 24_000, 320, codebooks=32),
    _dac("dac_44khz", "0.0.1/weights", 76_651_890, 44_100, 512, codebooks=9),
    Published(
        name="vampnet",
        # Its strides stand in no published settings: the file tells them.
        tokenizer=Weights(family="lac", sizes="", repository=_VAMPNET, file="codec.pth"),
        transformer=Weights(
            family="vampnet", sizes="vampnet_coarse", repository=_VAMPNET, file="coarse.pth", parameters=335_893_664
        ),
        fine=Weights(
            family="vampnet", sizes="vampnet_c2f", repository=_VAMPNET, file="c2f.pth", parameters=277_753_072
        ),
        licence="CC BY-NC-SA 4.0 (README; its header says CC BY-NC 4.0), code MIT",
        signal_size=(441_000,),  # 10 s
        mask_id=1024,
        class_rule="no classes and no unconditional mode: what is kept of the sound is the only condition",
        # The defaults of its interface: 12 coarse steps, then 2 fine ones; noise on the choice falls to 0.
        sampling=Sampling(sampler="vampnet", steps=12, choice_temperature=10.5),
        fine_sampling=Sampling(sampler="vampnet", steps=2, choice_temperature=10.5),
        modality="audio",
        sample_rate=44_100,
        frame_rate=Fraction(44_100, 768),  # of the paper
        codebooks=14,
        channels=1,
        loudness=USUAL_LOUDNESS,
    ),
)
