"""Chapter 6: recurrent networks, and what becomes of a gradient on its way back through time.

    python examples/06_recurrent_networks.py [--quick] [--out DIR]

A recurrent network takes the same step again and again. Its gradient takes the same step backwards
again and again, and what is multiplied a hundred times either dies out or explodes. The parts:

1. one neuron with a memory: backpropagation through time, derived, drawn, and checked;
2. products of Jacobians: when they shrink, when they grow, and when they do first one, then both;
3. LSTM and GRU: gates that can be open, and the size of a gradient by how far it has come;
4. what each can learn: recalling the first of up to 200 symbols.

Sources: Rumelhart, Hinton and Williams 1986 and Werbos 1990 for backpropagation through time;
Hochreiter 1991, Bengio, Simard and Frasconi 1994 and Pascanu et al. 2013 (arXiv 1211.5063) for what
happens to gradients; Hochreiter and Schmidhuber 1997 and Gers et al. 2000 for the LSTM; Cho et al.
2014 (arXiv 1406.1078) for the GRU; Tallec and Ollivier 2018 (arXiv 1804.11188) for biases spread
over lags.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import symgrad as sg
from chapter import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, command_line, save
from symgrad.graph.leaves import initial_value
from symgrad.graph.nodes import Node


# 1. One neuron with a memory ----------------------------------------------------------------------
#
# The smallest recurrent network has one number as its state:
#
#     h[t+1] = tanh(w h[t] + x[t]),      t = 0 .. T-1,      L = (h[T] - y)^2
#
# Written out step by step it is an ordinary, deep network, only that w stands in every layer. So
# its gradient is that of chapter 3: one term for each place where w stands,
#
#     dL/dw = sum over t of  dL/dh[t+1] (1 - h[t+1]^2) h[t]
#
# and dL/dh[t] comes from dL/dh[t+1] by one factor,
#
#     dL/dh[t] = dL/dh[t+1] (1 - h[t+1]^2) w
#
# which is a recurrence too, from the last step to the first: backpropagation through time. It
# reads the states of the way forward, in reverse.
def one_neuron(out: Path) -> None:
    """Derive, draw, and check backpropagation through time on one neuron."""
    x = [sg.input(f"x{t}") for t in range(3)]
    y, start = sg.input("y"), sg.input("h0")
    w = sg.parameter("w", (), init=0.8)

    def step(h: Node, element: Node) -> tuple[Node, Node]:
        after = sg.tanh(w * h + element)
        return after, after

    h = start
    for element in x:  # written out
        h, _ = step(h, element)
    unrolled = sg.square(h - y)
    last, states = sg.scan(step, start, sg.stack(x))  # as a recurrence
    folded = sg.square(last - y)

    print("== 1. One neuron with a memory, three steps\n")
    print(str(sg.derive(unrolled, w)).partition("\nsimplified")[0])
    values = {"x0": 0.5, "x1": -0.25, "x2": 1.0, "y": 0.1, "h0": 0.2}
    ours, theirs = (float(sg.evaluate(sg.grad(loss, w), values)) for loss in (unrolled, folded))

    # the same by hand, with the formulas above
    hs = [0.2, *sg.evaluate(states, values).tolist()]
    cotangent, by_hand = 2 * (hs[-1] - 0.1), 0.0
    for t in reversed(range(3)):
        by_hand += cotangent * (1 - hs[t + 1] ** 2) * hs[t]
        cotangent *= (1 - hs[t + 1] ** 2) * 0.8
    print(f"dL/dw written out {ours:.6f}, as a recurrence {theirs:.6f}, by hand {by_hand:.6f}")
    save(sg.draw(unrolled, wrt=[w]), out / "unrolled.svg")
    save(sg.draw(folded, wrt=[w]), out / "recurrence.svg")


# 2. Products of Jacobians -------------------------------------------------------------------------
#
# With n numbers as its state, one factor becomes a matrix, the Jacobian of a step,
#
#     h[t+1] = tanh(h[t] W + x[t]),     dh[T]/dh[0] = product over t of  W diag(1 - h[t+1]^2)
#
# Its size is the factor by which a gradient grows on its way from step T to step 0. Without the
# tanh, and with W a rotation times g, it is g^T: 0.9^100 is 0.00003 and 1.1^100 is 13,781. That is
# the whole difficulty of long sequences in one line; tanh only makes the product smaller.
#
# That the eigenvalues of W are below 1 does not yet mean that gradients shrink from the start. The
# matrix [[0.9, 1], [0, 0.9]] passes each step's result on to a second number: its powers grow for
# ten steps, by t 0.9^(t-1), before 0.9^t wins.
def products(out: Path) -> None:
    """Measure ||dh[T]/dh[0]|| of linear networks, and of one with tanh, against theory."""
    print("\n== 2. The size of dh[T]/dh[0]\n")
    start = sg.input("start", (2,), dtype="float64")
    W = sg.input("W", (2, 2), dtype="float64")
    x = sg.input("x", (sg.dim("T"), 2), dtype="float64")
    jacobians = {}
    for name, bend in (("linear", lambda z: z), ("tanh", sg.tanh)):
        h, _ = sg.scan(lambda h, e, bend=bend: (bend(h @ W + e), ()), start, x)
        jacobians[name] = sg.jacobian(h, start)
    measure = sg.compile(jacobians)

    def sizes(matrix: np.ndarray, steps: list[int], noise: float = 0.0) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"linear": [], "tanh": []}
        xs = noise * np.random.default_rng(0).normal(size=(max(steps), 2))
        for T in steps:
            values = measure(start=np.zeros(2), W=matrix, x=xs[:T])
            for name, value in values.items():
                found[name].append(float(np.linalg.norm(value, 2)))
        return found

    turn = np.array([[np.cos(0.4), np.sin(0.4)], [-np.sin(0.4), np.cos(0.4)]])
    shear = np.array([[0.9, 1.0], [0.0, 0.9]])
    marks = [10, 50, 100]
    print("   T       0.9 x rotation       1.1 x rotation     [[0.9, 1], [0, 0.9]]")
    print("         g^T     measured     g^T     measured     theory     measured")
    rows = [sizes(matrix, marks)["linear"] for matrix in (0.9 * turn, 1.1 * turn, shear)]
    for k, T in enumerate(marks):
        theory = np.linalg.norm(np.array([[0.9**T, T * 0.9 ** (T - 1)], [0.0, 0.9**T]]), 2)
        pairs = zip((0.9**T, 1.1**T, theory), (row[k] for row in rows), strict=True)
        print(f"{T:>4}  " + "".join(f"{a:>11.4g}{b:>11.4g}" for a, b in pairs))

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    steps = list(range(1, 101, 3))
    drawn = (
        ("1.1 x rotation", 1.1 * turn, "linear", ORANGE),
        ("rotation", turn, "linear", BLACK),
        ("0.9 x rotation", 0.9 * turn, "linear", BLUE),
        ("[[0.9, 1], [0, 0.9]]", shear, "linear", GREEN),
        ("1.1 x rotation, tanh", 1.1 * turn, "tanh", PURPLE),
    )
    for label, matrix, kind, color in drawn:
        ends = sizes(matrix, steps, noise=0.5 if kind == "tanh" else 0.0)[kind]
        axes.semilogy(steps, ends, color=color, lw=1.8, label=label)
    axes.set(xlabel="T", ylabel="||dh[T] / dh[0]||", title="The same step a hundred times")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, out / "products.png")


# 3. Gates -----------------------------------------------------------------------------------------
#
# The LSTM keeps a second state, the cell c, that a step does not push through a matrix:
#
#     c[t+1] = f[t] c[t] + i[t] g[t]            f, i between 0 and 1, computed from x[t] and h[t]
#
# Along the cell, the factor of a step is f[t], a number for each element. Where the network wants
# to remember, it can learn f = 1, and the gradient comes back whole over any distance. As long as
# no gate listens to h (U = 0), that is all there is:
#
#     dc[T]/dc[0] = f[0] f[1] .. f[T-1],  exactly
#
# The GRU does the same with one state: h[t+1] = z[t] h[t] + (1 - z[t]) m[t].
#
# At the start nothing has been learned, and what counts is where f begins: sigmoid(b). With b = 0
# it halves the gradient in each step; with b = 1 it keeps 0.73 of it, and with b = 4 it keeps 0.98.
#
# If the lags are known, b can be spread over them: f = 1 - 1/u keeps what it holds for about u
# steps, and that is sigmoid(log(u - 1)). Tallec and Ollivier draw u between 1 and the longest lag,
# and close the input gate as far as the forget gate is open, so that noise does not pile up.
UNITS = 32
NETWORKS: dict[str, tuple[Callable[[], sg.nn.Recurrent], str]] = {
    "RNN": (lambda: sg.nn.RNN(UNITS, name="rnn"), BLACK),
    "GRU": (lambda: sg.nn.GRU(UNITS, name="gru"), GREEN),
    "LSTM, b = 1": (lambda: sg.nn.LSTM(UNITS, name="lstm1"), BLUE),
    "LSTM, b = 4": (lambda: sg.nn.LSTM(UNITS, forget_bias=4.0, name="lstm4"), SKY),
    "GRU, b spread": (lambda: sg.nn.GRU(UNITS, name="gru_spread"), PURPLE),
    "LSTM, b spread": (lambda: sg.nn.LSTM(UNITS, name="lstm_spread"), ORANGE),
}


def sequences(rows: int, lag: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw symbols, and sequences (rows, lag + 1, 8) that begin with them and go on with noise."""
    first = rng.integers(0, 4, rows).astype(np.int32)
    x = np.zeros((rows, lag + 1, 8), np.float32)
    x[:, 0, :4] = np.eye(4)[first]
    x[:, 1:, 4:] = rng.normal(size=(rows, lag, 4))
    return x, first


def spread(layer: sg.nn.Recurrent, lag: int, seed: int) -> dict[str, np.ndarray]:
    """Return the biases of a layer whose gates keep their state for up to `lag` steps."""
    if not layer.name.endswith("spread"):
        return {}
    logs = np.log(np.random.default_rng(seed).uniform(1, lag, UNITS)).astype(np.float32)
    zeros = np.zeros(UNITS, np.float32)
    parts = [-logs, logs, zeros, zeros] if layer.gates == 4 else [zeros, logs, zeros]
    return {f"{layer.name}/b": np.concatenate(parts)}


def gates(out: Path, quick: bool) -> None:
    """Check the product of forget gates; plot how gradients decay with the lag before training."""
    print("\n== 3. Gates\n")
    x = sg.input("x", (sg.dim("T"), 3), dtype="float64")
    lstm = sg.nn.LSTM(4, recurrent_init=0.0)
    h, c = (sg.input(name, (4,), dtype="float64") for name in "hc")
    _, (_, after) = lstm.run(x, (h, c))
    W, _, b = lstm.parameters
    f = sg.sigmoid(x @ W[:, 4:8] + b[4:8])
    values = {"x": np.random.default_rng(0).normal(size=(20, 3)), "h": np.zeros(4), "c": np.ones(4)}
    J, product = sg.compile([sg.jacobian(after, c), sg.prod(f, axis=0)])(**values)
    print(f"dc[20]/dc[0]            {np.array2string(np.diag(J), precision=9)}")
    print(f"product of the gates f  {np.array2string(product, precision=9)}")

    longest = 50 if quick else 200
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    x = sg.input("x", (8, longest + 1, 8))
    data, _ = sequences(8, longest, np.random.default_rng(1))
    direction = np.random.default_rng(2).normal(size=UNITS).astype(np.float32)
    marks = [lag for lag in (1, 10, 50, 100, 200) if lag <= longest]
    print("\n||dL/dx[T - lag]|| / ||dL/dx[T - 1]|| before training, by lag")
    print(" " * 20 + "".join(f"{lag:>10}" for lag in marks))
    gradients, biases = {}, {}
    for name, (make, _) in NETWORKS.items():
        layer = make()
        gradients[name] = sg.grad((layer(x)[:, -1] * direction).sum(), x)
        biases |= spread(layer, longest, seed=0)
    for name, value in sg.compile(gradients)(x=data, **biases).items():
        norms = np.linalg.norm(value, axis=(0, 2))[::-1]
        shares = norms[:-1] / norms[0]
        lags = np.arange(1, longest + 1)
        axes.semilogy(lags, shares, color=NETWORKS[name][1], lw=1.6, label=name)
        print(f"  {name:<18}" + "".join(f"{shares[lag - 1]:>10.1e}" for lag in marks))
    axes.set(xlabel="lag", ylabel="gradient, relative to lag 1", ylim=(1e-12, None))
    axes.set_title("How much of a gradient comes back, before training")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, out / "gradient_by_lag.png")


# 4. What each can learn ---------------------------------------------------------------------------
#
# The first element of a sequence is one of four symbols; then comes noise, which means nothing; at
# the end the network has to say what the symbol was. Nothing is hard about it but the lag. Guessing
# is right in a quarter of the cases.
#
# All networks have 32 units, the same optimiser, and the same number of steps. A network that does
# not get there in that time might with more of it, or with other first weights: where almost no
# gradient comes back, learning is a matter of luck.
class Recall:
    """A network that recalls the first symbol, for sequences of any length."""

    def __init__(self, layer: sg.nn.Recurrent, rows: int) -> None:
        T = sg.dim("T")
        x, first = sg.input("x", (rows, T, 8)), sg.input("first", (rows,), dtype="int32")
        ys = layer(x)
        logits = sg.nn.Dense(4)(ys[:, -1])
        loss = sg.cross_entropy(logits, first).mean()
        right = (sg.argmax(logits, axis=-1) == first).astype("float32").mean()
        weights = list(sg.parameters(loss))
        gradients = sg.grad(loss, weights)
        norm = sg.sqrt(sum(sg.square(g).sum() for g in gradients))
        clipped = [g * sg.minimum(1.0, 1.0 / norm) for g in gradients]
        self.layer, self.rows, self.weights = layer, rows, weights
        self.step = sg.compile([loss, right], updates=sg.optim.adam(0.01).updates(weights, clipped))
        self.begin = {name: value.copy() for name, value in self.step.state.items()}

    def learn(self, lag: int, steps: int, seed: int) -> tuple[float, int]:
        """Learn from fresh sequences; return the share of right answers at the end, and the steps.

        It ends early when the last fifty steps were right in more than 99 of 100 cases.
        """
        begin = {name: value.copy() for name, value in self.begin.items()}
        begin |= {leaf.name: initial_value(leaf, seed) for leaf in self.weights}
        self.step.state.update(begin | spread(self.layer, lag, seed))
        rng = np.random.default_rng(seed)
        rights: list[float] = []
        for done in range(1, steps + 1):
            x, first = sequences(self.rows, lag, rng)
            _, right = self.step(x=x, first=first)
            rights.append(float(right))
            if done >= 50 and np.mean(rights[-50:]) > 0.99:
                break
        return float(np.mean(rights[-50:])), done


def learning(out: Path, quick: bool) -> None:
    """Train every network at every lag."""
    lags = (5, 20) if quick else (10, 20, 50, 100, 200)
    steps, seeds = (120, 1) if quick else (800, 3)
    print("\n== 4. Recalling the first symbol\n")
    print(f"% right after at most {steps} steps (steps taken): means of {seeds}\n")
    print("  lag               " + "".join(f"{lag:>14}" for lag in lags))
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (make, color) in NETWORKS.items():
        task = Recall(make(), rows=32)
        ends, missed = [], []
        for lag in lags:
            runs = [task.learn(lag, steps, seed) for seed in range(seeds)]
            ends.append(np.mean(runs, axis=0))
            missed.append(any(share <= 0.99 for share, _ in runs))
        told = "".join(f"{100 * share:>8.0f} ({n:>3.0f})" for share, n in ends)
        print(f"  {name:<18}{told}", flush=True)
        shares, taken = np.array(ends).T
        # the broader line below, since lines coincide
        width = 3.5 - 0.4 * list(NETWORKS).index(name)
        left.semilogx(lags, 100 * shares, "o-", color=color, lw=width, ms=width + 3, label=name)
        right.loglog(lags, taken, "-", color=color, lw=width)
        for lag, n, hollow in zip(lags, taken, missed, strict=True):
            right.plot(lag, n, "o", color=color, ms=width + 3, mfc="white" if hollow else color)
    left.axhline(25, color=BLACK, ls=":", lw=1)
    left.annotate("guessing", (lags[-1], 25), (0, -11), textcoords="offset points", ha="right")
    left.set(xlabel="lag", ylabel="% right at the end", ylim=(0, 104))
    left.set_title("Recalling the first symbol")
    right.set(xlabel="lag", ylabel="steps until 99% are right", title="... and how long it took")
    right.plot([], [], "o", color=BLACK, mfc="white", label="not every run got there")
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.set_xticks(lags, [str(lag) for lag in lags])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    marks = [mark for mark in (50, 100, 200, 400, 800) if mark <= steps]
    right.set_yticks(marks, [str(mark) for mark in marks])
    left.legend(loc="lower left")
    if not quick:
        print("\nWhere gradients come back, a longer lag is hardly harder. Where they do not,")
        print("nothing is learned, or by luck: the RNN has it sometimes, whatever the lag.")
    save(figure, out / "recall.png")


def main() -> None:
    """Run the chapter."""
    arguments = command_line(
        __file__, "Recurrent networks and their gradients.", quick="short lags and few steps"
    ).parse_args()
    one_neuron(arguments.out)
    products(arguments.out)
    gates(arguments.out, arguments.quick)
    learning(arguments.out, arguments.quick)


if __name__ == "__main__":
    main()
