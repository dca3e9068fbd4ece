"""What every test shares: one thread, a throw-away cache folder, and `sg` in doctests."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before NumPy is imported: the reference results must not depend on how many threads BLAS takes.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# Kernels compiled by the tests are shared between the processes of one run and then forgotten.
# A developer who wants a warm start sets SYMGRAD_CACHE_DIR.
if "SYMGRAD_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="symgrad-tests-")
    os.environ["SYMGRAD_CACHE_DIR"] = _cache
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)

import pytest  # noqa: E402  # once the folder of the cache is chosen

ROOT = Path(__file__).resolve().parent.parent


if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):  # see cuda_cases.py
    from tests import device_simulator

    device_simulator.install()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the golden files of generated source anew instead of comparing with them",
    )


@pytest.fixture(scope="session", autouse=True)
def checked_passes() -> Iterator[None]:
    """Every pass returns a legal graph, in all tests, and runs where the cache has the program."""
    from codegen import records
    from symgrad.graph.passes import checking

    with checking(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "find", lambda key, written: None)
        yield


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """Environment of a child process that finds this checkout from any folder."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    return {**os.environ, "PYTHONPATH": path}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import symgrad

    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.dtest.globs.setdefault("sg", symgrad)
