"""How long, and in how much memory, full-size files of Google's MaskGIT become a model folder.

    python benchmarks/files/convert_memory.py

Writes files with exactly the published names and shapes (random float32 numbers, flax msgpack) into a temporary folder,
converts them in a process of its own with the command people use, and reads that process's peak of resident memory; the
memory that the imports alone take is subtracted. Needs 2.5 GB of disk and the shapes in ``../shared/parity/maskgit``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.flax_files import nested, write_flax  # noqa: E402
from tests.parity.support import files  # noqa: E402

# Linux's own count for this program: resource.getrusage would inherit the peak of the process that started it.
CHILD = """
import json, re, sys, time
import maskgen.tasks.cli, maskgen.tasks.published.convert, torchvision.models
from maskgen.tasks.published.entries.families import FAMILIES
[FAMILIES[key].model() for key in ("maskgit-tokenizer", "maskgit-transformer")]
def kibibytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before, start = kibibytes("VmRSS"), time.perf_counter()
maskgen.tasks.cli.run(sys.argv[1:])
print(json.dumps({"seconds": time.perf_counter() - start, "before": before, "peak": kibibytes("VmHWM")}))
"""


def write(tree: dict[str, Any], path: Path) -> int:
    """Random weights of a published tree; returns the size in bytes."""
    generator = torch.Generator().manual_seed(0)
    write_flax(
        path, nested({name: torch.randn(entry["shape"], generator=generator) for name, entry in tree["params"].items()})
    )
    return path.stat().st_size


def convert(folder: Path, *words: str) -> dict[str, float]:
    """Run ``maskgen convert`` and measure it."""
    command = [sys.executable, "-c", CHILD, "convert", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure each file alone and both together."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=int, default=256, choices=(256, 512))
    size = options.parse_args().size
    family = f"maskgit-imagenet{size}"
    (shapes,) = files("maskgit", f"full_shapes_imagenet{size}.json")
    trees = json.loads(shapes.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sizes = {part: write(trees[f"{part}_imagenet{size}"], folder / part) for part in ("tokenizer", "transformer")}
        for parts in (("tokenizer",), ("transformer",), ("tokenizer", "transformer")):
            given = [word for part in parts for word in (f"--{part}", str(folder / part))]
            found = convert(folder, "--family", family, *given, "--out", str(folder / f"out-{len(given)}-{parts[0]}"))
            total, grown = sum(sizes[part] for part in parts) / 1e6, (found["peak"] - found["before"]) * 1024 / 1e6
            print(
                f"{family} {' + '.join(parts)}: {total:.1f} MB in {found['seconds']:.1f} s; memory grew by {grown:.1f} MB "
                f"({grown / total:.2f} x the file)"
            )


if __name__ == "__main__":
    main()
