"""``maskgen generate``: results from nothing but a class, of a model of any modality.

What the modalities differ in is the table ``GENERATED``: how results are made, how they are written, what shows them all.

The signatures are the command line: names, types, defaults and help come from here.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from PIL import Image
from torch import Tensor

from maskgen.checkpoint import build_config, read_json
from maskgen.sampling.settings import Sampling, with_current_sampling
from maskgen.tasks.commands.parts import ProgressBar, Run, sampling_told, write_manifest, write_results
from maskgen.tasks.conditions.classes import class_places, split_labels
from maskgen.tasks.conditions.request import SamplingOptions
from maskgen.tasks.evaluation.made.writing import write_evaluation_set
from maskgen.tasks.evaluation.sets.processes import process_state
from maskgen.tasks.image.generation import generate
from maskgen.tasks.media.images import image_grid, save_image
from maskgen.tasks.media.results import check_results_folder, classes_told
from maskgen.tasks.media.video.backends import Frames
from maskgen.tasks.media.video.files import save_video
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import clip_size, output_rate
from maskgen.tasks.video.generation import generate_video
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.base import OwnModality

_FEW = 10  # classes that are shown where nobody says which


def generate_command(
    run: Run,
    *,
    model: str | None = None,
    labels: str | int | None = None,
    per_class: int | None = None,
    batch_size: int = 64,
    manifest: Path | None = None,
) -> None:
    """Generate images, videos or sounds of given classes: a file each, a manifest to make them again, and a grid.

    Args:
        run: see ``Run``.
        model: model folder, published name or Hub repository.
        labels: class numbers or names, separated by commas; ``all`` for every class. If left out, all of at most ten, ten
            that are spread evenly over more; of an evaluation set, all. A model may have none.
        per_class: images for each label of an evaluation set, instead of ``count``: written as they come, without a grid;
            run the same command again to go on after an interruption, under ``accelerate launch`` to share the work.
        batch_size: results at a time.
        manifest: make what this ``manifest.json`` names again; only ``out``, ``batch_size``, ``device`` and ``plugins``
            matter then.
    """
    if manifest is not None:
        _regenerate(run, manifest, batch_size)
        return
    if per_class is None:
        check_results_folder(run.out)
        pipe = run.pipeline(model)
        _kind(pipe)
        ids = _class_ids(pipe, _some(pipe) if labels is None else labels, run.count)
        seeds = range(run.seed, run.seed + len(ids))
        _generate(pipe, str(model), ids, seeds, run.settings(pipe), run.out, batch_size)
        return
    if run.count != 1:
        raise ValueError("count: give either count (a few images and a grid) or per_class (an evaluation set)")
    if per_class < 1:
        raise ValueError(f"per_class: got {per_class}, expected at least 1")
    state = process_state(run.device)
    pipe = run.pipeline(model, str(state.device) if state.num_processes > 1 and run.device is None else None)
    pipe.require("image", "generate")
    ids = _class_ids(pipe, labels, per_class)
    write_evaluation_set(
        *(pipe, ids, run.out),
        seed=run.seed,
        sampling=run.settings(pipe),
        batch_size=batch_size,
        description={"model": str(model), "per_class": per_class},
        state=state,
    )
    if state.is_main_process:
        print(f"{len(ids)} images and manifest.json in {run.out}")  # noqa: T201


def _regenerate(run: Run, manifest: Path, batch_size: int) -> None:
    """Make the results of a manifest again."""
    found = read_json(manifest)
    if not isinstance(found, dict) or found.get("task") != "generate":
        raise ValueError(f"{manifest}: not a manifest of `maskgen generate`")
    try:
        ids, seeds = ([int(item[name]) for item in found["items"]] for name in ("label", "seed"))
        model, found = str(found["model"]), with_current_sampling({"fine_sampling": None, **found})
        settings = found["sampling"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{manifest}: damaged; expected model, sampling, and items with label and seed") from None
    sampling = build_config(Sampling, settings, str(manifest))
    pipe = run.pipeline(model)
    if found["fine_sampling"] is not None:
        fine = build_config(Sampling, found["fine_sampling"], str(manifest))
        pipe.config = dataclasses.replace(pipe.config, fine_sampling=fine)
    if found.get("classes") and pipe.config.class_names:  # which may have been trained anew, with other classes
        told = tuple(found["classes"].get(str(number), "") for number in range(max(ids, default=-1) + 1))
        places = class_places(ids, told, pipe.config.class_names, str(manifest), "the model")
        ids = [places[number] for number in ids]
    if "per_class" in found:
        details = {"model": model, "per_class": found["per_class"]}
        first = min(seeds, default=0)
        write_evaluation_set(
            pipe, ids, run.out, seed=first, sampling=sampling, batch_size=batch_size, description=details
        )
        return
    check_results_folder(run.out)
    _generate(pipe, model, ids, seeds, sampling, run.out, batch_size)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What ``maskgen generate`` knows of a modality.

    Attributes:
        name: of the results, for the line on the screen.
        make: ``make(pipe, labels, seeds=, batch_size=, sampling=, callback=)`` gives one result a seed; labels are class
            ids, or None for a model without classes.
        save: ``save(pipe, result, path)`` writes a result.
        suffix: of the results' files, by which ``save`` may choose a format.
        grid: ``grid(pipe, results, out)`` writes a file that shows results together, and gives back its name; or None.
        most_shown: how many of the results that shows; None for all.
        counted: whether a batch takes as many steps as the settings say, for the progress bar.
    """

    name: str
    make: Callable[..., Iterable[Any]]
    save: Callable[[Pipeline, Any, Path], object]
    suffix: Callable[[Pipeline], str]
    grid: Callable[[Pipeline, Sequence[Any], Path], str] | None = None
    most_shown: int | None = None
    counted: bool = False


def _clips(
    pipe: Pipeline, labels: list[int] | None, *, seeds: Sequence[int], batch_size: int, **options: Any
) -> Iterator[Frames]:
    for first in range(0, len(seeds), batch_size):
        part = slice(first, first + batch_size)
        yield from generate_video(pipe, None if labels is None else labels[part], seeds=seeds[part], **options)


def _sounds(pipe: Pipeline, labels: list[int] | None, **options: Any) -> Iterable[Tensor]:
    from maskgen.tasks.audio import generate_sounds  # libraries of sound

    return generate_sounds(pipe, labels, **options)


def _save_sound(pipe: Pipeline, sound: Tensor, path: Path) -> None:
    from maskgen.tasks.media.audio.files import save_sound

    assert isinstance(pipe.tokenizer, AudioTokenizer)
    save_sound(sound, path, pipe.tokenizer.sample_rate)


def _clip_suffix(pipe: Pipeline) -> str:
    """H.264 has no odd sizes."""
    _, height, width = clip_size(pipe)
    return ".gif" if height % 2 or width % 2 else ".mp4"


def _image_grid(pipe: Pipeline, images: Sequence[Image.Image], out: Path) -> str:
    save_image(_tiled(images), out / "grid.png")
    return "grid.png"


def _clip_grid(pipe: Pipeline, clips: Sequence[Frames], out: Path) -> str:
    frames = [_tiled([Image.fromarray(clip[place]) for clip in clips]) for place in range(clip_size(pipe)[0])]
    save_video(frames, out / "grid.gif", min(float(output_rate(pipe)), 50.0))  # more no browser shows
    return "grid.gif"


def _tiled(images: Sequence[Image.Image]) -> Image.Image:
    return image_grid(images, min(len(images), 10))


GENERATED = {
    "image": Generated(
        name="images",
        make=generate,
        save=lambda pipe, image, path: save_image(image, path),
        suffix=lambda pipe: ".png",
        grid=_image_grid,
        counted=True,
    ),
    "video": Generated(
        name="clip(s)",
        make=_clips,
        save=lambda pipe, clip, path: save_video(clip, path, output_rate(pipe)),
        suffix=_clip_suffix,
        grid=_clip_grid,
        most_shown=100,
    ),
    "audio": Generated(name="sound(s)", make=_sounds, save=_save_sound, suffix=lambda pipe: ".wav", counted=True),
}
"""By modality of the model."""


def _own_results(
    pipe: Pipeline, labels: list[int] | None, *, batch_size: int, **options: Unpack[SamplingOptions]
) -> Iterable[Tensor]:
    return pipe.generate(pipe.generation(labels, options), batch_size=batch_size)


def _own(pipe: Pipeline) -> OwnModality:
    assert isinstance(pipe.tokenizer, OwnModality)
    return pipe.tokenizer


def _write_own(pipe: Pipeline, signal: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _own(pipe).write(signal, path)


_OWN = Generated(
    name="file(s)", make=_own_results, save=_write_own, suffix=lambda pipe: _own(pipe).suffix, counted=True
)


def _kind(pipe: Pipeline) -> Generated:
    if isinstance(pipe.tokenizer, OwnModality):
        return _OWN
    if pipe.modality not in GENERATED:
        expected = " or ".join(GENERATED)
        raise ValueError(f"generate needs a model of {expected}, but this model's modality is {pipe.modality}")
    return GENERATED[pipe.modality]


def _generate(
    pipe: Pipeline, model: str, ids: Sequence[int], seeds: Sequence[int], sampling: Sampling, out: Path, batch_size: int
) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    kind = _kind(pipe)
    # Without classes there is nothing to choose; ``ids`` then say so for each result.
    labels = list(ids) if pipe.transformer.num_classes else None
    shown: list[Any] = []

    def written(made: Iterable[Any]) -> Iterator[tuple[dict[str, int], Callable[[Path], object]]]:
        for label, seed, result in zip(ids, seeds, made, strict=True):
            if kind.grid is not None and (kind.most_shown is None or len(shown) < kind.most_shown):
                shown.append(result)
            yield {"label": label, "seed": seed}, partial(kind.save, pipe, result)

    with ProgressBar(sampling.steps * -(-len(ids) // batch_size) if kind.counted else None) as callback:
        made = kind.make(pipe, labels, seeds=seeds, batch_size=batch_size, sampling=sampling, callback=callback)
        items, _ = write_results(out, written(made), suffix=kind.suffix(pipe))
    grid = "" if kind.grid is None else f", {kind.grid(pipe, shown, out)}"
    details = sampling_told(pipe, sampling) | {"classes": classes_told(ids, pipe.config.class_names)}
    write_manifest("generate", model, items, out, details, f"{len(items)} {kind.name}{grid}")


def _some(pipe: Pipeline) -> list[int] | None:
    """What nobody named: all classes (None) of a few, some of many."""
    classes = pipe.transformer.num_classes
    if classes <= _FEW:
        return None
    chosen, names = [number * classes // _FEW for number in range(_FEW)], pipe.config.class_names
    told = ", ".join(names[number] if names else str(number) for number in chosen)
    warnings.warn(
        f"labels: none given, so {_FEW} of {classes} classes ({told}); --labels all for every one", stacklevel=2
    )
    return chosen


def _class_ids(pipe: Pipeline, labels: str | int | list[int] | None, each: int) -> list[int]:
    """Of all results, ``NO_LABEL`` for those of a model without classes; all classes for None, and for a text ``all`` that
    is no name of one.
    """
    names = pipe.config.class_names
    if labels is None or (labels == "all" and "all" not in names):
        ids = list(range(pipe.transformer.num_classes)) or pipe.class_ids(None)
    else:
        ids = pipe.class_ids(labels if isinstance(labels, list) else split_labels(str(labels), names))
    return [label for label in ids for _ in range(each)]
