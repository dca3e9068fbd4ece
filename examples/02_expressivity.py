"""Chapter 2: what a network can express: wide ones, deep ones, and ones that are too narrow.

    python examples/02_expressivity.py [--quick] [--out DIR]

A class of functions should be able to express what we want to learn. Networks can express almost
everything, in more than one way. The parts:

1. one hidden layer: the wider, the closer to any continuous function;
2. the deep and narrow way: ReLU networks of width n + 4, built by hand, exact outside a box;
3. the same networks trained: what can be expressed need not be found;
4. width n is too narrow, at any depth.

Sources: Cybenko 1989 and Hornik 1991 for part 1; Lu, Pu, Wang, Hu and Wang 2017 (arXiv 1709.02540)
for the theorems of parts 2 and 4, with a construction of our own in part 2; Hanin and Sellke 2017
(arXiv 1710.11278) and Johnson 2019 (arXiv 1810.00393) for the rest of part 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import symgrad as sg
from chapter import BLUE, GREEN, ORANGE, command_line, grid, missed, save
from symgrad.insight.plots import plain_ticks

Function = Callable[[np.ndarray], np.ndarray]


# 1. One hidden layer ------------------------------------------------------------------------------
#
# The theorem (Cybenko 1989, Hornik 1991): let s be continuous, bounded and not constant. For every
# continuous f on [0, 1] and every e > 0 there are a width N and numbers v, w, b, c with
#
#     | f(x) - g(x) | < e  for all x,      g(x) = c + sum over k = 1..N of  v_k s(w_k x + b_k)
#
# One can see why. A very steep sigmoid is a step from 0 to 1. A staircase of N steps follows f: cut
# [0, 1] into N pieces, and in the middle of each step up (or down) by what f gains in that piece.
# The error is at most what f changes within a piece, so it goes to zero like 1/N.
#
# The staircase wastes its sigmoids: between the steps it is flat. Training bends them.
def wavy(x: np.ndarray) -> np.ndarray:
    """A continuous function with waves and a kink."""
    return x * np.sin(12 * x) + np.abs(x - 0.5)


def staircase(f: Function, width: int, x: np.ndarray) -> np.ndarray:
    """Evaluate the network of steep sigmoids that climbs along f."""
    ends = np.linspace(0, 1, width + 1)
    middles, gains = (ends[1:] + ends[:-1]) / 2, np.diff(f(ends))
    z = 40.0 * width * (x[:, None] - middles)
    return f(ends[:1]) + (1 + np.tanh(z / 2)) / 2 @ gains  # (1 + tanh(z/2)) / 2 is the sigmoid


def train_one_layer(
    x: np.ndarray, y: np.ndarray, widths: tuple[int, ...], steps: int
) -> dict[int, np.ndarray]:
    """Train eight networks of each width from different starts; return what the best one answers.

    All networks are one expression with one row of neurons; member[k, s] is 1 where neuron k
    belongs to network s. None sees the others, and the sum of their losses trains each by itself.
    """
    starts = 8
    sizes = np.repeat(widths, starts)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    member = (owner[:, None] == np.arange(len(sizes))).astype(np.float64)

    # Each sigmoid starts with its middle somewhere in [0, 1], steeper in wider networks.
    rng = np.random.default_rng(0)
    width = sizes[owner]
    slopes = rng.uniform(0.5, 1.5, len(owner)) * np.maximum(6.0, 1.5 * width)
    slopes *= rng.choice([-1, 1], len(owner))
    middles = rng.uniform(0, 1, len(owner))

    rows = sg.dim("B")
    inputs = sg.input("x", (rows,), dtype="float64")
    answers = sg.input("y", (rows,), dtype="float64")
    w = sg.parameter("w", (len(owner),), init=slopes)
    b = sg.parameter("b", (len(owner),), init=-slopes * middles)
    v = sg.parameter("v", (len(owner),), init=rng.normal(size=len(owner)) / width)
    c = sg.parameter("c", (len(sizes),), init=np.zeros(len(sizes)))
    hidden = sg.sigmoid(inputs[:, None] * w + b)
    outputs = hidden @ (v[:, None] * member) + c  # (row, network)
    loss = sg.square(outputs - answers[:, None]).mean(axis=0).sum()

    found = np.concatenate(train({"x": x, "y": y}, loss, outputs, rate=0.03, steps=steps)).T
    errors = np.abs(found - y).max(axis=1)
    best = errors.reshape(len(widths), starts).argmin(axis=1)
    return {size: found[k * starts + best[k]] for k, size in enumerate(widths)}


def train(
    data: dict[str, np.ndarray],
    loss: object,
    outputs: object,
    rate: float,
    steps: int,
    ask: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Train with all rows in every step; return the outputs for x, or for other points, in parts.

    The learning rate falls to zero along half a cosine.
    """
    done = sg.optim.step.astype("float32") / steps
    falling = rate / 2 * (1.0 + sg.cos(math.pi * done))
    trainer = sg.Trainer(loss, optimizer=sg.optim.adam(falling))
    trainer.fit(data, epochs=steps, batch_size=len(data["x"]), shuffle=False)
    points = data["x"] if ask is None else ask
    parts = np.array_split(points, math.ceil(len(points) / 1000))
    return [sg.evaluate(outputs, {"x": part, **trainer.parameters}) for part in parts]


def one_hidden_layer(out: Path, quick: bool) -> None:
    """Measure the largest error against the width, for the staircase and for trained networks."""
    print("== 1. One hidden layer: largest error on [0, 1]\n")
    print("  width   staircase   trained")
    widths = (1, 2, 4, 8) if quick else (1, 2, 4, 8, 16, 32, 64)
    x = np.linspace(0, 1, 257)
    y = wavy(x)
    curves = train_one_layer(x, y, widths, steps=800 if quick else 1800)
    trained = [np.abs(curves[width] - y).max() for width in widths]
    by_hand = [np.abs(staircase(wavy, width, x) - y).max() for width in widths]
    for width, stairs, bent in zip(widths, by_hand, trained, strict=True):
        print(f"{width:>7}{stairs:>12.3f}{bent:>10.4f}")

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(x, y, color="black", lw=4, alpha=0.25, label="f")
    for width, color in ((2, ORANGE), (4, GREEN), (8, BLUE)):
        left.plot(x, curves[width], color=color, label=f"trained, width {width}")
    left.plot(x, staircase(wavy, 8, x), color="black", lw=1, ls=":", label="staircase, width 8")
    left.set(xlabel="x", title="A continuous function and one hidden layer", ylim=(-0.6, 1.4))
    left.legend(ncols=2, loc="upper center")
    right.loglog(widths, by_hand, "s:", color="black", label="staircase")
    right.loglog(widths, trained, "o-", color=BLUE, label="trained")
    right.set(xlabel="width", ylabel="largest error on [0, 1]", title="Wider is closer")
    plain_ticks(right.yaxis)
    right.set_xticks(widths, map(str, widths))
    right.xaxis.minorticks_off()
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save(figure, out / "one_hidden_layer.png")


# 2. The deep and narrow way -----------------------------------------------------------------------
#
# The theorem (Lu et al. 2017): for every Lebesgue-integrable f: R^n -> R and every e > 0 there is a
# ReLU network whose layers are all at most n + 4 wide, with
#
#     integral over R^n of | f - g |  <  e
#
# So one may go deep instead of wide. And f need not be continuous: a jump costs little in the mean.
# The functions that we take below are zero outside of the box [0, 1]^n.
#
# How can so narrow a network hold a whole function? It works through the box like a clerk with a
# small desk. Cut the box into K^n cells. One cell after the other, the network computes a bump that
# is 1 inside of the cell and 0 outside, and adds the bump, times the height of f there, to an
# account. Its n + 4 neurons are
#
#     x_1 .. x_n   the input, handed on unchanged from layer to layer
#     u            how far x is beyond one face of the cell
#     c            what is left of the bump
#     p, m         the account: the sum of the positive and of the negative heights
#
# For a face with a ramp of width r,  u = relu(distance beyond the start of the ramp / r): it is 0
# well inside of the cell and at least 1 at the face and beyond. A cell has 2n faces. Subtract them,
# one per layer:
#
#     c = relu(1 - u_1),   c = relu(c - u_2),   ...,   c = relu(c - u_2n)
#
# While c takes up one face, u already computes the next. So a cell costs 2n layers, and the network
# has 2n K^n + 1 of them. The input is at least 0 in the box, and p and m grow only: relu changes
# none of them. Outside of the box, where x_i < 0 becomes 0, that is the outer face of a cell, and
# the bump is zero there. Between the cells g dips to zero. With ramps of r = 1 / K^2 the dips are
# so narrow that they count for less and less in the mean as K grows.
Network = tuple[np.ndarray, np.ndarray, np.ndarray]  # (L, w, w) weights, (L, w) biases, (w,) output


def build(f: Function, n: int, cells: int) -> Network:
    """Build a ReLU network of width n + 4 that is near f in the mean."""
    u, c, p, m = range(n, n + 4)
    side, ramp = 1 / cells, 1 / cells**2
    keep = np.zeros((n + 4, n + 4))
    keep[range(n), range(n)] = keep[p, p] = keep[m, m] = 1.0

    weights, biases, height = [], [], 0.0
    for cell in np.ndindex(*(cells,) * n):
        corner = np.array(cell) * side
        for k in range(2 * n):
            w, b = keep.copy(), np.zeros(n + 4)
            axis, upper = divmod(k, 2)
            if upper:  # u = relu((x - (corner + side - ramp)) / ramp)
                w[axis, u], b[u] = 1 / ramp, -(corner[axis] + side - ramp) / ramp
            else:  # u = relu((corner + ramp - x) / ramp)
                w[axis, u], b[u] = -1 / ramp, (corner[axis] + ramp) / ramp
            w[u, c] = -1.0
            if k == 1:  # a new bump begins, and the finished one goes to the account
                b[c] = 1.0
                w[c, p], w[c, m] = max(height, 0.0), max(-height, 0.0)
            else:
                w[c, c] = 1.0
            weights.append(w)
            biases.append(b)
        height = f((corner + side / 2)[None])[0]
    w = keep.copy()
    w[c, c], w[u, c] = 1.0, -1.0
    output = np.zeros(n + 4)
    output[[p, m, c]] = 1.0, -1.0, height
    return np.stack([*weights, w]), np.stack([*biases, np.zeros(n + 4)]), output


def run(network: Network, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Answer for the points x, (B, n); return the answers and what the neurons held, by layer."""
    weights, biases, output = network
    rows, width = sg.dim("B"), sg.dim("N")
    before = sg.input("before", (rows, width), dtype="float64")
    w = sg.input("w", (width, width), dtype="float64")
    b = sg.input("b", (width,), dtype="float64")
    layer = sg.compile(sg.relu(before @ w + b))

    held = [with_zeros(x, len(output))]
    for weight, bias in zip(weights, biases, strict=True):
        held.append(layer(before=held[-1], w=weight, b=bias))
        if len(weights) > 100:
            held = held[-1:]  # a deep network: remember the last layer only
    return held[-1] @ output, held


def with_zeros(x: np.ndarray, width: int) -> np.ndarray:
    """Append zeros to each row until it has the width."""
    return np.pad(x, ((0, 0), (0, width - x.shape[1])))


def waves(x: np.ndarray) -> np.ndarray:
    """On [0, 1]: a sine, then a plateau; zero elsewhere. It jumps at 0.6 and at 1."""
    (x,) = x.T
    inside = (x >= 0) & (x <= 1)
    return np.where(inside, np.where(x < 0.6, np.sin(2 * np.pi * x), 0.5), 0.0)


def disc(x: np.ndarray) -> np.ndarray:
    """In the disc of radius 1/2 around the middle of [0, 1]^2: a sine; zero elsewhere."""
    return np.where(np.hypot(*(x - 0.5).T) < 0.5, np.sin(2 * np.pi * x[:, 0]), 0.0)


def deep_and_narrow(out: Path, quick: bool) -> None:
    """Build networks for n = 1 and n = 2 with finer and finer cells, measure, show."""
    print("\n== 2. Width n + 4, built by hand: integral |f - g| / integral |f|\n")
    print("  n  width  cells    layers     error")
    sizes = {1: (4, 8, 16), 2: (4,)} if quick else {1: (4, 8, 16, 32, 64, 128), 2: (4, 8, 16, 32)}
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=(1.3, 1, 1, 1.3))
    for n, f, color, marker in ((1, waves, BLUE, "o"), (2, disc, ORANGE, "s")):
        x = grid(n, -0.5, 1.5, 4001 if n == 1 else 101 if quick else 151)
        y, depths, errors = f(x), [], []
        for cells in sizes[n]:
            network = build(f, n, cells)
            found, _ = run(network, x)
            depths.append(len(network[0]))
            errors.append(missed(found, y))
            print(f"{n:>3}{n + 4:>7}{cells**n:>7}{depths[-1]:>10,}{errors[-1]:>10.4f}")
            if n == 1 and cells == 16:
                panels[0].plot(x, y, color="black", lw=4, alpha=0.25, label="f")
                panels[0].plot(x, found, color=BLUE, lw=1, label="33 layers of 5")
        panels[3].loglog(depths, errors, marker + "-", color=color, label=f"n = {n}, width {n + 4}")
    far = run(build(disc, 2, 4), np.array([[-1e3, 0.5], [0.3, 1e3], [-7.0, 7.0]]))[0]
    print(f"\nfar outside of the box the networks are zero: {np.abs(far).max():.0e}")

    shape = (round(len(x) ** 0.5),) * 2
    for axes, values in ((panels[1], y), (panels[2], found)):
        axes.imshow(
            values.reshape(shape).T, origin="lower", extent=(-0.5, 1.5, -0.5, 1.5), vmin=-1, vmax=1,
            cmap="cividis",
        )  # fmt: skip
    panels[0].set(title="n = 1", xlabel="x", ylim=(-0.7, 1.5))
    panels[0].legend(loc="upper center")
    panels[1].set(title="n = 2: f")
    panels[2].set(title=f"{depths[-1]:,} layers of 6")
    panels[3].set(title="Deeper is closer", xlabel="layers", ylabel="L1 error / integral of |f|")
    plain_ticks(panels[3].yaxis)
    panels[3].legend(loc="lower left")
    for axes in (panels[0], panels[3]):
        axes.grid(alpha=0.3)
    save(figure, out / "deep_and_narrow.png")
    plot_clerk(out)


def plot_clerk(out: Path) -> None:
    """Show what every neuron of a small network holds, for every x, layer by layer."""
    x = grid(1, -0.25, 1.25, 601)
    _, held = run(build(lambda x: np.cos(2 * np.pi * x[:, 0]), 1, 3), x)
    layers = len(held) - 1
    figure = Figure(figsize=(1.5 * layers + 1, 5), layout="constrained")
    panels = figure.subplots(5, layers, sharex=True, sharey="row")
    for row, name in enumerate(("x", "u", "c", "p", "m")):
        for layer in range(layers):
            axes = panels[row, layer]
            axes.plot(x, np.minimum(held[layer + 1][:, row], 1.6), color=BLUE)
            axes.axvspan(0, 1, color="black", alpha=0.06, lw=0)
            axes.set_ylim(-0.1, 1.7)
            axes.set_xticks([0, 1])
            if row == 0:
                axes.set_title(f"layer {layer + 1}", fontsize=10)
        panels[row, 0].set_ylabel(name, rotation=0, labelpad=14, fontsize=13)
    figure.suptitle(
        "What the neurons hold for every input x (u cut at 1.6): three cells of height 0.5, -1, "
        "0.5; the answer is p - m + 0.5 c"
    )
    save(figure, out / "what_neurons_hold.png")


# 3. Trained ---------------------------------------------------------------------------------------
#
# The construction shows that good weights *exist*. Does training find them? We take networks of the
# shape of part 2 and minimise the mean of |f - g|, from two kinds of start: from the construction,
# and from random weights (He et al. 2015: variance 2 / width).
#
# A ReLU that is zero for all inputs passes no gradient: it is dead. In a layer of 5 it happens with
# probability of about 2^-5 that all are, and one dead layer kills the network: it is then constant,
# whatever comes before. The deeper, the likelier. Narrow and deep is expressive, but hard to train;
# the third requirement, a learning algorithm, is one of its own.
#
# We train 48 networks side by side, as one expression with an axis of networks. All have room for
# 6 neurons in each layer. In a narrower one the others have weights of zero, and that does not
# change: relu'(0) = 0 lets no gradient in, and their own zero lets none out.
MANY, ROOM = 48, 6


def room_for(depth: int, many: int) -> list[np.ndarray]:
    """Return weights (L, many, 6, 6), biases (L, many, 6) and outputs (many, 6), all zero."""
    return [np.zeros(s) for s in ((depth, many, ROOM, ROOM), (depth, many, ROOM), (many, ROOM))]


def random_starts(n: int, width: int, depth: int, many: int) -> list[np.ndarray]:
    """Draw networks: weights of variance 2 / (number of inputs), and small biases."""
    rng = np.random.default_rng(depth)
    weights, biases, outputs = room_for(depth, many)
    drawn = rng.normal(size=(depth, many, width, width)) * (2 / width) ** 0.5
    drawn[0] *= (width / n) ** 0.5
    weights[:, :, :width, :width] = drawn
    biases[:, :, :width] = rng.normal(size=(depth, many, width)) * 0.1
    outputs[:, :width] = rng.normal(size=(many, width)) / width**0.5
    return [weights, biases, outputs]


def train_narrow(
    x: np.ndarray,
    y: np.ndarray,
    starts: list[list[np.ndarray]],
    rate: float,
    steps: int,
    power: int = 1,
    ask: np.ndarray | None = None,
) -> np.ndarray:
    """Train 48 ReLU networks on the mean of |f - g|^power; return their answers, (network, point).

    Power 1 is the error in the mean; with a high power the largest errors count most. The answers
    are those at x, or at the points in `ask`.
    """
    weights, biases, outputs = (
        np.concatenate(parts, axis=axis).astype(np.float32)
        for parts, axis in zip(zip(*starts, strict=True), (1, 1, 0), strict=True)
    )
    rows = sg.dim("B")
    points, answers = sg.input("x", (rows, ROOM)), sg.input("y", (rows,))
    held = points
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        w = sg.parameter(f"W{k}", (MANY, ROOM, ROOM), init=weight)
        b = sg.parameter(f"b{k}", (MANY, 1, ROOM), init=bias[:, None])
        held = sg.relu(held @ w + b)
    v = sg.parameter("v", (MANY, ROOM, 1), init=outputs[:, :, None])
    c = sg.parameter("c", (MANY, 1), init=0.0)
    found = (held @ v)[:, :, 0] + c
    loss = (sg.abs(found - answers) ** power).mean(axis=1).sum()
    data = {"x": with_zeros(x, ROOM), "y": y}
    asked = data["x"] if ask is None else with_zeros(ask, ROOM)
    return np.concatenate(train(data, loss, found, rate, steps, asked), axis=1)


def trained(out: Path, quick: bool) -> None:
    """Train networks of width n + 4 from the construction and from random starts."""
    print("\n== 3. The same networks trained: integral |f - g| / integral |f|\n")
    print(
        "  n  layers   built by hand   trained from there   random starts: best  median  constant"
    )
    shapes = ((1, waves, 4), (2, disc, 2))
    for n, f, cells in shapes[:1] if quick else shapes:
        x = grid(n, -0.5, 1.5, 401 if n == 1 else 25)
        y = f(x)
        weights, biases, output = network = build(f, n, cells)
        built = room_for(len(weights), 1)
        built[0][:, 0, : n + 4, : n + 4] = weights
        built[1][:, 0, : n + 4] = biases
        built[2][0, : n + 4] = output
        starts = [built, random_starts(n, n + 4, len(weights), MANY - 1)]
        found = train_narrow(x, y, starts, rate=0.01, steps=100 if quick else 500)
        errors = missed(found, y)
        constant = (np.ptp(found[1:], axis=1) < 1e-3).sum()
        print(
            f"{n:>3}{len(weights):>8}{missed(run(network, x)[0], y):>16.3f}{errors[0]:>21.3f}"
            f"{errors[1:].min():>21.3f}{np.median(errors[1:]):>8.3f}{constant:>7} of {MANY - 1}"
        )


# 4. Too narrow ------------------------------------------------------------------------------------
#
# What does a ReLU network of width n miss? Three answers, for any depth.
#
# *On the whole space*, everything (Lu et al. 2017): for integrable f, not zero, the integral of
# |f - g| is either infinite or as large as that of |f|. Answering 0 is the best one can do.
#
# *In one dimension* it is easy to see: a layer of one neuron is a function of one variable that
# only rises or only falls, and so is any chain of them. It cannot go up and down again.
#
# *In the plane* it is the level lines. Let a layer map two numbers to two numbers. Give relu a tiny
# slope below zero, and tilt the weights a little where they are singular: this changes g as little
# as we want, and each layer becomes one-to-one. The output is a linear function of the last layer,
# its level lines there are straight, and so a level line of g is a straight line carried back by a
# continuous one-to-one map: it cannot close, and it cannot end (Johnson 2019). Now let f be a hill,
# 1 at the top and 0 at the edge of a square. The level line of g through the top runs to the edge,
# and there g has the same value v as at the top. One of |1 - v|, |v - 0| is at least 1/2:
#
#     max |f - g| >= 1/2       for width 2 at any depth, with any weights
#
# For width n + 1 there is no such bound (Hanin and Sellke 2017). We measure on a finer grid than we
# train on: a network that has learned the points well hides its level lines between them.
def hill(x: np.ndarray) -> np.ndarray:
    """A cone: 1 at the origin, 0 where |x| >= 1."""
    return np.maximum(0.0, 1.0 - np.sqrt((x**2).sum(axis=1)))


def too_narrow(out: Path, quick: bool) -> None:
    """Train networks of width n and of greater widths on a hill; show what the narrow ones miss."""
    steps = 100 if quick else 500
    print("\n== 4. Too narrow\n")
    print("n = 1, on longer and longer intervals: integral |f - g| / integral |f|, best of 24\n")
    print("  interval   width 1   width 5")
    for radius in (1, 4) if quick else (1, 2, 4, 8):
        x = grid(1, -radius, radius, 201)
        starts = [random_starts(1, width, 3, MANY // 2) for width in (1, 5)]
        errors = missed(train_narrow(x, hill(x), starts, 0.02, steps), hill(x))
        one, five = errors.reshape(2, -1).min(axis=1)
        print(f"  [{-radius}, {radius}]{one:>13.3f}{five:>10.3f}")

    print("\nn = 2, on the square [-1.5, 1.5]^2: largest error |f - g|, best of 16\n")
    widths, depths = (2, 3, 6), (3,) if quick else (3, 5, 9)
    print("  layers" + "".join(f"   width {width}" for width in widths))
    side = 61 if quick else 101
    x, fine = grid(2, -1.5, 1.5, 25), grid(2, -1.5, 1.5, side)
    largest = np.zeros((len(depths), len(widths)))
    answers = np.zeros((len(depths), len(widths), len(fine)))
    for row, depth in enumerate(depths):
        starts = [random_starts(2, width, depth, MANY // 3) for width in widths]
        found = train_narrow(x, hill(x), starts, 0.02, steps, power=4, ask=fine)
        found = found.reshape(len(widths), -1, len(fine))
        errors = np.abs(found - hill(fine)).max(axis=2)
        for k, best in enumerate(errors.argmin(axis=1)):
            largest[row, k], answers[row, k] = errors[k, best], found[k, best]
        print(f"{depth:>8}" + "".join(f"{error:>10.3f}" for error in largest[row]))

    figure = Figure(figsize=(12, 3.7), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.5))
    narrow, wide = (answers[largest[:, k].argmin(), k] for k in (0, 2))
    ticks = fine[:side, 1]
    planes = {"the hill": hill(fine), "width 2, the best": narrow, "width 6, the best": wide}
    for axes, (title, values) in zip(panels[:3], planes.items(), strict=True):
        plane = values.reshape(side, side).T
        axes.contourf(ticks, ticks, plane, levels=np.linspace(-0.2, 1.1, 27), extend="both")
        axes.contour(
            ticks, ticks, plane, levels=np.arange(0.1, 1, 0.2), colors="white", linewidths=1
        )
        axes.set(title=title, aspect="equal")
    for k, color, marker in ((0, ORANGE, "s"), (1, GREEN, "^"), (2, BLUE, "o")):
        panels[3].plot(depths, largest[:, k], marker + "-", color=color, label=f"width {widths[k]}")
    panels[3].axhline(0.5, color="black", ls=":", label="bound for width 2")
    panels[3].set(xlabel="layers", ylabel="largest error", title="The best", ylim=(0, 1.2))
    panels[3].set_xticks(depths)
    panels[3].grid(alpha=0.3)
    panels[3].legend(ncols=2, loc="upper center", fontsize=9)
    save(figure, out / "too_narrow.png")


def main() -> None:
    """Run the chapter."""
    arguments = command_line(
        __file__, "What wide, deep and narrow networks express.", quick="smaller sizes, fewer steps"
    ).parse_args()
    one_hidden_layer(arguments.out, arguments.quick)
    deep_and_narrow(arguments.out, arguments.quick)
    trained(arguments.out, arguments.quick)
    too_narrow(arguments.out, arguments.quick)


if __name__ == "__main__":
    main()
