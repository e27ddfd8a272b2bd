"""One training loop for every stage, on Hugging Face Accelerate: one CPU to many GPUs.

An ``Objective`` says what is trained and what it costs; the ``Trainer`` owns devices, optimisers, averaging, logs and
checkpoints. Every step is a function of (weights, optimiser state, seed, step), so a resumed run equals an
uninterrupted one.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from maskgen.checkpoint import save_module
from maskgen.data import Batch, Source, item_seed, training_batches
from maskgen.precision import fast_matmul
from maskgen.training.accelerator import is_sharded, make_accelerator, prepare, shard
from maskgen.training.distributed.blocks import checkpoint_blocks, compile_blocks
from maskgen.training.distributed.rows import RandomRows
from maskgen.training.distributed.whole_batch import mean_over_processes
from maskgen.training.heap import kept_heap
from maskgen.training.log import RunLog, StepStats
from maskgen.training.objective import Metrics, Objective
from maskgen.training.optim.averaging import AveragedWeights, warm_average
from maskgen.training.optim.guard import Guard
from maskgen.training.optim.optimizers import adamw, learning_rate
from maskgen.training.run import Interrupted, StopRequest, alone_in, stop_signals
from maskgen.training.settings import TrainSettings
from maskgen.training.state import TrainingState

_DROPOUT = 0xD209  # keeps the random numbers of layers apart from those of rows


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

    Raises:
        ValueError: something the devices here cannot do, or an unknown tracker; see ``maskgen.training.accelerator``.
        ImportError: the tracker's package is not installed.
    """

    def __init__(
        self, objective: Objective, source: Source, settings: TrainSettings, out: Path, *, title: str = "train"
    ) -> None:
        self.objective, self.source, self.settings, self.out, self.title = objective, source, settings, out, title
        self.accelerator = make_accelerator(settings, out)
        out.mkdir(parents=True, exist_ok=True)
        if settings.tracker:
            self.accelerator.init_trackers("logs")
        networks, device = objective.networks(), self.accelerator.device
        # Before anything wraps the model.
        self.ema = AveragedWeights(networks["model"], warm_average(settings.ema_decay))
        if settings.gradient_checkpointing:
            checkpoint_blocks(networks["model"])
        if settings.compile:
            compile_blocks(networks["model"])
        # One optimiser a network.
        optimizers = {name: adamw(module, settings.optimizer) for name, module in networks.items()}
        self.modules, self.optimizers = prepare(self.accelerator, networks, optimizers)
        if is_sharded(self._model()):
            self.ema.shard(lambda module: shard(self.accelerator, module))
        else:
            self.ema.module.to(device)
        # Of a short run, most of its steps are too many.
        most = min(settings.guard.max_consecutive_skips, settings.steps // 2 + 1)
        guard = dataclasses.replace(settings.guard, max_consecutive_skips=most)
        self.guards = nn.ModuleDict({name: Guard(guard) for name in networks}).to(device)
        extra = objective.state()
        self.state = TrainingState(
            self.accelerator,
            out / "checkpoints",
            settings.keep_last,
            modules=self.modules,
            optimizers=self.optimizers,
            buffers={"ema": self.ema, "guard": self.guards} | ({} if extra is None else {"extra": extra}),
        )
        self._rows = torch.Generator(device)
        self._log_file = RunLog(self.accelerator, out / "log.jsonl")

    def fit(self) -> nn.Module:
        """Train to the last step, or go on to it; returns the averaged model.

        Raises:
            Interrupted: told to stop; a checkpoint was saved.
            FloatingPointError: too many steps in a row were not finite; the last checkpoint stays.
            ValueError: another run trains into the folder.
        """
        with alone_in(self.out, self.accelerator):
            averaged = self._fit()
        self.accelerator.end_training()  # also ends the process group, so it comes last
        return averaged

    def _fit(self) -> nn.Module:
        settings = self.settings
        start = self.state.resume()
        self._log_file.forget_after(start)
        self._say_what_changed(start)
        bar = tqdm(
            total=settings.steps,
            initial=start,
            desc=self.title,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        try:
            device = self.accelerator.device
            with stop_signals(device) as stop, fast_matmul(device), kept_heap(device), bar:
                self._steps(start, stop, bar)
            self.state.wait()
        finally:
            self.state.close()
        return self._export(self.out)

    def _steps(self, start: int, stop: StopRequest, bar: Any) -> None:
        """The loop itself."""
        settings, stats = self.settings, StepStats()
        batches = self._batches(start)
        for step in range(start, settings.steps):
            self._step(batches, step, stats)
            self.ema.update_parameters(self._model())
            bar.update()
            last, stopped = step + 1 == settings.steps, stop.agreed()
            if last or (step + 1) % settings.log_every == 0:
                self._log(step + 1, stats, bar)
                stats = StepStats()
            if last or _due(step, settings.validate_every):
                self._validate(step + 1)
            if last or _due(step, settings.show_every):
                self._show(step + 1)
            self.state.check()
            if last or stopped or _due(step, settings.checkpoint_every):
                self._require_progress(step + 1)
                self.state.save(step + 1)
            if stopped and not last:
                self.state.wait()
                self.accelerator.wait_for_everyone()  # whoever leaves first takes the others down
                raise Interrupted(f"{self.title}: stopped after step {step + 1} and saved; run it again to go on")

    def _step(self, batches: Iterator[Batch], step: int, stats: StepStats) -> None:
        """One optimiser step of every network."""
        accelerator, settings, objective = self.accelerator, self.settings, self.objective
        rank, world = accelerator.process_index, accelerator.num_processes
        # All randomness is a function of (seed, step): nothing before this step can disturb it. Random numbers
        # of objectives belong to rows of the batch; those of layers (dropout), to processes.
        self._rows.manual_seed(item_seed(settings.seed, step))
        objective.rows = RandomRows(self._rows, rank, world)
        torch.manual_seed(item_seed(settings.seed ^ _DROPOUT, step * world + rank))
        lr = learning_rate(settings.optimizer, step, settings.steps)
        metrics: Metrics = {}
        skips: list[Tensor] = []
        for batch in itertools.islice(stats.batches(batches), settings.accumulation):
            moved = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            stats.count(moved, objective)
            with accelerator.accumulate(*self.modules.values()):
                for name in self.modules:
                    with accelerator.autocast():
                        loss, terms = objective.loss(name, self.modules, moved, step)
                    accelerator.backward(loss)
                    prefix = "" if name == "model" else f"{name}/"
                    for key, value in {"loss": loss, **terms}.items():
                        metrics[prefix + key] = metrics.get(prefix + key, 0) + value.detach() / settings.accumulation
                    if accelerator.sync_gradients:
                        norm, skip = self._update(name, metrics[f"{prefix}loss"], lr)
                        metrics[f"{prefix}grad_norm"] = norm
                        skips.append(skip)
        stats.add(metrics, torch.stack(skips).amax(0))

    def _update(self, name: str, loss: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """One network's step, unless its guard says no; the gradient's norm and the verdict."""
        optimizer, guard = self.optimizers[name], self.guards[name]
        assert isinstance(guard, Guard)
        limit = self.settings.optimizer.grad_clip or math.inf
        norm = self.accelerator.clip_grad_norm_(self.modules[name].parameters(), limit)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        skip = guard.check(loss, norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.optimizer.skip = skip
        optimizer.step()
        optimizer.zero_grad()
        return norm, skip

    def _model(self) -> nn.Module:
        """The trained model inside its wrappers."""
        module: nn.Module = self.accelerator.unwrap_model(self.modules["model"])
        return module

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

    def _log(self, step: int, stats: StepStats, bar: Any) -> None:
        """Means and rates of an interval, to the bar, the log file and the tracker."""
        means, speed = stats.means(self.accelerator), stats.speed(self.accelerator, self.settings.mixed_precision)
        skipped = sum(int(guard.skipped) for guard in self.guards.values() if isinstance(guard, Guard))
        if skipped:
            speed["skipped_steps"] = skipped
        lr = learning_rate(self.settings.optimizer, step - 1, self.settings.steps)
        self._log_file.write({"step": step, "lr": lr, **speed, **means})
        loss = f"loss {means['loss']:.3f}" if "loss" in means else "every step skipped"
        bar.set_postfix_str(f"{loss}, {speed['tokens_per_second']:,.0f} tokens/s")
        self._require_progress(step)

    def _require_progress(self, step: int) -> None:
        """At log lines and before checkpoints: a run that only skips must end, and say so."""
        for name, guard in self.guards.items():
            assert isinstance(guard, Guard)
            if guard.too_many():
                raise FloatingPointError(
                    f"{self.title}: step {step}: {int(guard.longest_streak)} steps in a row of {name!r} were skipped, "
                    "because loss or gradient were not finite or far above the usual; lower the learning rate or use "
                    f"mixed_precision=no. The last checkpoint is whole: {self.out / 'checkpoints'}"
                )

    def _validate(self, step: int) -> None:
        with torch.no_grad(), self.accelerator.autocast():
            numbers = self.objective.validate(self.ema.module, self.accelerator.device)
        if not numbers:
            return
        self._log_file.write({"step": step, **{f"validation/{name}": value for name, value in numbers.items()}})
        # One answer for all processes: what follows needs each of them where weights are sharded.
        score = torch.tensor(numbers.get("score", math.inf), dtype=torch.float64, device=self.accelerator.device)
        best = float(mean_over_processes(score))
        if best < self.state.best_score:
            self.state.best_score = best
            self._export(self.out / "best")

    def _show(self, step: int) -> None:
        averaged = self.ema.whole()
        if self.accelerator.is_main_process:
            with torch.no_grad():
                self.objective.show(averaged.to(self.accelerator.device), self.out / "samples", step)
        self.ema.put_away()

    def _export(self, folder: Path) -> nn.Module:
        averaged = self.ema.whole()
        if self.accelerator.is_main_process:
            save_module(averaged, folder)
        self.accelerator.wait_for_everyone()
        return averaged

    def _say_what_changed(self, start: int) -> None:
        """A run may go on with another number of processes; what that means is said once."""
        before, now = self.state.written_by, self.accelerator.num_processes
        if start and before != now and self.accelerator.is_main_process:
            tqdm.write(
                f"{self.title}: step {start} was saved by {before} process(es), now there are {now}: weights, optimiser, "
                "averages, data order and masks go on as they were; dropout has other random numbers, sums round differently"
            )


def _due(step: int, every: int) -> bool:
    return every > 0 and (step + 1) % every == 0
