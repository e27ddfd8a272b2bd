"""Folders of training runs: what decided a run's outcome, whether it is finished, and what may go on in it."""

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from maskgen.checkpoint import file_digest, read_json, write_json
from maskgen.data import Source
from maskgen.models.context import ContextConfig
from maskgen.sampling.settings import with_current_sampling
from maskgen.tasks.data.broken import count_broken
from maskgen.tasks.data.identity import describe, differences, refuse_others
from maskgen.training.accelerator import check_launch
from maskgen.training.objective import Objective
from maskgen.training.trainer import Trainer

Say = Callable[[str], None]

_REMEDY = "give --again to train anew (what is there is set aside), or name another output folder"

# What a run writes, how often, and who reads its data: none of it changes what is learnt.
_HARMLESS = ("log_every", "validate_every", "show_every", "checkpoint_every", "keep_last", "workers", "tracker")

_WEIGHTS = "model.safetensors"

_OWN = ("best", "checkpoints", "samples", "logs", "log.jsonl", "skipped.jsonl", "run.json", _WEIGHTS, "config.json")


def run_stage(
    run: Path,
    title: str,
    parts: Mapping[str, Any],
    make: Callable[[], tuple[Objective, Source]],
    *,
    finish: Callable[[], object] = lambda: None,
    again: bool = False,
    say: Say = print,
) -> None:
    """One stage of a training, from its seed to its last file; an interrupted one goes on, a finished one is reused.

    Args:
        run: folder of the run.
        title: of the stage, for ``say`` and the progress bar.
        parts: everything that decides the outcome, see ``maskgen.tasks.data.identity.describe``; ``data`` and ``settings``
            are among them.
        make: builds what is trained and gives its training examples, once torch is seeded.
        finish: called after the training, before the run counts as finished.
        again: train anew; an earlier run in the folder is set aside.
        say: told what happens.

    Raises:
        ValueError: the folder holds another run, what ``make`` refuses, and a launch that ``check_launch`` refuses.
    """
    description, data, settings = describe(**parts), parts["data"], parts["settings"]
    if not again and finished_before(run, description, title, say):
        return
    check_launch(settings)  # before anything is tokenized
    torch.manual_seed(settings.seed)
    skipped = run / "skipped.jsonl"
    if not again:
        data.log_skipped(skipped)
    objective, source = make()
    if again:  # nothing refuses any more
        set_aside(run, title, say)
        data.log_skipped(skipped)
    trainer = Trainer(objective, source, settings, run, title=title)
    # Write run.json after validation, so that a refused run does not claim the folder.
    write_json(run / "run.json", {**description, "finished": False})
    trainer.fit()
    if count := count_broken(skipped):
        say(f"{title}: {count} broken examples were skipped, see {skipped}")
    finish()
    weights = {"weights": file_digest(run / _WEIGHTS)}
    write_json(run / "run.json", {**description, **weights, "finished": True})


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

    What a run writes and how often, and its loader processes, may change. It may grow, too: with more steps it goes on.

    Args:
        run: folder of the run, which need not exist.
        description: from ``describe``.
        title: of the stage, for ``say``.
        say: told of a run that is reused.

    Raises:
        ValueError: the folder holds another run, or one that cannot grow.
    """
    path = run / "run.json"
    if not path.is_file():
        return False
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not written by maskgen; choose another output folder or delete this one")
    weights = found.pop("weights", None)  # folders of before do not say
    finished, kept = bool(found.pop("finished", False)), any((run / "checkpoints").glob("step-*"))
    if not finished and not kept:  # it stopped before anything was kept, so another run does no harm
        if differences(found.get("data"), description.get("data")):
            (run / "skipped.jsonl").unlink(missing_ok=True)  # was of its own data
        return False
    before = with_current_sampling(_in_todays_words(found))
    ended, wanted = (which.get("settings", {}).get("steps", 0) for which in (before, description))
    refuse_others(run, _decisive(before, wanted), _decisive(description, wanted), "another run", _REMEDY)
    if "files" in description.get("data", {}) and "files" not in before["data"]:
        say(f"{title}: {run} does not say which files it was trained on (an earlier maskgen); taken for these")
    if wanted > ended:
        if not kept:
            raise ValueError(
                f"{run}: ended after {ended} steps and has no checkpoint to go on from to {wanted}; {_REMEDY}"
            )
        say(f"{title}: goes on from {ended} to {wanted} steps, its learning rate as in a run of {wanted}")
    elif finished:
        if weights is not None:
            now = file_digest(run / _WEIGHTS)
            refuse_others(run, {"weights": weights}, {"weights": now}, "other weights than its run ended with", _REMEDY)
        say(f"{title}: finished before, reused from {run}")
    return finished and wanted <= ended


def set_aside(run: Path, title: str, say: Say) -> None:
    """Move an earlier run in a folder into ``earlier-<n>`` there; what else the folder holds stays.

    Of several processes of a launch the first does it, and the others find it done when training begins.

    Args:
        run: folder of the run, which need not exist.
        title: of the stage, for ``say``.
        say: told of it.
    """
    present = [name for name in _OWN if (run / name).exists()]
    if not present or os.environ.get("RANK", "0") != "0":
        return
    number = next(number for number in itertools.count(1) if not (run / f"earlier-{number}").exists())
    (run / f"earlier-{number}").mkdir()
    for name in present:
        (run / name).rename(run / f"earlier-{number}" / name)
    say(f"{title}: the run of before is in {run / f'earlier-{number}'}")


def _decisive(description: dict[str, Any], steps: int) -> dict[str, Any]:
    """A description without what does not change the outcome; a run that is to grow has the ``steps`` wanted now."""
    settings = description.get("settings")
    if not isinstance(settings, dict):
        return description
    kept = {name: value for name, value in settings.items() if name not in _HARMLESS}
    return {**description, "settings": kept | {"steps": max(kept.get("steps", 0), steps)}}


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
    for name in ("transformer", "critic"):  # had no context
        part = found.get(name)
        if isinstance(part, dict) and part.get("class") == "ModernTransformer":
            told = json.loads(json.dumps(dataclasses.asdict(ContextConfig())))
            found[name] = {**part, "config": {"context": told, **part["config"]}}
    masking = found.get("masking")
    if isinstance(masking, dict) and masking.get("loss_on") == "hidden":
        found["masking"] = {**masking, "loss_on": "masked"}
    return found
