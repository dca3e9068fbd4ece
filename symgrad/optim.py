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

A learning rate is a number, which stays, or a scalar expression of `step`. The usual ones:

    step_decay         r f^floor(step / every)
    exponential_decay  r f^(step / every)
    cosine_decay       l + (r - l) (1 + cos(pi min(step / n, 1))) / 2
    piecewise          r_k for boundary_k-1 <= step < boundary_k
    warmup             rate min(1, (step + 1) / n), whatever the rate is

They are formulas: `adam(warmup(cosine_decay(0.1, 1000), 100))` compiles into the step like anything
else, and any other formula of `step` will do. A Trainer's file does not hold a formula: give the
optimizer again to `Trainer.load`.

Sources: Polyak 1964; Nesterov 1983 in the form of Sutskever et al. 2013; Duchi et al. 2011;
Tieleman and Hinton 2012; Kingma and Ba 2015 (arXiv 1412.6980); Loshchilov and Hutter 2019
(arXiv 1711.05101); cosine: Loshchilov and Hutter 2017 (arXiv 1608.03983); warmup: Goyal et al. 2017
(arXiv 1706.02677).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from symgrad.graph.arithmetic import minimum, power, square, where
from symgrad.graph.dims import same, show
from symgrad.graph.dtypes import FLOAT64, DType, is_float
from symgrad.graph.elementwise import cos, expm1, rsqrt, sqrt
from symgrad.graph.errors import DTypeError, LeafError, ShapeError, SymgradError
from symgrad.graph.leaves import cast, constant
from symgrad.graph.nodes import Input, Node, describe
from symgrad.graph.streams import as_number, step as step
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
    """Each entry's rate falls with the squares of its gradients so far.  Duchi et al. 2011.

        a' = a + g^2,  a = 0 at first        W' = W - r g / (sqrt(a') + epsilon)

    Args:
        learning_rate: a number or a scalar expression of `step`.
        epsilon:       keeps the quotient finite.
    """
    return _make("adagrad", learning_rate, epsilon=_positive("adagrad", "epsilon", epsilon))


def rmsprop(learning_rate: Rate = 1e-2, decay: float = 0.99, epsilon: float = 1e-8) -> Optimizer:
    """Each gradient is divided by its running root mean square.  Tieleman and Hinton 2012.

        s' = decay s + (1 - decay) g^2,  s = 0 at first        W' = W - r g / (sqrt(s') + epsilon)

    Args:
        learning_rate: a number or a scalar expression of `step`.
        decay:         in [0, 1): how slowly the mean square forgets.
        epsilon:       keeps the quotient finite.
    """
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
    """Adam with the decay of weights outside the quotient.  Loshchilov and Hutter 2019.

        W' = (1 - r weight_decay) W - r m^ / (sqrt(v^) + epsilon)

    Unlike a penalty in the loss, the decay is the same for every weight, however large its
    gradients are; it follows the schedule of the rate. Biases decay too.

    Args:
        learning_rate: a number or a scalar expression of `step`.
        beta1, beta2:  in [0, 1): how slowly the mean and the mean square forget.
        epsilon:       keeps the quotient finite.
        weight_decay:  at least 0.
    """
    return _make(
        "adamw", learning_rate, beta1=_fraction("adamw", "beta1", beta1),
        beta2=_fraction("adamw", "beta2", beta2), epsilon=_positive("adamw", "epsilon", epsilon),
        weight_decay=_positive("adamw", "weight_decay", weight_decay),
    )


# -- learning rates as formulas of the step --------------------------------------------------------
def step_decay(rate: float, every: int, factor: float = 0.1) -> Node:
    """`rate factor^floor(step / every)`: a fall by `factor` after every so many steps.

    >>> from symgrad.graph.evaluator import evaluate
    >>> rate = step_decay(0.1, every=100, factor=0.5)
    >>> [float(evaluate(rate, {step: t})) for t in (0, 99, 100, 250)]
    [0.1, 0.1, 0.05, 0.025]
    """
    falls = step // _steps("step_decay", "every", every)
    return _number("step_decay", rate) * _power("step_decay", factor, cast(falls, FLOAT64))


def exponential_decay(rate: float, every: int, factor: float = 0.1) -> Node:
    """`rate factor^(step / every)`: the smooth form of `step_decay`."""
    falls = cast(step, FLOAT64) / _steps("exponential_decay", "every", every)
    return _number("exponential_decay", rate) * _power("exponential_decay", factor, falls)


def cosine_decay(rate: float, steps: int, last: float = 0.0) -> Node:
    """`last + (rate - last) (1 + cos(pi min(step / steps, 1))) / 2`: from `rate` down to `last`.

    Source: Loshchilov and Hutter 2017, without restarts.

    >>> from symgrad.graph.evaluator import evaluate
    >>> rate = cosine_decay(0.5, steps=10, last=0.1)
    >>> [round(float(evaluate(rate, {step: t})), 3) for t in (0, 5, 10, 1000)]
    [0.5, 0.3, 0.1, 0.1]
    """
    low = _number("cosine_decay", last)
    part = cast(step, FLOAT64) / _steps("cosine_decay", "steps", steps)
    wave = (1.0 + cos(math.pi * minimum(part, 1.0))) / 2.0
    return low + (_number("cosine_decay", rate) - low) * wave


def piecewise(boundaries: Sequence[int], rates: Sequence[Rate]) -> Node:
    """`rates[k]` while `boundaries[k - 1] <= step < boundaries[k]`.

    Args:
        boundaries: step counts, rising.
        rates:      one more than boundaries; each a number or a scalar expression of `step`.

    >>> from symgrad.graph.evaluator import evaluate
    >>> rate = piecewise([10, 30], [0.1, 0.01, 0.001])
    >>> [float(evaluate(rate, {step: t})) for t in (0, 9, 10, 30)]
    [0.1, 0.1, 0.01, 0.001]
    """
    places = [_steps("piecewise", "a boundary", b) for b in boundaries]
    if len(rates) != len(places) + 1 or places != sorted(set(places)):
        raise SymgradError(
            f"piecewise: needs rising boundaries and one rate more than boundaries, got "
            f"{list(boundaries)!r} and {len(rates)} rates."
        )
    *earlier, result = (_number("piecewise", r) for r in rates)
    for place, rate in zip(reversed(places), reversed(earlier), strict=True):
        result = where(step < place, rate, result)
    return result


def warmup(rate: Rate, steps: int) -> Node:
    """`rate min(1, (step + 1) / steps)`: a straight rise over the first steps.

    Args:
        rate:  what it rises to: a number, or a schedule, which is not shifted.
        steps: of the rise; the last of them has the whole rate.
    Source: Goyal et al. 2017.

    >>> from symgrad.graph.evaluator import evaluate
    >>> rate = warmup(cosine_decay(0.1, 1000), 4)
    >>> [round(float(evaluate(rate, {step: t})), 4) for t in (0, 1, 3, 500)]
    [0.025, 0.05, 0.1, 0.05]
    """
    rise = (cast(step, FLOAT64) + 1.0) / _steps("warmup", "steps", steps)
    return _number("warmup", rate) * minimum(rise, 1.0)


def _number(asked: str, rate: Rate) -> Node:
    """A rate as a scalar in float64: it is rounded once, to the dtype of each parameter."""
    if not isinstance(rate, Node):
        return constant(_positive(asked, "a rate", rate), FLOAT64)
    _check_rate(asked, rate)
    return cast(rate, FLOAT64)


def _power(asked: str, factor: float, exponent: Node) -> Node:
    if not 0.0 < factor <= 1.0:
        raise SymgradError(f"{asked}: factor must be in (0, 1], got {factor!r}.")
    return power(constant(float(factor), FLOAT64), exponent)


def _steps(asked: str, name: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise SymgradError(f"{asked}: {name} must be an integer of at least 1, got {value!r}.")
    return int(value)


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
        _check_rate(name, rate)
    else:
        rate = float(_positive(name, "learning_rate", rate))
    return Optimizer(name, rate, tuple(options.items()))


def _check_rate(asked: str, rate: Node) -> None:
    if rate.shape != ():
        raise ShapeError(
            f"{asked}: the learning rate must be a scalar, got shape {show(rate.shape)}\n"
            f"  {describe(rate)}\n  Make it an expression of optim.step alone."
        )


def _positive(asked: str, name: str, value: float) -> float:
    if not (math.isfinite(as_number(f"{asked}: {name}", value)) and value >= 0):
        raise SymgradError(f"{asked}: {name} must be finite and at least 0, got {value!r}.")
    return float(value)


def _fraction(asked: str, name: str, value: float) -> float:
    if not 0.0 <= as_number(f"{asked}: {name}", value) < 1.0:
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
