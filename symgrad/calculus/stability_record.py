"""What a stabilisation did: one record per rewrite, and the marks that rules leave on the way."""

from __future__ import annotations

from dataclasses import dataclass

from symgrad.graph.dims import Shape
from symgrad.graph.nodes import Node
from symgrad.graph.provenance import SourceLine

EQUATIONS: dict[str, str] = {
    "logarithm": "log(w e^s) = log(w) + s;  log sum e^x = log sum e^(x - m) + m,  m = max x",
    "logarithm of a power": "log(c x^k) = k log(c^(1/k) |x|)",
    "softplus": "log(1 + e^x) = softplus(x);  log(sigmoid(x)) = -softplus(-x)",
    "log-add-exp": "log(e^a + e^b) = max(a, b) + softplus(-|a - b|)",
    "log1p": "log(1 + x) = log1p(x)",
    "log1mexp": "log(1 - e^x) = log(-expm1(x)) or log1p(-e^x), by the size of x",
    "sigmoid": "1/(1 + e^-x) = sigmoid(x);  1 - sigmoid(x) = sigmoid(-x)",
    "tanh": "(e^x - e^-x)/(e^x + e^-x) = tanh(x)",
    "sinh": "e^x - e^-x = 2 sinh(x)",
    "expm1": "e^x - 1 = expm1(x)",
    "two-sided": "R(e^x) for x <= 0, R(1/e^-x) for x > 0",
    "exponentials": "e^a e^-b = e^(a - b);  e^x / sum e^x = e^(x - m) / sum e^(x - m),  m = max x",
    "cancellation": "x (1/x) = 1 and x - x = 0, in a derivative",
    "sign": "x / |x| = sign(x), 0 at 0, in a derivative",
    "absolute value": "sqrt(x^2) = |x|",
    "norm": "sqrt(sum x^2) = m sqrt(sum (x/m)^2),  m = max |x|",
    "difference from 1": "1 - cos(x) = 2 sin(x/2)^2;  sqrt(1 + x) - 1 = x / (sqrt(1 + x) + 1)",
    "x log x": "x log(x) = 0 at x = 0; its derivative is log(x) + 1 there too",
    "variance": "E[x y] - E[x] E[y] = E[(x - E[x]) (y - E[y])]",
}
"""The rules by name, each with its equation."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One value that was built in another way than it was written.

    rule:     a name in `EQUATIONS`.
    equation: what holds.
    where:    the user's line.
    shape:    of the value.
    before:   the naive node, as written.
    after:    the node in its place.
    over:     the nodes that the naive form is taken as a function of, each with what stands for
              it in `after`.
    """

    rule: str
    equation: str
    where: SourceLine | None
    shape: Shape
    before: Node
    after: Node
    over: tuple[tuple[Node, Node], ...]
