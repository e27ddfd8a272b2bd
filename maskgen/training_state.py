"""Checkpoints of a running training: whole or absent, the last few and no more."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from maskgen.checkpoint import atomic_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TrainingState"]


class TrainingState:
    """Saves and restores everything a run needs to go on exactly: Accelerate's state, averaged weights, step, best score.

    Args:
        accelerator: with modules and optimisers prepared.
        folder: where ``step-<n>`` folders are kept.
        keep_last: how many stay.
        ema: averaged weights.
        extra: further buffers, or None.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, keep_last: int, ema: nn.Module, extra: nn.Module | None
    ) -> None:
        self.accelerator, self.folder, self.keep_last = accelerator, folder, keep_last
        self.ema, self.extra = ema, extra
        self.best_score = math.inf

    def save(self, step: int) -> None:
        """Write ``step-<n>`` under a temporary name, rename it, then delete the oldest.

        Raises:
            OSError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
        """
        final = self.folder / f"step-{step:08d}"
        if final.exists():
            return
        try:
            self._save(final, step)
        except (OSError, SafetensorError, RuntimeError) as error:  # each library has its own for a full disk
            raise OSError(
                f"{final}: cannot be written ({error}); earlier checkpoints are whole: make room and run it again"
            ) from error

    def _save(self, final: Path, step: int) -> None:
        if self.accelerator.num_processes == 1:
            with atomic_folder(final) as temporary:
                self._write(temporary, step)
        else:
            temporary = self.folder / f".step-{step:08d}"  # all processes must agree on the name
            self._write(temporary, step)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                temporary.rename(final)
        if self.accelerator.is_main_process:
            for old in self._found()[: -self.keep_last]:
                shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def resume(self) -> int:
        """Restore the newest checkpoint; returns the number of steps done, 0 if there is none.

        Raises:
            ValueError: the checkpoint is damaged or of another model.
        """
        found = self._found()
        if not found:
            return 0
        try:
            return self._load(found[-1])
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, EOFError, pickle.PickleError) as error:
            raise ValueError(
                f"{found[-1]}: damaged, or of another model ({error}); delete it to go on from the one before"
            ) from error

    def _load(self, newest: Path) -> int:
        self.accelerator.load_state(str(newest))
        self.ema.load_state_dict(load_file(newest / "ema.safetensors"))
        if self.extra is not None:
            self.extra.load_state_dict(load_file(newest / "extra.safetensors"))
        numbers = json.loads((newest / "run.json").read_text(encoding="utf-8"))
        self.best_score = math.inf if numbers["best_score"] is None else float(numbers["best_score"])
        return int(numbers["step"])

    def _write(self, folder: Path, step: int) -> None:
        self.accelerator.save_state(str(folder))
        if not self.accelerator.is_main_process:
            return
        save_file(_tensors(self.ema), folder / "ema.safetensors")
        if self.extra is not None:
            save_file(_tensors(self.extra), folder / "extra.safetensors")
        best = None if math.isinf(self.best_score) else self.best_score
        (folder / "run.json").write_text(json.dumps({"step": step, "best_score": best}), encoding="utf-8")

    def _found(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in module.state_dict().items()}
