"""Writes weights as ``flax.serialization.to_bytes`` does, so that tests need no flax; see the reader for the format."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor


def write_flax(path: Path, tree: Any) -> None:
    """Nested dictionaries, numbers, strings, tensors (arrays) and tensors in a one-element tuple (numpy scalars)."""
    with path.open("wb") as handle:
        _write(handle, tree)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """ "/"-joined names to nested dictionaries."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *outer, last = name.split("/")
        inner = tree
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return tree


def chunked(array: Tensor, size: int) -> dict[str, Any]:
    """An array in flat pieces of ``size`` elements, as flax cuts those above 1 GiB."""
    pieces = array.flatten().split(size)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(axis): side for axis, side in enumerate(array.shape)},
        "chunks": {str(index): piece for index, piece in enumerate(pieces)},
    }


def array_payload(array: Tensor) -> bytes:
    """(shape, dtype name, raw bytes), itself msgpack."""
    raw = array.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    shape = b"".join(struct.pack(">BI", 0xCE, side) for side in array.shape)
    name = str(array.dtype).removeprefix("torch.").encode()
    head = bytes([0x93, 0x90 | array.ndim]) + shape + bytes([0xA0 | len(name)]) + name
    return head + struct.pack(">BI", 0xC6, len(raw)) + raw


def _write(handle: BinaryIO, value: Any) -> None:
    if isinstance(value, Tensor | tuple):
        payload = array_payload(value[0] if isinstance(value, tuple) else value)
        handle.write(struct.pack(">BIb", 0xC9, len(payload), 3 if isinstance(value, tuple) else 1))
        handle.write(payload)
    elif isinstance(value, dict):
        handle.write(bytes([0x80 | len(value)]) if len(value) < 16 else struct.pack(">BH", 0xDE, len(value)))
        for name, inner in value.items():
            _write(handle, name)
            _write(handle, inner)
    elif isinstance(value, bool) or value is None:
        handle.write(bytes([{None: 0xC0, False: 0xC2, True: 0xC3}[value]]))
    elif isinstance(value, int):
        handle.write(struct.pack(">Bq", 0xD3, value))
    elif isinstance(value, float):
        handle.write(struct.pack(">Bd", 0xCB, value))
    else:
        text = str(value).encode()
        handle.write(struct.pack(">BB", 0xD9, len(text)) + text)
