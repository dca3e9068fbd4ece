"""Loading generated programs: warm starts, damaged caches, and folders that may not be trusted."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from numba.core.errors import TypingError

from codegen import cache, loading

ROOT = Path(__file__).resolve().parent.parent

# u = x * 0.5 + tanh(y) * x - 1, v the same with u and x in their places, y = u @ v^T
SOURCE = '''"""Two kernels, one of them called twice, and a product."""
import numpy as np

from codegen.runtime.kernels import kernel
from codegen.runtime.linalg import gemm_f32
from codegen.runtime.memory import address, at_f32, extent, ld, pointer_f32, st
from codegen.runtime.vector_math import tanh

f = np.float32


@kernel
def k0(p0, p1, p2, n):
    for i in range(n):
        a = ld(p0, i, 0)
        b = ld(p1, i, 1)
        st(p2, i, a * f(0.5) + tanh(b) * a - f(1.0), 2)


@kernel
def k1(p0, n):
    for i in range(n):
        st(p0, i, ld(p0, i, 0) + f(0.25), 0)


@kernel
def program(table, dims):
    m = extent(dims, 0)
    k = extent(dims, 1)
    w = address(table, 0)
    x = pointer_f32(table, 1)
    y = pointer_f32(table, 2)
    u = at_f32(w, 0)
    v = at_f32(w, 4 * m * k)
    k0(x, y, u, m * k)
    k0(u, x, v, m * k)
    gemm_f32(0, 1, m, m, k, f(1.0), u, k, v, k, f(0.0), y, m)
    k1(y, m * m)
    return 0
'''

USE = """
import ctypes, sys
import numpy as np
from codegen import loading

loaded = loading.load(open(sys.argv[1]).read(), "key")
print(run(loaded.address), loaded.from_cache, loaded.path)
"""


def run(address: int) -> bool:
    """Whether the program at `address` computes what SOURCE says."""
    rng = np.random.default_rng(5)
    x, y = (rng.standard_normal((3, 7)).astype(np.float32) for _ in range(2))
    u = x * np.float32(0.5) + np.tanh(y) * x - 1
    v = u * np.float32(0.5) + np.tanh(x) * u - 1
    work = np.zeros(42, np.float32)
    table, dims = np.array([work.ctypes.data, x.ctypes.data, y.ctypes.data]), np.array([3, 7])
    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)
    status = call(table.ctypes.data, dims.ctypes.data)
    return status == 0 and np.allclose(y.ravel()[:9].reshape(3, 3), u @ v.T + 0.25, atol=1e-5)


def start(folder: Path, source: str = SOURCE, **environment: str) -> subprocess.Popen[str]:
    """A fresh process that loads and runs `source` with its programs kept in `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    text = folder.parent / "source.txt"
    text.write_text(source)
    body = Path(__file__).read_text()
    body = body[body.index("def run(") : body.index("def start(")]
    script = folder.parent / "use.py"
    head, tail = USE.split("\n\n", 1)
    script.write_text(f"{head}\n{body}\n{tail}")
    paths = {"SYMGRAD_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(script), str(text)],
        env={**os.environ, **paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[bool, bool, Path]:
    """Whether the result was right, whether the code came from the cache, and where it lies."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    right, cached, path = out.split()
    return right == "True", cached == "True", Path(path)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder for this test, in a process that has loaded nothing."""
    monkeypatch.setattr(loading, "_loaded", weakref.WeakValueDictionary())
    monkeypatch.setenv("SYMGRAD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_second_process_starts_warm_and_damage_is_repaired(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    right, cached, path = outcome(start(folder))
    assert (right, cached, path.parent) == (True, False, folder)
    assert outcome(start(folder)) == (True, True, path)

    code = path.with_suffix(".o")
    intact = code.read_bytes()
    for damaged in [
        b"",
        intact[:40],
        intact[:-200],
        intact[:1000] + bytes(b ^ 0xFF for b in intact[1000:1400]) + intact[1400:],
    ]:
        code.write_bytes(damaged)
        assert outcome(start(folder)) == (True, False, path)
        assert outcome(start(folder)) == (True, True, path)


@pytest.mark.parametrize("products", ["own", "blas"])
def test_a_warm_process_loads_no_numba(tmp_path: Path, products: str) -> None:
    """Products are found by their names, of BLAS too, and SciPy is whole afterwards."""
    code = """
import sys
import numpy as np
import symgrad as sg

n = sg.dim("n")
x, k = sg.input("x", (n, 3)), sg.input("k", (n,), "int64")
f = sg.compile({"square": x @ sg.swapaxes(x, 0, 1), "power": k ** k, "exp": sg.exp(x)})
X = np.arange(15, dtype=np.float32).reshape(5, 3) / 9
found = f(x=X, k=np.arange(5))
assert np.allclose(found["square"], X @ X.T) and np.allclose(found["exp"], np.exp(X), rtol=1e-6)
assert found["power"].tolist() == [1, 1, 4, 27, 256]
print(f.loaded.from_cache, "numba" in sys.modules, "scipy.linalg" in sys.modules)
from scipy.linalg import blas, cython_blas, solve
assert np.allclose(solve(2.0 * np.eye(3), np.ones(3)), 0.5) and cython_blas.__pyx_capi__
"""
    environment = {
        **os.environ,
        "SYMGRAD_CACHE_DIR": str(tmp_path),
        "SYMGRAD_PRODUCTS": products,
        "PYTHONPATH": str(ROOT),
    }
    for expected in ("False True False", "True False False"):
        child = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert child.stdout.strip() == expected, child.stderr


def test_an_altered_source_file_is_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    _, _, path = outcome(start(folder))
    for damaged in (SOURCE[:300], SOURCE.replace("f(0.5)", "f(0.7)"), ""):
        path.write_text(damaged)
        assert outcome(start(folder))[0]
        assert path.read_text() == SOURCE


def test_two_processes_compile_the_same_program_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    both = [start(folder), start(folder)]
    assert all(outcome(process)[0] for process in both)
    assert outcome(start(folder))[0]


def test_a_cache_folder_of_numba_is_not_used(tmp_path: Path) -> None:
    other = tmp_path / "numba"
    assert outcome(start(tmp_path / "cache", NUMBA_CACHE_DIR=str(other)))[0]
    assert not other.exists()


def test_loading_twice_gives_the_same_record(fresh: Path) -> None:
    first = loading.load(SOURCE, "key")
    assert loading.load(SOURCE, "key") is first
    assert run(first.address) and first.seconds > 0
    assert first.path is not None and first.path.parent == fresh
    assert re.fullmatch(r"sg_[0-9a-f]{32}", first.path.stem)
    assert first.path.stem not in sys.modules  # what it was compiled from
    assert loading.module_name(SOURCE, "key") != loading.module_name(SOURCE, "another key")


def test_machine_code_goes_when_nothing_can_call_it(fresh: Path) -> None:
    """A function that is dropped takes its code along, unless a call of it is still prepared."""
    import symgrad as sg

    x = sg.input("x", (3,))
    values = np.float32([1.0, 2.0, 3.0])
    for _ in range(3):
        f = sg.compile([sg.tanh(x) * 7.0])
        code = weakref.ref(f.loaded)
        call = f.prepared({"x": values}, {})
        del f
        gc.collect()
        assert code() is not None and call.run() == 0
        assert np.allclose(call.outputs[0], np.tanh(values) * 7)
        del call
        gc.collect()
        assert code() is None
    first = loading.load(SOURCE, "key").function()
    gc.collect()
    assert run(ctypes.cast(first, ctypes.c_void_p).value or 0)


def test_source_that_does_not_compile_raises_and_leaves_no_module(fresh: Path) -> None:
    wrong = SOURCE.replace("a * f(0.5) + tanh(b) * a - f(1.0)", "1.5")
    with pytest.raises(TypingError, match="float64 value into float32 memory"):
        loading.load(wrong, "key")
    assert loading.module_name(wrong, "key") not in sys.modules


def test_without_a_folder_programs_are_compiled_in_memory(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "folder", lambda: cache.Folder(None, shared=False, reason="none"))
    with pytest.warns(UserWarning, match=r"not kept: none\. .*Set SYMGRAD_CACHE_DIR"):
        loaded = loading.load(SOURCE, "in memory")
    assert loaded.path is None and not loaded.from_cache and run(loaded.address)
    loaded = loading.load(SOURCE, "in memory again")  # it is said once
    assert run(loaded.address)


def test_a_full_disk_does_not_matter(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write", full)
    loaded = loading.load(SOURCE, "full disk")
    assert loaded.path is None and run(loaded.address)


# -- the folder ------------------------------------------------------------------------------------


def test_the_folder_is_made_private(fresh: Path) -> None:
    assert cache.folder() == cache.Folder(fresh, shared=True)
    if os.name == "posix":
        assert fresh.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_folders_that_others_may_write_are_not_used(fresh: Path) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    place = cache.folder()
    assert place.path not in (None, fresh) and not place.shared
    assert "writable by other users (mode 777)" in place.reason
    with pytest.warns(UserWarning, match="not kept: .* is writable by other users"):
        assert loading.load(SOURCE, "shared folder").path is not None
    fresh.chmod(0o755)
    assert cache.folder().shared


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_symbolic_links_are_not_followed(fresh: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir(mode=0o700)
    fresh.symlink_to(target)
    assert "symbolic link" in cache.folder().reason
    assert cache.clear() == (0, 0)


def test_a_file_in_the_folder_s_place(fresh: Path) -> None:
    fresh.write_text("in the way")
    place = cache.folder()
    assert place.path is not None and not place.shared and "cache" in place.reason


def test_platform_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SYMGRAD_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.configured() == tmp_path / ".cache" / "symgrad"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.configured() == tmp_path / "xdg" / "symgrad"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.configured() == tmp_path / "Library" / "Caches" / "symgrad"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache.configured() == tmp_path / "local" / "symgrad" / "Cache"


def test_clear_deletes_our_files_and_no_others(fresh: Path) -> None:
    assert cache.clear() == (0, 0)
    assert not fresh.exists()
    path = loading.load(SOURCE, "to be cleared").path
    assert path is not None
    theirs = [fresh / "notes.txt", fresh / "sg_mine.py", fresh / "other.o"]
    for file in theirs:
        file.write_text("keep")
    ours = [file for file in fresh.rglob("sg_*") if file not in theirs]
    assert {file.suffix for file in ours} == {".py", ".o"}
    size = sum(file.stat().st_size for file in ours)
    assert cache.clear() == (len(ours), size)
    assert sorted(file for file in fresh.rglob("*") if file.is_file()) == sorted(theirs)


def test_fingerprint_depends_on_numba_s_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.fingerprint()
    assert re.fullmatch(r"[0-9a-f]{64}", before)
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    cache.fingerprint.cache_clear()
    assert cache.fingerprint() != before
    monkeypatch.undo()
    cache.fingerprint.cache_clear()
    assert cache.fingerprint() == before
