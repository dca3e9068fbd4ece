"""Certificates: what was rewritten, on which line, and where the naive form loses its digits."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

import symgrad as sg
from symgrad.calculus.stability_certificate import Certificate, Entry
from symgrad.calculus.stability_record import EQUATIONS
from symgrad.calculus.stabilization import stabilize

exp, log = sg.exp, sg.log


def certified(e) -> tuple[object, Certificate]:
    made, certificate = stabilize(e, certificate=True)
    assert made is stabilize(e)
    return made, certificate


def only(e) -> Entry:
    _, certificate = certified(e)
    assert len(certificate) == 1
    (entry,) = certificate
    assert entry.equation == EQUATIONS[entry.rule]
    assert entry.where.startswith("test_stabilization_certificate.py:")
    assert [loss.dtype.name for loss in entry.losses] == ["float32", "float64"]
    return entry


def inside(entry: Entry, x: float, dtype: str = "float32") -> bool:
    (loss,) = [loss for loss in entry.losses if loss.dtype == np.dtype(dtype)]
    return any(a <= x <= b for a, b in loss.intervals)


V = sg.input("v", (3,))
M = sg.input("m", (3, 5))
Y = sg.input("y", (3,), "int32")


def picked():
    return (exp(M) / exp(M).sum(axis=1, keepdims=True))[sg.arange(3, dtype="int32"), Y]


@pytest.mark.parametrize(("write", "rule", "lost", "kept"), [
    (lambda: log(exp(M).sum(axis=1)), "logarithm", [-200.0, 89.0, 1e4], [0.0, 50.0, -50.0]),
    (lambda: exp(M) / exp(M).sum(axis=1, keepdims=True), "exponentials", [-200.0, 89.0], [0.0]),
    (lambda: log(picked()), "logarithm", [-200.0, 89.0, 1e4], [0.0, 50.0, -50.0]),
    (lambda: log(1 + exp(sg.take(M, Y, axis=0))), "softplus", [-20.0, 89.0], [0.0, 50.0, -5.0]),
    (lambda: log(1 + exp(V)), "softplus", [-20.0, 89.0], [0.0, 50.0, -5.0]),
    (lambda: log(1 - sg.sigmoid(V)), "softplus", [-20.0, 20.0, 200.0], [0.0, 5.0]),
    (lambda: 1 - sg.sigmoid(V), "sigmoid", [20.0, 50.0], [-50.0, 0.0, 5.0]),
    (lambda: log(1 + V), "log1p", [1e-6, -1e-6, 1e-12], [1.0, 0.1, 1e4]),
    (lambda: exp(V) - 1, "expm1", [1e-6, -1e-6, 1e-12], [1.0, -1.0]),
    (lambda: (M * M).mean(axis=1) - M.mean(axis=1) ** 2, "variance", [-1e4, 1e6], [0.0, 1.0]),
    (lambda: V * log(V), "x log x", [0.0], [0.5, 3.0]),
    (lambda: sg.sqrt(V * V), "absolute value", [1e-25, 1e20], [1.0, -3.0]),
    (lambda: (exp(V) - exp(-V)) / (exp(V) + exp(-V)), "tanh", [1e-6, 89.0, -100.0], [1.0, 5.0]),
    (lambda: log(exp(V) + exp(sg.input("u", (3,)))), "log-add-exp", [89.0], [0.0, 5.0]),
])
def test_the_intervals_are_where_digits_are_lost(write, rule, lost, kept) -> None:
    entry = only(write())
    assert entry.rule == rule
    assert all(inside(entry, x) for x in lost), str(entry.losses[0])
    assert not any(inside(entry, x) for x in kept), str(entry.losses[0])
    low, high = entry.interval
    assert low <= min(lost) and max(lost) <= high


def test_float64_loses_later() -> None:
    entry = only(log(1 + exp(V)))
    assert not inside(entry, 89.0, "float64") and inside(entry, 710.0, "float64")
    single, double = (loss.intervals[-1][0] for loss in entry.losses)
    np.testing.assert_allclose([single, double], [88.72, 709.8], rtol=1e-3)


def test_each_rewrite_of_a_network_is_listed() -> None:
    n = sg.dim("n")
    x, W = sg.input("x", (n, 4)), sg.parameter("W", (4, 3))
    z = x @ W
    p = exp(z) / exp(z).sum(axis=1, keepdims=True)
    loss = -log(p).mean()
    outputs, certificate = stabilize([loss, *sg.grad(loss, [W])], certificate=True)
    assert len(outputs) == 2
    assert {"logarithm"} <= {entry.rule for entry in certificate} <= set(EQUATIONS)
    text = str(certificate)
    assert "log(w e^s) = log(w) + s" in text and "loses half its digits for x in" in text
    assert all(entry.rewrite.shape is not None for entry in certificate)


def test_what_cannot_be_run_says_so() -> None:
    _, certificate = certified(sg.grad(log(picked()).sum(), M))  # it writes at positions
    assert "not measured" in str(certificate)


def test_nothing_rewritten() -> None:
    made, certificate = certified(V * 2.0)
    assert made is stabilize(V * 2.0) and not len(certificate)
    assert str(certificate) == "nothing rewritten"


def test_as_html_without_a_users_text() -> None:
    _, certificate = certified(log(1 + exp(sg.input("<script>", (3,)))))
    page = certificate._repr_html_()
    assert page.startswith("<table>") and "<script>" not in page and "softplus" in page


def test_without_mpmath_the_error_is_clear(monkeypatch) -> None:
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "mpmath":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(sg.SymgradError, match="mpmath, which is not installed"):
        stabilize(log(1 + exp(V)), certificate=True)
    assert stabilize(log(1 + exp(V))) is not None
