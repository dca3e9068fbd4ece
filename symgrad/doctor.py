"""What works on this machine, and what to install where something does not.

Each finding is one line. Nothing here needs an optional package: what is absent is what the
findings are about.
"""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from symgrad._version import __version__

# The packages that symgrad cannot do without, as pip names them.
_BASE = (
    "numpy",
    "scipy",
    "sympy",
    "numba",
    "llvmlite",
    "networkx",
    "graphviz",
    "lazy_loader",
    "opt_einsum",
    "safetensors",
    "rich",
)
# Instruction sets worth a word, as LLVM names them, from the widest to the narrowest.
_VECTORS = ("avx512f", "avx2", "sve", "neon", "sse4.2")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        works: whether it can be used.
        text: what was found.
        install: what to do where it does not work, or "".
        optional: whether training and drawing to DOT go on without it.
    """

    name: str
    works: bool
    text: str
    install: str = ""
    optional: bool = False

    def __str__(self) -> str:
        mark = "ok" if self.works else ("--" if self.optional else "NO")
        advice = f"; {self.install}" if self.install and not self.works else ""
        return f"{mark}  {self.name:<10} {self.text}{advice}"

    def as_json(self) -> dict[str, object]:
        """Return the finding as a JSON object."""
        return {
            "works": self.works,
            "optional": self.optional,
            "found": self.text,
            "install": "" if self.works else self.install,
        }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    text = f"{platform.python_version()} ({platform.python_implementation()}, {sys.platform})"
    return Finding(
        "python", sys.version_info >= (3, 11), text, "symgrad needs Python 3.11 or later"
    )


def _packages() -> Finding:
    found = {package: _version(package) for package in _BASE}
    missing = [package for package, version in found.items() if version is None]
    text = f"symgrad {__version__}, " + ", ".join(f"{p} {v or 'missing'}" for p, v in found.items())
    return Finding("packages", not missing, text, f"pip install {' '.join(missing)}")


def _cpu() -> Finding:
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    wide = [name for name in _VECTORS if features.get(name)]
    fused = "fused multiply-add" if features.get("fma") or features.get("neon") else "no FMA"
    vectors = f"{wide[0]}, {fused}" if wide else f"no vector unit known, {fused}"
    return Finding("cpu", True, f"{llvm.get_host_cpu_name()}: {vectors}")


def _blas() -> Finding:
    import scipy

    blas = scipy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    works = importlib.util.find_spec("scipy.linalg.cython_blas") is not None
    text = f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip() + " (of SciPy)"
    return Finding("blas", works, text, "pip install --force-reinstall scipy")


def _compiler() -> Finding:
    import numpy as np

    import symgrad as sg

    x = sg.input("x", (3,))
    value = sg.compile(sg.tanh(x) * 2.0)(x=np.array([-1.0, 0.0, 1.0], np.float32))
    expected = 2.0 * np.tanh(np.array([-1.0, 0.0, 1.0]))
    works = bool(np.allclose(value, expected, atol=1e-6))
    text = "a small program compiles, runs and gives the right numbers"
    return Finding("compiler", works, text if works else f"a small program gave {value}")


def _graphviz() -> Finding:
    wheel, dot = _version("pygraphviz"), shutil.which("dot")
    found = [f"pygraphviz {wheel}"] if wheel else []
    found += [f"dot at {dot}"] if dot else []
    return Finding(
        "graphviz",
        bool(found),
        ", ".join(found) or "neither pygraphviz nor dot: pictures are saved as .dot text",
        'pip install "symgrad[viz]"',
        optional=True,
    )


def _demo() -> Finding:
    found = {package: _version(package) for package in ("scikit-learn", "matplotlib")}
    text = ", ".join(f"{package} {version or 'missing'}" for package, version in found.items())
    return Finding("demo", all(found.values()), text, 'pip install "symgrad[demo]"', optional=True)


def _cuda() -> Finding:
    """Package, driver, device: each is looked at only where those before it are there."""
    wheel = _version("numba-cuda")
    driver = ctypes.util.find_library("nvcuda" if sys.platform == "win32" else "cuda")
    text = f"numba-cuda {wheel or 'missing'}, NVIDIA driver {driver or 'missing'}"
    works = bool(wheel and driver)
    if works:
        from codegen.targets.cuda import devices

        found = devices()
        works = bool(found)
        text += f", {', '.join(found) or 'no device can be used'}"
    advice = [] if wheel else ['pip install "symgrad[cuda]"']
    advice += [] if driver else ['target="cuda" needs an NVIDIA GPU and its driver']
    return Finding("cuda", works, text, "; ".join(advice), optional=True)


def _cache() -> Finding:
    from codegen.cache import configured, folder

    used = folder()
    if used.shared:
        return Finding("cache", True, f"{used.path} (yours alone, warm starts work)")
    instead = "a temporary folder is used" if used.path else "programs are compiled in memory"
    advice = f"make {configured()} a folder of yours that nobody else can write, or set "
    return Finding(
        "cache", False, f"{used.reason}; {instead}", advice + "SYMGRAD_CACHE_DIR", optional=True
    )


_EXAMINATIONS: tuple[Callable[[], Finding], ...] = (
    _python,
    _packages,
    _cpu,
    _blas,
    _compiler,
    _graphviz,
    _demo,
    _cuda,
    _cache,
)


def examine() -> list[Finding]:
    """Look at everything that symgrad uses, and return one finding for each.

    An examination that fails is itself a finding: the report never stops half-way.

    >>> examine()[0].name
    'python'
    """
    findings = []
    for examination in _EXAMINATIONS:
        try:
            findings.append(examination())
        except Exception as error:
            name = examination.__name__.lstrip("_")
            findings.append(Finding(name, False, f"{type(error).__name__}: {error}"))
    return findings
