"""Random numbers: published Philox vectors, distribution, identity, what their bits depend on."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit
from scipy import stats

import symgrad as sg
from codegen.runtime import draws
from symgrad.graph import philox
from symgrad.graph.checker import check
from symgrad.graph.functions import FUNCTIONS
from symgrad.graph.graph import Graph
from tests.conftest import ROOT

# counter, key and block of philox4x32 with 10 rounds: the known answers of Random123
PUBLISHED = {
    "zeros": ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    "ones": (
        [0xFFFFFFFF] * 4,
        [0xFFFFFFFF] * 2,
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    "digits of pi": (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
}


def signed(low: int, high: int) -> np.int64:
    return np.uint64(low | high << 32).astype(np.int64)


def expected_numbers(words: list[int]) -> dict[str, float]:
    single = [np.float32((w >> 8) * 2.0**-24) for w in words]
    double = [((a >> 5 << 26) + (b >> 6)) * 2.0**-53 for a, b in (words[:2], words[2:])]
    return {
        "uniform_float32": single[0],
        "second_float32": single[2],
        "uniform_float64": double[0],
        "second_float64": double[1],
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_vectors_in_numpy(name: str) -> None:
    counter, key, block = PUBLISHED[name]
    c, k = (tuple(np.array(words, np.uint64)) for words in (counter, key))
    assert [int(w) for w in philox.philox4x32(c, k)] == block
    arguments = (signed(*key), signed(*counter[2:]), signed(*counter[:2]))
    assert [int(w) for w in philox.block(*arguments)] == block
    for function, number in expected_numbers(block).items():
        assert FUNCTIONS[function].numpy(*arguments) == number, function


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_vectors_in_kernels(name: str) -> None:
    counter, key, block = PUBLISHED[name]
    arguments = (signed(*key), signed(*counter[2:]), signed(*counter[:2]))
    for function, number in expected_numbers(block).items():
        primitive = draws.DRAWS[function]
        got = njit(lambda k, h, w, f=primitive: f(k, h, w))(*arguments)
        assert got == number, function


def test_drawing_loops_vectorise() -> None:
    primitive = draws.uniform_float32

    @njit
    def fill(key, high, out):
        for i in range(out.size):
            out[i] = primitive(key, high, np.int64(i))

    fill(np.int64(1), np.int64(2), np.zeros(3, np.float32))
    (text,) = fill.inspect_asm().values()
    assert "vpmuludq" in text or "pmuludq" in text or "umull" in text


# -- distribution ---------------------------------------------------------------------------------
N = 40_000
DTYPES = ("float32", "float64")


def draw(expr: sg.graph.nodes.Node, **options: int) -> np.ndarray:
    return sg.evaluate(expr, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_numbers_are_uniform(dtype: str) -> None:
    u = draw(sg.random.uniform((N,), dtype), seed=1)
    assert u.dtype == dtype and u.min() >= 0 and u.max() < 1
    bits = 24 if dtype == "float32" else 53
    assert (u.astype(float) * 2.0**bits % 1 == 0).all()
    moments = [(u.astype(float) ** k).mean() * (k + 1) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, 1, atol=5 / np.sqrt(N))
    counts = np.bincount((u * 64).astype(int), minlength=64)
    assert 1e-3 < stats.chisquare(counts).pvalue < 0.999
    pairs = np.bincount((u[::2] * 8).astype(int) * 8 + (u[1::2] * 8).astype(int), minlength=64)
    assert 1e-3 < stats.chisquare(pairs).pvalue < 0.999
    low = np.bincount((u.astype(float) * 2.0**bits % 64).astype(int), minlength=64)
    assert 1e-3 < stats.chisquare(low).pvalue < 0.999


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_numbers_are_normal(dtype: str) -> None:
    z = draw(sg.random.normal((N,), dtype), seed=2)
    assert z.dtype == dtype and np.isfinite(z).all()
    np.testing.assert_allclose(z.mean(), 0, atol=5 / np.sqrt(N))
    np.testing.assert_allclose((z.astype(float) ** 2).mean(), 1, atol=5 * np.sqrt(2 / N))
    np.testing.assert_allclose((z.astype(float) ** 4).mean(), 3, atol=5 * np.sqrt(96 / N))
    assert stats.kstest(z.astype(float), "norm").pvalue > 1e-3


def test_bernoulli_has_its_probability() -> None:
    p = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    b = draw(sg.random.bernoulli(sg.constant(p), (N, 5)), seed=3)
    assert b.dtype == bool
    np.testing.assert_allclose(b.mean(0), p, atol=5 * 0.5 / np.sqrt(N))
    assert not b[:, 0].any() and b[:, 4].all()


def test_bernoulli_takes_an_expression() -> None:
    x = sg.input("x", (sg.dim("B"), 1))
    b = sg.random.bernoulli(sg.sigmoid(x), (sg.dim("B"), 7))
    values = {"x": np.array([[-50.0], [50.0], [0.0]])}
    found = sg.evaluate(b, values, seed=5)
    assert found.shape == (3, 7) and not found[0].any() and found[1].all()
    np.testing.assert_array_equal(sg.compile(b, seed=5)(**values), found)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_streams_steps_seeds_and_elements_are_independent() -> None:
    one, two = sg.random.uniform((N,)), sg.random.uniform((N,))
    a, b = sg.evaluate([one, two], seed=4)
    others = {
        "stream": b,
        "step": draw(one, seed=4, step=1),
        "far step": draw(one, seed=4, step=2**31 - 1),
        "seed": draw(one, seed=5),
        "high seed": draw(one, seed=4 + 2**32),
        "neighbour": np.roll(a, 1),
        "row": np.roll(a, 200),
    }
    for name, other in others.items():
        assert not (a == other).any() or (a == other).mean() < 1e-3, name
        assert abs(correlation(a, other)) < 5 / np.sqrt(N), name


def test_the_two_uniforms_of_a_normal_are_independent() -> None:
    z = draw(sg.random.normal((N,), "float64"), seed=6)
    u = draw(sg.random.uniform((N,), "float64"), seed=6)
    assert abs(correlation(np.abs(z), np.abs(np.roll(z, 1)))) < 5 / np.sqrt(N)
    assert abs(correlation(z, u)) < 5 / np.sqrt(N)  # z has one sign as often as the other


# -- identity -------------------------------------------------------------------------------------
def test_each_call_draws_anew_and_one_node_draws_once() -> None:
    a, b = sg.random.uniform((3, 5)), sg.random.uniform((3, 5))
    assert a is not b
    zero, other = sg.evaluate([a - a, a - b])
    assert (zero == 0).all() and (other != 0).all()
    f = sg.compile([a - a, a - b])
    zero, other = f()
    assert (zero == 0).all() and (other != 0).all()


def test_two_equal_dropouts_differ() -> None:
    x = sg.ones((40,))
    a, b = sg.evaluate([sg.dropout(x, 0.5), sg.dropout(x, 0.5)], training=True)
    assert (a != b).any()


def test_the_number_of_a_stream_is_its_rank_by_birth() -> None:
    def drawn() -> np.ndarray:
        first, second = sg.random.uniform((3,)), sg.random.uniform((3,))
        return np.concatenate(sg.evaluate([second, first], seed=8))

    before = drawn()
    sg.random.uniform((7,))  # what is no part of the graph does not matter
    np.testing.assert_array_equal(drawn(), before)
    first, second = sg.random.uniform((3,)), sg.random.uniform((3,))
    other_order = np.concatenate(sg.evaluate([first, second], seed=8)[::-1])
    np.testing.assert_array_equal(other_order, before)


def test_a_prefix_does_not_depend_on_what_follows() -> None:
    few, many = sg.random.uniform((3, 5)), sg.random.uniform((7, 5))
    np.testing.assert_array_equal(draw(few, seed=1), draw(many, seed=1)[:3])


def test_streams_are_no_leaves_of_a_user() -> None:
    B = sg.dim("B")
    own = [sg.input(name, (B, 3)) for name in ("random", "seed", "training", "x")]
    e = sg.dropout(own[3], 0.5) + sg.random.uniform((B, 3)) * own[0] + own[1] + own[2]
    assert {x.name for x in sg.inputs(e)} == {x.name for x in own}
    assert sg.parameters(e) == ()
    check(Graph.of([e]))
    values = {x: np.full((5, 3), k, np.float32) for k, x in enumerate(own)}
    expected = sg.evaluate(e, values, seed=2, training=True)
    f = sg.compile(e, seed=2, training=True)
    np.testing.assert_array_equal(f(**{x.name: v for x, v in values.items()}), expected)
    with pytest.raises(sg.LeafError, match=r"Leaves: 'random', 'seed', 'training', 'x'\.") as error:
        f(y=1)
    assert "optim.step" not in str(error.value)
    with pytest.raises(sg.LeafError, match="no leaf is named 'seed'"):
        sg.compile(sg.random.uniform((3,)))(seed=1)


def test_symbolic_and_static_extents_draw_the_same() -> None:
    B = sg.dim("B")
    x = sg.input("x", (B, 5, 7))
    symbolic = sg.random.uniform((B, 5, 2 * B)) + x[:, :, :1] * 0
    static = sg.random.uniform((3, 5, 6))
    values = {"x": np.zeros((3, 5, 7))}
    np.testing.assert_array_equal(sg.evaluate(symbolic, values), sg.evaluate(static))
    np.testing.assert_array_equal(sg.compile(symbolic)(**values), sg.evaluate(static))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0, 3), (3, 1, 5)])
@pytest.mark.parametrize("make", [sg.random.uniform, sg.random.normal])
def test_small_shapes(make, shape: tuple[int, ...]) -> None:
    e = make(shape)
    found = sg.evaluate(e, seed=3)
    assert found.shape == shape
    np.testing.assert_array_equal(sg.evaluate(sg.simplify(e), seed=3), found)
    np.testing.assert_allclose(sg.compile(e, seed=3)(), found, rtol=3e-6)


# -- the same bits everywhere ---------------------------------------------------------------------
PROGRAM = """
import hashlib, numpy as np, symgrad as sg
B = sg.dim("B")
x = sg.input("x", (B, 5))
e = [sg.dropout(x, 0.3), sg.random.uniform((B, 3), "float64"), sg.random.bernoulli(0.2, (B,))]
values = {"x": np.arange(35.0).reshape(7, 5)}
f = sg.compile(e, seed=11, training=True)
digest = hashlib.sha256()
for step in range(3):
    meant, got = sg.evaluate(e, values, seed=11, step=step, training=True), f(**values)
    for a, b in zip(meant, got):
        assert (a == b).all()
        digest.update(a.tobytes())
print(digest.hexdigest(), sg.compile(e).stages.graph.key)
"""


def test_same_bits_in_every_process() -> None:
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True,
            timeout=300, check=False,
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_calls_count_as_steps_and_a_value_for_the_step_wins() -> None:
    u = sg.random.uniform((5,))
    f = sg.compile(u, seed=3)
    for step in range(3):
        np.testing.assert_array_equal(f(), sg.evaluate(u, seed=3, step=step))
    again = sg.compile(u, seed=3)
    np.testing.assert_array_equal(again(**{"optim.step": 2}), sg.evaluate(u, seed=3, step=2))


def test_an_updated_step_count_is_the_step() -> None:
    W = sg.parameter("W", (5,), init=0.0)
    loss = (W * sg.random.uniform((5,))).sum()
    updates = sg.optim.sgd(0.1).updates([W], [sg.grad(loss, W)])
    f = sg.compile(loss, updates=updates, seed=4)
    expected = np.zeros(5, np.float32)
    for step in range(3):
        f()
        expected -= np.float32(0.1) * sg.evaluate(sg.grad(loss, W), seed=4, step=step)
        np.testing.assert_allclose(f.state["W"], expected, rtol=1e-6)
    f.state["optim.step"] = 0
    before = f.state["W"].copy()
    f()
    first = sg.evaluate(sg.grad(loss, W), seed=4, step=0)
    np.testing.assert_allclose(f.state["W"], before - np.float32(0.1) * first, rtol=1e-6)


def test_a_saved_program_draws_the_same(tmp_path) -> None:
    x = sg.input("x", (sg.dim("B"), 5))
    f = sg.compile(sg.dropout(x, 0.5), seed=9, training=True)
    value = np.ones((3, 5), np.float32)
    f.save(tmp_path / "kernels.py")
    program = (
        "import runpy, numpy as np\n"
        f"run = runpy.run_path({str(tmp_path / 'kernels.py')!r})['run']\n"
        "values = {'x': np.ones((3, 5), np.float32), 'optim.step': np.array(0, np.int32)}\n"
        "print(run(values, [3])[0].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(f(x=value).tolist())


def test_seeds_of_any_size() -> None:
    u = sg.random.uniform((5,))
    for seed in (-1, 2**63, 2**64 - 2, np.int32(7)):
        np.testing.assert_array_equal(sg.compile(u, seed=seed)(), sg.evaluate(u, seed=seed))
    with pytest.raises(sg.SymgradError, match="seed must be an integer, got 'a'"):
        sg.evaluate(u, seed="a")
    with pytest.raises(sg.SymgradError, match=r"seed must be an integer, got 0\.5"):
        sg.compile(u, seed=0.5)


def test_errors() -> None:
    with pytest.raises(sg.DTypeError, match=r"random\.uniform: the dtype must be float32 or"):
        sg.random.uniform((3,), "int32")
    with pytest.raises(sg.ShapeError, match=r"random\.bernoulli: p does not broadcast"):
        sg.random.bernoulli(sg.zeros((3,)), (5, 7))
    with pytest.raises(sg.SymgradError, match=r"p must lie between 0 and 1, got 1\.5"):
        sg.random.bernoulli(1.5, (3,))
