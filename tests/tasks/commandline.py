"""What the tests of the command line share: running it, being refused, pictures, and settings of toy size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from maskgen.tasks.cli import main

WIDTH, HEIGHT = 36, 40  # of the picture that is edited

TOKENIZER: dict[str, Any] = {
    "tokenizer": {
        "class_path": "maskgen.tokenizers.image.VQGAN",
        "init_args": {
            "config": {
                "channels": 8,
                "multipliers": [1, 2],
                "res_blocks": 1,
                "shortcut": "input",
                "groups": 4,
                "quantizer": {"kind": "vq", "codebook_size": 16, "dim": 4},
            }
        },
    },
    "data": {"class_path": "maskgen.tasks.data.Folder", "init_args": {"size": 8}},
    "loss": {"perceptual": None, "gan_weight": 0.0},
    "settings": {
        "steps": 4,
        "batch_size": 4,
        "optimizer": {"lr": 1.0e-3, "warmup_steps": 1},
        "log_every": 2,
        "validate_every": 0,
        "show_every": 0,
        "checkpoint_every": 2,
        "tracker": None,
    },
}
TRANSFORMER: dict[str, Any] = {
    "transformer": {
        "class_path": "maskgen.models.modern.ModernTransformer",
        "init_args": {
            "config": {"vocab_size": 16, "num_classes": 2, "axes": [4, 4], "width": 16, "layers": 1, "heads": 2}
        },
    },
    "data": TOKENIZER["data"],
    "masking": {"label_smoothing": 0.0},
    "settings": TOKENIZER["settings"],
    "sampling": {"steps": 2},
}


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask(value: int | None = None, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    values = np.zeros((height, width), np.uint8)
    values[8:20, 6:18] = 255
    return Image.fromarray(values if value is None else np.full_like(values, value))


def write_yaml(settings: dict[str, Any], path: Path, **changes: Any) -> Path:
    """Settings with the data folder filled in; ``a__b=1`` changes or adds a nested entry."""
    content = json.loads(json.dumps(settings))
    content["data"]["init_args"]["root"] = str(path.parent / "data")
    for name, value in changes.items():
        *outer, last = name.split("__")
        inner = content
        for key in outer:
            inner = inner[key]
        inner[last] = value
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run(*words: object) -> None:
    main([str(word) for word in words])


def refused(capsys: pytest.CaptureFixture[str], *words: object, status: int = 2) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("maskgen: error: ")
    assert "Traceback" not in lines[0]
    return lines[0].removeprefix("maskgen: error: ")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def edits(model: Path) -> dict[str, tuple[object, ...]]:
    """A complete command of each editing task."""
    common = ("--model", model, "--image", "image.png", "--label", "four")
    return {
        "inpaint": ("inpaint", *common, "--mask", "mask.png"),
        "outpaint": ("outpaint", *common, "--right", 10, "--top", 6),
        "swap-class": ("swap-class", *common, "--box", "[4,6,20,16]"),
        "edit": ("edit", *common, "--strength", 0.7),
        "revise": ("revise", *common, "--rounds", 2),
    }
