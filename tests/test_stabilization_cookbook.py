"""Derivatives by matrices against the identities of The Matrix Cookbook, by their numbers there.

Petersen and Pedersen, The Matrix Cookbook, 2012, chapter 2. SymPy's tests of matrix derivatives
number the same ones. Each is differentiated as it is, stabilised and simplified, and held against
the identity by value; where one contraction is the answer, it must be that contraction. What has no
verb, and is not here:

    39                   a Kronecker product as a matrix; its traces are 105 and 120
    40, 59-65, 124-128   the inverse of a matrix
    41-43, 46-58         determinants, and logarithms of them
    45                   complex conjugates
    66-68                eigenvalues and eigenvectors
    75, 76, 79           a single element of X and of X'BX, by index: the tensors are 73, 74 and 80
    91-96                products of functions that are not given, and what 97 and 98 are made of
    133-144              matrices with structure: here the elements of a leaf are independent
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import symgrad as sg
from symgrad.calculus.stabilization import stabilize
from symgrad.graph.evaluator import evaluate
from symgrad.graph.nodes import Node

N = 4
A, B, C, D, X = (sg.input(name, (N, N), "float64") for name in "ABCDX")
a, b, c, d, x = (sg.input(name, (N,), "float64") for name in "abcdx")
I = sg.eye(N, dtype="float64")  # noqa: E741  # the Cookbook's name
tr, outer = sg.trace, sg.outer

# number: (a scalar, what it is differentiated by, its derivative, whether the answer is one node)
IDENTITIES: dict[str, tuple[Node, Node, Node, bool]] = {
    "69": (x @ a, x, a, True),
    "69, turned": (a @ x, x, a, True),
    "70": (a @ X @ b, X, outer(a, b), True),
    "71": (a @ X.T @ b, X, outer(b, a), False),
    "72": (a @ X @ a, X, outer(a, a), True),
    "72, turned": (a @ X.T @ a, X, outer(a, a), False),
    "77": (b @ X.T @ X @ c, X, X @ (outer(b, c) + outer(c, b)), False),
    "78": ((B @ x + b) @ C @ (D @ x + d), x,
           B.T @ C @ (D @ x + d) + D.T @ C.T @ (B @ x + b), False),
    "81": (x @ B @ x, x, (B + B.T) @ x, False),
    "82": (b @ X.T @ D @ X @ c, X, D.T @ X @ outer(b, c) + D @ X @ outer(c, b), False),
    "83": ((X @ b + c) @ D @ (X @ b + c), X, outer((D + D.T) @ (X @ b + c), b), False),
    "84": ((x - A @ d) @ (C + C.T) @ (x - A @ d), d,
           -2.0 * A.T @ (C + C.T) @ (x - A @ d), False),
    "85": ((x - d) @ (B + B.T) @ (x - d), x, 2.0 * (B + B.T) @ (x - d), False),
    "86": ((x - d) @ (B + B.T) @ (x - d), d, -2.0 * (B + B.T) @ (x - d), False),
    "87": ((x - A @ d) @ B @ (x - A @ d), x, (B + B.T) @ (x - A @ d), False),
    "88": ((x - A @ d) @ (C + C.T) @ (x - A @ d), A,
           -2.0 * outer((C + C.T) @ (x - A @ d), d), False),
    "89": (a @ X @ X @ X @ b, X,
           outer(a, X @ X @ b) + outer(X.T @ a, X @ b) + outer(X.T @ X.T @ a, b), False),
    "90": ((X @ X @ a) @ (X @ X @ b), X,
           outer(X @ X @ b, X @ a) + outer(X.T @ X @ X @ b, a)
           + outer(X @ X @ a, X @ b) + outer(X.T @ X @ X @ a, b), False),
    "97": (x @ A @ x + b @ x, x, (A + A.T) @ x + b, False),
    "99": (tr(X), X, I, False),
    "100": (tr(X @ A), X, A.T, True),
    "101": (tr(A @ X @ B), X, A.T @ B.T, True),
    "102": (tr(A @ X.T @ B), X, B @ A, False),  # one node, its factors in another order
    "103": (tr(X.T @ A), X, A, True),
    "104": (tr(A @ X.T), X, A, True),
    "105": (tr(A) * tr(X), X, tr(A) * I, False),
    "106": (tr(X @ X), X, 2.0 * X.T, False),
    "107": (tr(X @ X @ B), X, (X @ B + B @ X).T, False),
    "108": (tr(X.T @ B @ X), X, B @ X + B.T @ X, False),
    "109": (tr(B @ X @ X.T), X, B @ X + B.T @ X, False),
    "110": (tr(X @ X.T @ B), X, B @ X + B.T @ X, False),
    "111": (tr(X @ B @ X.T), X, X @ B.T + X @ B, False),
    "112": (tr(B @ X.T @ X), X, X @ B.T + X @ B, False),
    "113": (tr(X.T @ X @ B), X, X @ B.T + X @ B, False),
    "114": (tr(A @ X @ B @ X), X, A.T @ X.T @ B.T + B.T @ X.T @ A.T, False),
    "115": (tr(X.T @ X), X, 2.0 * X, False),
    "115, turned": (tr(X @ X.T), X, 2.0 * X, False),
    "116": (tr(B.T @ X.T @ C @ X @ B), X, C.T @ X @ B @ B.T + C @ X @ B @ B.T, False),
    "117": (tr(X.T @ B @ X @ C), X, B @ X @ C + B.T @ X @ C.T, False),
    "118": (tr(A @ X @ B @ X.T @ C), X, A.T @ C.T @ X @ B.T + C @ A @ X @ B, False),
    "119": (tr((A @ X @ B + C) @ (A @ X @ B + C).T), X, 2.0 * A.T @ (A @ X @ B + C) @ B.T, False),
    "120": (tr(X) * tr(X), X, 2.0 * tr(X) * I, False),
    "121": (tr(X @ X @ X @ X), X, 4.0 * (X @ X @ X).T, False),
    "122": (tr(A @ X @ X @ X), X, (X @ X @ A + X @ A @ X + A @ X @ X).T, False),
    "123": (tr(B.T @ X.T @ C @ X @ X.T @ C @ X @ B), X,
            C @ X @ X.T @ C @ X @ B @ B.T + C.T @ X @ B @ B.T @ X.T @ C.T @ X
            + C @ X @ B @ B.T @ X.T @ C @ X + C.T @ X @ X.T @ C.T @ X @ B @ B.T, False),
    "129": (sg.sqrt(((x - a) * (x - a)).sum()), x,
            (x - a) / sg.sqrt(((x - a) * (x - a)).sum()), False),
    "131": ((x * x).sum(), x, 2.0 * x, False),
    "132": ((X * X).sum(), X, 2.0 * X, False),
}

VALUES = {
    leaf: np.random.default_rng(k).normal(size=leaf.shape)
    for k, leaf in enumerate((A, B, C, D, X, a, b, c, d, x))
}


@pytest.mark.parametrize("number", IDENTITIES)
def test_the_gradient_is_the_identity(number: str) -> None:
    scalar, wrt, identity, one_node = IDENTITIES[number]
    found = sg.simplify(stabilize(sg.grad(scalar, wrt)))
    np.testing.assert_allclose(
        evaluate(found, VALUES), evaluate(identity, VALUES), rtol=1e-10, atol=1e-11
    )
    if one_node:
        assert found is sg.simplify(identity)


@pytest.mark.parametrize("number", ["78", "81", "83", "108", "111", "117", "119"])
def test_and_its_hessian_is_the_jacobian_of_the_identity(number: str) -> None:
    scalar, wrt, identity, _ = IDENTITIES[number]
    np.testing.assert_allclose(
        evaluate(stabilize(sg.hessian(scalar, wrt)), VALUES),
        evaluate(sg.jacobian(identity, wrt), VALUES),
        rtol=1e-9, atol=1e-10,
    )


JACOBIANS: dict[str, tuple[Node, Node, Callable[[], np.ndarray]]] = {
    "33": (A, A, lambda: np.einsum("ik,jl->ijkl", np.eye(N), np.eye(N))),
    "73": (X, X, lambda: np.einsum("ik,jl->ijkl", np.eye(N), np.eye(N))),
    "74": (X.T @ A, X, lambda: np.einsum("il,kj->ijkl", np.eye(N), VALUES[A])),
    "80": (X.T @ B @ X, X, lambda: (
        np.einsum("il,kj->ijkl", np.eye(N), VALUES[B] @ VALUES[X])
        + np.einsum("ik,jl->ijkl", VALUES[X].T @ VALUES[B], np.eye(N))
    )),
    "98": (sg.grad(x @ A @ x + b @ x, x), x, lambda: VALUES[A] + VALUES[A].T),
    "130": ((x - a) / sg.sqrt(((x - a) * (x - a)).sum()), x, lambda: (
        (lambda e, n: np.eye(N) / n - np.outer(e, e) / n**3)(
            VALUES[x] - VALUES[a], np.linalg.norm(VALUES[x] - VALUES[a])
        )
    )),
    "x x'x": (x * (x @ x), x, lambda: (
        (VALUES[x] @ VALUES[x]) * np.eye(N) + 2 * np.outer(VALUES[x], VALUES[x])
    )),
}


@pytest.mark.parametrize("number", JACOBIANS)
def test_the_jacobian_is_the_identity(number: str) -> None:
    out, wrt, identity = JACOBIANS[number]
    found = stabilize(sg.jacobian(out, wrt))
    np.testing.assert_allclose(
        evaluate(found, VALUES), identity(), rtol=1e-11, atol=1e-12
    )


# number: (a matrix, a scalar), and its differential in the direction D
DIFFERENTIALS: dict[str, tuple[Node, Node]] = {
    "34": (3.0 * X, 3.0 * D),
    "35": (X + 2.0 * A, D),
    "36": (tr(X), tr(D)),
    "37": (X @ A @ X, D @ A @ X + X @ A @ D),
    "38": (X * A * X, 2.0 * D * A * X),
    "44": (X.T, D.T),
}


@pytest.mark.parametrize("number", DIFFERENTIALS)
def test_the_differential_is_the_identity(number: str) -> None:
    out, identity = DIFFERENTIALS[number]
    _, (found,) = sg.jvp([out], [X], [D])
    np.testing.assert_allclose(
        evaluate(stabilize(found), VALUES), evaluate(identity, VALUES), rtol=1e-12, atol=1e-12
    )


def test_elementwise_functions_of_matrices() -> None:
    # d sum f(A X b) = A' f'(A X b) b'
    pairs = ((sg.sin, sg.cos), (sg.exp, sg.exp), (lambda z: sg.log(1 + sg.exp(z)), sg.sigmoid))
    for f, slope in pairs:
        found = stabilize(sg.grad(f(A @ X @ b).sum(), X))
        want = outer(A.T @ slope(A @ X @ b), b)
        np.testing.assert_allclose(
            evaluate(found, VALUES), evaluate(want, VALUES), rtol=1e-10, atol=1e-12
        )
