"""Many pictures for measuring a model: written as they come, resumed where they stopped, shared by several processes.

1. Picture i has seed ``first seed + i``; pictures are made in blocks of ``batch_size`` that start at multiples of it;
2. a block whose pictures all exist is left out; the processes of ``accelerate launch`` take the others in turn;
3. a block is always computed whole, so a picture never depends on how many processes there are or on interruptions.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import InitProcessGroupKwargs
from tqdm.auto import tqdm

from maskgen.checkpoint import read_json, write_json
from maskgen.tasks.generate import generate
from maskgen.tasks.media import save_image
from maskgen.tasks.pipeline import Pipeline, Sampling

__all__ = ["image_name", "process_state", "write_evaluation_set"]


def process_state(device: str | None = None) -> PartialState:
    """Which process of ``accelerate launch`` this is; the only one without it."""
    # A process that is done waits for the slowest: not ten minutes, the default, but as long as a set may take.
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=7)).to_kwargs()
    on_cpu = device.startswith("cpu") if device else not torch.cuda.is_available()
    return PartialState(
        cpu=on_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"), **patience
    )


def image_name(label: int, seed: int) -> str:
    """File name of a generated picture."""
    return f"label-{label:04d}_seed-{seed:08d}.png"


def write_evaluation_set(
    pipe: Pipeline,
    ids: Sequence[int],
    out: Path,
    *,
    seed: int = 0,
    sampling: Sampling | None = None,
    batch_size: int = 64,
    description: dict[str, Any] | None = None,
    state: PartialState | None = None,
    make: Callable[..., Any] = generate,
) -> int:
    """Generate one PNG for each class id, and a ``manifest.json`` that names them all.

    Args:
        pipe: an image model.
        ids: class of each picture.
        out: folder; what it already holds of this set is kept.
        seed: of the first picture; each further one takes the next.
        sampling: settings, instead of the model's own.
        batch_size: pictures of a block. Another size makes the same pictures up to rounding of float32 products.
        description: further entries of the manifest, such as the model's name.
        state: this process among all; found out by itself.
        make: stands for ``generate`` in tests.

    Returns:
        Number of pictures this process wrote.

    Raises:
        ValueError: ``out`` holds another set, no ids, or ``batch_size`` below 1.
    """
    if not ids or batch_size < 1:
        raise ValueError(f"evaluation set: got {len(ids)} images, batch_size {batch_size}; expected 1 or more of each")
    state = state or process_state()
    chosen = pipe.sampling(sampling)
    items = [{"file": image_name(label, seed + i), "label": label, "seed": seed + i} for i, label in enumerate(ids)]
    manifest = {
        "task": "generate",
        **(description or {}),
        "sampling": json.loads(json.dumps(dataclasses.asdict(chosen))),  # as a manifest gives it back
        "batch_size": batch_size,
        "items": items,
    }
    _check_same_set(out / "manifest.json", manifest)
    blocks = [range(first, min(first + batch_size, len(items))) for first in range(0, len(items), batch_size)]
    missing = [block for block in blocks if not all((out / str(items[i]["file"])).is_file() for i in block)]
    state.wait_for_everyone()  # all have looked before anyone writes, so all share the same list
    if state.is_main_process:
        write_json(out / "manifest.json", manifest | {"complete": False})
    mine, written = missing[state.process_index :: state.num_processes], 0
    with tqdm(
        total=sum(map(len, mine)), desc="images", unit="image", disable=not state.is_local_main_process or not mine
    ) as bar:
        for block in mine:
            images = make(
                pipe, [ids[i] for i in block], seeds=[seed + i for i in block], sampling=chosen, batch_size=batch_size
            )
            for i, image in zip(block, images, strict=True):
                path = out / str(items[i]["file"])
                if not path.is_file():
                    save_image(image, path)
                    written += 1
            bar.update(len(block))
    state.wait_for_everyone()
    if state.is_main_process:
        write_json(out / "manifest.json", manifest | {"complete": True})
    return written


def _check_same_set(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse to mix pictures of two sets in one folder."""
    if not path.is_file():
        return
    found = read_json(path)
    before = found if isinstance(found, dict) else {}
    # Who runs out of memory may go on with smaller blocks: that changes rounding at most.
    changed = [name for name, value in manifest.items() if name != "batch_size" and before.get(name) != value]
    if "complete" not in before or changed:
        what = ", ".join(changed) or "its manifest"
        raise ValueError(
            f"{path.parent}: holds other images ({what} differ); name another folder or give the same settings"
        )
