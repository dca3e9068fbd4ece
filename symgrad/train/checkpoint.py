"""Trainer files: arrays as safetensors, everything else as JSON in their header; no pickle.

Tensors are called "0", "1", ..; their names, which may be any text, stand in the JSON. A file is
written beside its place and then moved there, so that nobody ever sees half of one, and a SHA-256
of all that it says tells when a disk or a wire has changed it since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from symgrad.graph.dims import printable
from symgrad.graph.errors import DataError
from symgrad.graph.nodes import Input

FORMAT = "symgrad trainer"
VERSION = 1
Arrays = Mapping[str, npt.NDArray[Any]]
Leaf = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


def write(path: str | os.PathLike[str], arrays: Arrays, record: Mapping[str, Any]) -> None:
    """Write arrays by name and a record of plain data, atomically.

    Raises: OSError when the folder cannot be written.
    """
    target = Path(path)
    header = {"format": FORMAT, "version": VERSION, "names": list(arrays), "record": dict(record)}
    content = safetensors.numpy.save(
        {str(k): np.ascontiguousarray(a).reshape(a.shape) for k, a in enumerate(arrays.values())},
        metadata={"symgrad": (text := json.dumps(header)), "sha256": _digest(text, arrays)},
    )
    draft = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(draft, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            reason = f"save: cannot write the file ({error.strerror})"
            raise OSError(error.errno, reason, os.fspath(path)) from None
        raise


def _digest(header: str, arrays: Arrays) -> str:
    """SHA-256 of a file's JSON and of its arrays in order: dtypes, shapes and bytes."""
    digest = hashlib.sha256(header.encode("utf-8", "surrogatepass"))
    for array in arrays.values():
        digest.update(f"{array.dtype.name} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def read(path: str | os.PathLike[str]) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Arrays by name and the record of a file that `write` made.

    Raises: FileNotFoundError; DataError when it is cut short, changed, or no such file.
    """
    target = Path(path)
    if not target.is_file():
        raise FileNotFoundError(f"load: there is no file {target}")
    try:
        with safetensors.safe_open(target, framework="numpy") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata["symgrad"]) if "symgrad" in metadata else {}
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise DataError(
                    f"load: {target} is a safetensors file, but not one that Trainer.save wrote."
                )
            if header.get("version") != VERSION:
                raise DataError(
                    f"load: {target} has version {header.get('version')!r} of the format, this "
                    f"symgrad reads {VERSION}. Load it with the symgrad that wrote it."
                )
            arrays = {name: file.get_tensor(str(k)) for k, name in enumerate(header["names"])}
            if metadata.get("sha256") != _digest(metadata["symgrad"], arrays):
                raise ValueError("its checksum is not that of its content")
            return arrays, dict(header["record"])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"load: {target} is damaged or no trainer file ({error}). "
            "Take another copy; Trainer.save never leaves a file half written."
        ) from None


def sizes(leaf: Input) -> tuple[int, ...]:
    """The shape of a leaf that is kept, in numbers."""
    return tuple(int(extent) for extent in leaf.shape)


def described(leaf: Input) -> dict[str, Any]:
    """A leaf as plain data."""
    return {"name": leaf.name, "dtype": str(leaf.dtype), "shape": list(sizes(leaf))}


def difference(path: str, own: Sequence[Leaf], stored: Sequence[Leaf]) -> str:
    """Leaves of the trainer and of the file that have no equal on the other side."""

    def lines(leaves: Sequence[Leaf], others: Sequence[Leaf]) -> list[str]:
        odd = [x for x in leaves if x not in others]
        return [f"    {printable(repr(name))} {dtype} {shape}" for name, dtype, shape in odd]

    return "\n".join([
        "load: the leaves of the trainer are not those of the file",
        "  in the trainer only", *(lines(own, stored) or ["    none"]),
        f"  in {path} only", *(lines(stored, own) or ["    none"]),
        "  Load it with the loss and the optimizer that it was saved with.",
    ])
