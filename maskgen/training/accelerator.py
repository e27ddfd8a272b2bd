"""Many processes: what Accelerate is told, what is refused before it starts, and sums over processes.

Plain data parallelism (DDP) or FSDP2 is chosen by the Accelerate config (``--use_fsdp`` or ``docs/accelerate/``), not by
the settings of a run: it does not change what is computed.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    LoggerType,
    parse_flag_from_env,
)
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from maskgen.training.distributed.blocks import blocks_of
from maskgen.training.settings import TrainSettings


def make_accelerator(settings: TrainSettings, out: Path) -> Accelerator:
    """Accelerate for a run.

    Args:
        settings: of the run.
        out: folder of the run.

    Raises:
        ValueError: more processes than GPUs, a precision this device lacks or the launcher contradicts, FSDP1, Muon under
            FSDP2, or an unknown tracker.
        ImportError: the tracker's package is not installed.
    """
    plugin = check_launch(settings)
    if AcceleratorState._shared_state.get("_mixed_precision", settings.mixed_precision) != settings.mixed_precision:
        # Accelerate has one state a process and refuses another precision, though processes and device stay the same. A
        # further training gets a state of its own; whoever holds the one before keeps it.
        AcceleratorState._shared_state = {}
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.accumulation,
        log_with=_check_tracker(settings.tracker),
        project_dir=str(out),
        cpu=not torch.cuda.is_available(),
        # Buffers are constants or each process's own: sending them before every forward would write into tensors
        # that the backward of an earlier forward still needs (a discriminator sees real and generated images).
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        fsdp_plugin=plugin,
    )
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate 1.15 looks at its FSDP plug-in on accelerators only and falls back to DDP on CPUs without a word;
        # everything behind that switch works on CPUs with gloo.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


def check_launch(settings: TrainSettings) -> FullyShardedDataParallelPlugin | None:
    """Refuse a run that was launched in a way it cannot work, before its work.

    Args:
        settings: of the run.

    Returns:
        The plug-in of a launch with FSDP2; None for any other.

    Raises:
        ValueError, ImportError: see ``make_accelerator``.
    """
    _check_devices()
    _check_precision(settings.mixed_precision)
    _check_tracker(settings.tracker)
    plugin = FullyShardedDataParallelPlugin() if parse_flag_from_env("ACCELERATE_USE_FSDP") else None
    if plugin is not None and plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version: got {plugin.fsdp_version}, expected 2; set it in the Accelerate config")
    if plugin is not None and settings.optimizer.muon_lr:
        raise ValueError(
            f"optimizer.muon_lr: got {settings.optimizer.muon_lr} under FSDP2, which spreads each matrix over processes; "
            "Muon needs it whole: set it to 0, or launch without FSDP"
        )
    return plugin


def _check_devices() -> None:
    """Refuse a launch with more processes than this machine has GPUs.

    ``torchrun`` may start any number of processes on a machine without GPUs: they use the CPU.

    Raises:
        ValueError: naming both numbers.
    """
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return
    local, here = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    wanted = os.environ.get("LOCAL_WORLD_SIZE", str(local + 1))
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if not torch.cuda.is_available() and by_accelerate and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"num_processes: got {wanted} on this machine, which has no GPU; to train on its CPU launch with "
            f"`torchrun --nproc-per-node {wanted} -m maskgen ...`, or without the Accelerate config"
        )
    if torch.cuda.is_available() and local >= here:
        raise ValueError(
            f"num_processes: got {wanted} on this machine, which has {here} GPU(s); "
            f"launch with --num_processes {here} a machine (batch_size stays the whole batch)"
        )


def _check_precision(precision: str) -> None:
    """Refuse a precision that the device computes in slowly or not at all, or another than the launcher was told.

    Raises:
        ValueError: fp16 on a CPU, bf16 on a GPU without it, two that differ.
    """
    launched = os.environ.get(
        "ACCELERATE_MIXED_PRECISION", "no"
    )  # "no" is also what a launcher says that was told nothing
    if launched not in ("no", precision):
        raise ValueError(
            f"mixed_precision: the launcher says {launched}, the run's settings say {precision}; give "
            f"--settings.mixed_precision {launched}, or launch with --mixed_precision no"
        )
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    if precision == "fp16" and not on_gpu:
        raise ValueError("mixed_precision: got fp16, which needs a GPU; use bf16 or no on the CPU")
    if precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise ValueError(f"mixed_precision: got bf16, which {name} lacks; use fp16 or no")


def _check_tracker(name: str | None) -> str | None:
    """The tracker, if it can be had. Without TensorBoard, the default, a run goes on with its ``log.jsonl`` alone.

    Raises:
        ValueError: Accelerate knows no such tracker.
        ImportError: its package is not installed.
    """
    known = sorted(kind.value for kind in LoggerType if kind != LoggerType.ALL)
    if name is None:
        return None
    if name not in known:
        raise ValueError(f"tracker: got {name!r}, expected one of {', '.join(known)}, or null for log.jsonl alone")
    if name in {str(getattr(kind, "value", kind)) for kind in get_available_trackers()}:
        return name
    if name == "tensorboard":
        warnings.warn(
            "tensorboard is not installed, so only log.jsonl is written; "
            'pip install "maskgen[train]", or set tracker to null',
            stacklevel=2,
        )
        return None
    raise ImportError(f"tracker: {name} is not installed; pip install {name.replace('_', '-')}, or set tracker to null")


def prepare(
    accelerator: Accelerator, networks: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Networks and their optimisers as Accelerate wraps them, in place.

    Raises:
        ValueError: several networks under FSDP2; the forward pass raises it for a model that returns no plain tensors.
    """
    if accelerator.is_fsdp2:
        if len(networks) > 1:
            raise ValueError(
                f"FSDP2: got {len(networks)} networks ({', '.join(networks)}), expected one: a discriminator is run with "
                "frozen weights, which FSDP2 cannot switch off and on; the first stage is small, launch it without FSDP"
            )
        for module in networks.values():
            _name_blocks(module)
    prepared = accelerator.prepare(*networks.values(), *optimizers.values())
    count = len(networks)
    if accelerator.is_fsdp2:
        prepared[0].register_forward_hook(_refuse_hidden_tensors)
    modules = dict(zip(networks, prepared[:count], strict=True))
    return modules, dict(zip(optimizers, prepared[count:], strict=True))


def shard(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """A copy of a prepared model's twin, sharded like the model: for averaged weights."""
    _name_blocks(module)
    return fsdp2_prepare_model(accelerator, module)


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are spread over the processes."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def _refuse_hidden_tensors(module: nn.Module, inputs: Any, output: Any) -> None:
    """FSDP2 follows the gradients of tensors, lists and dictionaries; through other outputs it would not reduce any."""
    if not all(leaf is None or isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        raise ValueError(
            f"FSDP2: got a model that returns a {type(output).__name__}, expected tensors; the first stage is small, launch "
            "it without FSDP"
        )


def _name_blocks(module: nn.Module) -> None:
    """Tell Accelerate which parts to gather one at a time."""
    module._no_split_modules = sorted({type(block).__name__ for block in blocks_of(module)})  # type: ignore[assignment]
