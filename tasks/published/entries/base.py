"""What the catalog says of a published model: its files, figures and settings.

Nothing heavy is imported here.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from maskgen.sampling.settings import Sampling
from maskgen.tasks.published.entries.families import FAMILIES, Family


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One file of published weights.

    Attributes:
        family: key of ``maskgen.tasks.published.entries.families.FAMILIES``.
        sizes: key of the family's ``PUBLISHED``; empty where nobody published them and the file alone tells.
        repository: on the Hugging Face Hub; empty for a plain address.
        file: path in the repository.
        url: plain address, where the file is not on the Hub.
        sha256: first hexadecimal digits of the file's hash, where its authors give them.
        parameters: numbers in the model, None where they were not counted.
        averaged: the file has an averaged copy of the weights beside the others, and the published figures are of that
            copy; it is taken unless told otherwise.
    """

    family: str
    sizes: str
    repository: str = ""
    file: str = ""
    url: str = ""
    sha256: str = ""
    parameters: int | None = None
    averaged: bool = False

    @property
    def kind(self) -> Family:
        """Its family."""
        return FAMILIES[self.family]

    @property
    def source(self) -> str:
        """Address of the file."""
        return self.url or f"https://huggingface.co/{self.repository}/resolve/main/{self.file}"


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """The text encoder of a published model, and what of it is used; see ``PretrainedTextConfig``.

    Attributes:
        repository: on the Hugging Face Hub.
        parameters: numbers in the encoder, None where they were not counted.
        encoder: its folder in the repository.
        tokenizer: folder of its tokenizer.
        length: tokens of the window; None for what the tokenizer's files say.
        layer: hidden state that is the context.
        pooled: the vector of the whole text.
        attend_padding: whether padding belongs to the context.
    """

    repository: str
    parameters: int | None = None
    encoder: str = "text_encoder"
    tokenizer: str = "tokenizer"
    length: int | None = None
    layer: int = -2
    pooled: Literal["none", "projection", "first", "mean"] = "projection"
    attend_padding: bool = True


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published model, or one part of one.

    Attributes:
        name: what people type.
        tokenizer: its file; None for a transformer alone.
        transformer: its file; None for a tokenizer alone.
        fine: file of the second transformer of sound, which adds the fine codebooks.
        text: its text encoder; None for a model without.
        licence: of the weights, as far as their authors say.
        signal_size: size it was trained on: (H, W) in pixels, or (S,) samples; () for codecs, which take any length.
        fid: published FID-50k of generated images (of reconstructions for a tokenizer alone); None if unknown.
        fid_note: how that number was measured.
        pixel_range: range of the original network; ours always take and give [0, 1].
        mask_id: the original's id of a masked token.
        class_rule: how the original is told the class.
        class_names: which names the classes have.
        sampling: the original's settings, as far as our sampler has them.
        fine_sampling: the same for ``fine``.
        modality: kind of signal.
        sample_rate: samples a second, for sound.
        frame_rate: tokens a second for each codebook, for sound.
        codebooks: how many of them are used, for sound.
        channels: that it was trained on, for sound.
        loudness: LUFS that its training sounds were brought to; None where they were left as loud as they were.
    """

    name: str
    tokenizer: Weights | None = None
    transformer: Weights | None = None
    fine: Weights | None = None
    text: TextFiles | None = None
    licence: str
    signal_size: tuple[int, ...]
    fid: float | None = None
    fid_note: str = ""
    pixel_range: tuple[float, float] | None = None
    mask_id: int | None = None
    class_rule: str = ""
    class_names: Literal["", "imagenet"] = ""
    sampling: Sampling = field(default_factory=Sampling)
    fine_sampling: Sampling | None = None
    modality: str = "image"
    sample_rate: int | None = None
    frame_rate: Fraction | None = None
    codebooks: int | None = None
    channels: int | None = None
    loudness: float | None = None

    @property
    def parts(self) -> dict[str, Weights]:
        """The files there are, by part."""
        found = {"tokenizer": self.tokenizer, "transformer": self.transformer, "fine": self.fine}
        return {part: weights for part, weights in found.items() if weights is not None}

    @property
    def signal(self) -> str:
        """Size of the signal in words: pixels, or samples and frames a second."""
        if self.sample_rate is None or self.frame_rate is None:
            return " x ".join(map(str, self.signal_size))
        return f"{self.sample_rate / 1000:g} kHz, {float(self.frame_rate):.4g} frames/s x {self.codebooks}"

    @property
    def convert_command(self) -> str:
        """The command that makes the same from local files."""
        options = " ".join((*(f"--{part} FILE" for part in self.parts), *(["--text FOLDER"] if self.text else [])))
        return f"maskgen convert --family {self.name} {options} --out DIR"


def image_tokenizer(
    name: str,
    weights: Weights,
    licence: str,
    fid: float | None = None,
    readme: str = "",
    side: int = 256,
    low: int = -1,
) -> Published:
    """The entry of an image tokenizer alone.

    Args:
        name: see ``Published``.
        weights: its file.
        licence: see ``Published``.
        fid: of reconstructions.
        readme: whose README tells it, and of what.
        side: of the images, in pixels.
        low: least value of the original's pixels, whose largest is 1.
    """
    return Published(
        name=name,
        tokenizer=weights,
        licence=licence,
        signal_size=(side, side),
        fid=fid,
        fid_note=f"README of {readme}, reconstruction" if readme else "",
        pixel_range=(low, 1),
    )
