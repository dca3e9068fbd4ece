"""The CUDA target as a user meets it: imports, errors, the compiled program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.targets import cuda as target
from symgrad import doctor


def child(outside: dict[str, str], code: str, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**outside, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_cuda_is_imported_only_for_its_target(outside: dict[str, str]) -> None:
    code = (
        "import json, pkgutil, sys, symgrad as sg, codegen.pipeline, codegen.targets\n"
        "import symgrad.train.trainer, symgrad.doctor\n"
        "f = sg.compile(sg.input('x', (3,)) + 1)\n"
        "f(x=[1, 2, 3])\n"
        "print(json.dumps([m for m in sys.modules if m.startswith(('numba.cuda', 'numba_cuda.'))\n"
        "    or m in ('codegen.targets.cuda', 'codegen.device_memory')]))\n"
    )
    assert child(outside, code) == []


def test_import_of_the_target_does_not_import_cuda(outside: dict[str, str]) -> None:
    code = (
        "import json, sys, codegen.targets.cuda\n"
        "print(json.dumps([m for m in sys.modules if m.startswith('numba.cuda')]))\n"
    )
    assert child(outside, code) == []


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setattr(target, "_installed", lambda: False)
    with pytest.raises(sg.CompileError) as caught:
        sg.compile(sg.input("x", (3,)) + 1, target="cuda")
    assert 'pip install "symgrad[cuda]"' in str(caught.value)
    assert "symgrad doctor" in str(caught.value) and "numba-cuda" in str(caught.value)


def test_unknown_targets_are_told_of_cuda() -> None:
    with pytest.raises(sg.CompileError, match="cpu, cuda"):
        sg.compile(sg.input("x", (3,)), target="tpu")


PROGRAM = """
import json
import numpy as np
import symgrad as sg
x = sg.input("x", (2, 3))
w = sg.parameter("w", (3,))
f = sg.compile(sg.sum(x @ w), {w: w + 1}, target="cuda")
f.save("PATH")
said = []
for action in (lambda: f.program_address, lambda: f(y=1)):
    try:
        action()
    except Exception as error:
        said.append([type(error).__name__, str(error)])
    else:
        said.append(["nothing", ""])
x = np.ones((2, 3), np.float32)
results = [f(x=x) for _ in range(2)]
print(json.dumps({"said": said, "source": f.source, "report": f.report(), "fresh":
    results[0] is not results[1], "x": x.tolist(), "repr": repr(f.state)}))
"""


def test_the_face_is_that_of_the_cpu(outside: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "kernels.py"
    program = PROGRAM.replace("PATH", path.as_posix())
    found = child(outside, program, NUMBA_ENABLE_CUDASIM="1")
    (address, addressed), (leaf, _) = found["said"]
    assert (address, leaf) == ("CompileError", "LeafError")
    assert "target='cpu'" in addressed
    alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", str(path)], env={**alone, "NUMBA_ENABLE_CUDASIM": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and np.isfinite(float(done.stdout)), done.stderr
    assert "@kernel(" in found["source"] and "# table[1]" in found["source"]
    assert "cuda.grid(1)" in found["source"]
    assert "different kernels" in found["report"]
    assert found["fresh"] and found["x"] == [[1, 1, 1], [1, 1, 1]]
    assert found["repr"] == "State({'w': float32(3,)})"


TRAINING = """
import json
import numpy as np
import symgrad as sg
x, y = sg.input("x", (sg.dim("B"), 2)), sg.input("y", (sg.dim("B"),), dtype="int32")
w = sg.parameter("w", (2, 2), np.array([[0.5, -0.25], [1.0, 0.75]], np.float32))
data = {"x": np.array([[1.0, 2.0], [-1.0, 0.5], [0.25, -2.0]]), "y": np.array([0, 1, 1])}
found = []
for target in ("cpu", "cuda"):
    trainer = sg.Trainer(sg.cross_entropy(sg.dropout(x, 0.25) @ w, y), sg.optim.adam(0.1),
                         target=target)
    history = trainer.fit(data, 2, 2)
    found.append([trainer.parameters["w"].tolist(), list(history.loss)])
    try:
        trainer.fit({**data, "y": np.array([0, 2, 1])}, 1, 2)
    except sg.DataError as error:
        found[-1].append(str(error).split("\\n")[0])
print(json.dumps(found))
"""


def test_epochs_run_on_the_device(outside: dict[str, str]) -> None:
    (w, loss, bad), (own, measured, told) = child(outside, TRAINING, NUMBA_ENABLE_CUDASIM="1")
    np.testing.assert_allclose(own, w, rtol=1e-5)
    np.testing.assert_allclose(measured, loss, rtol=1e-5)
    assert told == bad and "label 2 is out of range for extent 2" in told


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: "libcuda.so.1")
    finding = doctor._cuda()
    assert not finding.works and finding.optional
    assert finding.text == "numba-cuda missing, NVIDIA driver libcuda.so.1"
    assert finding.install == 'pip install "symgrad[cuda]"'


def test_doctor_looks_for_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: "1.0")
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: "libcuda.so.1")
    monkeypatch.setattr(target, "devices", lambda: [])
    assert not doctor._cuda().works
    assert "no device can be used" in doctor._cuda().text
    monkeypatch.setattr(target, "devices", lambda: ["GPU 0", "GPU 1"])
    assert doctor._cuda().works
    assert doctor._cuda().text.endswith("GPU 0, GPU 1")
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: None)
    assert "driver missing" in doctor._cuda().text
    assert "GPU and its driver" in doctor._cuda().install
