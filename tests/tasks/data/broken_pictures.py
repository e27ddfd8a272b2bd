"""Good pictures and broken ones of each kind, for tests; ``python -m tests.tasks.data.broken_pictures`` at full size."""

import argparse
import io
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(draw: np.random.Generator, kind: str) -> bytes:
    """A picture of 8 to 24 pixels a side with some structure, so that it is a typical file of its kind."""
    height, width = draw.integers(8, 25, 2)
    rows, columns = np.mgrid[0:height, 0:width]
    base = (rows * draw.integers(1, 9) + columns * draw.integers(1, 9))[..., None] + draw.integers(0, 256, 3)
    stream = io.BytesIO()
    Image.fromarray((base + draw.integers(0, 32, base.shape)).astype(np.uint8)).save(stream, kind)
    return stream.getvalue()


def flipped(content: bytes, draw: np.random.Generator) -> bytes:
    """All bits of three bytes turned over, behind the signature."""
    changed = bytearray(content)
    for place in draw.choice(np.arange(8, len(content)), 3, replace=False):
        changed[place] ^= 0xFF
    return bytes(changed)


# JPEG has no checksums, so bytes are flipped in PNG files only: a flipped JPEG that decodes is a picture like any other.
BREAK: dict[str, Callable[[np.random.Generator], tuple[str, bytes]]] = {
    "truncated-png": lambda draw: ("png", (content := encoded(draw, "png"))[: len(content) // 2]),
    "truncated-jpg": lambda draw: ("jpg", (content := encoded(draw, "jpeg"))[: len(content) // 2]),
    "flipped": lambda draw: ("png", flipped(encoded(draw, "png"), draw)),
    "empty": lambda draw: ("jpg", b""),
    "text": lambda draw: ("jpg", b"this is no picture, whatever its name says\n" * 5),
}


def fill(folder: Path, good: int, broken: int, classes: int = 2) -> list[str]:
    """Write pictures into class folders; returns the paths of the broken ones."""
    draw, wrong = np.random.default_rng(0), []
    kinds = [None] * good + [list(BREAK)[number % len(BREAK)] for number in range(broken)]
    for number, place in enumerate(draw.permutation(len(kinds)).tolist()):
        kind = kinds[place]
        suffix, content = ("png", encoded(draw, "png")) if kind is None else BREAK[kind](draw)
        if kind is None and number % 2:
            suffix, content = "jpg", encoded(draw, "jpeg")
        path = folder / f"class{number % classes}" / f"{number:05d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if kind is not None:
            wrong.append(str(path))
    return sorted(wrong)


def counted(log: Path) -> list[str]:
    """Names in the log of skipped examples."""
    return sorted({json.loads(line)["name"] for line in log.read_text(encoding="utf-8").splitlines()})


def main() -> None:
    """Train a tiny tokenizer for more than an epoch on 5,000 good pictures with 1,000 broken ones among them."""
    from maskgen.tasks.cli import run

    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    wrong = fill(out / "data", 5000, 1000)
    started = time.perf_counter()
    config = "--tokenizer.config"
    sizes = f"--tokenizer=VQGAN {config}.channels=8 {config}.multipliers=[1,2] {config}.res_blocks=1 {config}.groups=4"
    code = f"{config}.quantizer.codebook_size=16 {config}.quantizer.dim=4 --loss.perceptual=null --loss.gan_weight=0"
    data = f"--data=maskgen.tasks.data.Folder --data.root={out / 'data'} --data.size=8 --data.broken=0.2"
    often = "--settings.steps=100 --settings.batch_size=64 --settings.workers=1 --settings.tracker=null"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(["train", "tokenizer", *f"{sizes} {code} {data} {often} --out={out / 'run'}".split()])
    found = counted(out / "run" / "skipped.jsonl")
    print(
        f"{len(wrong)} broken, {len(found)} counted, the same ones: {found == wrong}; {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
