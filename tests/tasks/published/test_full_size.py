"""Full-size layouts, the streaming writer, and the memory that a conversion takes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import maskgen.tasks.published.convert
from maskgen.checkpoint import save_module, save_state
from maskgen.models.bert import BertConfig
from maskgen.tasks.published.catalog import CATALOG
from maskgen.tasks.published.entries.base import Published
from maskgen.tokenizers.image.vqgan import VQGAN
from tests.flax_files import nested, write_flax
from tests.parity.support import LAYOUTS
from tests.tasks.commandline import files as listing
from tests.tasks.published.tiny_maskgit import TOKENIZER, official_transformer

ROOT = Path(__file__).resolve().parents[3]


def test_the_streaming_writer_equals_the_library(tmp_path: Path) -> None:
    """``save_state`` writes what ``save_module`` does, byte for byte, from views in any layout and mixed element types."""
    model = VQGAN(TOKENIZER)
    model.decoder.half()
    model.register_buffer("steps", torch.tensor(3))
    model.register_buffer("flags", torch.tensor([True, False, True]))
    model.register_buffer("nothing", torch.empty(0, 4))
    save_module(model, tmp_path / "a")
    views = {
        name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in model.state_dict().items()
    }
    save_state(VQGAN, TOKENIZER, views, tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(TypeError, match=r"x: got torch\.complex64, which safetensors cannot hold"):
        save_state(VQGAN, TOKENIZER, {"x": torch.ones(1, dtype=torch.complex64)}, tmp_path / "c")
    assert listing(tmp_path / "c") == []


def test_memory(tmp_path: Path) -> None:
    """A file is mapped, not read: converting grows the process by little more than its pages (limit: 1.6 x the file)."""
    config = BertConfig(vocab_size=1024, num_classes=1000, axes=(16, 16), width=768, layers=3, heads=16, mlp_width=3072)
    write_flax(tmp_path / "w", nested(official_transformer(config)))
    size = (tmp_path / "w").stat().st_size
    assert size > 90_000_000
    code = f"""
import re, maskgen.tasks.cli, maskgen.tasks.published.convert, maskgen.published.maskgit
def kibibytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = kibibytes("VmRSS")
maskgen.tasks.cli.run(["convert", "--family", "maskgit-imagenet256", "--any-size", "true", "--transformer",
                       {str(tmp_path / "w")!r}, "--out", {str(tmp_path / "m")!r}])
print(kibibytes("VmHWM") - before)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) * 1024 < 1.6 * size


# Families whose full layouts are not among the peers': those of Open-MAGVIT2, IBQ and Meissonic have tests of their own.
_ELSEWHERE = ("maskgit-t", "maskbit", "open-magvit2", "ibq", "meissonic")
IMAGES = [published for published in CATALOG.values() if published.modality == "image"]


@pytest.mark.parametrize("published", IMAGES, ids=lambda published: published.name)
def test_full_size_layouts_convert(published: Published, tmp_path: Path) -> None:
    """A torch file of exactly the names and shapes of a peer's class goes through the reader and the key map.

    All tensors are views of one number, so the file is small and nothing is allocated.
    """
    layouts = json.loads(LAYOUTS.read_text(encoding="utf-8"))
    checked = 0
    for part, weights in published.parts.items():
        name = LAYOUT_OF.get(weights.family, lambda sizes: "")(weights.sizes)
        if name not in layouts:
            assert weights.family.startswith(_ELSEWHERE) or weights.sizes == "llamagen-vq-ds8", weights
            checked += 1
            continue
        told = layouts[name]
        path = tmp_path / part
        torch.save({name: torch.zeros(1).expand(shape) for name, shape in expand(told).items()}, path)
        half = maskgen.tasks.published.convert._convert(published, part, path, False, None, False)
        assert half.config == weights.kind.published(weights.sizes)
        assert told["n_params"] == weights.parameters
        checked += 1
    assert checked == len(published.parts)


LAYOUT_OF = {
    "taming": lambda sizes: "taming_" + sizes.replace("-", "_"),
    "halton": lambda sizes: sizes,
    "llamagen": lambda sizes: {"llamagen-vq-ds16": "llamagen_vq_ds16_c2i"}.get(sizes, ""),
    "imagebert": lambda sizes: sizes,
    "uvitbert": lambda sizes: sizes,
    "amused-tokenizer": lambda sizes: "amused_vqvae",
    "amused-transformer": lambda sizes: sizes.replace("-", "_") + "_transformer",
    "maskgit-torch": lambda sizes: sizes.replace("-", "_"),
}


def expand(told: dict[str, Any]) -> dict[str, list[int]]:
    """Names and shapes, with the numbered blocks written out."""
    found: dict[str, list[int]] = {}
    spans = [span.split("..") for span in told["repeats"]] or [["0", "0"]]
    for key, shape in told["keys"].items():
        plain = re.sub(r"#\d+$", "", key)
        (span,) = spans
        for number in range(int(span[0]), int(span[1]) + 1) if "{i}" in plain else range(1):
            found[plain.replace("{i}", str(number))] = shape
    assert len(found) == told["n_keys"]
    return found
