"""``maskgen generate``: results from nothing but a class or a text, of a model of any modality.

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
from maskgen.conditioning import NO_LABEL
from maskgen.sampling.settings import Sampling, with_current_sampling
from maskgen.tasks.commands.parts import ProgressBar, Run, sampling_told, write_manifest, write_results
from maskgen.tasks.conditions.classes import class_places, split_labels
from maskgen.tasks.conditions.request import SamplingOptions
from maskgen.tasks.conditions.text.prompts import LongPrompts
from maskgen.tasks.evaluation.made.writing import write_evaluation_set
from maskgen.tasks.evaluation.sets.processes import process_state
from maskgen.tasks.image.generation import generate
from maskgen.tasks.media.images import broadcast, image_grid, save_image
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
    prompts: Path | None = None,
    per_class: int | None = None,
    batch_size: int = 64,
    manifest: Path | None = None,
) -> None:
    """Generate images, videos or sounds of classes or texts: a file each, a manifest to make them again, and a grid.

    Args:
        run: see ``Run``.
        model: model folder, published name or Hub repository.
        labels: class numbers or names, separated by commas; ``all`` for every class. If left out, all of at most ten, ten
            that are spread evenly over more; of an evaluation set, all. A model may have none, and none is needed beside a
            prompt.
        prompts: text file with a prompt a line, in place of ``prompt``; ``count`` results of each.
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
        texts = _texts(run, prompts)
        check_results_folder(run.out)
        pipe = run.pipeline(model)
        _kind(pipe)
        if texts is None:
            ids = _class_ids(pipe, _some(pipe) if labels is None else labels, run.count)
        else:
            ids = pipe.class_ids(None) if labels is None else _class_ids(pipe, labels, 1)
            pairs = [pair for pair in zip(*broadcast(labels=ids, prompts=texts), strict=True) for _ in range(run.count)]
            ids, texts = [label for label, _ in pairs], [text for _, text in pairs]
        seeds = range(run.seed, run.seed + len(ids))
        asked = _Asked(ids, seeds, run.settings(pipe), texts, run.negative_prompt, run.long_prompts)
        _generate(pipe, str(model), asked, run.out, batch_size)
        return
    if run.prompt is not None or prompts is not None:
        raise ValueError(
            "per_class: got it with a prompt; an evaluation set is of classes: give prompts and count instead"
        )
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
        model, found = (
            str(found["model"]),
            with_current_sampling({"fine_sampling": None, "coarse_sampling": None, **found}),
        )
        settings = found["sampling"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{manifest}: damaged; expected model, sampling, and items with label and seed") from None
    sampling = build_config(Sampling, settings, str(manifest))
    pipe = run.pipeline(model)
    if found["fine_sampling"] is not None:
        fine = build_config(Sampling, found["fine_sampling"], str(manifest))
        pipe.config = dataclasses.replace(pipe.config, fine_sampling=fine)
    if pipe.coarse is not None and found["coarse_sampling"] is not None:
        pipe.coarse.set_sampling(build_config(Sampling, found["coarse_sampling"], str(manifest)))
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
    words = [str(item["prompt"]) for item in found["items"]] if "prompt" in found["items"][0] else None
    asked = _Asked(ids, seeds, sampling, words, found.get("negative_prompt"))
    _generate(pipe, model, asked, run.out, batch_size)


def _texts(run: Run, prompts: Path | None) -> list[str] | None:
    """The prompts of a call; None where there are none."""
    if prompts is None:
        return None if run.prompt is None else [run.prompt]
    if run.prompt is not None:
        raise ValueError("prompts: give either prompt (one text) or prompts (a file with one a line)")
    if not prompts.is_file():
        raise FileNotFoundError(f"{prompts}: no such file; expected a text file with a prompt a line")
    try:
        lines = prompts.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{prompts}: not UTF-8 text ({error}); save it as UTF-8") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"{prompts}: got no prompt, expected one a line")
    return texts


@dataclass(frozen=True)
class _Asked:
    """What is made: a class id, a seed and perhaps a prompt for each result."""

    ids: Sequence[int]
    seeds: Sequence[int]
    sampling: Sampling
    prompts: Sequence[str] | None = None
    negative: str | None = None
    long: LongPrompts = "cut"

    @property
    def options(self) -> dict[str, Any]:
        """For ``Generated.make``."""
        words = {"prompt": self.prompts, "negative_prompt": self.negative, "long_prompts": self.long}
        return {"seeds": self.seeds, "sampling": self.sampling, **words}

    def items(self) -> Iterator[dict[str, Any]]:
        """What the manifest says of each."""
        for number, (label, seed) in enumerate(zip(self.ids, self.seeds, strict=True)):
            yield {"label": label, "seed": seed} | ({} if self.prompts is None else {"prompt": self.prompts[number]})


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What ``maskgen generate`` knows of a modality.

    Attributes:
        name: of the results, for the line on the screen.
        make: ``make(pipe, labels, batch_size=, **options)`` gives one result a seed; labels are class ids, or None for a
            model without classes; for options see ``maskgen.tasks.conditions.request.SamplingOptions``.
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
    pipe: Pipeline,
    labels: list[int] | None,
    *,
    seeds: Sequence[int],
    batch_size: int,
    prompt: Any = None,
    **options: Any,
) -> Iterator[Frames]:
    for first in range(0, len(seeds), batch_size):
        part = slice(first, first + batch_size)
        texts = None if prompt is None else prompt[part]
        given = None if labels is None else labels[part]
        yield from generate_video(pipe, given, seeds=seeds[part], prompt=texts, **options)


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


def _generate(pipe: Pipeline, model: str, asked: _Asked, out: Path, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    kind = _kind(pipe)
    labels = None if set(asked.ids) == {NO_LABEL} else list(asked.ids)
    shown: list[Any] = []

    def written(made: Iterable[Any]) -> Iterator[tuple[dict[str, Any], Callable[[Path], object]]]:
        for item, result in zip(asked.items(), made, strict=True):
            if kind.grid is not None and (kind.most_shown is None or len(shown) < kind.most_shown):
                shown.append(result)
            yield item, partial(kind.save, pipe, result)

    batches = -(-len(asked.ids) // batch_size)
    with ProgressBar(asked.sampling.steps * batches if kind.counted else None) as callback:
        made = kind.make(pipe, labels, batch_size=batch_size, callback=callback, **asked.options)
        items, _ = write_results(out, written(made), suffix=kind.suffix(pipe))
    grid = "" if kind.grid is None else f", {kind.grid(pipe, shown, out)}"
    details = sampling_told(pipe, asked.sampling) | {"classes": classes_told(asked.ids, pipe.config.class_names)}
    if asked.negative is not None:
        details["negative_prompt"] = asked.negative
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
