"""Many samples for measuring a model: written as they come, resumed where they stopped, shared by several processes.

1. Sample i has seed ``first seed + i``; samples are made in blocks of ``batch_size`` that start at multiples of it;
2. a block whose samples all exist is left out; the processes of ``accelerate launch`` take the others in turn;
3. a block is always made whole, so a sample never depends on how many processes there are or on interruptions.

Pictures are PNG. Clips are PNG as well, lossless, their frames one above the other. Sounds are WAV of float samples.

Shapes: T frames, H W pixels, C channels, S samples of sound.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from maskgen.checkpoint import read_json, write_json
from maskgen.sampling.settings import Sampling, with_current_sampling
from maskgen.tasks.data.identity import refuse_others
from maskgen.tasks.evaluation.made.making import Make, described, generating
from maskgen.tasks.evaluation.sets.processes import process_state
from maskgen.tasks.media.audio.files import save_sound
from maskgen.tasks.media.images import save_image
from maskgen.tasks.media.results import MANIFEST, classes_told, keep_earlier, result_name
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.runs import Say

_QUIET = 2  # seconds before the progress bar shows

_SUFFIX = {"image": ".png", "video": ".png", "audio": ".wav"}


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
) -> int:
    """Generate one PNG for each class id, and a ``manifest.json`` that names them all.

    Args:
        pipe: an image model.
        ids: class of each picture.
        out: folder; what it already holds of this set is kept.
        seed: of the first picture; each further one takes the next.
        sampling: settings that lie over the model's own.
        batch_size: pictures of a block. Another size makes the same pictures up to rounding of float32 products.
        description: further entries of the manifest, such as the model's name.
        state: this process among all; found out by itself.

    Returns:
        Number of pictures this process wrote.

    Raises:
        ValueError: ``out`` holds another set, no ids, or ``batch_size`` below 1.
    """
    if not ids or batch_size < 1:
        raise ValueError(f"evaluation set: got {len(ids)} images, batch_size {batch_size}; expected 1 or more of each")
    chosen = pipe.sampling(sampling)
    told = described(pipe, chosen, **(description or {}))
    names = pipe.config.class_names
    what = MadeSet(count=len(ids), modality="image", labels=ids, class_names=names, seed=seed, description=told)
    make = generating(pipe, ids, seed, chosen)
    say = partial(print, file=sys.stderr)
    return write_samples(make, what, out, batch_size=batch_size, state=state or process_state(), say=say)


@dataclass(frozen=True, kw_only=True)
class MadeSet:
    """What samples are to be made.

    Attributes:
        count: how many there are.
        modality: "image", "video" or "audio".
        labels: class of each, or none.
        class_names: of the model's classes, or none.
        prompts: what each was asked for in words, or none.
        seed: of the first.
        sample_rate: of sounds.
        description: everything else that decides what the samples are, plain values, ``signal_size`` of clips among them; a
            set with another one is refused.
    """

    count: int
    modality: str
    labels: Sequence[int] = ()
    class_names: Sequence[str] = ()
    prompts: Sequence[str] = ()
    seed: int = 0
    sample_rate: int = 0
    description: Mapping[str, Any] = field(default_factory=dict)

    def items(self) -> list[dict[str, Any]]:
        """File, class and seed of each."""
        found: list[dict[str, Any]] = []
        for number in range(self.count):
            named = {"label": int(self.labels[number])} if self.labels else {}
            name = result_name(self.seed + number, _SUFFIX[self.modality], named.get("label"))
            words = {"prompt": self.prompts[number]} if self.prompts else {}
            found.append({"file": name, **named, "seed": self.seed + number, **words})
        return found


def write_samples(
    make: Make, what: MadeSet, out: Path, *, batch_size: int = 64, state: PartialState, say: Say = print
) -> int:
    """Make samples that are not there yet, and a ``manifest.json`` that names them all.

    Args:
        make: see ``Make``.
        what: the set.
        out: folder; what it already holds of this set is kept.
        batch_size: samples of a block; who runs out of memory may go on with another, which changes rounding at most.
        state: this process among all.
        say: told how long it will take, once that is known.

    Returns:
        Number of samples this process wrote.

    Raises:
        ValueError: ``out`` holds another set.
    """
    items, count = what.items(), what.count
    told = {"task": "generate", "modality": what.modality, **what.description, "batch_size": batch_size, "items": items}
    told["classes"] = classes_told(what.labels, what.class_names)
    manifest = json.loads(json.dumps(told))  # as a manifest gives it back
    place = out / MANIFEST
    before = _check_same_set(place, manifest)
    blocks = [range(first, min(first + batch_size, count)) for first in range(0, count, batch_size)]
    missing = [block for block in blocks if not all((out / items[i]["file"]).is_file() for i in block)]
    state.wait_for_everyone()  # all have looked before anyone writes, so all share the same list
    complete = bool(before.get("complete")) and not missing and before.keys() >= manifest.keys()
    if state.is_main_process and (earlier := keep_earlier(out, [item["file"] for item in items])):
        say(f"{out}: {earlier}")
    if state.is_main_process and not complete:
        write_json(place, {**manifest, "complete": False})
    mine, written = missing[state.process_index :: state.num_processes], 0
    with tqdm(total=sum(map(len, mine)), desc="samples", disable=not state.is_local_main_process, delay=_QUIET) as bar:
        for block in mine:
            started = time.monotonic()
            for number, sample in zip(block, make(block), strict=True):
                path = out / items[number]["file"]
                if not path.is_file():
                    _save(sample, path, what)
                    written += 1
            if block is mine[0] and state.is_main_process and len(mine) > 1:
                rest = _spoken((time.monotonic() - started) * (len(mine) - 1))
                say(f"{len(block)} of {sum(map(len, missing))} samples are made; the rest takes about {rest}")
            bar.update(len(block))
    state.wait_for_everyone()
    if state.is_main_process and not complete:
        frames = {"frames": _frames(out / items[0]["file"], manifest)} if what.modality == "video" else {}
        write_json(place, {**manifest, **frames, "complete": True})
    state.wait_for_everyone()
    return written


def _spoken(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} hours"


def _check_same_set(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What a folder's manifest says; samples of two sets are not mixed in it."""
    if not path.is_file():
        return {}
    found = read_json(path)
    before = with_current_sampling(found) if isinstance(found, dict) else {}
    same = {**before, "batch_size": manifest["batch_size"]}  # which changes rounding at most
    # Sets of before do not tell the classes and the sampling of fine codebooks.
    same = {**{name: manifest[name] for name in ("classes", "fine_sampling") if name in manifest}, **same}
    decisive = {name: value for name, value in same.items() if name in manifest or name == "class_names"}
    remedy = "name another folder or give the same settings"
    refuse_others(path.parent, decisive, manifest, "other samples", remedy)
    if "complete" not in before:
        raise ValueError(f"{path.parent}: holds other samples (its manifest is none of a set); {remedy}")
    return before


def _frames(first: Path, manifest: dict[str, Any]) -> int:
    """Frames of a clip: how many of its height are in the strip."""
    _, height, _ = manifest["signal_size"]
    with Image.open(first) as strip:
        return int(strip.height) // int(height)


def _save(sample: Any, path: Path, what: MadeSet) -> None:
    if what.modality == "image":
        save_image(sample, path)
    elif what.modality == "video":
        save_image(Image.fromarray(np.concatenate(list(sample))), path)
    else:
        save_sound(sample, path, what.sample_rate, bits=32)
