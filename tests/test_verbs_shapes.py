"""Contractions, moves and reads against NumPy, static and symbolic."""

from __future__ import annotations

import numpy as np
import pytest

from symgrad.graph import contractions as ct, indexing as ix, leaves as lv, shapes as sh
from symgrad.graph.checker import check
from symgrad.graph.dims import dim
from symgrad.graph.errors import DataError, DTypeError, ShapeError, SymgradError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import input
from symgrad.graph.nodes import Einsum, Gather, Reindex
from symgrad.graph.operators import load_verbs

load_verbs()
B, T = dim("B"), dim("T")
RNG = np.random.default_rng(3)
X = RNG.standard_normal((3, 5, 7)).astype("f4")


def judged(made, values, wanted, exact=True):
    """The value is the wanted one, and shape and graph tell the truth about it."""
    check(Graph.of([made]))
    got = evaluate(made, values)
    wanted = np.asarray(wanted)
    assert got.shape == wanted.shape
    assert got.dtype == made.dtype
    if exact:
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-5)
    return got


@pytest.fixture(params=["static", "symbolic"])
def x(request):
    return input("x", (3, 5, 7) if request.param == "static" else (B, 5, T))


# -- contractions ---------------------------------------------------------------------------------
EINSUMS = [
    ("ij,jk->ik", (3, 5), (5, 7)),
    ("ij,jk", (3, 5), (5, 7)),
    ("ij,kj->ki", (3, 5), (7, 5)),
    ("bij,bjk->bik", (2, 3, 5), (2, 5, 7)),
    ("i,i->", (5,), (5,)),
    ("i,j->ij", (5,), (7,)),
    ("...ij,...jk->...ik", (2, 3, 5), (5, 7)),
    ("...ij,...jk", (2, 1, 3, 5), (4, 5, 7)),
    ("i...,i...->...", (3, 5), (3, 1)),
    ("ii->i", (5, 5)),
    ("ii->", (5, 5)),
    ("ii", (5, 5)),
    ("iji->j", (3, 5, 3)),
    ("iii->i", (3, 3, 3)),
    ("ij->ji", (3, 5)),
    ("ba", (3, 5)),
    ("ij->", (3, 5)),
    ("ij->j", (3, 5)),
    ("i,ij,jk,k->", (3,), (3, 5), (5, 7), (7,)),
    ("ab,bc,cd->ad", (3, 5), (5, 7), (7, 2)),
    ("ij,ij->ij", (3, 5), (3, 5)),
    (" i j , j -> i ", (3, 5), (5,)),
    (",ij->ij", (), (3, 5)),
    ("ijk,jil->kl", (2, 3, 5), (3, 2, 7)),
    ("...->...", (3, 5)),
    ("...i->...", (3, 5)),
    ("aab,bc->ac", (3, 3, 5), (5, 7)),
    ("...,...->...", (3, 1, 7), (5, 1)),
]


@pytest.mark.parametrize("case", EINSUMS, ids=lambda c: c[0])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_einsum_is_numpys(case, dtype):
    spec, *shapes = case
    leaves = [input(f"x{k}", s, dtype) for k, s in enumerate(shapes)]
    values = [(RNG.standard_normal(s) * 4).astype(dtype) for s in shapes]
    made = ct.einsum(spec, *leaves)
    wanted = np.einsum(spec, *values)
    judged(made, dict(zip(leaves, values, strict=True)), wanted, exact=dtype == "int32")
    assert made.dtype == np.dtype(dtype)


@pytest.mark.parametrize("n", [0, 1, 4])
def test_einsum_with_symbolic_empty_and_single_extents(n):
    a, b = input("a", (B, T)), input("b", (T, 3))
    v, w = RNG.random((n, 5), np.float32), RNG.random((5, 3), np.float32)
    judged(ct.einsum("ij,jk->ki", a, b), {a: v, b: w}, (v @ w).T, exact=False)
    v, w = RNG.random((4, n), np.float32), RNG.random((n, 3), np.float32)
    judged(ct.einsum("ij,jk->ki", a, b), {a: v, b: w}, (v @ w).T, exact=False)


EINSUM_ERRORS = [
    ("ij,jk->ik", [(3, 5), (7, 2)], r"einsum 'ij,jk->ik': extents 5 and 7 meet\n.*'x0'.*\(3, 5\)"),
    ("ij,jk", [(3, 5)], "2 groups of labels for 1 arrays"),
    ("ijk->i", [(3, 5)], r"'ijk' does not fit 2 axes\.\n.*\(3, 5\)"),
    ("i->i", [(3, 5)], "'i' does not fit 2 axes"),
    ("ij->iij", [(3, 5)], "label 'i' stands twice in the output"),
    ("ij->ik", [(3, 5)], "label 'k' of the output is in no operand"),
    ("i1->i", [(3, 5)], "'i1' is no group of labels"),
    ("ij....->i", [(3, 5)], "is no group of labels"),
    ("ii->i", [(3, 5)], "a repeated label meets extents 3 and 5"),
]


@pytest.mark.parametrize(("spec", "shapes", "match"), EINSUM_ERRORS)
def test_einsum_refuses(spec, shapes, match):
    with pytest.raises(ShapeError, match=match) as caught:
        ct.einsum(spec, *(input(f"x{k}", s) for k, s in enumerate(shapes)))
    assert repr(spec) in str(caught.value)


MATMULS = [
    ((3, 5), (5, 7)),
    ((5,), (5, 7)),
    ((3, 5), (5,)),
    ((5,), (5,)),
    ((2, 3, 5), (5, 7)),
    ((3, 5), (2, 5, 7)),
    ((2, 3, 5), (2, 5, 7)),
    ((4, 1, 3, 5), (2, 5, 7)),
    ((2, 3, 5), (5,)),
    ((5,), (2, 5, 7)),
    ((1, 3, 5), (2, 5, 7)),
    ((1, 3, 1), (1, 1, 7)),
    ((0, 5), (5, 7)),
    ((3, 0), (0, 7)),
]


@pytest.mark.parametrize(("left", "right"), MATMULS)
def test_matmul_is_numpys(left, right):
    a, b = input("a", left), input("b", right)
    v, w = RNG.random(left, np.float32), RNG.random(right, np.float32)
    judged(a @ b, {a: v, b: w}, v @ w, exact=False)
    judged(ct.dot(a, b), {a: v, b: w}, np.dot(v, w), exact=False)


def test_matmul_takes_arrays_on_the_left():
    x, w = input("x", (5, 7)), RNG.random((3, 5), np.float32)
    assert (w @ x).shape == (3, 7)
    assert np.matmul(w, x) is w @ x
    assert (input("k", (3, 5), "int32") @ x).dtype == np.float32
    judged(input("s", (B, T)) @ x.T, {"s": X[0], "x": X[1]}, X[0] @ X[1].T, exact=False)


def test_matmul_refuses_at_the_operator():
    a, b = input("a", (3, 5)), input("b", (3, 7))
    with pytest.raises(ShapeError, match="matmul: inner extents differ: 5 and 3") as caught:
        a @ b
    told = str(caught.value)
    assert "'a'          float32 (3, 5)  test_verbs_shapes.py:" in told
    assert "'b'          float32 (3, 7)" in told
    assert "Transpose one" in told
    with pytest.raises(ShapeError, match="needs at least one axis"):
        a @ 2.0
    with pytest.raises(ShapeError, match=r"leading axes do not broadcast: \(2,\) and \(3,\)"):
        input("c", (2, 3, 5)) @ input("d", (3, 5, 7))


def test_a_symbolic_extent_against_another_is_a_guard():
    a, b = input("a", (3, B)), input("b", (T, 7))
    made = a @ b
    assert len(Graph.of([made]).guards) == 1
    judged(
        made,
        {a: X[0, :3], b: X[0, :, :].repeat(2, 0)[:7]},
        X[0, :3] @ X[0].repeat(2, 0)[:7],
        exact=False,
    )
    with pytest.raises(ShapeError, match=r"equal differ: B = 5 of 'a' and T = 7 of 'b'") as caught:
        evaluate(made, {a: X[0, :3, :5], b: np.zeros((7, 7))})
    assert "test_verbs_shapes.py" in str(caught.value)


def test_tensordot_outer_trace_diag():
    a, b = input("a", (3, 5, 7)), input("b", (7, 5, 2))
    v, w = X, RNG.random((7, 5, 2), np.float32)
    values = {a: v, b: w}
    judged(
        ct.tensordot(a, b, ((1, 2), (1, 0))), values, np.tensordot(v, w, ((1, 2), (1, 0))), False
    )
    judged(ct.tensordot(a, b, ((2,), (0,))), values, np.tensordot(v, w, ((2,), (0,))), False)
    judged(ct.tensordot(a, b, 0)[0, 0], values, np.tensordot(v, w, 0)[0, 0], False)
    judged(ct.outer(a[0], b[0]), values, np.outer(v[0], w[0]), False)
    q = input("q", (B, B))
    square = X[0, :, :5].copy()
    square[0, 1] = np.inf  # off the diagonal: it must not leak
    judged(ct.trace(q), {q: square}, np.trace(square), False)
    judged(ct.diag(q), {q: square}, np.diag(square))
    judged(ct.diag(q[0]), {q: X[0, :, :5]}, np.diag(X[0, 0, :5]))
    with pytest.raises(ShapeError, match="trace: needs two axes"):
        ct.trace(a[0, 0])
    with pytest.raises(ShapeError, match="tensordot: extents 3 and 7 meet"):
        ct.tensordot(a, b, ((0,), (0,)))


# -- moves ----------------------------------------------------------------------------------------
def test_axes_verbs(x):
    values = {x: X}
    judged(x.T, values, X.T)
    judged(x.transpose(2, 0, 1), values, X.transpose(2, 0, 1))
    judged(x.transpose((1, 0, 2)), values, X.transpose(1, 0, 2))
    judged(sh.swapaxes(x, 0, -1), values, X.swapaxes(0, -1))
    judged(sh.moveaxis(x, 0, -1), values, np.moveaxis(X, 0, -1))
    judged(sh.moveaxis(x, (0, 1), (2, 0)), values, np.moveaxis(X, (0, 1), (2, 0)))
    judged(sh.expand_dims(x, (0, -1)), values, np.expand_dims(X, (0, -1)))
    judged(sh.squeeze(sh.expand_dims(x, (0, 2)), 0), values, np.expand_dims(X, 1))
    judged(sh.squeeze(sh.expand_dims(x, (0, 2))), values, X)
    assert x.transpose((0, 1, 2)) is x
    assert isinstance(x.T, Einsum)


def test_broadcast_to(x):
    values = {x: X}
    wide = sh.broadcast_to(x[:, :1], (2, x.shape[0], 4, x.shape[2]))
    judged(wide, values, np.broadcast_to(X[:, :1], (2, 3, 4, 7)))
    assert sh.broadcast_to(x, x.shape) is x
    with pytest.raises(ShapeError, match=r"broadcast_to: cannot stretch to \(6, 7\)"):
        sh.broadcast_to(x, (6, 7))


def test_reshape(x):
    values = {x: X}
    n = x.shape[0]
    judged(x.reshape(-1), values, X.reshape(-1))
    judged(x.reshape(n, -1), values, X.reshape(3, -1))
    judged(x.reshape((n * 5, x.shape[2])), values, X.reshape(15, 7))
    judged(x.reshape(-1, 5, 1, x.shape[2]), values, X.reshape(-1, 5, 1, 7))
    assert x.reshape(-1).reshape(x.shape) is x
    with pytest.raises(ShapeError, match="only one extent may be -1"):
        x.reshape(-1, -1)


def test_reshape_refuses():
    x = input("x", (3, 4))
    with pytest.raises(ShapeError, match=r"reshape: \(5, 2\) has 10 elements, not 12\n.*'x'"):
        x.reshape(5, 2)
    with pytest.raises(ShapeError, match="no extent for -1"):
        x.reshape(5, -1)
    with pytest.raises(ShapeError, match="no extent for -1"):
        input("y", (B, 3)).reshape(-1, 2)
    assert input("y", (B, 4)).reshape(-1, 2).shape == (2 * B, 2)
    assert input("y", (0, 4)).reshape(2, 0).shape == (2, 0)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_joining(x, axis):
    values = {x: X}
    judged(sh.concatenate([x, x * 2], axis), values, np.concatenate([X, X * 2], axis))
    judged(sh.stack([x, x, x + 1], axis), values, np.stack([X, X, X + 1], axis))
    judged(sh.flip(x, axis), values, np.flip(X, axis))
    assert sh.concatenate([x], axis) is x


def test_joining_is_one_move():
    parts = [input(f"x{k}", (3,)) for k in range(100)]
    made = sh.stack(parts)
    assert isinstance(made, Reindex) and len(made.args) == 100
    judged(
        made, {p: np.full(3, k) for k, p in enumerate(parts)}, np.arange(100)[:, None].repeat(3, 1)
    )


def test_joining_promotes_and_refuses():
    x, k = input("x", (B, 3)), input("k", (2, 3), "int32")
    made = sh.concatenate([k, x])
    assert made.shape == (B + 2, 3) and made.dtype == np.float32
    judged(
        made,
        {x: X[0, :4, :3], k: np.ones((2, 3), int)},
        np.concatenate([np.ones((2, 3), "f4"), X[0, :4, :3]]),
    )
    with pytest.raises(ShapeError, match=r"concatenate: the shapes must agree besides axis 0\n"):
        sh.concatenate([x, input("z", (2, 4))])
    with pytest.raises(ShapeError, match="stack: the shapes must agree"):
        sh.stack([k, input("z", (3, 3))])
    with pytest.raises(ShapeError, match="give a list of arrays"):
        sh.stack(x)
    with pytest.raises(ShapeError, match="needs at least one array"):
        sh.concatenate([])


def test_split_pad_flip_repeat_tile(x):
    values = {x: X}
    for part, wanted in zip(sh.split(x, [1, 4], 1), np.split(X, [1, 4], 1), strict=True):
        judged(part, values, wanted)
    for part, wanted in zip(sh.split(x[:, :4], 2, 1), np.split(X[:, :4], 2, 1), strict=True):
        judged(part, values, wanted)
    judged(sh.flip(x), values, np.flip(X))
    judged(sh.flip(x, (0, 2)), values, np.flip(X, (0, 2)))
    judged(sh.pad(x, 2), values, np.pad(X, 2))
    judged(sh.pad(x, (1, 0)), values, np.pad(X, (1, 0)))
    widths = ((1, 0), (0, 2), (3, 1))
    judged(sh.pad(x, widths), values, np.pad(X, widths))
    judged(sh.pad(x, widths, -1.5), values, np.pad(X, widths, constant_values=-1.5))
    padded = evaluate(sh.pad(x, widths, -0.0), values)
    np.testing.assert_array_equal(np.signbit(padded[:, -1]), True)
    for axis in (None, 0, 1, -1):
        judged(sh.repeat(x, 3, axis), values, np.repeat(X, 3, axis))
    for reps in (2, (2, 1, 3), (2, 1, 1, 1)):
        judged(sh.tile(x, reps), values, np.tile(X, reps))
    with pytest.raises(ShapeError, match="split: axis 1 of extent 5 has no 2 equal parts"):
        sh.split(x, 2, 1)
    with pytest.raises(ShapeError, match="pad: widths must be nonnegative"):
        sh.pad(x, -1)


# -- slices ---------------------------------------------------------------------------------------
SLICES = [
    np.s_[0],
    np.s_[-1],
    np.s_[1:],
    np.s_[:-1],
    np.s_[1:-1],
    np.s_[..., 0],
    np.s_[:, 2],
    np.s_[:, ::2],
    np.s_[:, ::-2],
    np.s_[::-1],
    np.s_[:, 4:1:-1],
    np.s_[:, 3:0:-2],
    np.s_[None],
    np.s_[:, None, 2:],
    np.s_[0, ..., None, -2],
    np.s_[..., None],
    np.s_[0, 1, 2],
    np.s_[:2, 1:3],
    np.s_[:, :0],
    np.s_[:, 10:],
    np.s_[-2:],
    np.s_[...],
    np.s_[:, -100:100],
    np.s_[2::-1],
    np.s_[..., ::-1],
    np.s_[:0],
]


@pytest.mark.parametrize("key", SLICES, ids=str)
def test_slices_are_numpys(x, key):
    judged(x[key], {x: X}, X[key])


def test_slices_that_move_nothing_are_the_array(x):
    assert x[...] is x
    assert x[:, :] is x


def test_symbolic_slices_are_checked_with_the_values():
    x = input("x", (B, 2))
    values = np.arange(10, dtype="f4").reshape(5, 2)
    judged(x[B - 2], {x: values}, values[3])
    judged(x[1 : B - 1], {x: values}, values[1:4])
    judged(x[B - 3 :: -1], {x: values}, values[2::-1])
    for key in (np.s_[3:], np.s_[4], np.s_[-4:], np.s_[:4]):
        with pytest.raises(ShapeError, match=r"a slice leaves its axis: .* for B = 2"):
            evaluate(x[key], {x: values[:2]})
    with pytest.raises(ShapeError, match="a step of 2 over a symbolic length"):
        x[::2]
    assert evaluate(x[::-1], {x: values[:0]}).shape == (0, 2)


def test_slice_errors():
    x = input("x", (3, 5))
    with pytest.raises(ShapeError, match=r"index: 3 is out of range for axis 0 of extent 3\n.*'x'"):
        x[3]
    with pytest.raises(ShapeError, match="3 indices for 2 axes"):
        x[0, 0, 0]
    with pytest.raises(ShapeError, match=r"more than one '\.\.\.'"):
        x[..., ...]
    with pytest.raises(DTypeError, match="a boolean index makes a shape that depends on the data"):
        x[x > 0]
    with pytest.raises(DTypeError, match="boolean index"):
        x[np.array([True, False, True])]
    with pytest.raises(DTypeError, match="positions must be integers"):
        x[x]
    with pytest.raises(ShapeError, match="step must be an integer other than 0"):
        x[::0]


def test_len_and_iteration():
    x = input("x", (3, 5))
    assert len(x) == 3
    assert [row.shape for row in x] == [(5,)] * 3
    with pytest.raises(SymgradError, match="axis 0 has the extent B"):
        len(input("y", (B, 2)))
    with pytest.raises(SymgradError, match="len: the expression is a scalar"):
        list(input("z", ()))


# -- reads ----------------------------------------------------------------------------------------
ROWS, J = np.array([[0, 2, -1], [1, 1, 0]]), np.array([4, -5, 2])
READS = [
    lambda i, j: np.s_[i],
    lambda i, j: np.s_[:, j],
    lambda i, j: np.s_[i, j],
    lambda i, j: np.s_[:, j, 0],
    lambda i, j: np.s_[i, :, j],
    lambda i, j: np.s_[..., j],
    lambda i, j: np.s_[0, j],
    lambda i, j: np.s_[:, j, None],
    lambda i, j: np.s_[None, i, 1:3],
    lambda i, j: np.s_[j[0] - j[0], j],
    lambda i, j: np.s_[i[0], :, ::-1],
    lambda i, j: np.s_[[0, 1]],
    lambda i, j: np.s_[i, None, j],
    lambda i, j: np.s_[1:, None, j, 1:],
]


@pytest.mark.parametrize("number", range(len(READS)))
def test_reads_are_numpys(x, number):
    i, j = input("i", ROWS.shape, "int32"), input("j", (3,), "int64")
    key = READS[number]
    judged(x[key(i, j)], {x: X, i: ROWS, j: J}, X[key(ROWS, J)])


def test_reads_with_arrays_and_lists(x):
    judged(x[[2, 0, 2]], {x: X}, X[[2, 0, 2]])
    judged(x[np.array([2, 0])], {x: X}, X[[2, 0]])
    assert isinstance(x[[2, 0]], Gather)


def test_take_and_take_along_axis(x):
    k = input("k", (2, 3), "int32")
    for axis in (None, 0, 1, -1):
        judged(ix.take(x, k, axis), {x: X, k: abs(ROWS)}, np.take(X, abs(ROWS), axis))
    for axis in (0, 1, 2):
        order = np.argsort(X, axis)
        o = input("o", x.shape, "int32")
        judged(ix.take_along_axis(x, o, axis), {x: X, o: order}, np.take_along_axis(X, order, axis))
    with pytest.raises(ShapeError, match="take_along_axis: shapes must agree besides axis 1"):
        ix.take_along_axis(x, k, 1)
    with pytest.raises(DTypeError, match="take: positions must be integers"):
        ix.take(x, x)


def test_positions_out_of_range_are_named():
    x, k = input("x", (4, 2)), input("k", (3,), "int32")
    made = x[k]
    for bad in (4, -5):
        with pytest.raises(DataError, match=rf"index {bad} is out of range .* 4") as caught:
            evaluate(made, {x: np.zeros((4, 2)), k: [0, bad, 1]})
        assert "test_verbs_shapes.py" in str(caught.value)
        assert "at (1,) of  'k'" in str(caught.value)
    with pytest.raises(DataError, match="extent 0"):
        evaluate(input("e", (B,))[k], {"e": np.zeros(0), k: [0, 0, 0]})


def test_one_hot_tril_triu():
    k, q = input("k", (B, 3), "int32"), input("q", (2, 5, 7))
    values = np.array([[0, 4, 2], [1, 9, -1]])
    judged(ix.one_hot(k, 5), {k: values}, (values[..., None] == np.arange(5)).astype("f4"))
    judged(ix.one_hot(k, 5, "int32"), {k: values}, (values[..., None] == np.arange(5)))
    judged(ix.one_hot(k, 5, bool), {k: values}, (values[..., None] == np.arange(5)))
    assert ix.one_hot(k, T).shape == (B, 3, T)
    square = np.where(X[:2] > 1, np.nan, X[:2])
    for shift in (-1, 0, 2):
        judged(ix.tril(q, shift), {q: square}, np.tril(square, shift))
        judged(ix.triu(q, shift), {q: square}, np.triu(square, shift))


# -- expressions without inputs -------------------------------------------------------------------
def test_made_arrays():
    x = input("x", (B, 3), "float64")
    value = {x: np.zeros((4, 3))}
    judged(lv.zeros((2, 3)), {}, np.zeros((2, 3), "f4"))
    judged(lv.ones((2, 3), "int32"), {}, np.ones((2, 3), "i4"))
    judged(lv.full((2,), 0.1), {}, np.full(2, 0.1, "f4"))
    judged(lv.full((), 3), {}, 3)
    judged(lv.ones_like(x), value, np.ones((4, 3)))
    judged(lv.zeros_like(x, "bool") | (x > 0), value, np.zeros((4, 3), bool))
    assert lv.zeros_like(x).dtype == np.float64
    judged(lv.eye(3), {}, np.eye(3))
    judged(lv.eye(3, 5, k=-1, dtype="int64"), {}, np.eye(3, 5, -1))
    judged(lv.eye(3, 5, 2, bool), {}, np.eye(3, 5, 2, bool))
    judged(lv.arange(5), {}, np.arange(5))
    judged(lv.arange(2, 11, 3), {}, np.arange(2, 11, 3))
    judged(lv.arange(5, 0, -2), {}, np.arange(5, 0, -2))
    judged(lv.arange(0.5, 3), {}, np.arange(0.5, 3, dtype="f4"))
    judged(lv.arange(3, dtype="float64"), {}, np.arange(3.0))
    judged(x[:, 0] + lv.arange(B, dtype="float64"), value, np.arange(4.0))
    judged(x[1:, 0] + lv.arange(1, B, dtype="float64"), value, np.arange(1, 4.0))
    assert lv.arange(5).dtype == np.int32 and lv.arange(5.0).dtype == np.float32
    with pytest.raises(ShapeError, match="the step must not be 0"):
        lv.arange(0, 3, 0)
