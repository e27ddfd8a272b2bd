"""One training loop for every stage, on Hugging Face Accelerate: one CPU to many GPUs.

An ``Objective`` says what is trained and what it costs; the ``Trainer`` owns devices, optimisers, averaging, logs and
checkpoints. Every step is a function of (weights, optimiser state, seed, step), so a resumed run equals an
uninterrupted one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from maskgen.checkpoint import atomic_file, save_module
from maskgen.data import Batch, Source, item_seed, training_batches
from maskgen.optim import OptimizerSettings, adamw, learning_rate, warm_average
from maskgen.precision import fast_matmul
from maskgen.training_state import TrainingState

__all__ = ["Interrupted", "Objective", "TrainSettings", "Trainer"]

Metrics = dict[str, torch.Tensor]


class Interrupted(Exception):  # noqa: N818 (not an error: the run was asked to stop and saved itself)
    """Training was asked to stop (Ctrl-C or SIGTERM) and has saved a checkpoint; start it again to go on."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long, how wide, how often.

    Attributes:
        steps: optimiser steps.
        batch_size: examples a step over all processes and accumulation, a multiple of both.
        optimizer: see ``OptimizerSettings``.
        ema_decay: of the averaged weights, warmed up as (1 + n) / (10 + n).
        seed: of data order, masks, dropout and initialisation.
        accumulation: micro-batches a step.
        mixed_precision: Accelerate's ``no``, ``bf16`` or ``fp16``.
        workers: data loader processes.
        log_every: steps between log lines.
        validate_every: steps between validations; 0 = only at the end.
        show_every: steps between samples; 0 = only at the end.
        checkpoint_every: steps between checkpoints; 0 = only at the end.
        keep_last: how many checkpoints stay.
        tracker: an Accelerate tracker by name, as ``tensorboard``; None = only ``log.jsonl``.
    """

    steps: int = 100_000
    batch_size: int = 256
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    ema_decay: float = 0.999
    seed: int = 42
    accumulation: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    workers: int = 0
    log_every: int = 50
    validate_every: int = 1000
    show_every: int = 5000
    checkpoint_every: int = 1000
    keep_last: int = 2
    tracker: str | None = "tensorboard"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "log_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulation {self.accumulation}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: got {self.ema_decay}, expected 0 <= decay < 1")


class Objective(ABC):
    """What a stage trains. ``model`` is what gets averaged, validated and exported; a stage may train more players.

    Args:
        model: a module built from a ``config`` dataclass.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def players(self) -> dict[str, nn.Module]:
        """Everything trained, by name, in the order of their updates; each has an optimiser of its own."""
        return {"model": self.model}

    def state(self) -> nn.Module | None:
        """Buffers to keep in checkpoints that no player owns (for instance moving averages)."""
        return None

    @abstractmethod
    def loss(
        self, player: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[torch.Tensor, Metrics]:
        """Loss of one player on one micro-batch and what to log; ``modules`` are the players as Accelerate wrapped them."""

    @abstractmethod
    def units(self, batch: Batch) -> int:
        """Tokens in a micro-batch, for the throughput."""

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Numbers of the averaged model; ``score`` (lower is better) decides which weights are the best."""
        return {}

    def show(self, model: nn.Module, folder: Path, step: int) -> None:  # noqa: B027 (optional)
        """Write pictures, clips or sounds of the averaged model into ``folder``."""


class Trainer:
    """Trains an objective into a folder.

    ``out`` receives ``config.json`` and ``model.safetensors`` (averaged weights), ``best/`` (by validation score),
    ``checkpoints/``, ``samples/`` and ``log.jsonl``.

    Args:
        objective: what to train.
        source: training examples.
        settings: see ``TrainSettings``.
        out: folder of the run; a run found there goes on where it stopped.
        title: shown in the progress bar.
    """

    def __init__(
        self, objective: Objective, source: Source, settings: TrainSettings, out: Path, *, title: str = "train"
    ) -> None:
        self.objective, self.source, self.settings, self.out, self.title = objective, source, settings, out, title
        out.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_steps=settings.accumulation,
            log_with=settings.tracker,
            project_dir=str(out),
            cpu=not torch.cuda.is_available(),
            # Buffers are constants or each process's own: sending them before every forward would write into tensors
            # that the backward of an earlier forward still needs (a discriminator sees real and generated images).
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        if settings.tracker:
            self.accelerator.init_trackers("logs")
        players = objective.players()
        # One optimiser a player; prepared together so that wrappers such as DDP know both.
        optimizers = [adamw(module, settings.optimizer) for module in players.values()]
        prepared = self.accelerator.prepare(*players.values(), *optimizers)
        self.modules = dict(zip(players, prepared, strict=False))
        self.optimizers = dict(zip(players, prepared[len(players) :], strict=True))
        self.ema = AveragedModel(
            self.accelerator.unwrap_model(self.modules["model"]),
            multi_avg_fn=warm_average(settings.ema_decay),
            use_buffers=True,
        )
        self.ema.requires_grad_(False).eval()
        self.state = TrainingState(
            self.accelerator, out / "checkpoints", settings.keep_last, self.ema, objective.state()
        )

    def fit(self) -> nn.Module:
        """Train to the last step, or go on to it; returns the averaged model.

        Raises:
            Interrupted: asked to stop; a checkpoint was saved.
            FloatingPointError: the loss is not finite; the last checkpoint stays.
        """
        settings = self.settings
        start = self.state.resume()
        self._forget_after(start)
        batches = self._batches(start)
        bar = tqdm(
            total=settings.steps,
            initial=start,
            desc=self.title,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        with _stop_signals() as stop, fast_matmul(self.accelerator.device), bar:
            sums: dict[str, float | torch.Tensor] = {}
            for step in range(start, settings.steps):
                metrics, tokens = self._step(batches, step)
                self.ema.update_parameters(self.accelerator.unwrap_model(self.modules["model"]))
                _add(sums, metrics, tokens)
                bar.update()
                last = step + 1 == settings.steps
                if last or (step + 1) % settings.log_every == 0:
                    self._log(step + 1, sums, bar)
                if last or _due(step, settings.validate_every):
                    self._validate(step + 1)
                if last or _due(step, settings.show_every):
                    self._show(step + 1)
                if last or stop or _due(step, settings.checkpoint_every):
                    self._require_finite(step + 1, metrics)
                    self.state.save(step + 1)
                if stop and not last:
                    raise Interrupted(f"{self.title}: stopped after step {step + 1} and saved; run it again to go on")
        averaged = self._export(self.out)
        self.accelerator.end_training()  # also ends the process group, so it comes last
        return averaged

    def _step(self, batches: Iterator[Batch], step: int) -> tuple[Metrics, int]:
        """One optimiser step of every player."""
        accelerator, settings = self.accelerator, self.settings
        # Masks and dropout are a function of (seed, step, rank): nothing before this step can disturb them.
        torch.manual_seed(item_seed(settings.seed, step * accelerator.num_processes + accelerator.process_index))
        lr = learning_rate(settings.optimizer, step, settings.steps)
        metrics: Metrics = {}
        tokens = 0
        for batch in itertools.islice(batches, settings.accumulation):
            moved = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            tokens += self.objective.units(moved) * accelerator.num_processes
            with accelerator.accumulate(*self.modules.values()):
                for name, module in self.modules.items():
                    with accelerator.autocast():
                        loss, terms = self.objective.loss(name, self.modules, moved, step)
                    accelerator.backward(loss)
                    optimizer = self.optimizers[name]
                    if accelerator.sync_gradients and settings.optimizer.grad_clip:
                        norm = accelerator.clip_grad_norm_(module.parameters(), settings.optimizer.grad_clip)
                        terms = {"grad_norm": norm, **terms}
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    optimizer.step()
                    optimizer.zero_grad()
                    terms = {"loss": loss.detach(), **terms}
                    for key, value in terms.items():
                        key = key if name == "model" else f"{name}/{key}"
                        share = 1 if key.endswith("grad_norm") else settings.accumulation
                        metrics[key] = metrics.get(key, 0) + value / share
        return metrics, tokens

    def _batches(self, step: int) -> Iterator[Batch]:
        settings, accelerator = self.settings, self.accelerator
        return training_batches(
            self.source,
            batch_size=settings.batch_size // settings.accumulation,
            seed=settings.seed,
            start=step * settings.accumulation,
            stop=settings.steps * settings.accumulation,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=settings.workers,
        )

    def _log(self, step: int, sums: dict[str, float | torch.Tensor], bar: Any) -> None:
        """Mean over interval and processes, to the bar, the log file and the trackers; then the interval starts anew."""
        count, tokens = float(sums.pop("count")), float(sums.pop("tokens"))
        means = torch.tensor([float(value) / count for value in sums.values()], device=self.accelerator.device)
        values = dict(zip(sums, self.accelerator.reduce(means, reduction="mean").tolist(), strict=True))
        sums.clear()
        self._require_finite(step, values)
        seconds = bar.format_dict["elapsed"]
        rate = tokens / max(1e-9, seconds - getattr(self, "_logged_at", 0.0))
        self._logged_at = seconds
        lr = learning_rate(self.settings.optimizer, step - 1, self.settings.steps)
        self._write({"step": step, "lr": lr, "tokens_per_second": rate, **values})
        bar.set_postfix_str(f"loss {values['loss']:.3f}, {rate:,.0f} tokens/s")

    def _require_finite(self, step: int, values: Mapping[str, float | torch.Tensor]) -> None:
        """Before a log line and before a checkpoint: spoilt weights must not push out good ones."""
        wrong = {name: float(value) for name, value in values.items() if not math.isfinite(float(value))}
        if wrong:
            raise FloatingPointError(
                f"{self.title}: step {step}: not finite: {wrong}; lower the learning rate or use mixed_precision=no. "
                f"The last checkpoint is whole: {self.out / 'checkpoints'}"
            )

    def _validate(self, step: int) -> None:
        with torch.no_grad():
            numbers = self.objective.validate(self.ema.module, self.accelerator.device)
        if not numbers or not self.accelerator.is_main_process:
            return
        self._write({"step": step, **{f"validation/{name}": value for name, value in numbers.items()}})
        if numbers.get("score", math.inf) < self.state.best_score:
            self.state.best_score = numbers["score"]
            save_module(self.ema.module, self.out / "best")

    def _show(self, step: int) -> None:
        if self.accelerator.is_main_process:
            with torch.no_grad():
                self.objective.show(self.ema.module, self.out / "samples", step)

    def _export(self, folder: Path) -> nn.Module:
        if self.accelerator.is_main_process:
            save_module(self.ema.module, folder)
        self.accelerator.wait_for_everyone()
        return self.ema.module

    def _write(self, line: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
        self.accelerator.log({name: value for name, value in line.items() if name != "step"}, step=int(line["step"]))

    def _forget_after(self, step: int) -> None:
        """Drop log lines of steps that a killed run made after its last checkpoint: they are about to be made again."""
        path = self.out / "log.jsonl"
        if not self.accelerator.is_main_process or not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        if kept != lines:
            with atomic_file(path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _add(sums: dict[str, Any], metrics: Metrics, tokens: int) -> None:
    """Sums stay on the device: reading them out every step would stall it."""
    for name, value in metrics.items():
        sums[name] = sums.get(name, 0) + value.detach()
    sums["count"] = sums.get("count", 0) + 1
    sums["tokens"] = sums.get("tokens", 0) + tokens


def _due(step: int, every: int) -> bool:
    return every > 0 and (step + 1) % every == 0


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM arrives, so that the loop can finish its step and save."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    previous = {}
    with contextlib.suppress(ValueError):  # signals can be set in the main thread only; elsewhere the caller stops us
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
