"""Recurrent layers against NumPy, step by step, and PyTorch; names, carries, layouts, errors."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from symgrad import nn
from tests.calculus_judges import all_judges, real, sample

B, T = sg.dim("B"), sg.dim("T")

CELLS = {
    "rnn": lambda: nn.RNN(4),
    "gru": lambda: nn.GRU(4),
    "gru, reset before": lambda: nn.GRU(4, reset_after=False),
    "lstm": lambda: nn.LSTM(4),
    "lstm with peepholes": lambda: nn.LSTM(4, peepholes=True),
}
LAYERS = CELLS | {
    "bidirectional": lambda: nn.Bidirectional(nn.LSTM(4)),
    "stacked": lambda: nn.Stacked([nn.GRU(3), nn.Bidirectional(nn.RNN(2)), nn.LSTM(4)]),
}


def drawn(leaves, seed: int = 0) -> dict[str, np.ndarray]:
    """Values of parameters that no symmetry hides in."""
    rng = np.random.default_rng(seed)
    return {p.name: rng.normal(size=p.shape) for p in leaves}


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def by_hand(kind: str, x: np.ndarray, v: dict[str, np.ndarray], h: np.ndarray, c: np.ndarray):
    """The equations of the docstrings, one step and one gate at a time."""
    W, U, b = v["W"], v["U"], v["b"]
    n = len(U)
    ys = []

    def gate(k: int, state: np.ndarray) -> np.ndarray:
        block = slice(k * n, (k + 1) * n)
        return x[:, t] @ W[:, block] + state @ U[:, block] + b[block]

    for t in range(x.shape[1]):
        if kind == "rnn":
            h = np.tanh(gate(0, h))
        elif kind.startswith("gru"):
            r, z = sigmoid(gate(0, h)), sigmoid(gate(1, h))
            last = slice(2 * n, 3 * n)
            if "before" in kind:
                m = np.tanh(gate(2, r * h))
            else:
                m = np.tanh(x[:, t] @ W[:, last] + b[last] + r * (h @ U[:, last] + v["d"]))
            h = (1 - z) * m + z * h
        else:
            p = v.get("p", np.zeros((3, n)))
            i, f = sigmoid(gate(0, h) + p[0] * c), sigmoid(gate(1, h) + p[1] * c)
            c = f * c + i * np.tanh(gate(2, h))
            h = sigmoid(gate(3, h) + p[2] * c) * np.tanh(c)
        ys.append(h)
    return np.stack(ys, axis=1), h, c


# -- values and gradients --------------------------------------------------------------------------
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("given", [False, True])
def test_a_layer_is_its_equations(name, given) -> None:
    rng = np.random.default_rng(3)
    x = sg.input("x", (B, T, 3), "float64")
    layer, lstm = CELLS[name](), name.startswith("lstm")
    h, c = (sg.input(k, (B, 4), "float64") for k in "hc")
    ys, carry = layer.run(x, ((h, c) if lstm else h) if given else None)
    values = drawn(layer.parameters)
    data = {"x": rng.normal(size=(2, 5, 3)), "h": rng.normal(size=(2, 4)),
            "c": rng.normal(size=(2, 4))}
    hs = [data[k] if given else np.zeros((2, 4)) for k in "hc"]
    own = {k.rpartition("/")[2]: v for k, v in values.items()}
    wanted, *ends = by_hand(name, data["x"], own, *hs)
    after = carry if lstm else (carry,)
    got = sg.evaluate([ys, *after], data | values)
    for a, b in zip(got, [wanted, *ends], strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    assert ys.shape == (B, T, 4) and all(e.shape == (B, 4) for e in after)


def test_all_layers_compile_and_one_step_at_a_time_is_the_same() -> None:
    x = sg.input("x", (B, T, 3), "float64")
    outputs, wanted = {}, {}
    data = {"x": np.random.default_rng(1).normal(size=(2, 7, 3))}
    for name, make in LAYERS.items():
        layer = make()
        if isinstance(layer, nn.Stacked):
            layer = nn.Stacked(layer.layers, name=name)
        else:
            layer.given = name
        outputs[name] = ys = layer.run(x)[0]
        data |= drawn(layer.parameters)
        if isinstance(layer, nn.Recurrent):
            start = layer.start((B,), "float64")
            by_steps = sg.scan(layer.step, start, sg.moveaxis(x, 1, 0))[1]
            outputs[name + " scanned"] = sg.moveaxis(by_steps, 0, 1)
            wanted[name + " scanned"] = name
            assert len(sg.parameters([ys, by_steps])) == len(layer.parameters)
    got = sg.compile(outputs)(**data)
    for name, ys in outputs.items():
        np.testing.assert_allclose(got[name], sg.evaluate(ys, data), rtol=1e-12, err_msg=name)
    for scanned, name in wanted.items():
        np.testing.assert_allclose(got[scanned], got[name], rtol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name) -> None:
    x = real("x", 2, 3, 3)
    y = LAYERS[name]()(x)
    leaves = [x, *sg.parameters(y)]
    all_judges(y, leaves, sample(leaves))


def test_one_sequence_without_rows_and_integers() -> None:
    x = sg.input("x", (7, 3), "int32")
    ys, (h, c) = nn.LSTM(4).run(x)
    assert ys.shape == (7, 4) and h.shape == c.shape == (4,) and ys.dtype == "float32"
    value = np.random.default_rng(0).integers(-2, 3, (7, 3))
    got, last = sg.evaluate([ys, h], {x: value})
    np.testing.assert_array_equal(got[-1], last)


def test_both_directions() -> None:
    x = sg.input("x", (B, 5, 3), "float64")
    layer = nn.Bidirectional(nn.LSTM(4))
    ys, ((h, _), (g, _)) = layer.run(x)
    value = {"x": np.random.default_rng(0).normal(size=(2, 5, 3))} | drawn(layer.parameters)
    both, first, last = sg.evaluate([ys, h, g], value)
    np.testing.assert_array_equal(both[:, -1, :4], first)
    np.testing.assert_array_equal(both[:, 0, 4:], last)
    turned = sg.evaluate(layer.backward(x[:, ::-1]), value)
    np.testing.assert_allclose(both[:, :, 4:], turned[:, ::-1], rtol=1e-13)
    swapped, _ = layer.run(x, reverse=True)
    np.testing.assert_allclose(
        sg.evaluate(swapped[:, ::-1], value | {"x": value["x"][:, ::-1]}), both, rtol=1e-13
    )
    given = layer.run(x, (layer.forward.start((B,), "float64"),) * 2)[0]
    np.testing.assert_array_equal(sg.evaluate(given, value), both)


def test_stacked_layers_drop_between_and_step_by_step() -> None:
    x = sg.input("x", (B, 5, 3), "float64")
    layer = nn.Stacked([nn.GRU(4), nn.LSTM(3)], rate=0.5)
    ys, carry = layer.run(x)
    value = {"x": np.random.default_rng(0).normal(size=(2, 5, 3))} | drawn(layer.parameters)
    start = layer.start((B,), "float64")
    (_, (_, c)), steps = sg.scan(layer.step, start, sg.moveaxis(x, 1, 0))
    a, b, d, e = sg.evaluate([ys, sg.moveaxis(steps, 0, 1), carry[1][1], c], value)
    np.testing.assert_allclose(a, b, rtol=1e-13)
    np.testing.assert_allclose(d, e, rtol=1e-13)
    dropped = sg.evaluate([ys, carry[0]], value, training=True)
    assert np.abs(dropped[0] - a).max() > 1e-3  # what the second layer reads is dropped
    np.testing.assert_array_equal(dropped[1], sg.evaluate(carry[0], value))
    _, half = layer.run(x[:, :2])
    rest, after = layer.run(x[:, 2:], half)
    b, e = sg.evaluate([rest, after[1][1]], value)
    np.testing.assert_allclose(b, a[:, 2:], rtol=1e-13)
    np.testing.assert_allclose(e, d, rtol=1e-13)


def test_rows_of_different_lengths_are_as_if_each_stood_alone() -> None:
    x, n = sg.input("x", (B, T, 3), "float64"), sg.input("n", (B,), "int32")
    sizes = [4, 0, 7, 1]
    data = {"x": np.random.default_rng(1).normal(size=(4, 7, 3)), "n": sizes}
    data["x"][0, 4:] = np.nan  # padding is not read
    outputs, layers = {}, {}
    for name, make in LAYERS.items():
        layers[name] = layer = make()
        if isinstance(layer, nn.Stacked):
            layers[name] = layer = nn.Stacked(layer.layers, name="deep")
        else:
            layer.given = name.replace(" ", "")
        outputs[name] = layer.run(x, lengths=n)
        data |= drawn(layer.parameters)
    got = sg.compile(outputs)(**data)
    one = sg.input("one", (1, T, 3), "float64")
    for name, layer in layers.items():
        ys, carry = got[name]
        alone = layer.run(one)
        for row, size in enumerate(sizes):
            assert not ys[row, size:].any()
            if size:
                given = data | {"one": data["x"][row : row + 1, :size]}
                wanted, *ends = sg.evaluate(flat(alone), given)
                np.testing.assert_allclose(ys[row, :size], wanted[0], rtol=1e-11, err_msg=name)
                for a, b in zip(flat(carry), ends, strict=True):
                    np.testing.assert_allclose(a[row], b[0], rtol=1e-11, err_msg=name)


def flat(structure) -> list:
    if not isinstance(structure, tuple):
        return [structure]
    return [array for part in structure for array in flat(part)]


def test_gradients_of_rows_of_different_lengths_and_of_truncated_ones() -> None:
    x, n = real("x", 3, 5, 3), sg.constant([5, 2, 3])
    layer = nn.Bidirectional(nn.GRU(2))
    ys, _ = layer.run(x, lengths=n)
    leaves = [x, *layer.parameters]
    all_judges(ys, leaves, sample(leaves))
    short = nn.LSTM(2)
    cut = sg.grad(short.run(x, truncate=2)[0].sum(), x)
    whole = [sg.grad(short.run(x, truncate=k)[0].sum(), x) for k in (None, 5)]
    values = sample([x, *short.parameters])
    a, b, c = sg.evaluate([cut, *whole], values)
    np.testing.assert_array_equal(b, c)
    np.testing.assert_allclose(a[:, 4], b[:, 4], rtol=1e-12)
    assert np.abs(a[:, 1] - b[:, 1]).max() > 1e-3
    deep, both = nn.Stacked([nn.GRU(2), nn.RNN(2)]), nn.Bidirectional(nn.RNN(2))
    for layer in (deep, both):
        cut, whole = (sg.grad(layer.run(x, truncate=k)[0].sum(), x) for k in (2, None))
        a, b = sg.evaluate([cut, whole], sample([x, *layer.parameters]))
        late = a[:, 4] - b[:, 4]  # the last step is read on the way back alone
        assert np.abs(a[:, 1] - b[:, 1]).max() > 1e-3
        assert (np.abs(late).max() > 1e-3) == (layer is both)


def test_open_gates_and_the_identity_carry_gradients_unchanged() -> None:
    x, h, c = (sg.input(k, s, "float64") for k, s in (("x", (T, 3)), ("h", (4,)), ("c", (4,))))
    lstm = nn.LSTM(4, recurrent_init=0.0)  # no gate listens to h: dc[T]/dc[0] = prod f
    _, (_, last) = lstm.run(x, (h, c))
    W, _, b = lstm.parameters
    product = sg.prod(sg.sigmoid(x @ W[:, 4:8] + b[4:8]), axis=0)
    rnn = nn.RNN(4, sg.relu, recurrent_init=sg.init.identity())  # positive states: dh[T]/dh[0] = 1
    end = rnn.run(sg.square(x), sg.exp(h))[1]
    f = sg.compile([sg.jacobian(last, c), product, sg.jacobian(end, h)])
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(50, 3)), "h": rng.normal(size=4), "c": rng.normal(size=4)}
    data |= {"lstm_1/b": np.repeat([0.0, 40.0, 0.0, 0.0], 4), "rnn_1/W": rng.random((3, 4))}
    J, _, same = f(**data)
    np.testing.assert_allclose(J, np.eye(4), atol=1e-12)  # 50 forget gates of 1 - 4e-18
    np.testing.assert_allclose(same, np.diag(np.exp(data["h"])), rtol=1e-12)
    J, wanted, _ = f(**{k: v for k, v in data.items() if k != "lstm_1/b"})
    np.testing.assert_allclose(J, np.diag(wanted), rtol=1e-12)


# -- what parameters start from --------------------------------------------------------------------
def test_initial_values() -> None:
    x = sg.input("x", (B, T, 3))
    layer = nn.LSTM(4, peepholes=True)
    layer(x)
    w, u, b, p = (sg.graph.leaves.initial_value(leaf) for leaf in layer.parameters)
    np.testing.assert_array_equal(b, np.repeat([0, 1, 0, 0], 4).astype("float32"))
    assert not p.any() and b.dtype == "float32"
    for k in range(4):
        block = u[:, 4 * k : 4 * k + 4]
        np.testing.assert_allclose(block @ block.T, np.eye(4), atol=1e-5)
    assert np.abs(w).max() <= np.sqrt(6 / (3 + 4)) and np.abs(w[:, :4] - w[:, 4:8]).max() > 0.1
    other = nn.LSTM(4, forget_bias=0.0, init=0.5, recurrent_init=sg.init.identity())
    other(x)
    assert (sg.graph.leaves.initial_value(other.parameters[0]) == 0.5).all()
    assert not sg.graph.leaves.initial_value(other.parameters[2]).any()
    each = sg.graph.leaves.initial_value(other.parameters[1])
    np.testing.assert_array_equal(each, np.tile(np.eye(4), 4))


def test_names() -> None:
    x = sg.input("x", (B, 5, 3))
    h = nn.LSTM(4)(nn.LSTM(4)(x))
    assert [p.name for p in sg.parameters(h)][::3] == ["lstm_1/W", "lstm_2/W"]
    model = nn.Sequential([
        nn.Bidirectional(nn.GRU(4)), nn.Stacked([nn.RNN(2), nn.RNN(2)]), nn.Dense(2),
    ], name="net")
    assert [p.name for p in sg.parameters(model(x)) if p.name.endswith("W")] == [
        "net/bidirectional_1/forward/W", "net/bidirectional_1/backward/W", "net/rnn_1/W",
        "net/rnn_2/W", "net/dense_1/W",
    ]
    assert set(model.parameters) == set(sg.parameters(model(x)))
    assert nn.summary(model, {B: 3}).parameters == sum(
        int(np.prod(p.shape)) for p in model.parameters
    )
    _, thought = nn.GRU(4).run(x)  # a decoder that begins with what an encoder has read
    for decoder in (nn.GRU(4), nn.GRU(4, name="gru_1")):
        if decoder.given is None:
            ys, _ = decoder.run(x, thought)
            assert {p.name[:5] for p in sg.parameters(ys)} == {"gru_1", "gru_2"}
            continue
        with pytest.raises(sg.LeafError, match="the argument has a layer of this name already"):
            decoder.run(x, thought)
    alone = nn.LSTM(4)
    alone.step(alone.start((B,)), x[:, 0])
    assert [p.name for p in alone.parameters] == ["lstm_1/W", "lstm_1/U", "lstm_1/b"]


# -- PyTorch's layout ------------------------------------------------------------------------------
def layered(kind: str, both: bool, layers: int):
    def one(units: int):
        cell = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind](units)
        return nn.Bidirectional(cell) if both else cell

    return nn.Stacked([one(4) for _ in range(layers)]) if layers > 1 else one(4)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize(("both", "layers"), [(False, 1), (True, 1), (True, 2)])
def test_weights_of_torch(kind, both, layers) -> None:
    torch = pytest.importorskip("torch")
    peer = getattr(torch.nn, kind.upper())(
        3, 4, num_layers=layers, bidirectional=both, batch_first=True, dtype=torch.float64
    )
    x = sg.input("x", (B, T, 3), "float64")
    layer = layered(kind, both, layers)
    ys = layer(x)
    data = np.random.default_rng(2).normal(size=(2, 5, 3))
    weights = {f"net.{name}": value for name, value in peer.state_dict().items()}
    values = nn.from_torch(layer, weights, prefix="net.")
    wanted = peer(torch.tensor(data))[0].detach().numpy()
    np.testing.assert_allclose(sg.evaluate(ys, {"x": data} | values), wanted, rtol=1e-10)
    changed = drawn(layer.parameters)
    exported = nn.to_torch(layer, changed)
    peer.load_state_dict({name: torch.tensor(value) for name, value in exported.items()})
    wanted = peer(torch.tensor(data))[0].detach().numpy()
    np.testing.assert_allclose(sg.evaluate(ys, {"x": data} | changed), wanted, rtol=1e-10)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_there_and_back(kind) -> None:
    layer = layered(kind, True, 2)
    layer(sg.input("x", (B, T, 3), "float64"))
    values = drawn(layer.parameters)
    exported = nn.to_torch(layer, values, "a.")
    assert len(exported) == 16 and "a.weight_hh_l1_reverse" in exported
    back = nn.from_torch(layer, exported, "a.")
    assert back.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(back[name], value)
    with pytest.raises(sg.LeafError, match=r"no weight 'b.weight_ih_l0'.*a\.weight_hh_l0"):
        nn.from_torch(layer, exported, "b.")
    exported["a.weight_ih_l1"] = exported["a.weight_ih_l1"][:, :5]
    with pytest.raises(sg.ShapeError, match=r"(?s)forward/W' has the shape \(8, .*l1 give \(5,"):
        nn.from_torch(layer, exported, "a.")


def test_what_torch_has_not() -> None:
    for layer, what in ((nn.LSTM(4, peepholes=True), "peep"), (nn.GRU(4, False), "reset_after")):
        layer(sg.input("x", (B, T, 3)))
        with pytest.raises(sg.SymgradError, match=f"PyTorch has no layer with {what}"):
            nn.to_torch(layer, drawn(layer.parameters))


# -- errors ----------------------------------------------------------------------------------------
def test_what_is_asked_wrongly_is_refused() -> None:
    x = sg.input("x", (B, T, 3))
    with pytest.raises(sg.ShapeError, match=r"(?s)lstm_1: needs sequences \(rows, time, f.*None"):
        nn.LSTM(4)(sg.input("x", (B,)))
    with pytest.raises(sg.ShapeError, match="GRU: units must be an integer of at least 1, got -1"):
        nn.GRU(-1)
    with pytest.raises(sg.SymgradError, match="LSTM: forget_bias must be a number, got 'one'"):
        nn.LSTM(4, forget_bias="one")
    with pytest.raises(sg.SymgradError, match="RNN: expected a layer or a function"):
        nn.RNN(4, activation="relu")
    with pytest.raises(sg.ShapeError, match=r"(?s)initial: .* asked  \(B, 4\)\n  got .*\(4,\)"):
        nn.RNN(4).run(x, sg.zeros((4,)))
    h = sg.zeros((B, 4))
    structure = r"asked  \(array, array\)\n  got    array\n  Give what `start` returns"
    with pytest.raises(sg.SymgradError, match=r"lstm_1: initial: .*\n  " + structure):
        nn.LSTM(4).run(x, h)
    with pytest.raises(sg.SymgradError, match=r"carry: .*\n  " + structure):
        nn.LSTM(4).step(h, x[:, 0])
    layers = nn.Stacked([nn.GRU(4), nn.GRU(4)])
    for ask in (lambda: layers.run(x, (h, h, h)), lambda: layers.step(h, x[:, 0])):
        with pytest.raises(sg.SymgradError, match="needs a tuple of 2 carries, one for each layer"):
            ask()
    with pytest.raises(sg.SymgradError, match="initial: needs a tuple of 2 carries"):
        nn.Bidirectional(nn.GRU(4)).run(x, h)
    for sequences, lengths in ((x, sg.input("n", (3, 5), "int32")), (x[0], sg.input("n", (3,)))):
        with pytest.raises(sg.ShapeError, match=r"gru_1: lengths: needs x \(B, T, n\) and one"):
            nn.GRU(4).run(sequences, lengths=lengths)
    with pytest.raises(sg.DTypeError, match="the carry changes dtype"):
        nn.GRU(4).run(x, sg.zeros((B, 4), "int32"))
    with pytest.raises(sg.SymgradError, match="Stacked: needs recurrent layers"):
        nn.Stacked([nn.Dense(3)])
    with pytest.raises(sg.SymgradError, match="at least one layer"):
        nn.Stacked([])
    with pytest.raises(sg.SymgradError, match="rate must be in"):
        nn.Stacked([nn.RNN(3)], rate=1.0)
    deep = nn.Stacked([nn.Bidirectional(nn.RNN(2))])
    with pytest.raises(sg.SymgradError, match="needs the whole sequence: it has no single step"):
        deep.start((B,))
    called = nn.RNN(2)
    called(x)
    for wrong in (called, nn.Dense(3)):
        with pytest.raises(sg.SymgradError, match="recurrent layer that has not been called yet"):
            nn.Bidirectional(wrong)
    with pytest.raises(TypeError, match="write its method _step"):
        nn.Recurrent(3)(x)
    layer = nn.RNN(4)
    with pytest.raises(sg.ShapeError, match="rnn_1: 'W' has the shape"):
        layer(sg.input("x", (B, T, sg.dim("n"))))
    assert layer(x).shape == (B, T, 4)  # a call that failed made nothing
    with pytest.raises(sg.ShapeError, match="was made for another shape"):
        layer(sg.input("z", (B, T, 5)))
