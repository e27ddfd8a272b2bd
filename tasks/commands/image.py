"""What the sub-commands of ``maskgen`` do: read files, call a task, write pictures, a grid and a manifest.

The signatures are the command line: names, types, defaults and help come from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from maskgen.checkpoint import build_config, read_json, write_json
from maskgen.sampling.settings import Sampling, current_sampling
from maskgen.tasks.commands.parts import ProgressBar, load_model, seed_list, write_manifest
from maskgen.tasks.commands.video import write_clips
from maskgen.tasks.evaluation.made.writing import image_name, write_evaluation_set
from maskgen.tasks.evaluation.sets.processes import process_state
from maskgen.tasks.image.class_swap import swap_class, swap_sampling
from maskgen.tasks.image.generation import generate
from maskgen.tasks.image.inpainting import inpaint
from maskgen.tasks.image.outpainting import outpaint
from maskgen.tasks.media.environment import environment
from maskgen.tasks.media.images import image_grid, save_image
from maskgen.tasks.pipeline import Pipeline

__all__ = ["generate_command", "inpaint_command", "outpaint_command", "regenerate", "swap_command"]


def generate_command(
    *,
    model: str | None = None,
    labels: str | int = "all",
    count: int = 1,
    per_class: int | None = None,
    seed: int = 0,
    out: Path = Path("out"),
    steps: int | None = None,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    batch_size: int = 64,
    device: str | None = None,
    manifest: Path | None = None,
) -> None:
    """Generate images or videos of given classes: a file each, a grid, and a manifest that makes the same ones again.

    Args:
        model: model folder, published name or Hub repository.
        labels: class numbers or names, separated by commas; ``all`` for every class. A model may have none.
        count: images or videos for each label.
        per_class: images for each label of an evaluation set, instead of ``count``: written as they come, without a grid;
            run the same command again to go on after an interruption, under ``accelerate launch`` to share the work.
        seed: of the first image; each further image takes the next.
        out: folder to write to.
        steps: decoding steps, instead of the model's own number.
        guidance: classifier-free guidance scale, instead of the model's own.
        sampling: all sampling settings, instead of the model's own.
        batch_size: images at a time.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
        manifest: make the images of this ``manifest.json`` again; only ``out``, ``batch_size`` and ``device`` matter then.
    """
    if manifest is not None:
        regenerate(manifest, out, batch_size=batch_size, device=device)
        return
    if per_class is not None and count != 1:
        raise ValueError("count: give either count (a few images and a grid) or per_class (an evaluation set)")
    state = process_state(device) if per_class is not None else None
    if state is not None and state.num_processes > 1 and device is None:
        device = str(state.device)
    pipe = load_model(model, device)
    video = pipe.modality == "video"
    if not video or per_class is not None:
        pipe.require("image", "generate")
    each = count if per_class is None else per_class
    if each < 1:
        raise ValueError(f"{'count' if per_class is None else 'per_class'}: got {each}, expected at least 1")
    wanted = list(range(pipe.transformer.num_classes)) if labels == "all" else pipe.class_ids(_split(labels))
    wanted = wanted or pipe.class_ids(None)
    ids = [label for label in wanted for _ in range(each)]
    chosen = pipe.sampling(sampling, steps, guidance)
    if state is not None:
        details = {"model": str(model), "per_class": each}
        write_evaluation_set(
            pipe, ids, out, seed=seed, sampling=chosen, batch_size=batch_size, description=details, state=state
        )
        if state.is_main_process:
            print(f"{len(ids)} images and manifest.json in {out}")  # noqa: T201
        return
    _generate(pipe, str(model), ids, list(range(seed, seed + len(ids))), chosen, out, batch_size)


def regenerate(manifest: Path, out: Path, *, batch_size: int = 64, device: str | None = None) -> None:
    """Make the images or videos of a manifest again.

    Args:
        manifest: written by ``generate_command``.
        out: folder to write to.
        batch_size: images at a time.
        device: where to run.

    Raises:
        ValueError: not such a manifest.
    """
    found = read_json(manifest)
    if not isinstance(found, dict) or found.get("task") != "generate":
        raise ValueError(f"{manifest}: not a manifest of `maskgen generate`")
    try:
        ids, seeds = ([int(item[name]) for item in found["items"]] for name in ("label", "seed"))
        model, settings = str(found["model"]), current_sampling(found["sampling"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{manifest}: damaged; expected model, sampling, and items with label and seed") from None
    chosen = build_config(Sampling, settings, str(manifest))
    if "per_class" in found:
        write_evaluation_set(
            load_model(model, device),
            ids,
            out,
            seed=min(seeds, default=0),
            sampling=chosen,
            batch_size=batch_size,
            description={"model": model, "per_class": found["per_class"]},
        )
        return
    _generate(load_model(model, device), model, ids, seeds, chosen, out, batch_size)


def inpaint_command(
    *,
    model: str,
    image: Path,
    mask: Path,
    label: str | int | None = None,
    count: int = 1,
    seed: int = 0,
    out: Path = Path("out"),
    dilation: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    device: str | None = None,
) -> None:
    """Repaint the white part of a mask; the rest of the image comes back untouched.

    Args:
        model: model folder, published name or Hub repository.
        image: picture of any size.
        mask: picture of the same size; white = repaint, black = keep.
        label: class number or name of what the picture shows; leave it out for a model without classes.
        count: variants, with seeds ``seed``, ``seed`` + 1, ...
        seed: of the first variant.
        out: folder to write to.
        dilation: tokens by which the repainted region grows.
        steps: decoding steps, instead of the model's own number.
        guidance: classifier-free guidance scale, instead of the model's own.
        sampling: all sampling settings, instead of the model's own.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
    """
    pipe, seeds = load_model(model, device), seed_list(seed, count)
    chosen = pipe.sampling(sampling, steps, guidance)
    with ProgressBar(chosen.steps) as callback:
        images = inpaint(
            pipe, image, mask, label=label, seeds=seeds, dilation=dilation, sampling=chosen, callback=callback
        )
    details = {"image": str(image), "mask": str(mask), "label": label, "dilation": dilation}
    _write_edits("inpaint", model, images, seeds, out, details | {"sampling": dataclasses.asdict(chosen)})


def outpaint_command(
    *,
    model: str,
    image: Path,
    label: str | int | None = None,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    count: int = 1,
    seed: int = 0,
    out: Path = Path("out"),
    sampling: Sampling | None = None,
    device: str | None = None,
) -> None:
    """Extend an image beyond its borders, as far as asked.

    Args:
        model: model folder, published name or Hub repository.
        image: picture of any size.
        label: class number or name of what the picture shows; leave it out for a model without classes.
        left: pixels to add.
        right: pixels to add.
        top: pixels to add.
        bottom: pixels to add.
        count: variants, with seeds ``seed``, ``seed`` + 1, ...
        seed: of the first variant.
        out: folder to write to.
        sampling: all sampling settings, instead of the model's own.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
    """
    pipe, seeds = load_model(model, device), seed_list(seed, count)
    chosen = pipe.sampling(sampling)
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    with ProgressBar(None) as callback:  # how many windows there are, only the task knows
        images = outpaint(pipe, image, label=label, **sides, seeds=seeds, sampling=chosen, callback=callback)
    details = {"image": str(image), "label": label, **sides, "sampling": dataclasses.asdict(chosen)}
    _write_edits("outpaint", model, images, seeds, out, details)


def swap_command(
    *,
    model: str,
    image: Path,
    box: tuple[int, int, int, int],
    label: str | int | None = None,
    count: int = 1,
    seed: int = 0,
    out: Path = Path("out"),
    steps: int | None = None,
    start_step: int = 2,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    device: str | None = None,
) -> None:
    """Replace what stands in a box by another class (the official MaskGIT editing).

    Args:
        model: model folder, published name or Hub repository.
        image: picture of any size.
        box: [top, left, height, width] in pixels.
        label: class number or name of what to put there; leave it out for a model without classes.
        count: variants, with seeds ``seed``, ``seed`` + 1, ...
        seed: of the first variant.
        out: folder to write to.
        steps: decoding steps; by default those of ``sampling``, or 12 (official).
        start_step: first step of the schedule that is run, official 2.
        guidance: classifier-free guidance scale, instead of the model's own.
        sampling: all sampling settings, instead of the model's own with the official 12 steps.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
    """
    pipe, seeds = load_model(model, device), seed_list(seed, count)
    chosen = swap_sampling(pipe, sampling, steps, guidance)
    with ProgressBar(max(0, chosen.steps - start_step)) as callback:
        images = swap_class(
            pipe,
            image,
            box=box,
            label=label,
            seeds=seeds,
            start_step=start_step,
            sampling=chosen,
            callback=callback,
        )
    details = {"image": str(image), "box": list(box), "label": label, "start_step": start_step}
    _write_edits("swap-class", model, images, seeds, out, details | {"sampling": dataclasses.asdict(chosen)})


def _generate(
    pipe: Pipeline, model: str, ids: list[int], seeds: list[int], chosen: Sampling, out: Path, batch_size: int
) -> None:
    if pipe.modality == "video":
        write_clips(pipe, model, ids, seeds, chosen, out, batch_size)
        return
    with ProgressBar(chosen.steps * -(-len(ids) // max(1, batch_size))) as callback:
        # Without classes there is nothing to choose; ``ids`` then say so for each picture.
        labels = ids if pipe.transformer.num_classes else None
        images = generate(pipe, labels, seeds=seeds, sampling=chosen, batch_size=batch_size, callback=callback)
    items = []
    for label, seed, image in zip(ids, seeds, images, strict=True):
        name = image_name(label, seed) if labels is not None else f"seed-{seed:08d}.png"
        save_image(image, out / name)
        items.append({"file": name, "label": label, "seed": seed})
    save_image(image_grid(images, min(len(images), 10)), out / "grid.png")
    description = {"task": "generate", "model": model, "sampling": dataclasses.asdict(chosen), "items": items}
    write_json(out / "manifest.json", description | {"environment": environment()})
    print(f"{len(images)} images, grid.png and manifest.json in {out}")  # noqa: T201


def _write_edits(
    task: str, model: str, images: Sequence[Image.Image], seeds: list[int], out: Path, details: dict[str, Any]
) -> None:
    items = []
    for seed, image in zip(seeds, images, strict=True):
        name = f"{task}_seed-{seed:08d}.png"
        save_image(image, out / name)
        items.append({"file": name, "seed": seed})
    write_manifest(task, model, items, out, details)
    print(f"{len(images)} image(s) and manifest.json in {out}")  # noqa: T201


def _split(labels: str | int) -> list[int | str]:
    parts = [part.strip() for part in str(labels).split(",")]
    if not all(parts):
        raise ValueError(f"labels: got {labels!r}, expected class numbers or names separated by commas")
    return list(parts)
