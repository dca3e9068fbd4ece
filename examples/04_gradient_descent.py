"""Chapter 4: gradient descent, stochastic gradient descent, and their relatives.

    python examples/04_gradient_descent.py [--quick] [--out DIR]

Backpropagation gives the gradient; learning means walking downhill with it. The parts:

1. a bowl, where everything can be computed: which learning rates work, and how fast;
2. a bent valley: momentum and the methods that give each direction a rate of its own;
3. stochastic: the gradient of a few rows instead of all of them;
4. the digits: optimisers, learning rates and batch sizes on a network.

Sources: Robbins and Monro 1951 for stochastic descent; Polyak 1964 and Nesterov 1983 for momentum;
Duchi et al. 2011 (adagrad); Tieleman and Hinton 2012 (rmsprop); Kingma and Ba 2015 (adam);
Rosenbrock 1960 for the valley.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import symgrad as sg
from chapter import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, command_line, save
from symgrad.insight.plots import plain_ticks


# What the first two parts share: a walk -----------------------------------------------------------
#
# An optimiser is a rule that says what the parameters become, as a formula. Gradient descent with
# rate r, for example:
#
#     p' = p - r * dL/dp
#
# `updates` writes the formulas, for the parameters and for what the optimiser remembers; `compile`
# makes one function of them, and every call of it is one step. Several walkers can share it.
def walk(
    landscape: Callable,
    walkers: dict[str, sg.optim.Optimizer],
    start: tuple[float, float],
    steps: int,
) -> dict[str, np.ndarray]:
    """Let every optimiser walk down landscape(a, b); return the visited points, (steps + 1, 2)."""
    losses, updates = {}, {}
    for name, optimizer in walkers.items():
        p = sg.parameter(name, (2,), init=np.array(start))
        losses[name] = landscape(p[0], p[1])
        updates |= optimizer.updates([p], [sg.grad(losses[name], p)])
    step = sg.compile(losses, updates=updates)
    paths = {name: [np.array(start)] for name in walkers}
    for _ in range(steps):
        step()
        for name, path in paths.items():
            path.append(step.state[name].copy())
    return {name: np.array(path) for name, path in paths.items()}


def contours(axes: Axes, f: Callable, box: tuple[float, float, float, float], levels: list) -> None:
    """Draw level lines of f(a, b) in grey."""
    a, b = np.meshgrid(np.linspace(*box[:2], 200), np.linspace(*box[2:], 200))
    axes.contour(a, b, f(a, b), levels=levels, colors="#BBBBBB", linewidths=0.8)
    axes.set(xlim=box[:2], ylim=box[2:])


# 1. A bowl ----------------------------------------------------------------------------------------
#
# Take the loss  L(a, b) = (a^2 + 10 b^2) / 2.  Its gradient is (a, 10 b), so one step of gradient
# descent multiplies
#
#     a by (1 - r)   and   b by (1 - 10 r)
#
# Both must be smaller than 1 in size: 0 < r < 2 / 10, two over the largest curvature. Below 1/10
# the walk is smooth; between 1/10 and 2/10 the steep coordinate b jumps from side to side; at 2/10
# it stops shrinking and beyond it explodes. The flat coordinate a meanwhile crawls, and it is the
# slower of the two that counts. The best rate makes both factors equally large in size:
#
#     r = 2 / (1 + 10),   with the factor  (10 - 1) / (10 + 1) = 0.82  in every step
#
# The ratio of the largest to the smallest curvature, here 10, is the condition number.
def bowl(out: Path) -> None:
    """Walk down the bowl with four learning rates; compare the factors with theory."""
    print("== 1. A bowl: the distance to the lowest point shrinks by a factor in every step\n")
    print("     rate   predicted   measured")

    def height(a: object, b: object) -> object:
        return (a * a + 10.0 * b * b) / 2.0

    figure = Figure(figsize=(11, 4), layout="constrained")
    plane, curve = figure.subplots(1, 2, width_ratios=(1.5, 1))
    contours(plane, height, (-10.5, 4.0, -2.6, 2.6), [0.2, 1, 3, 8, 16, 28, 45])
    rates = {0.02: SKY, 0.1: GREEN, 2 / 11: BLUE, 0.202: ORANGE}
    walkers = {f"rate {rate:.3f}": sg.optim.sgd(rate) for rate in rates}
    paths = walk(height, walkers, start=(-10.0, 1.5), steps=40)
    for (rate, color), (name, path) in zip(rates.items(), paths.items(), strict=True):
        distance = np.linalg.norm(path, axis=1)
        predicted = max(abs(1 - rate), abs(1 - 10 * rate))
        measured = (distance[-1] / distance[-11]) ** 0.1
        print(f"{rate:>9.3f}{predicted:>12.3f}{measured:>11.3f}")
        plane.plot(*path.T, "o-", color=color, ms=3, lw=1.2, label=name)
        curve.semilogy(distance, color=color, lw=1.8, label=name)
    plane.plot(0, 0, "*", color=BLACK, ms=12)
    plane.set(xlabel="a", ylabel="b", title="40 steps of gradient descent in a bowl")
    plane.legend(loc="lower right")
    curve.set(xlabel="step", ylabel="distance to the lowest point", title="The same 40 steps")
    curve.grid(alpha=0.3)
    save(figure, out / "bowl.png")


# 2. A bent valley ---------------------------------------------------------------------------------
#
# Rosenbrock's function  L(a, b) = (1 - a)^2 + 100 (b - a^2)^2  has a narrow valley along b = a^2,
# whose floor falls gently to the lowest point at (1, 1). Its walls are hundreds of times steeper
# than its floor, so plain descent must take steps that are tiny for the floor. The relatives:
#
#     momentum   v' = mu v + g           p' = p - r v'            what keeps pointing the same way
#                                                                 adds up, what alternates cancels
#     nesterov   v' = mu v + g           p' = p - r (g + mu v')   the same, looking one step ahead
#     adagrad    s' = s + g^2            p' = p - r g / sqrt(s')  each coordinate over the size of
#                                                                 its own gradients so far
#     rmsprop    s' = q s + (1 - q) g^2  p' = p - r g / sqrt(s')  ... of its recent gradients
#     adam       momentum over rmsprop, both corrected for starting at zero
#
# A learning rate belongs to its method: each gets one that suits it here.
def valley(out: Path) -> None:
    """Let every optimiser walk down Rosenbrock's valley."""
    print("\n== 2. A bent valley: loss after so many steps\n")

    def height(a: object, b: object) -> object:
        return (1.0 - a) ** 2 + 100.0 * (b - a * a) ** 2

    walkers = {
        "gradient descent": (sg.optim.sgd(0.0015), BLACK),
        "momentum": (sg.optim.sgd(0.0005, momentum=0.95), ORANGE),
        "nesterov": (sg.optim.sgd(0.0005, momentum=0.95, nesterov=True), PURPLE),
        "adagrad": (sg.optim.adagrad(0.5), SKY),
        "rmsprop": (sg.optim.rmsprop(0.01, decay=0.9), GREEN),
        "adam": (sg.optim.adam(0.1), BLUE),
    }
    marks = (10, 100, 1000)
    print("                    " + "".join(f"{mark:>12,}" for mark in marks))

    paths = walk(
        height, {k: v for k, (v, _) in walkers.items()}, start=(-1.2, 1.0), steps=marks[-1]
    )
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 4)
    panels = [figure.add_subplot(grid[k // 3, k % 3]) for k in range(6)]
    curve = figure.add_subplot(grid[:, 3])
    box = (-1.8, 1.8, -0.9, 2.9)
    for axes, (name, (optimizer, color)) in zip(panels, walkers.items(), strict=True):
        path = paths[name]
        losses = height(*path.T)
        print(f"  {name:<18}" + "".join(f"{losses[mark]:>12.1e}" for mark in marks))
        contours(axes, height, box, [1, 4, 20, 80, 250, 700])
        axes.plot(*path.T, "-", color=color, lw=1.5)
        axes.plot(*path[:: marks[1]].T, "o", color=color, ms=4)
        axes.plot(1, 1, "*", color=BLACK, ms=12)
        axes.set_title(f"{name}, rate {optimizer.learning_rate:g}")
        curve.semilogy(losses, color=color, lw=1.5, label=name)
    curve.set(xlabel="step", title="loss", ylim=(1e-6, 1e4))
    curve.grid(alpha=0.3)
    curve.legend()
    figure.suptitle(
        "1,000 steps in Rosenbrock's valley; a dot every 100 steps, the star is the goal"
    )
    save(figure, out / "valley.png")


# 3. Stochastic gradient descent -------------------------------------------------------------------
#
# The loss of a data set is a mean over its rows, and so is the gradient. For a million rows, one
# exact step is a million small computations. The mean over a few rows drawn by chance, a batch, has
# the same expectation: it points downhill on average. It is off by chance, with a spread of
#
#     sigma / sqrt(B)        for a batch of B rows
#
# Four times the work halves the error. Far from the goal, a rough direction is all that is needed,
# and small batches win: many cheap steps. Near the goal the noise keeps the walk from settling, and
# the rate has to fall, or the batch to grow.
def stochastic(out: Path, quick: bool) -> None:
    """Measure the noise of batches, and walk with several batch sizes and a falling rate."""
    rng = np.random.default_rng(0)
    n = 1000
    x = rng.uniform(-1, 1, n)
    y = 0.5 + 1.5 * x + 0.5 * rng.normal(size=n)

    # The model is a line y = p0 + p1 x; its loss a bowl over the plane of (p0, p1).
    rows = sg.dim("B")
    xs = sg.input("x", (rows,), dtype="float64")
    ys = sg.input("y", (rows,), dtype="float64")
    rate = sg.input("rate", (), dtype="float64")
    p = sg.parameter("p", (2,), init=np.array([-1.0, -1.0]))
    loss = sg.mse(p[0] + p[1] * xs, ys).mean()
    gradient = sg.grad(loss, p)
    step = sg.compile(gradient, updates=sg.optim.sgd(rate).updates([p], [gradient]))
    exact = step(x=x, y=y, rate=0.0)
    print("\n== 3. Batches: how far their gradient is from the exact one\n")
    print("   rows     error   error * sqrt(rows)")
    sizes = (1, 10, 100)
    for size in sizes:
        drawn = [rng.integers(0, n, size) for _ in range(200 if quick else 2000)]
        errors = [np.sum((step(x=x[k], y=y[k], rate=0.0) - exact) ** 2) for k in drawn]
        error = math.sqrt(np.mean(errors))
        print(f"{size:>7}{error:>10.3f}{error * math.sqrt(size):>13.2f}")

    # Walks of equal work: each sees every row four times.
    design = np.stack([np.ones(n), x], axis=1)
    best = np.linalg.lstsq(design, y, rcond=None)[0]
    walks = {
        "all 1,000 rows, rate 0.3": (1000, lambda t: 0.3, BLACK),
        "10 rows, rate 0.3": (10, lambda t: 0.3, BLUE),
        "1 row, rate 0.3": (1, lambda t: 0.3, ORANGE),
        "1 row, rate 0.3 / (1 + t / 50)": (1, lambda t: 0.3 / (1 + t / 50), GREEN),
    }
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    panels = [figure.add_subplot(grid[k // 2, k % 2]) for k in range(4)]
    curve = figure.add_subplot(grid[:, 2])
    second = design.T @ design / n

    def height(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        u, v = a - best[0], b - best[1]
        return second[0, 0] * u**2 + 2 * second[0, 1] * u * v + second[1, 1] * v**2

    print("\nwalks that see every row four times, and what they miss the least loss by:")
    for axes, (name, (size, schedule, color)) in zip(panels, walks.items(), strict=True):
        step.state["p"] = np.array([-1.0, -1.0])
        path = [step.state["p"].copy()]
        for _ in range(4):
            for k in np.split(rng.permutation(n), n // size):
                step(x=x[k], y=y[k], rate=schedule(len(path)))
                path.append(step.state["p"].copy())
        visited = np.array(path)
        missed = height(*visited.T)
        print(f"  {name:<32}{len(path) - 1:>6} steps{missed[-len(missed) // 4 :].mean():>11.1e}")
        contours(axes, height, (-1.5, 2.2, -1.3, 2.9), [0.01, 0.1, 0.4, 1, 2, 3.5])
        axes.plot(*visited.T, "o-" if size == n else "-", color=color, lw=0.8, ms=4)
        axes.plot(*best, "*", color=BLACK, ms=12, zorder=3)
        axes.set_title(name)
        window = max(100 // size, 1)  # the mean over every 100 rows, to see through the noise
        smooth = missed[1:].reshape(-1, window).mean(axis=1)
        seen = (np.arange(len(smooth)) + 1) * window * size
        curve.semilogy(seen, smooth, color=color, lw=1.5, label=name)
    curve.set(xlabel="rows seen (means over 100)", title="loss above the least", ylim=(1e-5, 10))
    curve.grid(alpha=0.3)
    curve.legend(loc="lower left", fontsize=8)
    save(figure, out / "stochastic.png")


# 4. The digits ------------------------------------------------------------------------------------
#
# 1,797 images of handwritten digits, 8 x 8 pixels; a network with one hidden layer; the trainer
# does the walking. Three questions, one at a time: which optimiser, which rate, which batch size?
# What counts in the end is the accuracy on images that were not trained on; what the optimiser sees
# is the loss. Small batches get further in an epoch, for they take more steps.
class Digits:
    """The images and a network that reads them."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        x, y = (images[order] / 16.0).astype(np.float32), labels[order].astype(np.int32)
        self.training = {"x": x[:1440], "y": y[:1440]}
        self.test = {"x": x[1440:], "y": y[1440:]}

        rows = sg.dim("B")
        pixels = sg.input("x", (rows, 64))
        label = sg.input("y", (rows,), dtype="int32")
        w1 = sg.parameter("W1", (64, 32), init=sg.init.glorot_uniform())
        b1 = sg.parameter("b1", (32,), init=0.0)
        w2 = sg.parameter("W2", (32, 10), init=sg.init.glorot_uniform())
        b2 = sg.parameter("b2", (10,), init=0.0)
        logits = sg.tanh(pixels @ w1 + b1) @ w2 + b2
        self.loss = sg.cross_entropy(logits, label).mean()
        self.accuracy = (sg.argmax(logits, axis=1) == label).astype("float32").mean()

    def fit(
        self, make: Callable, rate: float, epochs: int, batch_size: int = 32
    ) -> tuple[np.ndarray, float]:
        """Train with make(rate); return the loss by epoch and the test accuracy.

        The rate is an input of the program, so that another rate needs no other program.
        """
        optimizer = make(sg.input("rate", ()))
        metrics = {"accuracy": self.accuracy}
        trainer = sg.Trainer(self.loss, optimizer=optimizer, metrics=metrics, on_nan="continue")
        history = trainer.fit({**self.training, "rate": rate}, epochs, batch_size)
        return np.array(history.loss), trainer.evaluate({**self.test, "rate": rate})["accuracy"]


def digits(out: Path, quick: bool) -> None:
    """Compare optimisers, learning rates and batch sizes on the digits."""
    data = Digits()
    epochs = 5 if quick else 30
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)

    print(f"\n== 4. The digits: {epochs} epochs with batches of 32\n")
    print("                      loss   test accuracy")
    optimizers = {
        "sgd": (sg.optim.sgd, 0.1, BLACK),
        "momentum": (lambda rate: sg.optim.sgd(rate, momentum=0.9), 0.1, ORANGE),
        "nesterov": (lambda rate: sg.optim.sgd(rate, momentum=0.9, nesterov=True), 0.1, PURPLE),
        "adagrad": (sg.optim.adagrad, 0.05, SKY),
        "rmsprop": (sg.optim.rmsprop, 0.005, GREEN),
        "adam": (sg.optim.adam, 0.01, BLUE),
    }
    if quick:
        optimizers = {name: optimizers[name] for name in ("sgd", "adam")}
    for name, (make, rate, color) in optimizers.items():
        losses, accuracy = data.fit(make, rate, epochs)
        print(f"  {name:<10} {rate:<6}{losses[-1]:>9.4f}{accuracy:>12.1%}")
        left.semilogy(range(1, epochs + 1), losses, color=color, label=f"{name}, {rate}")
    left.set(xlabel="epoch", ylabel="training loss", title="Optimisers, each with its rate")

    rates = (0.001, 0.1, 10.0) if quick else (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    print("\nloss at the end, by learning rate")
    print("              " + "".join(f"{rate:>10g}" for rate in rates))
    for name in (name for name in ("sgd", "momentum", "adam") if name in optimizers):
        make, _, color = optimizers[name]
        ends = [data.fit(make, rate, epochs)[0][-1] for rate in rates]
        print(f"  {name:<12}" + "".join(f"{end:>10.4f}" for end in ends))
        middle.loglog(rates, ends, "o-", color=color, label=name)
    middle.axhline(math.log(10), color=BLACK, ls=":", lw=1)
    middle.annotate(
        "guessing: log 10", (rates[0], math.log(10)), (8, 4), textcoords="offset points", fontsize=8
    )
    middle.set(xlabel="learning rate", ylabel=f"loss, epoch {epochs}", title="Learning rates")

    print("\nsgd at rate 0.1, by batch size")
    print("   rows   steps per epoch      loss   test accuracy")
    sizes = {8: SKY, 32: BLUE, 128: GREEN, 1440: ORANGE}
    for size, color in sizes.items():
        losses, accuracy = data.fit(sg.optim.sgd, 0.1, epochs, size)
        steps = math.ceil(1440 / size)
        print(f"{size:>7}{steps:>18}{losses[-1]:>10.4f}{accuracy:>16.1%}")
        label = f"{size:,} rows"
        right.semilogy(range(1, epochs + 1), losses, color=color, label=label)
    right.set(xlabel="epoch", ylabel="training loss", title="Batch sizes, sgd at rate 0.1")
    for axes in (left, right):
        plain_ticks(axes.yaxis)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, out / "digits.png")


def main() -> None:
    """Run the chapter."""
    arguments = command_line(
        __file__, "Gradient descent and its relatives.", quick="fewer runs on the digits"
    ).parse_args()
    bowl(arguments.out)
    valley(arguments.out)
    stochastic(arguments.out, arguments.quick)
    digits(arguments.out, arguments.quick)


if __name__ == "__main__":
    main()
