"""`draw`: expressions as mathematics, or as the kernels that they are compiled to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from symgrad.calculus.vjp import grad
from symgrad.diagram import drawing
from symgrad.diagram.drawing import Expressions
from symgrad.diagram.records import Diagram, Magnitudes
from symgrad.graph.errors import SymgradError
from symgrad.graph.nodes import Node

if TYPE_CHECKING:
    from codegen.compiled import Compiled

Level: TypeAlias = Literal["auto", "nodes", "layers", "unrolled", "kernels"]


def draw(
    expr: Expressions | Compiled,
    wrt: Node | Sequence[Node] | None = None,
    flow: Magnitudes | None = None,
    level: Level = "auto",
) -> Diagram:
    """Draw expressions, with the backward pass when `wrt` is given.

    The forward half is blue and walks to the right, the backward half is orange and walks back
    beside it; green dashes are residuals, forward values that the backward pass reads. Edges bear
    shapes, clusters are layers: a contraction with a parameter and what follows up to the next one.

    Args:
        expr: one expression, a sequence, a dict of named ones, a Graph; or a compiled function.
        wrt: the nodes to differentiate `expr` (then one scalar) with respect to.
        flow: measured magnitudes to overlay as colour and width; see `gradient_flow`.
        level: "nodes" draws every node, "layers" one box per layer and half; "auto" draws nodes up
            to about 250 boxes, then repeated layers once with a counter, then layers. A recurrence
            is a cell, one step with its loop; "unrolled" draws its steps one after the other, the
            first two and the last one where they are many. "kernels" draws what runs: a box per
            kernel, coloured by its share of the time, with memory traffic on the edges. A compiled
            function that has been called is measured on its last call, that of a trainer by
            `trainer.report(data)`; for expressions, which are compiled first, the times are the
            least that the machine allows.
    Returns: a Diagram with `.dot`, `.svg` and `.save(path)`.
    Raises: SymgradError for an unknown level, GradError when `wrt` meets several expressions.

    >>> import symgrad as sg
    >>> x, w = sg.input("x", (3,)), sg.parameter("w", (3,))
    >>> picture = draw((x * w).sum(), wrt=w)
    >>> [edge.kind for edge in picture.edges if edge.kind == "residual"]
    ['residual']
    >>> draw(sg.compile(x @ w), level="kernels")
    <Diagram: kernels, 3 boxes, 2 edges, 0 clusters>
    """
    compiled = hasattr(expr, "stages")
    if level != "kernels" and not compiled:
        return drawing.draw(expr, wrt, flow, level)  # type: ignore[arg-type]
    if level not in ("auto", "kernels"):
        raise SymgradError(
            f"draw: level {level!r:.40} needs expressions, got {expr!r:.80}. A compiled function "
            'is drawn with level="kernels"; f.stages.graph holds its expressions.'
        )
    if flow is not None:
        raise SymgradError('draw: level="kernels" shows times, so it takes no flow.')
    if compiled and wrt is not None:
        raise SymgradError(
            "draw: a compiled function cannot be differentiated. Draw expressions with wrt, or "
            "compile their gradients too."
        )
    from codegen.picture import kernel_diagram  # mathematics is drawn without the compiler
    from codegen.pipeline import compile

    f: Compiled = expr if compiled else compile(_outputs(expr, wrt))  # type: ignore
    report = f.report()
    return kernel_diagram(f, report if report.times else f.measured or report)


def _outputs(expr: Expressions, wrt: Node | Sequence[Node] | None) -> list[Node]:
    """The expressions, and the gradients that `wrt` asks for."""
    outputs, _ = drawing.outputs_of(expr)
    if wrt is None:
        return outputs
    found = grad(drawing.loss_of(outputs), wrt)
    return [*outputs, *([found] if isinstance(found, Node) else found)]
