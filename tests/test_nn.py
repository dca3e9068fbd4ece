"""Layers against NumPy and PyTorch, their names, sharing, gradients, training, and the table."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from symgrad import nn
from tests.calculus_judges import all_judges, real, sample

B, T = sg.dim("B"), sg.dim("T")
RNG = np.random.default_rng(5)

LAYERS = {
    "dense": lambda: nn.Dense(7, sg.tanh),
    "dense without a bias": lambda: nn.Dense(7, bias=False),
    "layer norm": lambda: nn.LayerNorm(),
    "layer norm alone": lambda: nn.LayerNorm(scale=False, shift=False),
    "model": lambda: nn.Sequential([nn.Dense(4), sg.softplus, nn.LayerNorm(), nn.Dense(2)]),
}


def names(e: object) -> list[str]:
    return [p.name for p in sg.parameters(e)]


# -- values and gradients --------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dense(shape, dtype) -> None:
    x = sg.input("x", shape, dtype)
    y = nn.Dense(7, sg.tanh)(x)
    assert y.shape == (*shape[:-1], 7) and y.dtype == dtype
    v, w, b = (RNG.normal(size=s).astype(dtype) for s in (shape, (5, 7), (7,)))
    got = sg.evaluate(y, {"x": v, "dense_1/W": w, "dense_1/b": b})
    np.testing.assert_allclose(got, np.tanh(v @ w + b), rtol=1e-5)


def test_dense_against_torch() -> None:
    torch = pytest.importorskip("torch")
    x = real("x", 3, 5)
    y = nn.Dense(7)(x)
    peer = torch.nn.Linear(5, 7, dtype=torch.float64)
    v = RNG.normal(size=(3, 5))
    weights = {"dense_1/W": peer.weight.detach().numpy().T, "dense_1/b": peer.bias.detach().numpy()}
    wanted = peer(torch.tensor(v)).detach().numpy()
    np.testing.assert_allclose(sg.evaluate(y, {"x": v, **weights}), wanted, rtol=1e-12)


def test_layer_norm_against_torch() -> None:
    torch = pytest.importorskip("torch")
    x = real("x", 2, 3, 5)
    y = nn.LayerNorm(epsilon=1e-3)(x)
    v, scale, shift = RNG.normal(size=(2, 3, 5)) * 9, RNG.normal(size=5), RNG.normal(size=5)
    wanted = torch.nn.functional.layer_norm(
        torch.tensor(v), (5,), torch.tensor(scale), torch.tensor(shift), 1e-3
    )
    got = sg.evaluate(y, {"x": v, "layer_norm_1/scale": scale, "layer_norm_1/shift": shift})
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_layer_norm_of_equal_elements_is_its_shift() -> None:
    x = sg.input("x", (3, 5))
    got = sg.evaluate(nn.LayerNorm()(x), {"x": np.full((3, 5), 1e4)})
    np.testing.assert_array_equal(got, np.zeros((3, 5)))


def test_embedding_reads_rows_and_its_gradient_adds_them() -> None:
    words = sg.input("words", (2, 3), "int32")
    layer = nn.Embedding(11, 5, dtype="float64")
    y = layer(words)
    (table,) = layer.parameters
    v, t = np.array([[1, 4, 1], [10, -1, 0]]), RNG.normal(size=(11, 5))
    np.testing.assert_array_equal(sg.evaluate(y, {words: v, table: t}), t[v])
    c = RNG.normal(size=(2, 3, 5))
    got = sg.evaluate(sg.grad(sg.sum(y * sg.constant(c)), table), {words: v, table: t})
    wanted = np.zeros((11, 5))
    np.add.at(wanted, v, c)
    np.testing.assert_allclose(got, wanted)
    with pytest.raises(sg.DataError, match="11"):
        sg.evaluate(y, {words: v + 1})


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name) -> None:
    x = real("x", 3, 5)
    y = LAYERS[name]()(x)
    leaves = [x, *sg.parameters(y)]
    all_judges(y, leaves, sample(leaves))


def test_all_layers_compile_with_symbolic_rows() -> None:
    x, words = sg.input("x", (B, T, 5), "float64"), sg.input("words", (B, T), "int32")
    outputs = {name: nn.Sequential([make()], name=name)(x) for name, make in LAYERS.items()}
    outputs["embedding"] = nn.Embedding(11, 3, dtype="float64")(words)
    f = sg.compile(outputs)
    values = {"x": RNG.normal(size=(2, 3, 5)), "words": np.array([[1, 2, 3], [0, 10, 4]])}
    got = f(**values)
    for name, wanted in zip(outputs, sg.evaluate(list(outputs.values()), values), strict=True):
        np.testing.assert_allclose(got[name], wanted, rtol=1e-12, atol=1e-14, err_msg=name)


# -- names and sharing -----------------------------------------------------------------------------
def test_names_follow_from_the_place() -> None:
    x = sg.input("x", (B, 5))
    y = nn.Dense(7)(nn.LayerNorm()(nn.Dense(3)(x)))
    assert names(y) == [
        "dense_1/W", "dense_1/b", "layer_norm_1/scale", "layer_norm_1/shift", "dense_2/W",
        "dense_2/b",
    ]
    assert names(nn.Dense(2, name="out")(y))[-2:] == ["out/W", "out/b"]
    assert names(nn.Dense(7, bias=False)(sg.input("z", (5,)))) == ["dense_1/W"]


def test_a_layer_called_twice_shares_its_weights() -> None:
    a, b = sg.input("a", (3, 5)), sg.input("b", (2, 5))
    layer = nn.Dense(7, init=sg.init.ones())
    y = sg.concatenate([layer(a), layer(b)])
    assert sg.parameters(y) == layer.parameters
    assert [p.name for p in layer.parameters] == ["dense_1/W", "dense_1/b"]
    assert [p.shape for p in layer.parameters] == [(5, 7), (7,)]
    with pytest.raises(sg.ShapeError, match=r"(?s)made for another shape.*\(5, 7\).*\(4, 7\)"):
        layer(sg.input("c", (3, 4)))
    with pytest.raises(sg.ShapeError, match=r"\(5, 7\)"):
        nn.Sequential([layer, layer])(a)


def test_a_fresh_layer_shares_nothing_but_its_settings() -> None:
    shared = nn.Dense(3)
    model = nn.Sequential([shared, sg.tanh, nn.Bidirectional(nn.GRU(2)), nn.Dense(3), shared])
    x = sg.input("x", (7, 5, 3))
    before = model(x)
    other = model.fresh()
    with pytest.raises(sg.LeafError, match="no parameters before its first call"):
        _ = other.parameters
    after = other(before)
    assert not set(model.parameters) & set(other.parameters)
    assert [p.shape for p in other.parameters] == [p.shape for p in model.parameters]
    assert other.layers[0] is other.layers[-1] is not shared and other.layers[1] is sg.tanh
    assert model.calls == ((x, before),) and other.calls == ((before, after),)
    names = [p.name for p in sg.parameters(after)]
    assert len(set(names)) == len(names) == 2 * len(model.parameters)


def test_two_models_in_one_graph() -> None:
    x = sg.input("x", (B, 5))

    def tower(name: str | None) -> nn.Sequential:
        return nn.Sequential([nn.Dense(3), sg.relu, nn.Dense(3)], name=name)

    left, right = tower("left"), tower("right")
    y = left(x) + right(x)
    sides = ("left", "right")
    assert names(y) == [f"{s}/dense_{k}/{p}" for s in sides for k in (1, 2) for p in "Wb"]
    assert sg.evaluate(y, {"x": np.ones((2, 5))}).shape == (2, 3)
    clash = tower(None)(x) + tower(None)(x)
    with pytest.raises(sg.LeafError, match=r"(?s)two leaves have one name.*'dense_1/W'.*test_nn"):
        sg.evaluate(clash, {"x": np.ones((2, 5))})
    # one behind the other need no names
    assert len(set(names(tower(None)(tower(None)(x))))) == 8


def test_models_inside_models() -> None:
    block = nn.Sequential([nn.Dense(5), nn.Dense(5, name="last")], name="block")
    net = nn.Sequential([block, nn.Sequential([nn.Dense(2)])], name="net")
    y = net(sg.input("x", (3, 5)))
    assert names(y)[::2] == ["net/block/dense_1/W", "net/block/last/W", "net/dense_1/W"]
    assert net.parameters == sg.parameters(y)
    assert repr(block.layers[1]) == "<Dense net/block/last>"


def test_one_name_twice_is_refused_where_it_is_written() -> None:
    h = nn.Dense(3, name="same")(sg.input("x", (3, 5)))
    with pytest.raises(sg.LeafError, match=r"(?s)same: the argument has a layer of this.*same/"):
        nn.Dense(3, name="same")(h)


def test_what_is_asked_wrongly_is_refused() -> None:
    layer = nn.Dense(3)
    with pytest.raises(sg.LeafError, match="no parameters before its first call"):
        _ = layer.parameters
    with pytest.raises(sg.ShapeError, match=r"dense_1: 'W' has the shape \(T, 3\)"):
        layer(sg.input("x", (3, T)))
    assert layer(sg.input("x", (3, 5))).shape == (3, 3)  # a call that failed made nothing
    with pytest.raises(sg.ShapeError, match="needs at least 1 axis"):
        nn.Dense(3)(sg.input("x"))
    with pytest.raises(sg.DTypeError, match="embedding_1: an embedding reads at integers"):
        nn.Embedding(3, 4)(sg.input("x", (3,)))
    with pytest.raises(sg.ShapeError, match="Dense: units must be an integer of at least 1, got 0"):
        nn.Dense(0)
    with pytest.raises(sg.LeafError, match="dense: the name must be a non-empty string"):
        nn.Dense(3, name="")
    with pytest.raises(sg.SymgradError, match="Sequential: expected a layer or a function"):
        nn.Sequential([nn.Dense(3), "relu"])
    with pytest.raises(sg.SymgradError, match=r"Dropout: rate must be in \[0, 1\), got 1"):
        nn.Dropout(1)
    with pytest.raises(sg.SymgradError, match="LayerNorm: epsilon must be at least 0"):
        nn.LayerNorm(-1.0)
    with pytest.raises(TypeError, match="write its method apply"):
        nn.Layer()(sg.input("x"))


# -- training --------------------------------------------------------------------------------------
def test_a_model_trains_and_its_file_finds_its_values_again(tmp_path) -> None:
    def make() -> tuple[sg.graph.nodes.Node, sg.graph.nodes.Node]:
        words, y = sg.input("words", (B, 3), "int32"), sg.input("y", (B,), "int32")
        model = nn.Sequential([
            nn.Embedding(7, 5), lambda e: sg.mean(e, axis=1), nn.LayerNorm(), nn.Dense(8, sg.tanh),
            nn.Dense(2),
        ])
        logits = model(words)
        return logits, sg.cross_entropy(logits, y)

    logits, loss = make()
    data = {"words": RNG.integers(0, 7, (70, 3)).astype("int32")}
    data["y"] = (data["words"].sum(axis=1) > 9).astype("int32")
    trainer = sg.Trainer(loss, sg.optim.adam(0.02))
    history = trainer.fit(data, epochs=40, batch_size=10)
    assert history.loss[-1] < 0.35 * history.loss[0]
    trainer.save(tmp_path / "model")
    other, again = make()
    loaded = sg.Trainer.load(tmp_path / "model", again)
    np.testing.assert_array_equal(loaded.predict(other, data), trainer.predict(logits, data))


def test_dropout_drops_only_while_training() -> None:
    x = sg.input("x", (B, 5), "float64")
    y = nn.Sequential([nn.Dropout(0.25), sg.tanh, nn.Dropout(0.25)])(x)
    values = {"x": np.full((700, 5), 0.5)}
    np.testing.assert_array_equal(sg.evaluate(y, values), np.tanh(values["x"]))
    got = sg.evaluate(y, values, training=True)
    kept = got != 0
    assert abs(kept.mean() - 0.75**2) < 0.03  # each call has a mask of its own
    np.testing.assert_allclose(got[kept], np.tanh(0.5 / 0.75) / 0.75)
    np.testing.assert_allclose(sg.compile(y, training=True)(**values), got, rtol=1e-14)


# -- the table -------------------------------------------------------------------------------------
def test_summary_of_a_model() -> None:
    x = sg.input("x", (B, 5))
    model = nn.Sequential([
        nn.Dense(7, name="<in>"), sg.tanh, nn.LayerNorm(),
        nn.Sequential([nn.Dense(2)], name="head"),
    ])
    y = model(x)
    table = nn.summary(model, dims={B: 3})
    assert [r.name for r in table.rows] == ["<in>", "tanh", "layer_norm_1", "head/dense_1"]
    assert [r.shape for r in table.rows] == [(3, 7), (3, 7), (3, 7), (3, 2)]
    assert [r.parameters for r in table.rows] == [42, 0, 14, 16]
    assert table.parameters == 72 and table.size == 288
    assert table.cost == sg.cost(y, dims={B: 3})
    assert table.rows[0].flops == 2 * 3 * 5 * 7 + 3 * 7
    assert sum(r.flops for r in table.rows) == table.cost.flops
    assert sum(r.bytes for r in table.rows) == table.cost.bytes
    lines = str(table).splitlines()
    assert lines[0].split() == ["layer", "output", "parameters", "flops", "bytes"]
    assert lines[-1].split()[:2] == ["total", "72"] and len(set(map(len, lines[1:]))) <= 2
    page = table._repr_html_()
    assert "&lt;in&gt;" in page and "<in>" not in page and page.count("<tr>") == 6


def test_summary_with_symbolic_rows_and_shared_layers() -> None:
    x = sg.input("x", (B, 5))
    layer = nn.Dense(5, sg.tanh)
    model = nn.Sequential([layer, layer])
    model(x)
    table = nn.summary(model)
    assert [r.name for r in table.rows] == ["dense_1", "dense_1"]
    assert [r.parameters for r in table.rows] == [30, 0]
    assert table.rows[0].flops == table.rows[1].flops == sg.cost(layer(x)).flops
    assert "B" in str(table)


def test_summary_of_an_expression() -> None:
    x, y = sg.input("x", (B, 5)), sg.input("y", (B,), "int32")
    model = nn.Sequential([nn.Dense(7), sg.tanh, nn.LayerNorm(), nn.Dense(2)])
    loss = sg.cross_entropy(model(x), y).mean()
    table = nn.summary(loss, {"B": 3})
    assert [r.name for r in table.rows] == ["dense_1 + layer_norm_1", "dense_2", "loss"]
    assert [r.parameters for r in table.rows] == [56, 16, 0]
    assert sum(r.flops for r in table.rows) == table.cost.flops == sg.cost(loss, {"B": 3}).flops
    w = sg.parameter("W", (5, 2))
    (row,) = nn.summary(x @ w).rows
    assert row.name == "layer 1 · 5 → 2" and row.parameters == 10
    assert nn.summary([loss, x @ w]).parameters == 82
    cell = nn.Dense(5, sg.tanh)
    c, ys = sg.scan(lambda c, e: (cell(c + e),) * 2, sg.zeros((5,)), x)
    table = nn.summary([c, ys.sum()], {"B": 3})
    assert table.parameters == 30
    assert sum(r.flops for r in table.rows) == table.cost.flops
    with pytest.raises(sg.LeafError, match="has not been called yet"):
        nn.summary(nn.Dense(3))
