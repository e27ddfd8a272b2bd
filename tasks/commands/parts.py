"""What the sub-commands share: their common options, loading a model with clear errors, writing results, a progress bar."""

import dataclasses
import importlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from maskgen.checkpoint import write_json
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.request import Options
from maskgen.tasks.conditions.text.prompts import LongPrompts
from maskgen.tasks.media.results import (
    MANIFEST,
    check_results_folder,
    classes_told,
    environment,
    keep_earlier,
    result_name,
)
from maskgen.tasks.pipeline import Pipeline

Told = TypeVar("Told")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How results are sampled, and where they go.

    Attributes:
        count: results, with seeds ``seed``, ``seed`` + 1, ...; for each label where there are several.
        seed: of the first result.
        out: folder to write to.
        steps: decoding steps, instead of the number in the settings.
        guidance: classifier-free guidance scale, instead of that in the settings.
        sampling: settings that lie over the model's own: what is not named stays as the model has it.
        coarse_sampling: the same for the first stage of a cascade; ``guidance`` is of both stages, ``steps`` of the second.
        prompt: what the results show, in words; for models that were trained with texts.
        negative_prompt: what guidance pushes away from, instead of the empty text.
        long_prompts: what becomes of a prompt beyond the text encoder's window: ``cut`` (and said) or ``refuse``.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
        plugins: modules of your own to import first, whose classes a model folder may then name; see
            ``examples/new_modality``.
    """

    count: int = 1
    seed: int = 0
    out: Path = Path("out")
    steps: int | None = None
    guidance: float | None = None
    sampling: Sampling | None = None
    coarse_sampling: Sampling | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    long_prompts: LongPrompts = "cut"
    device: str | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count: got {self.count}, expected at least 1")

    def pipeline(self, model: str | None, device: str | None = None) -> Pipeline:
        """A model, once the plugins are imported; ``device`` instead of the run's. See ``load_model``.

        The first stage of a cascade has the settings of this run, so that what is sampled is what the manifest says.

        Raises:
            ValueError: settings for a first stage that there is not.
        """
        for name in self.plugins:
            importlib.import_module(name)
        pipe = load_model(model, device or self.device)
        if pipe.coarse is not None:
            pipe.coarse.set_sampling(pipe.coarse.sampling(self.coarse_sampling, guidance=self.guidance))
        elif self.coarse_sampling is not None:
            raise ValueError("coarse_sampling: got settings, but this model is no cascade; leave them out")
        return pipe

    def words_told(self) -> dict[str, str]:
        """Prompt and negative prompt for a manifest, where there are any."""
        told = {"prompt": self.prompt, "negative_prompt": self.negative_prompt}
        return {name: text for name, text in told.items() if text is not None}

    def settings(self, pipe: Pipeline) -> Sampling:
        """The sampling settings of this run for a model, see ``Pipeline.sampling``."""
        return pipe.sampling(self.sampling, self.steps, self.guidance)


@dataclass(frozen=True, kw_only=True)
class EditRun(Run):
    """What is edited with which model, how results are sampled, and where they go.

    Attributes:
        model: model folder, published name or Hub repository.
        label: class number or name of what the result shows; leave it out for a model without classes.
    """

    model: str
    label: str | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label is not None:  # YAML makes an int of 7; on the command line it is a text, and may be a name
            object.__setattr__(self, "label", str(self.label))

    @property
    def seeds(self) -> list[int]:
        """One a result."""
        return list(range(self.seed, self.seed + self.count))

    def load(self) -> Pipeline:
        """The model, see ``Run.pipeline``."""
        check_results_folder(self.out)
        return self.pipeline(self.model)

    def options(self, sampling: Sampling, callback: Callable[[SampleStep], None]) -> Options:
        """What a task is called with, for all results.

        Args:
            sampling: settings, see ``settings``.
            callback: see ``ProgressBar``.
        """
        return Options(
            label=self.label,
            seeds=self.seeds,
            sampling=sampling,
            callback=callback,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            long_prompts=self.long_prompts,
        )

    def write(
        self, task: str, suffix: str, writers: Iterable[Callable[[Path], Told]]
    ) -> tuple[list[dict[str, Any]], list[Told]]:
        """``write_results``, with files that are named by task and seed."""
        named = (({"seed": seed}, writer) for seed, writer in zip(self.seeds, writers, strict=True))
        return write_results(self.out, named, prefix=f"{task}_", suffix=suffix)

    def finish(
        self,
        pipe: Pipeline,
        task: str,
        items: list[dict[str, Any]],
        sampling: Sampling,
        details: dict[str, Any],
        what: str,
    ) -> None:
        """``write_manifest``, with what every edit says."""
        details = details | {"label": self.label} | self.words_told()
        if self.label is not None:
            with warnings.catch_warnings(action="ignore"):  # what the label was taken for was said
                ids = pipe.class_ids(self.label)
            details |= {"classes": classes_told(ids, pipe.config.class_names)}
        write_manifest(task, self.model, items, self.out, details | sampling_told(pipe, sampling), what)


def load_model(model: str | None, device: str | None) -> Pipeline:
    """``Pipeline.from_pretrained`` on a device that is known to work.

    Raises:
        ValueError: no model named, or no such device here.
    """
    if model is None:
        raise ValueError(
            "model: got none, expected a model folder, a published name or a Hub repository (--model runs/demo)"
        )
    check_device(device)
    return Pipeline.from_pretrained(model, device=device)


def check_device(device: str | None) -> None:
    """Refuse a device that cannot be used, so that a slip is one line.

    Raises:
        ValueError: no such device here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        usable = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        usable += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(
            f"device: got {device!r}, which cannot be used here; expected {' or '.join(usable)}, or leave it out"
        ) from None


def describe_part(module: torch.nn.Module) -> dict[str, Any]:
    """Class and number of parameters."""
    return {"class": type(module).__name__, "parameters": sum(p.numel() for p in module.parameters())}


def sampling_told(pipe: Pipeline, sampling: Sampling) -> dict[str, Any]:
    """The settings that results were sampled with, for a manifest: also those of another stage, where there is one."""
    return {"sampling": dataclasses.asdict(sampling)} | {
        name: dataclasses.asdict(settings) for name, settings in pipe.other_sampling.items()
    }


def write_results(
    out: Path, results: Iterable[tuple[dict[str, Any], Callable[[Path], Told]]], *, prefix: str = "", suffix: str
) -> tuple[list[dict[str, Any]], list[Told]]:
    """Write a file for each result, as they are made.

    Args:
        out: folder of the files.
        results: ``seed`` and perhaps ``label`` (``NO_LABEL`` for none) of each, which name its file, and what else the
            manifest shall say; what writes it.
        prefix: of the files' names.
        suffix: of the files' names, which chooses their format.

    Returns:
        The items of the manifest, and what writing each gave back.
    """
    items: list[dict[str, Any]] = []
    told = []
    for of, write in results:
        name = result_name(of["seed"], suffix, of.get("label"), prefix)
        told.append(write(out / name))
        items.append({"file": name, **of})
    return items, told


def write_manifest(
    task: str, model: str, items: list[dict[str, Any]], out: Path, details: dict[str, Any], what: str
) -> None:
    """Write ``manifest.json``: what was done, with which model, and which file came of which seed; then say so.

    Args:
        task: its name.
        model: as it was named.
        items: one for each file written.
        out: folder of the files.
        details: settings of the task.
        what: the files, for the line on the screen.
    """
    content = {"task": task, "model": model, **details, "items": items, "environment": environment()}
    told = keep_earlier(out, [item["file"] for item in items])
    write_json(out / MANIFEST, content)
    print(f"{what} and manifest.json in {out}{f' ({told})' if told else ''}")  # noqa: T201


class ProgressBar:
    """A progress bar that is also a sampler callback; shown from the first step on, so that a mistake is one line.

    Args:
        total: steps to come, or None if nobody knows.
    """

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._bar: Any = None

    def __enter__(self) -> Callable[[SampleStep], None]:
        def advance(step: SampleStep) -> None:
            if self._bar is None:
                self._bar = tqdm(total=self._total, desc="sample", unit="step")
            self._bar.update()

        return advance

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
