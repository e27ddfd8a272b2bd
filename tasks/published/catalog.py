"""Published weights by name: where they are, what they are, and how to sample from them.

Nothing heavy is imported here. Sizes in bytes and hashes were not published by most groups; a download is checked
against the length (and the MD5, where the server tells it) of its server, and a conversion against every name and shape
of the published model.
"""

import difflib

from maskgen.sampling.guidance import Guidance
from maskgen.sampling.settings import Sampling
from maskgen.tasks.published.entries.amused import AMUSED
from maskgen.tasks.published.entries.audio import AUDIO
from maskgen.tasks.published.entries.base import Published, Weights, image_tokenizer
from maskgen.tasks.published.entries.seed_voken import SEED_VOKEN


def find(name: str) -> Published:
    """The entry of that name.

    Raises:
        ValueError: there is none; the nearest names are given.
    """
    if name in CATALOG:
        return CATALOG[name]
    near = difflib.get_close_matches(name, CATALOG, n=3) or sorted(CATALOG)
    raise ValueError(f"got {name!r}, expected a published name such as {', '.join(near)}; `maskgen models` lists all")


def table() -> str:
    """The catalog for people: one line a model."""
    rows = [("name", "holds", "signal", "parameters", "FID", "steps", "licence")]
    for entry in CATALOG.values():
        counts = [weights.parameters for weights in (*entry.parts.values(), entry.text) if weights is not None]
        known = [count for count in counts if count is not None]
        fid = "-" if entry.fid is None else f"{entry.fid:g}" + ("" if entry.transformer else " (reconstruction)")
        rows.append(
            (
                entry.name,
                " + ".join((*entry.parts, *(["text"] if entry.text else []))),
                entry.signal,
                f"{sum(known) / 1e6:.1f} M" if len(known) == len(counts) else "-",
                fid,
                _steps(entry),
                entry.licence,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _steps(entry: Published) -> str:
    if entry.transformer is None:
        return "-"
    return " + ".join(str(chosen.steps) for chosen in (entry.sampling, entry.fine_sampling) if chosen is not None)


_MASKGIT_FILES = {"tokenizer": "tokenizer", "transformer": "maskgit"}

_GOOGLE = "https://storage.googleapis.com/maskgit-public/checkpoints"

_HEIBOX = "https://heibox.uni-heidelberg.de/d/{}/files/?p=%2Fckpts%2Flast.ckpt&dl=1"

_RESEARCH = "Apache-2.0 code; weights for research, no licence named"

_LLAMAGEN_LICENCE = "MIT code (LlamaGen); weights no licence named"


def _maskgit(size: int, parameters: int, steps: int, fid: float) -> Published:
    """Google's release (README figures); 6.10 and 7.04 were measured on its PyTorch port with clean-fid."""
    files = {part: f"{_GOOGLE}/{file}_imagenet{size}_checkpoint" for part, file in _MASKGIT_FILES.items()}
    sizes = f"maskgit-imagenet{size}"
    return Published(
        name=sizes,
        tokenizer=Weights(family="maskgit-tokenizer", sizes=sizes, url=files["tokenizer"], parameters=54_515_587),
        transformer=Weights(family="maskgit-transformer", sizes=sizes, url=files["transformer"], parameters=parameters),
        licence="Apache-2.0",
        signal_size=(size, size),
        fid=fid,
        fid_note="README of google-research/maskgit",
        pixel_range=(0, 1),
        mask_id=2024,  # written -1 in its code, which reads the last row
        class_rule="token 1024 + class before the visual tokens; no unconditional mode",
        class_names="imagenet",
        # The release: choice temperature 4.5, cosine; the paper's tables: 8 steps at 256, 12 at 512.
        sampling=Sampling(steps=steps, schedule="cosine", choice_temperature=4.5),
    )


def _taming(codes: int, folder: str, parameters: int, fid: float) -> Published:
    name, licence = f"vqgan-imagenet-f16-{codes}", "MIT code (CompVis); weights no licence named"
    weights = Weights(family="taming", sizes=name, url=_HEIBOX.format(folder), parameters=parameters)
    return image_tokenizer(name, weights, licence, fid, "CompVis/taming-transformers")


def _llamagen(stride: int, fid: float, parameters: int | None) -> Published:
    weights = _llamagen_file(stride, parameters)
    return image_tokenizer(f"llamagen-vq{stride}", weights, _LLAMAGEN_LICENCE, fid, "FoundationVision/LlamaGen")


def _llamagen_file(stride: int, parameters: int | None) -> Weights:
    repository, file = "FoundationVision/LlamaGen", f"vq_ds{stride}_c2i.pt"
    sizes = f"llamagen-vq-ds{stride}"
    return Weights(family="llamagen", sizes=sizes, repository=repository, file=file, parameters=parameters)


def _halton(size: int, kind: str, parameters: int, fid: float, guidance: float) -> Published:
    transformer = Weights(
        family="halton",
        sizes=f"halton_maskgit_{size}_{kind}",
        repository="llvictorll/Halton-MaskGIT",
        file=f"ImageNet_{size}_{kind}.pth",
        parameters=parameters,
    )
    return Published(
        name=f"halton-maskgit-{size}-{kind}",
        tokenizer=_llamagen_file(16, 71_883_403),
        transformer=transformer,
        licence=f"MIT (Halton-MaskGIT); tokenizer: {_LLAMAGEN_LICENCE}",
        signal_size=(size, size),
        fid=fid,
        fid_note="README of valeoai/Halton-MaskGIT, Halton order, 32 steps",
        pixel_range=(-1, 1),
        mask_id=16384,
        class_rule="own table read through adaptive norms; class 1000 is the null class",
        class_names="imagenet",
        sampling=Sampling(sampler="halton", steps=32, schedule="arccos", guidance=Guidance(scale=guidance)),
    )


def _titok(name: str, parameters: int, fid: float, *, steps: int, guidance: float, randomness: float) -> Published:
    size = name.rpartition("-")[2]
    return Published(
        name=name,
        transformer=Weights(
            family=name.partition("-")[0],
            sizes=f"generator_titok_{size}_imagenet",
            repository=f"yucornetto/generator_titok_{size}_imagenet",
            file="model.safetensors",
            parameters=parameters,
        ),
        licence=_RESEARCH,
        signal_size=(256, 256),
        fid=fid,
        fid_note="README of bytedance/1d-tokenizer, with its TiTok tokenizer",
        mask_id=4096,
        class_rule="token 4097 + class before the others; 5097 is the null class",
        class_names="imagenet",
        sampling=Sampling(
            sampler="onedtok",
            steps=steps,
            schedule="arccos",
            guidance=Guidance(scale=guidance, ramp="linear" if steps == 8 else "cosine"),
            choice_temperature=randomness,
            annealed=True,  # the official evaluation script sharpens the logits, though its function does not by default
        ),
    )


def _maskbit(bits: int, fid: float, *, guidance: float, power: float, randomness: float) -> Published:
    parts = {
        part: Weights(
            family=f"maskbit-{part}",
            sizes=f"maskbit_{word}_{bits}bit",
            repository=f"markweber/maskbit_{word}_{bits}bit",
            file=f"maskbit_{word}_{bits}bit.bin",
        )
        for part, word in (("tokenizer", "tokenizer"), ("transformer", "generator"))
    }
    return Published(
        name=f"maskbit-{bits}bit",
        tokenizer=parts["tokenizer"],
        transformer=parts["transformer"],
        licence=_RESEARCH,
        signal_size=(256, 256),
        fid=fid,
        fid_note="README of markweberdev/maskbit, 64 steps",
        pixel_range=(0, 1),
        mask_id=2 ** (bits // 2),
        class_rule="own table, appended as the last position; class 1000 is the null class",
        class_names="imagenet",
        sampling=Sampling(
            sampler="maskbit",
            steps=64,
            schedule="arccos",
            guidance=Guidance(scale=guidance, ramp="cosine", power=power),
            choice_temperature=randomness,
        ),
    )


CATALOG: dict[str, Published] = {
    entry.name: entry
    for entry in (
        _maskgit(256, 172_457_193, steps=8, fid=6.06),
        _maskgit(512, 173_047_017, steps=12, fid=7.32),
        image_tokenizer(
            "maskgit-vqgan-imagenet-f16-256",
            Weights(
                family="maskgit-torch",
                sizes="maskgit-vqgan-imagenet-f16-256",
                repository="fun-research/TiTok",
                file="maskgit-vqgan-imagenet-f16-256.bin",
                parameters=54_515_587,
            ),
            _RESEARCH,
            2.28,
            "google-research/maskgit, whose 256 tokenizer this is",
            low=0,
        ),
        _taming(1024, "8088892a516d4e3baf92", 72_141_699, fid=7.94),
        _taming(16384, "a7530b09fed84f80a887", 76_073_859, fid=4.98),
        _llamagen(16, 2.19, 71_883_403),
        _llamagen(8, 0.59, None),
        _halton(256, "tiny", 23_031_425, fid=10.2, guidance=1.5),
        _halton(256, "small", 69_344_769, fid=6.40, guidance=1.0),
        _halton(256, "base", 142_224_641, fid=4.17, guidance=0.7),
        _halton(384, "small", 69_508_609, fid=6.11, guidance=1.0),
        _halton(384, "base", 142_470_401, fid=4.15, guidance=0.7),
        _halton(384, "large", 479_984_641, fid=2.59, guidance=0.5),
        _titok("imagebert-titok-l32", 177_202_432, fid=2.77, steps=8, guidance=4.5, randomness=9.5),
        _titok("imagebert-titok-b64", 177_227_008, fid=2.48, steps=8, guidance=3.0, randomness=11.0),
        _titok("uvitbert-titok-s128", 294_990_848, fid=1.97, steps=64, guidance=6.9, randomness=2.8),
        _maskbit(10, 1.68, guidance=6.4, power=2.5, randomness=10.5),
        _maskbit(12, 1.65, guidance=7.1, power=3.0, randomness=8.2),
        _maskbit(14, 1.62, guidance=7.1, power=3.0, randomness=7.8),
        _maskbit(16, 1.64, guidance=6.5, power=2.5, randomness=7.5),
        _maskbit(18, 1.67, guidance=5.7, power=2.5, randomness=8.5),
        *AMUSED,
        *SEED_VOKEN,
        *AUDIO,
    )
}
