"""Arrays inside ``.npz`` files, read and written without holding them: batches of 50,000 pictures are ten gigabytes.

No pickles: arrays of objects are refused.
"""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskgen.checkpoint import atomic_file

_LOCAL_HEADER = 30  # bytes before the name in a zip's local header


def array_names(path: Path) -> set[str]:
    """Names of the arrays of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ``.npz``.
    """
    with _archive(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def open_array(path: Path, name: str) -> NDArray[Any] | None:
    """One array of a file, mapped where it is stored as it is, else read; None if there is none of that name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no ``.npz``, a damaged one, or an array of objects.
    """
    with _archive(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        info = archive.getinfo(f"{name}.npy")
        try:
            with archive.open(info) as handle:
                version = np.lib.format.read_magic(handle)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(handle)
                header = handle.tell()
            if dtype.hasobject:
                raise ValueError("an array of objects, which only a pickle could hold")
            if info.compress_type == zipfile.ZIP_STORED and not fortran and np.prod(shape) > 0 and shape:
                return np.memmap(path, dtype, "r", _start(path, info) + header, shape)
            with archive.open(info) as handle:
                found: NDArray[Any] = np.lib.format.read_array(handle, allow_pickle=False)
                return found
        except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"{path}: {name} cannot be read ({error})") from None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write small arrays, the file whole or not at all."""
    with atomic_file(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **dict(arrays), allow_pickle=False)


def write_batch(
    path: Path,
    shape: tuple[int, ...],
    parts: Iterable[NDArray[np.uint8]],
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write an ADM-style batch: ``arr_0`` and, for labelled samples, ``arr_1``; the file whole or not at all.

    Args:
        path: the ``.npz`` file.
        shape: of ``arr_0``, such as [M, H, W, 3].
        parts: uint8, pieces of ``arr_0`` along its first axis, in order.
        labels: M class ids.
        class_names: one a class, or none; for ``ArraySamples``, others do not read them.

    Raises:
        ValueError: pieces that do not make up that shape.
    """
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        rows = 0
        with archive.open("arr_0.npy", "w", force_zip64=True) as handle:
            header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(handle, header)
            for part in parts:
                if part.dtype != np.uint8 or part.shape[1:] != shape[1:]:
                    raise ValueError(
                        f"batch: got a piece {part.dtype} {list(part.shape)}, expected uint8 {list(shape)}"
                    )
                rows += len(part)
                handle.write(np.ascontiguousarray(part).data)
        if rows != shape[0]:
            raise ValueError(f"batch: got {rows} samples, expected {shape[0]}")
        small = {} if labels is None else {"arr_1": np.asarray(labels, dtype=np.int64)}
        small |= {"class_names": np.asarray(class_names)} if small and class_names else {}
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w") as handle:
                np.lib.format.write_array(handle, array, allow_pickle=False)


def _archive(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected an .npz")
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: truncated or no .npz ({error})") from None


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's data begin; the local header may be longer than the table says."""
    with path.open("rb") as handle:
        handle.seek(info.header_offset)
        header = handle.read(_LOCAL_HEADER)
    return (
        info.header_offset
        + _LOCAL_HEADER
        + int.from_bytes(header[26:28], "little")
        + int.from_bytes(header[28:30], "little")
    )
