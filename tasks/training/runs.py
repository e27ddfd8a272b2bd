"""Folders of training runs: what decided a run's outcome, whether it is finished, and what may go on in it."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskgen.checkpoint import read_json, write_json
from maskgen.data import Source
from maskgen.sampling.settings import with_current_sampling
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.broken import count_broken
from maskgen.training.objective import Objective
from maskgen.training.trainer import Trainer

Say = Callable[[str], None]


def run_stage(
    run: Path,
    title: str,
    parts: Mapping[str, Any],
    make: Callable[[], tuple[Objective, Source]],
    *,
    finish: Callable[[], object] = lambda: None,
    say: Say = print,
) -> None:
    """One stage of a training, from its seed to its last file; an interrupted one goes on, a finished one is reused.

    Args:
        run: folder of the run.
        title: of the stage, for ``say`` and the progress bar.
        parts: everything that decides the outcome, see ``describe``; among them ``data`` and ``settings``.
        make: builds what is trained and gives its training examples, once torch is seeded.
        finish: called after the training, before the run counts as finished.
        say: told what happens.

    Raises:
        ValueError: the folder holds a run with other settings, and what ``make`` refuses.
    """
    description, data, settings = describe(**parts), parts["data"], parts["settings"]
    if finished_before(run, description, title, say):
        return
    torch.manual_seed(settings.seed)
    skipped = run / "skipped.jsonl"
    data.log_skipped(skipped)
    objective, source = make()
    trainer = Trainer(objective, source, settings, run, title=title)
    # Write run.json after validation, so that a refused run does not claim the folder.
    write_json(run / "run.json", {**description, "finished": False})
    trainer.fit()
    if count := count_broken(skipped):
        say(f"{title}: {count} broken examples were skipped, see {skipped}")
    finish()
    write_json(run / "run.json", {**description, "finished": True})


def describe(**parts: Any) -> dict[str, Any]:
    """Everything that decides a run's outcome, as plain values.

    Args:
        **parts: settings (dataclasses), modules built from a config, data sets, and plain values.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if isinstance(value, nn.Module):
            return {"class": type(value).__name__, "config": dataclasses.asdict(value.config)}  # type: ignore[call-overload]
        if isinstance(value, SignalData):
            examples = {"train": len(value.train()), "test": len(value.test() or ())}
            arguments = {
                name: found
                for name, found in vars(value).items()
                if not name.startswith("_") and isinstance(found, bool | int | float | str | tuple)
            }
            return {"class": type(value).__name__, "class_names": value.class_names, **arguments, **examples}
        return value

    return {name: plain(value) for name, value in parts.items()}


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer's folder; its checkpoints, logs and samples stay behind."""
    if source.resolve() == target.resolve():
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, target)


def finished_before(run: Path, description: dict[str, Any], title: str, say: Say) -> bool:
    """Compare with what the folder holds; True if that run is finished and can be used as it is.

    Args:
        run: folder of the run, which need not exist.
        description: from ``describe``.
        title: of the stage, for ``say``.
        say: told of a run that is reused.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    path = run / "run.json"
    if not path.is_file():
        return False
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not written by maskgen; choose another output folder or delete this one")
    finished = bool(found.pop("finished", False))
    if not finished and not any((run / "checkpoints").glob("step-*")):
        return False  # it stopped before anything was kept, so other settings do no harm
    found, expected = with_current_sampling(_in_todays_words(found)), _plain_json(description)
    changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if changed:
        raise ValueError(
            f"{run}: holds a run with other settings ({', '.join(changed)}); choose another output folder or delete this one"
        )
    if finished:
        say(f"{title}: finished before, reused from {run}")
    return finished


def _in_todays_words(found: dict[str, Any]) -> dict[str, Any]:
    """A description by an earlier version as it would be written now; one of today stays as it is."""
    found = dict(found)
    if "codec" in found:
        found["tokenizer"] = {"class": "AudioCodec", "config": found.pop("codec")}
    if "judging" in found:
        found["critic_settings"] = found.pop("judging")
    tokenizer, loss = found.get("tokenizer"), dict(found.get("loss") or {})
    if isinstance(tokenizer, dict) and "class" not in tokenizer:
        found["tokenizer"] = {"class": "VQGAN", "config": tokenizer}
        loss = {"lecam_decay": 0.999, "validation": 512, **loss}
    if "loss" in found:
        # Two weights of codecs that were always 1.
        always = {"waveform_weight": 1.0, "spectral_weight": 1.0}
        found["loss"] = {name: value for name, value in loss.items() if always.get(name, -1) != value}
    settings = found.get("settings")
    if isinstance(settings, dict) and "most_in_a_row" in settings.get("guard", {}):
        guard = dict(settings["guard"])
        guard["max_consecutive_skips"] = guard.pop("most_in_a_row")
        found["settings"] = {**settings, "guard": guard}
    masking = found.get("masking")
    if isinstance(masking, dict) and masking.get("loss_on") == "hidden":
        found["masking"] = {**masking, "loss_on": "masked"}
    return found


def _plain_json(value: Any) -> Any:
    """What a value looks like after a trip through JSON: tuples become lists."""
    if isinstance(value, dict):
        return {str(key): _plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(item) for item in value]
    return value
