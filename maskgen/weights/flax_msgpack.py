"""Reader of flax's msgpack files (``flax.serialization.to_bytes``) without flax, JAX or a copy of the file in memory.

The format is msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md) with three extension types: 1 = array and
3 = numpy scalar, both a msgpack triple (shape, name of the dtype, raw bytes in C order); 2 = a complex number (real,
imaginary). Arrays of more than 1 GiB are maps that hold ``__msgpack_chunked_array__``, the shape and flat pieces.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3

_CHUNKED = "__msgpack_chunked_array__"

_DEPTH = 100  # deeper nesting is damage, not a model

_DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}


# First byte -> format of the number, or of the length, that follows.
_NUMBERS = {
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}

_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}

_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}

_LISTS = {0xDC: ">H", 0xDD: ">I"}

_MAPS = {0xDE: ">H", 0xDF: ">I"}

_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}

_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def read_flax(path: Path) -> Any:
    """The tree of a flax msgpack file: nested dictionaries whose arrays and numpy scalars are tensors.

    The tensors are views of a private memory map: nothing is read before it is used, the file is never written to, and
    chunked arrays alone are copied. Elements need not lie at multiples of their size, which torch on x86 and ARM takes.

    Args:
        path: the file.

    Raises:
        ValueError: truncated, damaged, or holding what flax does not write.
        OSError: the file cannot be read.
    """
    with path.open("rb") as handle:
        # A copy-on-write map is writable in the eyes of torch, which refuses to wrap read-only memory.
        data = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY))
    reader = _Reader(data)
    try:
        tree = reader.item()
    except (struct.error, _TruncatedError):
        raise ValueError(f"{path}: truncated: the file ends after {len(data)} bytes, inside a value") from None
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]  # whatever noise looks like to the code below
        raise ValueError(f"{path}: not a flax msgpack file, or damaged ({reason})") from None
    if reader.position != len(data):
        raise ValueError(
            f"{path}: not a flax msgpack file, or damaged ({len(data) - reader.position} bytes follow the tree)"
        )
    return tree


def flatten_tree(tree: Any) -> dict[str, Tensor]:
    """The tensors of nested dictionaries by "/"-joined names; what is no tensor is left out."""
    return dict(_flatten(tree, ""))


def _flatten(tree: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield prefix, tree
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _flatten(value, f"{prefix}/{name}" if prefix else str(name))


class _TruncatedError(Exception):
    """The file ends inside a value."""


class _Reader:
    """A cursor over msgpack bytes."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0

    def item(self, depth: int = 0) -> Any:
        """The value at the cursor, which moves behind it."""
        if depth > _DEPTH:
            raise ValueError(f"more than {_DEPTH} levels of nesting")
        code = self._number(">B")
        if code <= 0x7F:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in _NUMBERS:
            return self._number(_NUMBERS[code])
        if code <= 0x8F or code in _MAPS:
            return self._map(self._number(_MAPS[code]) if code in _MAPS else code & 0x0F, depth)
        if code <= 0x9F or code in _LISTS:
            count = self._number(_LISTS[code]) if code in _LISTS else code & 0x0F
            return [self.item(depth + 1) for _ in range(count)]
        if code <= 0xBF or code in _TEXTS:
            return str(self._take(self._number(_TEXTS[code]) if code in _TEXTS else code & 0x1F), "utf-8")
        if code in _BYTES:
            return self._take(self._number(_BYTES[code]))
        if code in _EXTENSIONS or code in _FIXED_EXTENSIONS:
            return self._extension(
                _FIXED_EXTENSIONS[code] if code in _FIXED_EXTENSIONS else self._number(_EXTENSIONS[code])
            )
        raise ValueError(f"byte 0x{code:02x} at {self.position - 1} starts no value")

    def _number(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return value

    def _take(self, size: int) -> memoryview:
        if self.position + size > len(self.data):
            raise _TruncatedError
        self.position += size
        return self.data[self.position - size : self.position]

    def _map(self, count: int, depth: int) -> Any:
        found = {}
        for _ in range(count):
            key = self.item(depth + 1)
            found[str(key, "utf-8") if isinstance(key, memoryview) else key] = self.item(depth + 1)
        return _join(found) if _CHUNKED in found else found

    def _extension(self, size: int) -> Any:
        kind, payload = self._number(">b"), self._take(size)
        if kind not in (_ARRAY, _COMPLEX, _SCALAR):
            raise ValueError(f"extension type {kind}, expected 1 to 3")
        parts = _Reader(payload).item()
        if kind == _COMPLEX:
            return complex(*parts)
        shape, dtype, raw = parts
        return _tensor([int(side) for side in shape], dtype, raw)


def _tensor(shape: list[int], dtype: str | memoryview, raw: memoryview) -> Tensor:
    name = dtype if isinstance(dtype, str) else str(dtype, "utf-8")
    if name not in _DTYPES:
        raise ValueError(f"an array of {name}, expected one of {', '.join(_DTYPES)}")
    expected = math.prod(shape) * _DTYPES[name].itemsize
    if len(raw) != expected:
        raise ValueError(f"an array of {name} {tuple(shape)} in {len(raw)} bytes, expected {expected}")
    if not len(raw):
        return torch.empty(shape, dtype=_DTYPES[name])
    return torch.frombuffer(raw, dtype=_DTYPES[name]).reshape(shape)


def _join(found: dict[Any, Any]) -> Tensor:
    """An array that was cut into flat pieces."""
    shape, chunks = ([part[str(index)] for index in range(len(part))] for part in (found["shape"], found["chunks"]))
    return torch.cat(chunks).reshape(shape)
