"""Chapter 3: backpropagation, the chain rule walked backwards.

    python examples/03_backpropagation.py [--quick] [--out DIR]

Read it from top to bottom. Each part is a function that computes, prints what it found, and writes
a figure. The parts:

1. one neuron: its derivative as a formula, step by step, and against a difference quotient;
2. a small network: the same rules, the picture of both directions, what has to be remembered;
3. why backwards: operations counted for reverse and for forward mode;
4. why a graph: the derivative as a graph with shared parts, and written out as one formula.

Sources: Rumelhart, Hinton and Williams 1986 for backpropagation; Griewank and Walther, Evaluating
Derivatives, 2008, for the counts of part 3; Speelpenning 1980 for the growth of part 4.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import symgrad as sg
from chapter import BLUE, ORANGE, command_line, save
from symgrad.graph.traversal import toposort


# 1. One neuron ------------------------------------------------------------------------------------
#
# A neuron multiplies its input by a weight, adds a bias and bends the result:
#
#     a = tanh(w x + b)
#
# It should answer t, so we measure how wrong it is by L = (a - t)^2. Learning means knowing in
# which direction to move w: the derivative dL/dw. By the chain rule it is a product, one factor for
# each step between w and L:
#
#     dL/dw  =  dL/da * da/dz * dz/dw  =  2 (a - t) * (1 - a^2) * x,         z = w x + b
#
# Note the middle factor: the derivative of tanh is written with tanh's own *result* a, which the
# forward pass has computed already. A value that the backward pass reads again is a residual.
def one_neuron(out: Path) -> None:
    """Differentiate one neuron, print the derivation, check it, draw it."""
    x, t = sg.input("x", ()), sg.input("t", ())
    w, b = sg.parameter("w", (), init=0.5), sg.parameter("b", (), init=-0.25)
    a = sg.tanh(w * x + b)
    loss = sg.square(a - t)

    print("== 1. One neuron\n")
    print(sg.derive(loss, w))

    # The gradient is an expression like any other: give it numbers and it has a value.
    here = {x: 1.5, t: 1.0, w: 0.5, b: -0.25}
    slope = float(sg.evaluate(sg.grad(loss, w), here))

    # The definition of the derivative, without any rule: move w a little and watch the loss.
    step = 1e-2
    above, below = (float(sg.evaluate(loss, {**here, w: 0.5 + s})) for s in (step, -step))
    print(
        f"\ndL/dw by the chain rule {slope:.5f}, by differences {(above - below) / (2 * step):.5f}"
    )

    # In the picture the forward half computes L from x, w, b, t; the backward half walks from L to
    # w and b. The dashed edges between the halves are the residuals.
    save(sg.draw(loss, wrt=[w, b]), out / "neuron.svg")


# 2. A small network -------------------------------------------------------------------------------
#
# Nothing changes when the numbers become matrices. For a layer z = h W the rule is
#
#     h_ct = z_ct W^T,      W_ct = h^T z_ct
#
# where x_ct, the cotangent of x, stands for dL/dx. Both rules read the other factor of the product,
# so the forward values h are residuals: training needs more memory than answering.
def small_network(out: Path) -> None:
    """Differentiate a network with one hidden layer, check every gradient, draw both halves."""
    rows = sg.dim("B")
    x = sg.input("x", (rows, 3))
    y = sg.input("y", (rows,), dtype="int32")
    w1 = sg.parameter("W1", (3, 5), init=sg.init.glorot_uniform())
    b1 = sg.parameter("b1", (5,), init=0.1)
    w2 = sg.parameter("W2", (5, 2), init=sg.init.glorot_uniform())
    h = sg.tanh(x @ w1 + b1)
    loss = sg.cross_entropy(h @ w2, y).mean()
    parameters = [w1, b1, w2]
    gradients = sg.grad(loss, parameters)

    print("\n== 2. A small network\n")
    print(sg.derive(loss, w1))

    # Check all three: along any direction v, the loss must change by <gradient, v>.
    generator = np.random.default_rng(3)
    here = {
        x: generator.normal(size=(7, 3)),
        y: generator.integers(0, 2, 7),
        w1: generator.normal(size=(3, 5)) / 2,
        b1: generator.normal(size=5) / 2,
        w2: generator.normal(size=(5, 2)) / 2,
    }
    values = sg.evaluate(gradients, here)
    print()
    for parameter, gradient in zip(parameters, values, strict=True):
        v = generator.normal(size=gradient.shape)
        ends = [{**here, parameter: here[parameter] + s * 1e-2 * v} for s in (1, -1)]
        above, below = (float(sg.evaluate(loss, end)) for end in ends)
        measured = (above - below) / 2e-2
        print(
            f"along a random direction of {parameter.name}: rule {np.sum(gradient * v):+.4f}, "
            f"differences {measured:+.4f}"
        )

    save(sg.draw(loss), out / "network_forward.svg")
    save(sg.draw(loss, wrt=parameters), out / "network_backward.svg")

    # How large is what flows? The same picture with measured magnitudes on it.
    flow = sg.gradient_flow(loss, parameters, here)
    save(sg.draw(loss, wrt=parameters, flow=flow), out / "network_flow.svg")


# 3. Why backwards ---------------------------------------------------------------------------------
#
# The chain rule is a product of matrices, and a product may be multiplied out from either end. From
# the inputs (forward mode) one walk gives the derivative in *one* direction of the inputs; from the
# loss (reverse mode) one walk gives the derivative of *one* number with respect to *all* inputs. A
# network has one loss and many parameters: backwards wins by about the number of parameters.
def reverse_against_forward(out: Path, quick: bool) -> None:
    """Count operations of the whole gradient, by reverse and by forward mode, as networks widen."""
    print("\n== 3. Why backwards: operations for the whole gradient\n")
    print("  width  parameters        loss     reverse  = losses       forward     = losses")
    widths = (2, 4, 8, 16) if quick else (2, 4, 8, 16, 32, 64, 128)
    counts, reverse, forward = [], [], []
    for width in widths:
        x = sg.input("x", (width,))
        w1 = sg.parameter("W1", (width, width), init=sg.init.glorot_uniform())
        w2 = sg.parameter("W2", (width, width), init=sg.init.glorot_uniform())
        loss = sg.square(sg.tanh(sg.tanh(x @ w1) @ w2)).sum()

        once = sg.cost(loss).flops
        backwards = sg.cost(sg.grad(loss, [w1, w2])).flops

        # One forward walk: the derivative of the loss along one direction (V1, V2) of the weights.
        # The whole gradient needs one walk for each weight.
        directions = [sg.input("V1", (width, width)), sg.input("V2", (width, width))]
        _, tangent = sg.jvp(loss, [w1, w2], directions)
        weights = 2 * width**2
        forwards = weights * sg.cost(tangent).flops

        counts.append(weights)
        reverse.append(backwards / once)
        forward.append(forwards / once)
        print(
            f"{width:>7}{weights:>12,}{once:>12,}{backwards:>12,}{reverse[-1]:>10.1f}"
            f"{forwards:>14,}{forward[-1]:>13,.1f}"
        )
    print("\nReverse mode costs a few losses, however many weights there are.")

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(counts, forward, "s-", color=ORANGE, label="forward mode, one walk per weight")
    axes.loglog(counts, reverse, "o-", color=BLUE, label="reverse mode, one walk")
    axes.set(
        xlabel="weights of the network",
        ylabel="operations for the gradient / for the loss",
        title="The price of a gradient",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, out / "reverse_against_forward.png")


# 4. Why a graph -----------------------------------------------------------------------------------
#
# "Just write the derivative as a formula" sounds easy, but a formula is a tree: what is used twice
# has to be written twice. With
#
#     h_0 = x,      h_{k+1} = h_k * sin(h_k)
#
# every level uses the one below it twice, so the tree doubles with each level, and its derivative
# grows faster still. As a graph each value exists once: a level adds a handful of nodes.
# Backpropagation is the chain rule on the graph.
def graph_against_tree(out: Path, quick: bool) -> None:
    """Measure the derivative of a composition as a graph and as a tree, as it gets deeper."""
    print("\n== 4. Why a graph: the size of the derivative\n")
    print("  depth  nodes of the graph             size of the tree")
    depths = range(1, 9) if quick else range(1, 31)
    nodes, trees = [], []
    x = sg.input("x", ())
    h = x
    for depth in depths:
        h = h * sg.sin(h)
        derivative = sg.grad(h, x)
        nodes.append(len(toposort([derivative])))
        trees.append(sg.cost(derivative).tree_size)
        if depth % 5 == 0 or depth in (1, 2, 3, depths[-1]):
            print(f"{depth:>7}{nodes[-1]:>20,}{trees[-1]:>29,}")

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(depths, trees, "s-", color=ORANGE, label="written out as one formula (tree)")
    axes.semilogy(depths, nodes, "o-", color=BLUE, label="with shared parts (graph)")
    axes.set(xlabel="depth of the composition", ylabel="size", title="The size of a derivative")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, out / "graph_against_tree.png")


def main() -> None:
    """Run the chapter."""
    arguments = command_line(
        __file__, "Backpropagation, from one neuron to a network.", quick="smaller sizes"
    ).parse_args()
    one_neuron(arguments.out)
    small_network(arguments.out)
    reverse_against_forward(arguments.out, arguments.quick)
    graph_against_tree(arguments.out, arguments.quick)


if __name__ == "__main__":
    main()
