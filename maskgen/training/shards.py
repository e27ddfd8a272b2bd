"""Tensors on disk in one file a process, readable by any number of processes.

A sharded tensor (FSDP2: rows split evenly, the last processes may have fewer) goes to disk as each process's rows; the
file's header says where they belong. Reading puts together what a process needs, whoever wrote it: a run may go on with
another number of processes, and with or without sharding.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

Rows = tuple[int, int, int]
"""First row here, rows here, rows in all."""

_KEY = "maskgen_rows"


def rows_of(tensor: Any) -> Rows | None:
    """Which rows of a tensor this process holds; None for a tensor that is not sharded.

    Raises:
        ValueError: sharded in another way than FSDP2 does by default.
    """
    if not hasattr(tensor, "placements"):
        return None
    placements, mesh = tensor.placements, tensor.device_mesh
    if len(placements) != 1 or not (placements[0].is_replicate() or placements[0].is_shard(0)):
        raise ValueError(f"checkpoints: got weights placed as {placements}, expected rows split over one mesh")
    if placements[0].is_replicate():
        return None
    total = tensor.shape[0]
    first = min(total, mesh.get_local_rank() * -(-total // mesh.size()))
    return first, len(tensor.to_local()), total


def rows_header(rows: Mapping[str, Rows]) -> dict[str, str]:
    """Metadata for the header of a file."""
    return {_KEY: json.dumps(rows)} if rows else {}


class ShardReader:
    """The files ``<stem>.safetensors`` or ``<stem>-*.safetensors`` of a folder as one.

    Args:
        folder: where they are.
        stem: of their names.

    Raises:
        FileNotFoundError: there are none.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        whole = folder / f"{stem}.safetensors"
        self._paths = [whole] if whole.is_file() else sorted(folder.glob(f"{stem}-*.safetensors"))
        if not self._paths:
            raise FileNotFoundError(f"{whole}: no such file")
        self._files: list[Any] = []
        self._where: dict[str, list[tuple[Any, Rows | None]]] = {}

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, stem: str) -> Iterator[ShardReader]:
        """A reader whose files are closed after the block."""
        reader = cls(folder, stem)
        with contextlib.ExitStack() as stack:
            for path in reader._paths:
                file = stack.enter_context(safe_open(path, framework="pt"))
                rows = json.loads((file.metadata() or {}).get(_KEY, "{}"))
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    reader._where.setdefault(name, []).append((file, rows.get(name)))
            yield reader

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and whole shape of every tensor."""
        found = {}
        for name, parts in self._where.items():
            file, rows = parts[0]
            shape = tuple(file.get_slice(name).get_shape())
            found[name] = shape if rows is None else (rows[2], *shape[1:])
        return found

    def read_into(self, name: str, target: Any) -> None:
        """Fill a tensor, or this process's rows of a sharded one.

        Raises:
            KeyError: no such tensor.
            ValueError: rows are missing.
        """
        mine = rows_of(target)
        parts = self._where[name]
        with torch.no_grad():
            if mine is None and parts[0][1] is None:
                target.copy_(parts[0][0].get_tensor(name))
                return
            local = target if mine is None else target.to_local()
            first, count = (0, len(target)) if mine is None else mine[:2]
            filled = 0
            for file, rows in parts:
                at, length, _ = rows or (0, len(local) if mine is None else mine[2], 0)
                low, high = max(first, at), min(first + count, at + length)
                if low < high:
                    local[low - first : high - first] = file.get_slice(name)[low - at : high - at].to(local.device)
                    filled += high - low
            if filled != count:
                raise ValueError(f"{name}: {filled} of {count} rows found; a file of the checkpoint is missing")
