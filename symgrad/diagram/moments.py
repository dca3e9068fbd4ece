"""Values of a recurrence at a moment, as nodes of a picture: `h[t]`, `x[t]`, `h[T]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from symgrad.graph.dims import Shape
from symgrad.graph.dtypes import DType
from symgrad.graph.nodes import Input, Node

Role = Literal["carry", "element", "shared", "result", "between"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Moment(Node):
    """A value at a moment; it stands in pictures alone and computes nothing.

    args:   what it starts from, is an element of, or is made of.
    label:  how it is written.
    detail: a smaller second line.
    """

    args: tuple[Node, ...]
    label: str
    shape: Shape
    dtype: DType
    role: Role
    detail: str = ""

    def derive(self) -> None:
        """Nothing: shape and dtype are given."""

    def intern_key(self) -> None:
        """None: a moment has identity."""

    @property
    def name(self) -> str:
        """How it is written."""
        return self.label


def is_named(node: Node) -> bool:
    """Whether a formula calls a node by its name."""
    return isinstance(node, Input) or (isinstance(node, Moment) and node.role != "between")


def title(name: str) -> str:
    """A binder's name: `∂h` for the cotangent of h, `dh` for its tangent.

    >>> title("h_ct"), title("W_t_ct")
    ('∂h', '∂dW')
    """
    for ending, sign in (("_ct", "∂"), ("_t", "d")):
        if name.endswith(ending) and name != ending:
            return sign + title(name.removesuffix(ending))
    return name
