"""Products on memory as it lies: every layout against `evaluate`, and what is not copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen import loop_ir as ir
from codegen.compiled import Compiled
from codegen.pieces import join_pieces
from codegen.pipeline import compile
from codegen.products import compact, layout_of, matched
from codegen.schedule import LoopStage, ProductStage
from codegen.values import Temporary
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Einsum, Input, Node, Reindex
from tests.ir_interpreter import interpreted

RNG = np.random.default_rng(9)
# Extents of labels; all distinct, so that no two axes can be exchanged unseen.
EXTENTS = dict(zip("bhtsdef", (2, 3, 5, 7, 11, 9, 4), strict=True))
# The operands and the result of contractions, in all the orders that heads and batches lie in.
SPECS = [
    "bthd,bshd->bhts",  # scores of heads, side by side in a row
    "bhts,bshd->bthd",  # the mixture of values, heads side by side
    "bhts,bthd->bshd",  # and what goes back to the values
    "bhtd,bhsd->bhts",
    "bhtd,bhsd->bhst",  # the result lies transposed
    "tbd,de->bte",  # rows in another order than the result's
    "btd,ed->bte",
    "btd,bte->de",  # rows of a whole batch summed
    "btd,bte->ed",
    "tbd,bte->de",  # summed in two orders: one is copied
    "bdt,de->bte",
    "dbt,de->ebt",
    "bd,de->be",
    "btd,d->bt",  # a column
    "d,btd->tb",
    "bhtd,hde->bte",  # summed over heads that do not lie side by side
    "bthd,hde->bte",  # over heads that do
    "btd,bd->bt",  # a batch of columns: no product
    "bt,bs->bts",  # nothing summed
    "hbtd,bhds->tbhs",  # three loops
    "btd,bsd->ts",
    "bdf,fe->bde",
]


def operand(labels: str, dtype: type, dims: dict[str, Any]) -> tuple[Node, np.ndarray[Any, Any]]:
    shape = tuple(dims.get(k, EXTENTS[k]) for k in labels)
    value = RNG.normal(size=[EXTENTS[k] for k in labels]).astype(dtype)
    return sg.input(f"x_{len(INPUTS)}", shape, dtype=dtype), value


INPUTS: dict[str, np.ndarray[Any, Any]] = {}


def made(dtype: type, dims: dict[str, Any], wide: bool) -> list[Node]:
    """All contractions and their gradients, on inputs or on parts of wider arrays."""
    found: list[Node] = []
    for spec in SPECS:
        given, out = spec.split("->")
        leaves, args = [], []
        for labels in given.split(","):
            node, value = operand(labels, dtype, {} if wide else dims)
            if wide:  # from a part of an array, turned round twice
                value = np.stack([value, value + 1, value - 1], axis=1)
                node = sg.input(node.name, value.shape, dtype=dtype)
            INPUTS[node.name] = value
            leaves.append(node)
            args.append(node[:, 1] if wide else node)
        result = sg.einsum(f"{given}->{out}", *args)
        found.append(result)
        loss = sg.square(result).sum()
        found += sg.grad(loss, leaves)
    return found


def agree(nodes: list[Node], f: Callable[..., Any], tolerance: float) -> None:
    leaves = {leaf: INPUTS[leaf.name] for leaf in Graph.of(nodes).inputs}
    results = f(**{leaf.name: value for leaf, value in leaves.items()})
    for node, result, wanted in zip(nodes, results, sg.evaluate(nodes, leaves), strict=True):
        scale = float(np.abs(wanted).max())
        np.testing.assert_allclose(result, wanted, atol=tolerance * scale, err_msg=repr(node))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["numbers", "dims", "parts"])
def test_every_layout_in_loop_ir(kind: str, dtype: type) -> None:
    dims = {k: sg.dim(k.upper()) for k in "bts"} if kind == "dims" else {}
    nodes = made(dtype, dims, kind == "parts")
    with interpreted():
        agree(nodes, compile(nodes), 1e-5 if dtype is np.float32 else 1e-12)


@pytest.mark.parametrize("kind", ["dims", "parts"])
def test_every_layout_in_machine_code(kind: str) -> None:
    dims = {k: sg.dim(k.upper()) for k in "bts"} if kind == "dims" else {}
    nodes = made(np.float32, dims, kind == "parts")
    agree(nodes, compile(nodes), 1e-5)


def attention(by_einsum: bool) -> tuple[Node, list[Node]]:
    """Two heads of width 3, as a user writes them."""
    x, mix = sg.input("x", (sg.dim("B"), 5, 6)), sg.input("mix", (sg.dim("B"), 5, 6))
    w = sg.parameter("w", (6, 18), init=RNG.normal(size=(6, 18)).astype(np.float32) / 2)
    qkv = (x @ w).reshape((sg.dim("B"), 5, 3, 2, 3))
    q, k, v = (qkv[:, :, i] for i in range(3))
    if by_einsum:
        o = sg.einsum("bhts,bshd->bthd", sg.softmax(sg.einsum("bthd,bshd->bhts", q, k) / 3), v)
    else:
        q, k, v = (sg.swapaxes(z, 1, 2) for z in (q, k, v))
        o = sg.swapaxes(sg.softmax(q @ sg.swapaxes(k, -1, -2) / 3) @ v, 1, 2)
    return (o.reshape((sg.dim("B"), 5, 6)) * mix).sum(), [x, w]


@pytest.mark.parametrize("by_einsum", [False, True])
def test_attention_moves_nothing(by_einsum: bool) -> None:
    loss, leaves = attention(by_einsum)
    nodes = [loss, *sg.grad(loss, leaves)]
    INPUTS.update({k: RNG.normal(size=(4, 5, 6)).astype(np.float32) for k in ("x", "mix")})
    INPUTS["w"] = (RNG.normal(size=(6, 18)) / 2).astype(np.float32)
    with interpreted():
        f = compile(nodes)
        agree(nodes, f, 1e-5)
    stages = f.stages.schedule.stages
    assert sum(isinstance(s, ProductStage) for s in stages) == 9
    # the softmax, its pullback, and the sum of what was mixed
    assert sum(isinstance(s, LoopStage) for s in stages) == 3, str(f.stages)
    assert sum(any(isinstance(s, ir.Store) for s in ir.walk(k.body)) for k in f.stages.kernels) == 3


def test_attention_at_order_two() -> None:
    loss, (x, w) = attention(by_einsum=False)
    (slope,) = sg.grad(loss, [x])
    nodes = sg.grad(sg.square(slope).sum(), [x, w])
    INPUTS.update({k: RNG.normal(size=(4, 5, 6)).astype(np.float32) for k in ("x", "mix")})
    INPUTS["w"] = (RNG.normal(size=(6, 18)) / 2).astype(np.float32)
    with interpreted():
        agree(nodes, compile(nodes), 1e-4)


def test_a_layer_on_a_batch_of_sequences_is_one_product() -> None:
    x, w = sg.input("x", (sg.dim("B"), 5, 7)), sg.parameter("w", (7, 3), 0.5)
    loss = sg.square(x @ w).sum()
    with interpreted():
        f = compile([loss, *sg.grad(loss, [w])])
    products = [s.product for s in f.stages.schedule.stages if isinstance(s, ProductStage)]
    assert [str(p) for p in products] == ["(5*B, 7) x (7, 3)", "(5*B, 7)^T x (5*B, 3)"]


def plan(spec: str, *args: Node) -> Any:
    node = sg.einsum(spec, *args)
    assert isinstance(node, Einsum)
    a, b = (
        layout_of(arg, labels, lambda n: not isinstance(n, Input))
        for arg, labels in zip(node.args, node.labels, strict=True)
    )
    assert a is not None and b is not None
    return matched(node, a, b, compact(node, node.out))


def test_strides_that_no_product_reads() -> None:
    x, y = sg.input("x", (5, 6)), sg.input("y", (3, 7))
    assert plan("ij,jk->ik", x[:, :3], y).rows == (6, 7, 7)
    assert plan("ij,jk->ik", x[:, 1::2], y) is None  # no stride is 1
    assert plan("ij,jk->ik", x[::-1, 3:], y) is None  # rows go backwards
    assert plan("ij,jk->ik", x[::2, 3:], y).rows == (12, 7, 7)
    assert plan("ij,jk->ik", x[::2, 3:], y).operands[0].start == 3


# -- arrays of pieces ------------------------------------------------------------------------------
def test_what_goes_back_to_slices_is_one_array() -> None:
    z, other = sg.input("z", (4, 9)), sg.input("other", (4, 9))
    INPUTS.update({k: RNG.normal(size=(4, 9)).astype(np.float32) for k in ("z", "other")})
    parts = [z[:, :2], z[:, 2:5], z[:, 5:], z[:, 1:8:3]]  # the last reads what others read
    total = sum(sg.tanh(part).sum() * k for k, part in enumerate(parts, 1))
    nodes = [*sg.grad(total, [z]), *sg.grad((z * other).sum() + total, [z])]
    leaves = {leaf: INPUTS[leaf.name] for leaf in Graph.of(nodes).inputs}
    joined = join_pieces(nodes)
    for a, b in zip(sg.evaluate(joined, leaves), sg.evaluate(nodes, leaves), strict=True):
        np.testing.assert_array_equal(a, b)
    with interpreted():
        f = compile(nodes)
    agree(nodes, f, 1e-6)
    kinds = [len(n.args) for n in f.stages.schedule.graph.nodes if isinstance(n, Reindex)]
    assert 3 in kinds, str(f.stages)


def test_a_piece_of_negative_zeros_is_of_zeros() -> None:
    x = sg.input("x", (3,))
    total = sg.pad(x, (0, 2)) + sg.pad(2 * x[:2], (3, 0))
    value = np.array([-0.0, 1.0, -0.0], np.float32)
    wanted = sg.evaluate(total, {x: value})[0]
    assert not np.signbit(wanted).any()
    with interpreted():
        f = compile(total)
    np.testing.assert_array_equal(np.signbit(f(x=value)), np.signbit(wanted))
    assert len(f.stages.schedule.stages[-1].nodes[0].args) == 2


def test_products_write_where_all_can() -> None:
    """One of three slices is not a product: all are copied. A product read twice is copied too."""
    x, w = sg.input("x", (3, 5)), sg.parameter("w", (5, 7), init=RNG.normal(size=(5, 7)))
    u = x @ sg.astype(w, "float32")
    INPUTS["x"] = RNG.normal(size=(3, 5)).astype(np.float32)
    INPUTS["w"] = RNG.normal(size=(5, 7)).astype(w.dtype)
    nodes = [
        sg.concatenate([u, x], axis=1),
        sg.concatenate([u, u], axis=1),
        sg.stack([x @ x.T, (x * 2) @ x.T], axis=1),
    ]
    with interpreted():
        f = compile(nodes)
        agree(nodes, f, 1e-5)
    products = [s for s in f.stages.schedule.stages if isinstance(s, ProductStage)]
    assert sum(s.product.operands[2].root is not s.node for s in products) == 2


# -- neighbours in one nest ------------------------------------------------------------------------
def nests(f: Compiled) -> list[list[int]]:
    """For each kernel with products among its loops, how many, and of loops beside them."""
    found = []
    for kernel in f.stages.kernels:
        body, deep = kernel.body[-1:], 0
        while len(body) == 1 and isinstance(body[0], ir.For):
            body, deep = body[0].body, deep + 1
        calls = sum(isinstance(s, ir.Call) for s in body)
        if deep and calls:
            found.append([calls, len(body) - calls])
    return found


def chains() -> list[Node]:
    """Products of batches with loops between them."""
    b = sg.dim("B")
    q, k, v = (sg.input(name, (b, 3, 5, 7)) for name in "qkv")
    s = sg.einsum("bhtd,bhsd->bhts", q, k)
    p = sg.softmax(s)
    w = sg.input("w3", (3, 3, 5, 7))
    INPUTS.update({x: RNG.normal(size=(4, 3, 5, 7)).astype(np.float32) for x in "qkv"})
    INPUTS["w3"] = RNG.normal(size=(3, 3, 5, 7)).astype(np.float32)
    return [
        (sg.softmax(3 * s) @ v).sum((0, 1)),  # all three in one
        sg.einsum("bhts,bhsd->thd", p, v),  # the sum over the batch is no loop
        p[::-1] @ v,  # another one of the batch
        sg.swapaxes(p, 2, 3) @ v,  # the same box, transposed
        sg.softmax(s.sum(1) @ v[:, 0]),  # rows of a sum over heads
        sg.softmax(s, axis=1) @ v,  # the softmax is over heads
        sg.einsum("bhts,bhsd->hbtd", p, v),  # heads first
        sg.einsum("hbts,bhsd->bhtd", sg.tanh(sg.einsum("bhtd,bhsd->bhts", w, w)), w),  # exchanged
    ]


def test_neighbours_share_a_nest() -> None:
    outputs = chains()
    for output in outputs:
        with interpreted():
            agree([output], compile([output]), 1e-5)
    agree(outputs, compile(outputs), 1e-5)  # in machine code


def test_what_a_nest_holds() -> None:
    found = []
    for output in chains():
        with interpreted():
            found.append(nests(compile([output])))
    two, one, none = [[2, 1]], [[1, 1], [1, 0]], [[1, 1], [1, 1]]
    assert found == [two, one, one, two, none, one, one, one]


def test_arrays_of_a_nest_need_the_memory_of_one_box() -> None:
    loss, leaves = attention(by_einsum=True)
    with interpreted():
        f = compile([loss, *sg.grad(loss, leaves)])
    # scores, and the cotangents of weights and scores: 5 x 5 floats for one head at a time
    shapes = [o.shape for o, *_ in f.stages.plan.lifetimes if isinstance(o, Temporary)]
    assert sorted(s for s in shapes if s == (25,)) == [(25,)] * 3, shapes
