"""Tar shards of tiny pictures, for tests."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def png(number: int, size: int = 8) -> bytes:
    """A picture that shows its number in every pixel."""
    stream = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), number % 256, np.uint8)).save(stream, "png")
    return stream.getvalue()


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def samples(numbers: range, classes: int = 2) -> dict[str, bytes]:
    """Members of a shard: picture and label of each number."""
    found = {}
    for number in numbers:
        found[f"part/{number:04d}.png"] = png(number)
        found[f"part/{number:04d}.cls"] = str(number % classes).encode()
    return found


def write_shards(folder: Path, shards: int = 3, each: int = 4) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(shards):
        path = folder / f"train-{shard:04d}.tar"
        path.write_bytes(tar(samples(range(shard * each, (shard + 1) * each))))
        paths.append(path)
    return paths
