"""Samples that a model makes to be measured: pictures, clips and sounds, resumable and shared by several processes.

As ``evaluation_set``, for every modality: sample i has seed ``first seed + i``; samples are made in blocks that start at
multiples of ``batch_size``; a block is always made whole, so no sample depends on interruptions or on the number of
processes.

Shapes: T frames, H W pixels, C channels, S samples of sound.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from maskgen.checkpoint import read_json, write_json
from maskgen.tasks.generate import generate
from maskgen.tasks.media import save_image
from maskgen.tasks.pipeline import Pipeline, Sampling
from maskgen.tasks.sample_sets import SampleSet
from maskgen.tasks.sound import save_sound
from maskgen.tasks.video import complete_clips, generate_video
from maskgen.tokenizers.audio import AudioTokenizer

__all__ = ["Make", "completing", "described", "even_labels", "generating", "write_samples"]

Make = Callable[[Sequence[int]], list[Any]]
"""Sample numbers in, as many samples out: a PIL image, frames uint8 ``[T, H, W, 3]`` or a sound float ``[C, S]`` each."""

_QUIET = 2  # seconds before the progress bar shows
_SUFFIX = {"image": ".png", "video": ".png", "audio": ".wav"}


def even_labels(pipe: Pipeline, count: int) -> list[int]:
    """Classes of ``count`` samples, as many of each as can be, in order; empty for a model without classes."""
    classes = pipe.transformer.num_classes
    return [number * classes // count for number in range(count)] if classes else []


def generating(pipe: Pipeline, labels: Sequence[int], seed: int, sampling: Sampling) -> Make:
    """Make samples from nothing but a class.

    Args:
        pipe: a model of any modality.
        labels: class of each sample; empty for a model without classes.
        seed: of the first; each further one takes the next.
        sampling: settings.
    """

    def make(numbers: Sequence[int]) -> list[Any]:
        seeds = [seed + number for number in numbers]
        chosen = [labels[number] for number in numbers] if labels else None
        if pipe.modality == "image":
            return list(generate(pipe, chosen, seeds=seeds, sampling=sampling, batch_size=len(seeds)))
        if pipe.modality == "video":
            return list(generate_video(pipe, chosen, seeds=seeds, sampling=sampling))
        return _sounds(pipe, chosen, seeds, sampling)

    return make


def completing(
    pipe: Pipeline, clips: SampleSet, task: str, seed: int, sampling: Sampling, *, paste: bool = False
) -> Make:
    """Complete real clips by one of MAGVIT's tasks.

    Args:
        pipe: a video model.
        clips: of the model's size.
        task: see ``maskgen.tasks.video.complete_clips``.
        seed: of the first; each further one takes the next.
        sampling: settings.
        paste: whether what is given comes back as it was.
    """

    def make(numbers: Sequence[int]) -> list[Any]:
        read = [sample for number in numbers for sample in clips.read(number, number + 1)]
        broken = [sample for sample in read if isinstance(sample, str)]
        if broken:
            raise ValueError(f"{broken[0]}; take it out of {clips.name}")
        batch = torch.stack([sample for sample in read if isinstance(sample, Tensor)]).float() / 255
        labels = (
            None if clips.labels is None or not pipe.transformer.num_classes else [clips.labels[n] for n in numbers]
        )
        seeds = [seed + number for number in numbers]
        done = complete_clips(pipe, batch, task, seeds=seeds, labels=labels, sampling=sampling, paste=paste)
        return [frames.numpy() for frames in (done.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1)]

    return make


def write_samples(
    make: Make,
    count: int,
    out: Path,
    *,
    modality: str,
    labels: Sequence[int] = (),
    seed: int = 0,
    batch_size: int = 64,
    sample_rate: int = 0,
    description: dict[str, Any] | None = None,
    state: PartialState,
) -> int:
    """Make samples that are not there yet, and a ``manifest.json`` that names them all.

    Pictures are PNG. Clips are PNG as well, lossless, their frames one above the other. Sounds are WAV of float samples.

    Args:
        make: see ``Make``.
        count: how many samples the set has.
        out: folder; what it already holds of this set is kept.
        modality: "image", "video" or "audio".
        labels: class of each sample, or none.
        seed: of the first sample.
        batch_size: samples of a block.
        sample_rate: of sounds.
        description: everything that decides what the samples are, plain values; a set with another one is refused.
        state: this process among all.

    Returns:
        Number of samples this process wrote.

    Raises:
        ValueError: ``out`` holds another set.
    """
    items: list[dict[str, Any]] = []
    for number in range(count):
        named = {"label": int(labels[number])} if labels else {}
        stem = f"label-{labels[number]:04d}_" if labels else ""
        items.append({"file": f"{stem}seed-{seed + number:08d}{_SUFFIX[modality]}", **named, "seed": seed + number})
    manifest = json.loads(json.dumps({"task": "generate", "modality": modality, **(description or {}), "items": items}))
    place = out / "manifest.json"
    complete, frames = _check_same_set(place, manifest)
    blocks = [range(first, min(first + batch_size, count)) for first in range(0, count, batch_size)]
    missing = [block for block in blocks if not all((out / items[i]["file"]).is_file() for i in block)]
    state.wait_for_everyone()  # all have looked before anyone writes, so all share the same list
    complete = complete and not missing
    if state.is_main_process and not complete:
        write_json(place, {**manifest, "frames": frames, "complete": False})
    mine, written = missing[state.process_index :: state.num_processes], 0
    with tqdm(total=sum(map(len, mine)), desc="samples", disable=not state.is_local_main_process, delay=_QUIET) as bar:
        for block in mine:
            for number, sample in zip(block, make(block), strict=True):
                path = out / items[number]["file"]
                if not path.is_file():
                    _save(sample, path, modality, sample_rate)
                    written += 1
            bar.update(len(block))
    state.wait_for_everyone()
    if state.is_main_process and not complete:
        frames = _frames(out / items[0]["file"], description) if modality == "video" else 0
        write_json(place, {**manifest, "frames": frames, "complete": True})
    state.wait_for_everyone()
    return written


def described(pipe: Pipeline, sampling: Sampling, **more: Any) -> dict[str, Any]:
    """What decides a model's samples, for ``write_samples``.

    Args:
        pipe: the model.
        sampling: settings.
        **more: plain values.
    """
    size = list(pipe.config.signal_size)
    return {"sampling": dataclasses.asdict(sampling), "signal_size": size, **more}


def _check_same_set(path: Path, manifest: dict[str, Any]) -> tuple[bool, int]:
    """Refuse to mix samples of two sets in one folder; whether this one is complete, and the frames of its clips."""
    if not path.is_file():
        return False, 0
    found = read_json(path)
    before = found if isinstance(found, dict) else {}
    changed = [name for name, value in manifest.items() if before.get(name) != value]
    if "complete" not in before or changed:
        what = ", ".join(changed) or "its manifest"
        raise ValueError(
            f"{path.parent}: holds other samples ({what} differ); name another folder or give the same settings"
        )
    return bool(before["complete"]), int(before.get("frames", 0))


def _frames(first: Path, description: dict[str, Any] | None) -> int:
    """Frames of a clip: how many of its height are in the strip."""
    _, height, _ = (description or {})["signal_size"]
    with Image.open(first) as strip:
        return int(strip.height) // int(height)


def _save(sample: Any, path: Path, modality: str, sample_rate: int) -> None:
    if modality == "image":
        save_image(sample, path)
    elif modality == "video":
        save_image(Image.fromarray(np.concatenate(list(sample))), path)
    else:
        save_sound(sample, path, sample_rate, bits=32)


def _sounds(pipe: Pipeline, labels: list[int] | None, seeds: list[int], sampling: Sampling) -> list[Any]:
    codec = pipe.tokenizer
    assert isinstance(codec, AudioTokenizer), "the modality is audio"
    codebooks = pipe.transformer.num_codebooks if pipe.fine is None else codec.num_codebooks
    shape = (len(seeds), math.prod(pipe.axes), codebooks)
    hidden = torch.ones(shape, dtype=torch.bool)
    tokens = pipe.fill(
        torch.zeros(shape, dtype=torch.long), hidden, labels=labels or [], seeds=seeds, sampling=sampling
    )
    return list(pipe.decode(tokens)[..., : pipe.config.signal_size[0]])
