"""Optimisers: symbolic updates, so that they compile, fuse and draw like any other expression.

`optimizer.updates(params, grads)` is a dictionary from leaves to expressions: each parameter, each
leaf of the optimiser's own state and the step count, with what it becomes. All right-hand sides
read old values. Below, g is the gradient, W the parameter, r the learning rate, t = step + 1.

    sgd       v' = mu v + g                             W' = W - r v'
              with nesterov                             W' = W - r (g + mu v')
    adagrad   a' = a + g^2                              W' = W - r g / (sqrt(a') + eps)
    rmsprop   s' = rho s + (1 - rho) g^2                W' = W - r g / (sqrt(s') + eps)
    adam      m' = b1 m + (1 - b1) g                    W' = W - r m^ / (sqrt(v^) + eps)
              v' = b2 v + (1 - b2) g^2                  m^ = m' / (1 - b1^t),  v^ = v' / (1 - b2^t)
    adamw     as adam                                   W' = (1 - r w) W - r m^ / (sqrt(v^) + eps)

`step` is the number of steps taken so far, a leaf that every optimiser's updates advance. A
learning rate may be an expression of it: `sgd(0.1 * 0.99 ** (step / 100))`.

A new optimiser is one rule in `RULES` and one function for the user.

Sources: Polyak 1964; Nesterov 1983 in the form of Sutskever et al. 2013; Duchi et al. 2011;
Tieleman and Hinton 2012; Kingma and Ba 2015 (arXiv 1412.6980); Loshchilov and Hutter 2019
(arXiv 1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from symgrad.graph.arithmetic import square
from symgrad.graph.dims import same, show
from symgrad.graph.dtypes import DType, is_float
from symgrad.graph.elementwise import expm1, rsqrt, sqrt
from symgrad.graph.errors import DTypeError, LeafError, ShapeError, SymgradError
from symgrad.graph.leaves import cast
from symgrad.graph.nodes import Input, Node, describe
from symgrad.graph.streams import step as step
from symgrad.init import zeros

Rate = float | Node
Updates = dict[Input, Node]


@dataclass(frozen=True, slots=True)
class Rule:
    """How one parameter moves.

    Fields:
        state: names of the leaves that it keeps beside each parameter, zero at first.
        move:  (parameter, gradient, rate, state, options) -> the new parameter and the new state.
    """

    state: Callable[[Mapping[str, float]], tuple[str, ...]]
    move: Callable[[Node, Node, Rate, Sequence[Node], Mapping[str, float]], tuple[Node, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Optimizer:
    """A rule with its learning rate and its options; made by the functions below.

    >>> adam(1e-3)
    adam(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08)
    """

    name: str
    learning_rate: Rate
    options: tuple[tuple[str, float], ...] = ()
    _leaves: dict[Input, tuple[Input, ...]] = field(default_factory=dict, repr=False)

    def state(self, param: Input) -> tuple[Input, ...]:
        """The leaves kept beside a parameter: the same ones every time."""
        if param not in self._leaves:
            self._leaves[param] = tuple(
                Input(f"{self.name}.{slot}/{param.name}", param.shape, param.dtype,
                      kind="parameter", init=zeros())
                for slot in RULES[self.name].state(dict(self.options))
            )
        return self._leaves[param]

    def updates(self, params: Sequence[Input], grads: Sequence[Node]) -> Updates:
        """What every leaf becomes in one step.

        Args:
            params: parameters, each once.
            grads:  the gradient of the loss with respect to each.
        Returns: leaf -> expression for the parameters, their state and `step`.
        Raises: LeafError for what is no parameter or stands twice, DTypeError for what is no
            float, ShapeError where a gradient has another shape than its parameter.
        """
        _check(self.name, params, grads)
        rule, options = RULES[self.name], dict(self.options)
        result: Updates = {}
        for param, grad in zip(params, grads, strict=True):
            leaves = self.state(param)
            rate = self.learning_rate
            if isinstance(rate, Node):
                rate = cast(rate, param.dtype)
            moved = rule.move(param, grad, rate, leaves, options)
            result.update(zip((param, *leaves), moved, strict=True))
        result[step] = step + 1
        return result

    def to_json(self) -> dict[str, str | float | None]:
        """Name, rate and options; the rate is None where it is an expression."""
        rate = None if isinstance(self.learning_rate, Node) else self.learning_rate
        return {"name": self.name, "learning_rate": rate, **dict(self.options)}

    @classmethod
    def from_json(cls, record: Mapping[str, str | float | None]) -> Optimizer:
        """The optimiser that `to_json` described.

        Raises: SymgradError when there is none of that name, or its rate was an expression.

        >>> Optimizer.from_json(sgd(0.5, momentum=0.9).to_json())
        sgd(learning_rate=0.5, momentum=0.9, nesterov=False)
        """
        options = {k: v for k, v in record.items() if k != "name"}
        if options.get("learning_rate") is None:
            raise SymgradError(
                "optim: the learning rate was an expression, which is not stored. "
                "Give the optimizer again."
            )
        try:
            made: Optimizer = MAKERS[str(record["name"])](**options)
        except (KeyError, TypeError):
            raise SymgradError(
                f"optim: {dict(record)!r} describes no optimiser. Known: {', '.join(MAKERS)}."
            ) from None
        return made

    def __repr__(self) -> str:
        parts = [("learning_rate", self.learning_rate), *self.options]
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in parts)})"


# -- what the user writes --------------------------------------------------------------------------
def sgd(learning_rate: Rate, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """Gradient descent, with the momentum of Polyak or of Nesterov.

    Args:
        learning_rate: a number or a scalar expression of `step`.
        momentum:      mu in [0, 1).
        nesterov:      look ahead; needs a momentum.

    >>> sgd(0.1)
    sgd(learning_rate=0.1, momentum=0.0, nesterov=False)
    """
    if nesterov and not momentum:
        raise SymgradError("sgd: nesterov needs a momentum above 0. Give momentum=0.9.")
    return _make(
        "sgd", learning_rate, momentum=_fraction("sgd", "momentum", momentum), nesterov=nesterov
    )


def adagrad(learning_rate: Rate = 1e-2, epsilon: float = 1e-10) -> Optimizer:
    """Each entry's rate falls with the squares of its gradients so far.  Duchi et al. 2011."""
    return _make("adagrad", learning_rate, epsilon=_positive("adagrad", "epsilon", epsilon))


def rmsprop(learning_rate: Rate = 1e-2, decay: float = 0.99, epsilon: float = 1e-8) -> Optimizer:
    """Each gradient is divided by its running root mean square.  Tieleman and Hinton 2012."""
    return _make(
        "rmsprop", learning_rate, decay=_fraction("rmsprop", "decay", decay),
        epsilon=_positive("rmsprop", "epsilon", epsilon),
    )


def adam(
    learning_rate: Rate = 1e-3, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> Optimizer:
    """Running mean over running root mean square, both freed of their bias.  Kingma and Ba 2015.

    Args:
        learning_rate: a number or a scalar expression of `step`.
        beta1, beta2:  in [0, 1): how slowly the mean and the mean square forget.
        epsilon:       keeps the quotient finite.
    """
    return _make(
        "adam", learning_rate, beta1=_fraction("adam", "beta1", beta1),
        beta2=_fraction("adam", "beta2", beta2), epsilon=_positive("adam", "epsilon", epsilon),
    )


def adamw(
    learning_rate: Rate = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Adam with the decay of weights outside the quotient.  Loshchilov and Hutter 2019."""
    return _make(
        "adamw", learning_rate, beta1=_fraction("adamw", "beta1", beta1),
        beta2=_fraction("adamw", "beta2", beta2), epsilon=_positive("adamw", "epsilon", epsilon),
        weight_decay=_positive("adamw", "weight_decay", weight_decay),
    )


# -- rules -----------------------------------------------------------------------------------------
def _sgd(
    w: Node, g: Node, rate: Rate, state: Sequence[Node], options: Mapping[str, float]
) -> tuple[Node, ...]:
    if not state:
        return (w - rate * g,)
    mu = options["momentum"]
    v = mu * state[0] + g
    return w - rate * (g + mu * v if options["nesterov"] else v), v


def _adagrad(
    w: Node, g: Node, rate: Rate, state: Sequence[Node], options: Mapping[str, float]
) -> tuple[Node, ...]:
    a = state[0] + square(g)
    return w - rate * g / (sqrt(a) + options["epsilon"]), a


def _rmsprop(
    w: Node, g: Node, rate: Rate, state: Sequence[Node], options: Mapping[str, float]
) -> tuple[Node, ...]:
    rho = options["decay"]
    s = rho * state[0] + (1.0 - rho) * square(g)
    return w - rate * g / (sqrt(s) + options["epsilon"]), s


def _adam(
    w: Node, g: Node, rate: Rate, state: Sequence[Node], options: Mapping[str, float]
) -> tuple[Node, ...]:
    b1, b2 = options["beta1"], options["beta2"]
    m = b1 * state[0] + (1.0 - b1) * g
    v = b2 * state[1] + (1.0 - b2) * square(g)
    # r m^ / (sqrt(v^) + eps), with the two corrections folded into factors that are scalars
    pace = rate / _unbias(b1, w.dtype)
    moved = pace * m / (sqrt(v) * rsqrt(_unbias(b2, w.dtype)) + options["epsilon"])
    decay = options.get("weight_decay", 0.0)
    return (w - (rate * decay) * w if decay else w) - moved, m, v


def _unbias(beta: float, dtype: DType) -> Node | float:
    """`1 - beta^t` by expm1, which keeps all digits while beta^t is near 1."""
    if beta == 0.0:
        return 1.0
    return -expm1(math.log(beta) * (cast(step, dtype) + 1.0))


RULES: dict[str, Rule] = {
    "sgd": Rule(lambda options: ("velocity",) if options["momentum"] else (), _sgd),
    "adagrad": Rule(lambda options: ("sum",), _adagrad),
    "rmsprop": Rule(lambda options: ("square",), _rmsprop),
    "adam": Rule(lambda options: ("m", "v"), _adam),
    "adamw": Rule(lambda options: ("m", "v"), _adam),
}
MAKERS: MappingProxyType[str, Callable[..., Optimizer]] = MappingProxyType(
    {make.__name__: make for make in (sgd, adagrad, rmsprop, adam, adamw)}
)


# -- checks ----------------------------------------------------------------------------------------
def _make(name: str, rate: Rate, **options: float) -> Optimizer:
    if isinstance(rate, Node):
        if rate.shape != ():
            raise ShapeError(
                f"{name}: the learning rate must be a scalar, got shape {show(rate.shape)}\n"
                f"  {describe(rate)}\n  Make it an expression of optim.step alone."
            )
    else:
        rate = float(_positive(name, "learning_rate", rate))
    return Optimizer(name, rate, tuple(options.items()))


def _positive(asked: str, name: str, value: float) -> float:
    if isinstance(value, str) or not (math.isfinite(value) and value >= 0):
        raise SymgradError(f"{asked}: {name} must be finite and at least 0, got {value!r}.")
    return float(value)


def _fraction(asked: str, name: str, value: float) -> float:
    if not 0.0 <= value < 1.0:
        raise SymgradError(f"{asked}: {name} must be in [0, 1), got {value!r}.")
    return float(value)


def _check(asked: str, params: Sequence[Input], grads: Sequence[Node]) -> None:
    if len(params) != len(grads):
        raise LeafError(f"{asked}: {len(params)} parameters, but {len(grads)} gradients.")
    seen: set[Input] = set()
    for param, grad in zip(params, grads, strict=True):
        if not isinstance(param, Input) or param.kind != "parameter":
            raise LeafError(
                f"{asked}: only parameters can be updated, got\n  {describe(param)}\n"
                "  Make it with parameter(name, shape)."
            )
        if param in seen:
            raise LeafError(f"{asked}: a parameter stands twice\n  {describe(param)}")
        seen.add(param)
        if not is_float(param.dtype):
            raise DTypeError(
                f"{asked}: only floats can be trained, got\n  {describe(param)}\n"
                '  Make it with dtype="float32", or leave it out.'
            )
        fits = [same(a, b) for a, b in zip(param.shape, grad.shape, strict=False)]
        if param.ndim != grad.ndim or False in fits:
            raise ShapeError(
                f"{asked}: a gradient must have the shape of its parameter\n"
                f"  parameter  {describe(param)}\n  gradient   {describe(grad)}"
            )
