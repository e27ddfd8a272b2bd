"""Runs a function on several processes of this machine (gloo, CPU).

They are forked from a process that has done nothing but import: torch refuses to go backwards in forks of one that has.
"""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PRELOAD = ["torch.distributed.fsdp", "maskgen.training.trainer", "maskgen.models.modern", "tests.core.toys"]


def run_processes(
    world: int, function: Callable[..., Any], *args: Any, fsdp: bool = False, said: Path | None = None
) -> list[int]:
    """Call ``function(*args)`` on ``world`` processes, with FSDP2 if an Accelerate config asked for it.

    Args:
        world: how many.
        function: at the top of a module.
        fsdp: see above.
        said: a file for what they print.

    Returns:
        their exit statuses.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    shared = (world, port, fsdp, said, function, args)
    processes = [server.Process(target=_child, args=(rank, *shared)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
    return [int(process.exitcode or 0) for process in processes]


def _child(
    rank: int, world: int, port: int, fsdp: bool, said: Path | None, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    if said is not None:
        written = os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(written, 1)
        os.dup2(written, 2)
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    if fsdp:
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    torch.set_num_threads(1)
    try:
        function(*args)
    except SystemExit as stopped:
        os._exit(int(stopped.code or 0))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
