"""The folder of compiled programs: where it is, whether it may be trusted, what is in it.

A program is kept as `sg_<hash>.py` with its machine code beside it in `sg_<hash>.o`, and so are the
matrix products, so that a second process starts warm. The code is run as it is: the folder must
belong to this user, be no symbolic link and be writable by nobody else. Where that does not hold,
the process takes a temporary folder of its own; where even that cannot be made, programs are
compiled in memory.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from symgrad._version import __version__

# Everything that symgrad writes into the folder: no other file is deleted.
OURS = re.compile(r"\.?sg_[0-9a-f]{32}\b.*")
# Settings that change the code of a program: our own, and those of Numba that name a processor.
OWN_SETTINGS = ("SYMGRAD_PRODUCTS", "SYMGRAD_VECTORS")
SETTINGS = (*OWN_SETTINGS, "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")


@dataclass(frozen=True, slots=True)
class Folder:
    """Where this process keeps compiled programs.

    Fields:
        path:   the folder, or None when programs are compiled in memory.
        shared: whether other processes of this user find the programs too.
        reason: why it is not the configured folder; empty when it is.
    """

    path: Path | None
    shared: bool
    reason: str = ""


def configured() -> Path:
    """SYMGRAD_CACHE_DIR, else symgrad's folder in the platform's cache of this user."""
    if chosen := os.environ.get("SYMGRAD_CACHE_DIR"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "symgrad" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "symgrad"
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "symgrad"


def folder() -> Folder:
    """The folder in use: configured, else temporary for this process, else none."""
    try:
        wanted = configured()
    except RuntimeError as error:  # no home folder is known
        return _temporary(str(error))
    doubt = _doubt(wanted)
    return _temporary(doubt) if doubt else Folder(wanted, shared=True)


def _doubt(path: Path) -> str:
    """Why `path` may not hold our programs; empty when it may. Makes the folder, mode 0700."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return f"{path} is a symbolic link or not a folder"
        if hasattr(os, "geteuid"):
            if status.st_uid != os.geteuid():
                return f"{path} belongs to another user"
            if status.st_mode & 0o022:
                return f"{path} is writable by other users (mode {status.st_mode & 0o777:o})"
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        return f"{path} is not writable ({error.strerror})"
    return ""


@functools.cache
def _temporary(reason: str) -> Folder:
    """A folder of this process alone, removed at exit."""
    try:
        path = _temporary_path()
    except OSError as error:
        return Folder(None, shared=False, reason=f"{reason}; no temporary folder ({error})")
    return Folder(path, shared=False, reason=reason)


@functools.cache
def _temporary_path() -> Path:
    path = Path(tempfile.mkdtemp(prefix="symgrad-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def write(path: Path, text: str) -> None:
    """Write `text` to `path` so that no reader ever sees a part of it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that no reader ever sees a part of it."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".tmp", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def write_sealed(path: Path, content: bytes) -> None:
    """Write `content` behind its hash, so that damage shows."""
    write_bytes(path, hashlib.sha256(content).digest() + content)


def read_sealed(path: Path) -> bytes | None:
    """What `write_sealed` wrote; None where it is missing or damaged."""
    try:
        found = path.read_bytes()
    except OSError:
        return None
    content = found[32:]
    return content if hashlib.sha256(content).digest() == found[:32] else None


def kept(name: str, make: Callable[[], bytes]) -> bytes:
    """Bytes that depend on `fingerprint` alone: from the folder, else made and put there."""
    place = folder().path
    if place is None:
        return make()
    label = hashlib.sha256(f"{name}\0{fingerprint()}".encode()).hexdigest()[:32]
    path = place / f"sg_{label}.o"
    found = read_sealed(path)
    if found is None:
        found = make()
        with contextlib.suppress(OSError):
            write_sealed(path, found)
    return found


def clear() -> tuple[int, int]:
    """Delete every program in the configured folder; return the number of files and of bytes."""
    try:
        root = configured()
    except RuntimeError:
        return 0, 0
    files = total = 0
    if root.is_symlink() or not root.is_dir():
        return 0, 0
    for path in sorted(root.iterdir()):
        status = path.lstat()
        if not OURS.fullmatch(path.name) or not stat.S_ISREG(status.st_mode):
            continue
        with contextlib.suppress(OSError):
            path.unlink()
            files, total = files + 1, total + status.st_size
    return files, total


@functools.cache
def fingerprint() -> str:
    """A hash of everything that machine code depends on besides its source.

    The runtime's own text, since generated code inlines it; the versions of symgrad, Python,
    Numba, llvmlite, NumPy and SciPy; the CPU and its features; settings of the environment.
    """
    from llvmlite import binding as llvm  # a heavy import, needed only where code is loaded

    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parent / "runtime").glob("*.py")):
        digest.update(path.read_bytes())
    features = sorted(name for name, present in llvm.get_host_cpu_features().items() if present)
    parts = [
        __version__,
        sys.implementation.cache_tag,
        platform.machine(),
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        *features,
        *(metadata.version(name) for name in ("numba", "llvmlite", "numpy", "scipy")),
        *(f"{name}={os.environ.get(name)}" for name in SETTINGS),
    ]
    digest.update("\n".join(str(part) for part in parts).encode())
    return digest.hexdigest()
