"""Every class of node and its options, compiled, against `evaluate`.

Data are small whole numbers wherever the operations allow it: then sums and products are exact in
whatever order, and compiled results must be equal to the last bit.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph.functions import AXIS, CAST, P, equal, floor_divide, mod, select, sign
from symgrad.graph.nodes import (
    Gather,
    Map,
    Node,
    Piece,
    Reduce,
    Reindex,
    Scatter,
    einsum_node,
    map_node,
    reshape_node,
)
from tests.codegen_cases import Case, Cases, real, whole

cases = Cases()
DTYPES = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64}


# -- contractions ----------------------------------------------------------------------------------
EINSUMS = (
    *("ij,jk->ik", "ji,jk->ik", "ij,kj->ik", "ji,kj->ik", "ij,jk->ki", "ji,kj->ki"),  # products
    *("bij,bjk->bik", "bji,bjk->bik", "bij,bkj->bik", "ibj,jbk->ikb", "bij,jk->bik", "ij,bjk->bki"),
    *("i,i->", "ij,ij->", "ij,ji->", "ijk,kij->", "i,j->ij", "i,j->ji", "ij,kl->ljik", "i,ij->j"),
    *("ij,j->i", "ji,j->i", "bij,bj->bi", "bi,bi->b", "ib,ib->b", "bij,bij->b", "bij,bij->bi"),
    *("ij->ji", "ijk->kij", "ijk->jk", "ijk->ik", "ijk->ij", "ijk->j", "ijk->", "ijk->kj", "i->"),
    *("->ij", "i->ij", "i->ji", "ij->ijk", "ij->kij", "ij->kji", "i,j->ijk", "i,ij->ijk"),
    *("ij,jk,kl->il", "ij,jk,kl,lm->im", "i,ij,j->", "ab,bc,ca->", "ij,ij,ij->i", "i,i,i->ij"),
    *("ijk,kl->ijl", "ijkl,kl->ij", "ijkl,jl->ik", "ai,bi,ci->abc", "ij,k->i", "ij,kl->", "i,j->"),
)
EXTENTS = dict(zip("abcijklm", (3, 2, 5, 3, 5, 7, 2, 4), strict=True))


@cases.add_each({spec.replace("->", "_"): spec for spec in EINSUMS})
def einsum(c: Case, spec: str) -> None:
    given, _, out = spec.partition("->")
    number = {letter: k for k, letter in enumerate(EXTENTS)}
    labels = [[number[x] for x in part] for part in given.split(",")]
    result = [number[x] for x in out]
    extents = {number[x]: EXTENTS[x] for x in EXTENTS}
    n = c.dim()
    for dtype in (np.float32, np.float64, np.int32):
        data = [whole(k, *(extents[x] for x in own), dtype=dtype) for k, own in enumerate(labels)]
        node = einsum_node([c.input(x) for x in data], labels, result, extents)
        if dtype is np.float32 or (spec in EINSUMS[:6] and dtype is np.float64):
            c.out(node)
        else:
            c.like_others(node)
    # the same with one symbolic extent, the first summed one
    summed = [x for own in labels for x in own if x not in result] or [x for o in labels for x in o]
    if not summed or not labels[0]:
        return
    symbol = summed[0]
    args = []
    for k, own in enumerate(labels):
        shape = [n if x == symbol else extents[x] for x in own]
        args.append(c.input(whole(k, *(extents[x] for x in own)), *shape))
    c.like_others(einsum_node(args, labels, result, {**extents, symbol: n}))


@cases.add
def result_of_a_row_sum_lies_in_another_order(c: Case) -> None:
    x = c.input(whole(1, 2, 2, 5))
    y = einsum_node([x, x], [(0, 1, 2), (3, 0, 2)], (0, 3))
    c.out(map_node(P[0] + 1, [y]), y)


@cases.add
def values_read_at_their_own_place_and_at_another(c: Case) -> None:
    n = c.dim()
    x, k = c.input(whole(1, 5, 5), n, n), c.input([[0, 1], [2, -1]], dtype=np.int32)
    y = x * 2 + 1
    c.out(y - sg.transpose(y), sg.where(y > 0, y[::-1], y), y + y[:, ::-1] * sg.transpose(y))
    rows = x[0][k]
    c.out(sg.minimum(sg.transpose(rows), rows) + sg.arange(2))


@cases.add
def repeated_arguments(c: Case) -> None:
    x = c.input(whole(1, 3, 5))
    c.out(sg.einsum("ij,ij->j", x, x), sg.einsum("ij,kj->ik", x, x), sg.einsum("ij,ik->jk", x, x))
    c.out(sg.einsum("ij,ij,ij->ij", x, x, x))


# -- reductions ------------------------------------------------------------------------------------
AXES = [axes for n in (1, 2, 3) for axes in itertools.combinations(range(3), n)]


@cases.add_each({"".join(map(str, axes)): axes for axes in AXES})
def reduce_over(c: Case, axes: tuple[int, ...]) -> None:
    n = c.dim()
    for dtype in (np.float32, np.float64, np.int32, np.int64, np.bool_):
        data = whole(1, 3, 5, 7, dtype=dtype, high=3)
        for x in (c.input(data, 3, n, 7), c.input(data)):
            ops = ["max", "min"] if dtype is np.bool_ else ["max", "min", "prod"]
            if len(axes) == 1:
                ops += ["argmax", "argmin"]
            for op in ops:
                signs = map_node(sign(P[0]), [x]) if op == "prod" else x
                few = dtype in (np.float32, np.bool_) and x.shape[1] is n
                take = c.out if few and axes in ((1,), (0, 2)) else c.like_others
                take(Reduce((signs,), op, axes))


@cases.add_each({str(axis): axis for axis in range(3)})
def running(c: Case, axis: int) -> None:
    for dtype in (np.float32, np.float64, np.int32, np.int64, np.bool_):
        x = c.input(whole(1, 3, 5, 7, dtype=dtype, high=2))
        ops = ["cummax"] if dtype is np.bool_ else ["cummax", "cumsum", "cumprod"]
        take = c.out if axis == 1 and dtype in (np.float32, np.bool_) else c.like_others
        take(*(Reduce((x,), op, (axis,)) for op in ops))


@cases.add
def running_in_the_middle_of_a_program(c: Case) -> None:
    x = c.input(whole(1, 3, 5))
    y = Reduce((x + 1,), "cumsum", (1,))
    c.out(y * 2, Reduce((sg.transpose(y),), "cummax", (0,)), y.sum())


@cases.add
def reductions_of_reductions(c: Case) -> None:
    n = c.dim()
    x = c.input(whole(1, 3, 5, 7), 3, n, 7)
    c.out(x.sum(2).max(1).sum(), x.max(0).sum(0), (x - x.max(2, keepdims=True)).sum(2).min())
    c.out((x * x.sum((1, 2), keepdims=True)).sum(0), x.sum(0).sum(0).sum(0))
    c.out(x - x.sum(0, keepdims=True), (x - x.sum((0, 1), keepdims=True)).max((0, 2)))


@cases.add
def first_of_equal_places(c: Case) -> None:
    x = c.input([[2.0, 3.0, 3.0], [1.0, 1.0, 1.0]])
    c.out(sg.argmax(x, 1), sg.argmax(x, 0), sg.argmin(x, 1), sg.argmin(x, 0), sg.argmax(x))


@cases.add
def places_with_nan(c: Case) -> None:
    nan, inf = np.nan, np.inf
    x = c.input([[1, nan, 3, nan], [-inf, -inf, -inf, -inf], [inf, 2, inf, 0], [nan, 1, 1, 1]])
    c.out(sg.argmax(x, 1), sg.argmin(x, 1), x.max(1), x.min(1), x.max(0), sg.argmax(x, 0), x.sum(1))
    c.out(sg.argmax(x, 1) + 1, sg.cumsum(x, 1), Reduce((x,), "cummax", (1,)), sg.prod(x, 1))


@cases.add
def place_read_in_the_same_row(c: Case) -> None:
    x = c.input(whole(2, 5, 7))
    k = sg.argmax(x, 1)
    c.out(k, k * 2 + 1, sg.take_along_axis(x, k.reshape(5, 1), 1))


# -- extents of one and zero -----------------------------------------------------------------------
@cases.add
def extents_of_one(c: Case) -> None:
    n = c.dim()
    x, y = c.input(whole(1, 1, 5), n, 5), c.input(whole(2, 5, 1))
    c.out(x.sum(0), x.sum(1), x + 1, x @ y, y @ x, x.max(0), y.max(1), sg.transpose(y) * x)
    one = c.input(whole(3, 1, 1))
    c.out(one * x, one @ one, one.sum(), one.reshape(()), sg.argmax(one, 0), sg.cumsum(one, 0))


@cases.add
def extents_of_zero(c: Case) -> None:
    n = c.dim()
    x, y = c.input(np.zeros((0, 5), np.float32), n, 5), c.input(whole(2, 5, 3))
    c.out(x + 1, x.sum(0), x.sum(1), x.sum(), x @ y, sg.transpose(x) @ (x @ y), x.max(1))
    c.out(sg.prod(x, 0), sg.cumsum(x, 0), sg.concatenate([x, sg.transpose(y)], 0), sg.argmax(x, 1))
    c.out(x.mean(), sg.pad(x, ((1, 2), (0, 1))), x[::-1], x.reshape(n * 5))
    k = c.input(np.zeros(0, np.int32), n)
    c.out(y[k], sg.one_hot(k, 3).sum(0))
    nothing = c.input(np.zeros((3, 0), np.float32))
    c.out(nothing.sum(1), nothing @ sg.transpose(nothing), nothing.sum(0), nothing * 2)
    c.out(sg.einsum("ij,kj->ik", nothing, nothing) + 1)


# -- moves -----------------------------------------------------------------------------------------
@cases.add
def slices(c: Case) -> None:
    n = c.dim()
    x, s = c.input(whole(1, 5, 7)), c.input(whole(2, 5, 7), n, 7)
    c.out(x[1:4, ::2], x[::-1], x[:, ::-1], x[3, 1:], x[-2:, -3], x[4:0:-2, 5:1:-3], x[2:2])
    c.out(s[1:, 1:], s[::-1, ::-2], s[n - 2 :, 0], s[:-1] - s[1:])
    c.out(x[1:3] * 2 + x[2:4], sg.transpose(x)[1:, 1:] @ x[1:, :3])


@cases.add
def pads_and_joins(c: Case) -> None:
    n = c.dim()
    x, y = c.input(whole(1, 3, 5)), c.input(whole(2, 7, 5), n, 5)
    c.out(sg.pad(x, ((1, 2), (0, 3))), sg.concatenate([x, y], 0), sg.stack([x, x + 1, x * 2], 1))
    c.out(sg.concatenate([x, x[:, 1:3]], 1), sg.concatenate([y, y[::-1], x], 0) * 2)
    c.out(sg.concatenate([sg.transpose(x), sg.transpose(y)], 1).sum(1))
    c.out(sg.pad(sg.tanh(x) * 0, ((0, 1), (1, 0))))


@cases.add
def spread_out_backwards(c: Case) -> None:
    x = c.input(whole(1, 3, 5))
    piece = Piece((3, 5), (2, 4), (-1, -2), (3, 3), (1, 5), (2, -2))
    c.out(Reindex((x,), (piece,), (7, 6)))


@cases.add
def other_shapes(c: Case) -> None:
    n = c.dim()
    x, s = c.input(whole(1, 3, 5, 7)), c.input(whole(2, 3, 5), n, 5)
    c.out(x.reshape(15, 7), x.reshape(105), x.reshape(7, 5, 3), x.reshape(1, 3, 1, 35))
    c.out((x + 1).reshape(35, 3).sum(0), sg.transpose(x).reshape(21, 5), s.reshape(n * 5))
    c.out(sg.transpose(s).reshape(n * 5), sg.transpose(x.reshape(15, 7)).reshape(3, 35) * 2)
    c.out(x.reshape(15, 7) @ x.reshape(7, 15), (x * 2).reshape(5, 21).max(0))
    c.out(sg.transpose(x, (1, 0, 2)).reshape(5, 21) @ sg.transpose(x).reshape(21, 5))


@cases.add
def move_of_a_squeezed_value(c: Case) -> None:
    x = c.input(whole(1, 7, 3))
    squeezed = reshape_node(map_node(-P[0], [x]), (7, 3, 1))
    piece = Piece((21, 1), (0, 0), (1, 1), (21, 1), (0, 1), (1, 1))
    c.out(Reindex((squeezed,), (piece,), (21, 2)))
    turned = sg.transpose(x)
    piece = Piece((21,), (20,), (-1,), (21,), (0,), (1,))
    c.out(Reindex((turned,), (piece,), (21,)))


@cases.add
def row_values_with_further_axes_of_one(c: Case) -> None:
    x = c.input(whole(1, 5, 3, dtype=np.int32))
    total = sg.sum(x, 1)
    wide = map_node(P[0] * 2, [total.reshape(5, 1, 1, 1)])
    c.out(wide, total, einsum_node([wide], [(0, 1, 2, 3)], (2, 0)))


# -- reads and writes at computed places -----------------------------------------------------------
@cases.add
def gathers(c: Case) -> None:
    n = c.dim()
    table, k = c.input(whole(1, 7, 5)), c.input([3, -1, 0, 6, -7, 3], n, dtype=np.int32)
    c.out(table[k], table[:, c.input([4, -5], dtype=np.int64)], sg.take(table, k, 0) * 2)
    rows = c.input(whole(2, 6, 7), n, 7)
    c.out(sg.take_along_axis(rows, k.reshape(n, 1), 1), table[k].sum(0), table[k] @ rows[:5].T[:5])
    grid = c.input([[1, 2, 0], [-1, -2, 3]], dtype=np.int32)
    c.out(table[grid], table[grid, grid], Gather((table, grid), (0, ~0), ((1, 2),), (1, 0, 2)))
    c.out(table[k + 0], table[sg.argmax(table, 0)], (table * 2)[k[::-1]])


@cases.add
def gather_from_the_row_of_a_softmax(c: Case) -> None:
    n = c.dim()
    x, k = c.input(whole(1, 5, 7), n, 7), c.input([3, -1, 0, 6, 2], n, dtype=np.int32)
    shifted = x - x.max(1, keepdims=True)
    picked = Gather((shifted, k), (0, ~0), ((0,),), (0,))
    c.out(picked - shifted.sum(1), shifted.sum())


@cases.add
def scatters(c: Case) -> None:
    n = c.dim()
    k = c.input([3, -1, 0, 3, 2], n, dtype=np.int32)
    for dtype in DTYPES.values():
        x = c.input(whole(1, 5, 3, dtype=dtype), n, 3)
        c.out(Scatter((x, k), (0, 1), ((0,),), (~0, 1), (7, 3)))
        c.out(Scatter((x * 2, k), (0, 1), ((0,),), (1, ~0), (3, 7)) + 1)
        c.out(Scatter((x, k), (0, 1), ((0,),), (0, 1, ~0), (n, 3, 4)))
    scalar = c.input(2, dtype=np.int32)
    c.out(Scatter((x, scalar), (0, 1), ((),), (0, ~0, 1), (n, 4, 3)))


@cases.add
def scatter_and_its_source_together(c: Case) -> None:
    table, k = c.input(whole(1, 7, 5)), c.input([3, -1, 0, 3, 2], dtype=np.int32)
    rows = table[k]
    c.out(Scatter((rows * 2, k), (0, 1), ((0,),), (~0, 1), (7, 5)) + table, rows.sum(0))


# -- bodies ----------------------------------------------------------------------------------------
@cases.add
def axis_indices_and_dims(c: Case) -> None:
    n = c.dim()
    x = c.input(whole(1, 3, 5), n, 5)
    c.out(sg.arange(7), sg.arange(2, 9), sg.arange(0, 3, 0.5), sg.arange(n), sg.arange(5.0))
    c.out(sg.eye(3), sg.eye(3, 5, 1), sg.eye(n, 5, -1), sg.eye(n, dtype="int32"), sg.zeros((n, 2)))
    c.out(
        x[:2].mean(), x[:2].mean(0), x[:, :4].mean(1), x * n, x + sg.arange(5), sg.full((2, n), 0.5)
    )
    c.out(Map((x,), P[0] + AXIS[0] * 10 + AXIS[1], (n, 5), np.dtype(np.float32)))
    c.out(Map((x,), select(equal(AXIS[0], AXIS[1]), P[0], n), (n, 5), np.dtype(np.float32)))
    for dtype in DTYPES.values():
        flat = np.dtype(dtype)
        c.out(Map((), AXIS[1] * 3 - AXIS[0] + n, (2, n), flat), sg.tril(sg.ones((n, 5), flat)))
        c.out(Map((), mod(AXIS[0], 3) * n + floor_divide(AXIS[0], 2), (7,), flat))
    c.out(Map((), CAST[np.dtype(np.bool_)](AXIS[0]), (3,), np.dtype(np.bool_)))


@cases.add
def literals_are_weak(c: Case) -> None:
    for dtype in DTYPES.values():
        x = c.input(whole(1, 5, dtype=dtype))
        c.out(x + 1, 2 * x - 3, x / 2, x + 0.5, sg.where(x > 0, x, 0), sg.maximum(x, 1), -x, x**2)
        c.out(x == 1, x < 0.5, 1 - x, np.float64(2) * x, np.int64(3) + x)


@cases.add
def truth(c: Case) -> None:
    a, b = c.input([True, True, False, False]), c.input([True, False, True, False])
    c.out(a & b, a | b, a ^ b, ~a, sg.where(a, b, ~b), a == b, sg.any(a & b), sg.all(a | b))
    c.out(sg.maximum(a, b), sg.minimum(a, b), a.astype("float32") + 1, a.astype("int32") * 2)
    c.out(sg.transpose(sg.stack([a, b])), a.max(), b.min(), sg.where(a, 1.0, 2.0), a != b)
    c.out(sg.max(sg.stack([a, b]), 0), sg.min(sg.stack([a, b]), 1), sg.concatenate([a, b])[::-2])
    c.out(map_node(CAST[np.dtype(np.bool_)](P[0]), [c.input([0.0, -0.0, 0.5, np.nan])]))


@cases.add
def products_of_truth(c: Case) -> None:
    a, b = c.input(whole(1, 5, 1, dtype=np.bool_)), c.input(whole(2, 5, dtype=np.bool_, high=1))
    c.out(einsum_node([a, b], [(0, 1), (0,)], (0,)), einsum_node([b, b], [(0,), (1,)], (1, 0)))
    c.out(einsum_node([a], [(0, 1)], (0,)) | b, einsum_node([b], [(0,)], (1, 0), {1: 3}))


@cases.add
def whole_numbers_wrap(c: Case) -> None:
    for dtype in (np.int32, np.int64):
        info = np.iinfo(dtype)
        x = c.input([info.max, info.min, info.max - 1, -1, 3], dtype=dtype)
        c.out(x + 1, x * 2, x * x, -x, x - 3, sg.abs(x), x.sum(), sg.prod(x), sg.cumsum(x))
        c.out(sg.cumprod(x), x * x * x, sg.einsum("i,j->ij", x, x), sg.einsum("i,i->", x, x))
        c.out(x // 2, x % 7, x // -3, x.max(), x.min(), sg.argmin(x))


@cases.add
def casts(c: Case) -> None:
    numbers = [0.0, 1.0, -1.0, 2.75, -2.75, 100.0, 16777217.0]
    for dtype in (*DTYPES.values(), np.bool_):
        x = c.input(np.array(numbers).astype(dtype))
        c.out(*(x.astype(other) for other in ("float32", "float64", "int32", "int64", "bool")))
    big = c.input([2**31, -(2**31) - 1, 2**40 + 5], dtype=np.int64)
    c.out(big.astype("int32"), big.astype("float32"), big.astype("float64").astype("int64"))


@cases.add
def special_numbers(c: Case) -> None:
    for dtype in (np.float32, np.float64):
        x = c.input([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0], dtype=dtype)
        y = sg.transpose(sg.stack([x[::-1]])) + 0 * x
        c.out(x + 1 - 1, x - x, 0.0 * x, x / x, x * y, x / y, y / x, x == x, x != x, x < y)
        c.out(sg.maximum(x, y), sg.minimum(x, y), sg.where(x > 0, x, y), sg.isnan(x), -x, x**2)
        c.out(sg.isfinite(x), sg.sign(x), sg.floor(x), sg.abs(x), sg.relu(x), x.sum(), x.max())


@cases.add
def special_literals(c: Case) -> None:
    for dtype in (np.float32, np.float64):
        x = c.input([1.0, -2.0, 0.0], dtype=dtype)
        for number in (np.nan, np.inf, -np.inf, -0.0, 1e-38, 3e38, 0.1):
            c.out(x * sg.constant(np.asarray(number, dtype)), sg.where(x > 0, x, number))
    for dtype in (np.int32, np.int64):
        x = c.input([0, 1, -1], dtype=dtype)
        for number in (np.iinfo(dtype).min, np.iinfo(dtype).max):
            c.out(x + sg.constant(np.asarray(number, dtype)), sg.maximum(x, int(number)))


@cases.add
def constants(c: Case) -> None:
    turned = sg.constant(whole(1, 3, 5).T)
    x = c.input(whole(2, 5, 3))
    c.out(x + turned, x.T @ turned, turned[c.input([4, -1], dtype=np.int32)], turned.sum(0))
    c.out(x > sg.constant(whole(3, 3, dtype=np.int64)), sg.constant([[True], [False]]) & (x[0] > 0))


@cases.add
def signs_of_zero(c: Case) -> None:
    x = c.input([0.0, -0.0, 1.0])
    # 1 / z tells the sign of a zero z
    c.out(
        1 / (-x),
        1 / (0.0 - x),
        1 / (-0.0 * x),
        1 / (x * 0.5 + 0.0),
        1 / sg.floor(x),
        1 / sg.sqrt(x),
    )
    c.out(1 / sg.where(x == 0, x, -0.0), 1 / (x - x), 1 / sg.transpose(sg.stack([x, -x])))


# -- programs --------------------------------------------------------------------------------------
def loose(c: Case) -> None:
    """Sums of at most 100 rounded terms of one sign: 100 half ulps, and 4 ulps of exp and log."""
    c.rtol, c.atol = 1e-5, 1e-6


@cases.add_each({"f32": np.float32, "f64": np.float64})
def softmaxes(c: Case, dtype: Any) -> None:
    loose(c)
    n = c.dim()
    x = c.input(3 * real(1, 5, 7, dtype=dtype), n, 7)
    for axis in (0, 1):
        c.out(sg.softmax(x, axis), sg.log_softmax(x, axis), sg.logsumexp(x, axis))
    y = c.input([3, 0, 6, 1, 2], n, dtype=np.int32)
    c.out(sg.cross_entropy(x, y), sg.cross_entropy(x, y).mean(), (sg.argmax(x, 1) == y).sum())
    loss = sg.cross_entropy(x @ c.input(real(2, 7, 3, dtype=dtype)), y % 3).mean()
    c.out(loss, *(sg.grad(loss, leaf) for leaf in sg.inputs(loss) if leaf.dtype.kind == "f"))
    c.out(sg.softmax(x.reshape(n, 7, 1) * x.reshape(n, 1, 7), 2))


@cases.add_each({"f32": np.float32, "f64": np.float64})
def norms_and_variances(c: Case, dtype: Any) -> None:
    loose(c)
    x = c.input(real(1, 5, 7, dtype=dtype))
    scale = c.input(real(2, 7, dtype=dtype))
    normed = (x - x.mean(1, keepdims=True)) / sg.sqrt(sg.var(x, 1, keepdims=True) + 1e-5)
    c.out(
        normed * scale,
        sg.var(x),
        sg.var(x, 0),
        sg.var(x, 1),
        sg.std(x, 0),
        sg.grad((normed * scale).sum(), x),
    )
    c.out((x - x.mean(0)) / sg.sqrt(sg.var(x, 0) + 1e-5), sg.sqrt((x * x).sum(1)))


@cases.add
def attention(c: Case) -> None:
    loose(c)
    n = c.dim()
    q, k, v = (c.input(real(s, 2, 5, 3), 2, n, 3) for s in range(3))
    scores = sg.einsum("bij,bkj->bik", q, k) / 3**0.5
    mask = sg.tril(sg.ones((n, n))) > 0
    mixed = sg.einsum("bik,bkj->bij", sg.softmax(sg.where(mask, scores, -1e9), 2), v)
    c.out(mixed, *sg.grad((mixed * v).sum(), [q, k, v]))


@cases.add
def outputs_that_are_leaves_constants_and_views(c: Case) -> None:
    n = c.dim()
    x = c.input(whole(1, 3, 5), n, 5)
    y = x * 2
    c.out(x, x, y, y, y.reshape(n * 5), y.reshape(1, n, 5), sg.transpose(y), y[1:])
    c.out(x.reshape(n * 5))
    c.out(
        sg.constant(2.0), sg.constant([1, 2, 3]), sg.transpose(x), sg.ones((2, n)), x.reshape(5, n)
    )
    c.out(sg.constant([[1.0, 2.0]]).reshape(2), sg.constant([[1.0, 2.0], [3.0, 4.0]]).T, x[0, 0])


@cases.add
def scalars(c: Case) -> None:
    a, b = c.input(2.0, dtype=np.float32), c.input(-3.0, dtype=np.float32)
    x = c.input(whole(1, 3, 5))
    c.out(a + b, a * b, sg.maximum(a, b), a * x, x * a - b, (x * a).sum() * b, x.sum() * a + b)
    c.out(sg.stack([a, b]), a.reshape(1, 1), sg.concatenate([sg.stack([a]), x[:, 0]]))


@cases.add
def rows_that_are_read_by_several_passes(c: Case) -> None:
    n = c.dim()
    x = c.input(whole(1, 3, 5), n, 5)
    a = sg.tanh(x) * 0 + x
    b = a - a.max(1, keepdims=True)
    d = b * b.sum(1, keepdims=True)
    c.out(d.sum(1), (d + a).max(1), d.sum(0), (a * b).sum())


@pytest.mark.parametrize("name", cases.makers)
def test_interpreted(name: str) -> None:
    cases.interpret(name)


@pytest.mark.parametrize("name", cases.makers)
def test_compiled(name: str) -> None:
    cases.judge(name)


def test_every_class_of_node_occurs() -> None:
    from symgrad.graph.folds import NODES, Fold, Proj
    from symgrad.graph.traversal import toposort

    found: set[type[Node]] = set()
    for name in cases.makers:
        found |= {type(n) for n in toposort(cases.case(name).outputs)}
    assert found == set(NODES) - {Fold, Proj}
