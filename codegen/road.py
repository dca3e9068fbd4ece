"""The road from expressions to the source of a program; the whole story on one screen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codegen.access import root_of
from codegen.contractions import order_contractions
from codegen.fusion import in_memory, make_schedule
from codegen.memory import Plan, plan_memory
from codegen.output_reuse import read_outputs
from codegen.pieces import join_pieces
from codegen.places import places_by_value
from codegen.program import Place, Program
from codegen.recurrences import lower
from codegen.request import Clock, Request
from codegen.slicing import slice_first, sliced_before
from codegen.stages import Made
from codegen.teamwork import TeamProgram, make_team
from codegen.transposing import transpose_constants
from symgrad.calculus.hoisting import hoist, read_inside
from symgrad.calculus.look_ups import read_tables
from symgrad.calculus.loop_parts import Moved
from symgrad.calculus.residuals import Residual, save_residuals
from symgrad.calculus.simplification import simplify
from symgrad.calculus.sinking import sink
from symgrad.calculus.stabilization import stabilize
from symgrad.calculus.stops import without_cuts
from symgrad.calculus.unpadding import unpad
from symgrad.graph import streams
from symgrad.graph.dims import Extent
from symgrad.graph.dtypes import INT32
from symgrad.graph.functions import AXIS
from symgrad.graph.nodes import Constant, Gather, Input, Map, Node, Scatter, einsum_node
from symgrad.graph.provenance import provenance
from symgrad.graph.traversal import replace, toposort


def make(request: Request, clock: Clock) -> Made:
    """Lead the graph of a request through all passes."""
    back, threads = request.back, request.threads
    fixed: dict[Node, Node] = {streams.training: Constant(np.asarray(request.training))}
    wanted = replace(request.wanted, fixed)
    asked = _index_uses(toposort(wanted))
    stable = clock("stabilize", lambda: stabilize([*wanted, *(index for index, _, _ in asked)]))
    uncut = clock("drop cuts", lambda: without_cuts(stable))
    wanted = clock("simplify", lambda: simplify_checked(uncut, len(wanted), asked))
    residuals: list[Residual] = []
    wanted = clock("save residuals", lambda: save_residuals(wanted, residuals))
    moved: list[Moved] = []
    wanted = clock("hoist and sink", lambda: hoist_and_sink(wanted, moved))
    if back.UNPADS:
        wanted = clock("take out padding", lambda: unpad(wanted, moved))
    wanted = clock("join pieces", lambda: join_pieces(wanted))
    wanted = clock("order contractions", lambda: order_contractions(places_by_value(wanted)))
    wanted = clock("transpose constants", lambda: transpose_constants(wanted, moved))
    wanted = clock("slice first", lambda: slice_first(wanted, moved))
    wanted = clock("read outputs", lambda: read_outputs(wanted))
    updated = {leaf for leaf, _ in request.updates}
    outputs, count = len(request.outputs), len(request.wanted)
    wanted = [
        in_memory(n) if k >= outputs or root_of(n) in updated else n for k, n in enumerate(wanted)
    ]
    final, right, checks = wanted[:outputs], wanted[outputs:count], wanted[count:]
    computed = [n for n in [*final, *checks, *right] if not _is_leaf(n)]  # updates last: see memory
    schedule = clock("schedule", lambda: make_schedule(computed))
    lowered = clock("lower", lambda: lower(schedule, back.ROW_MEMORY))
    results = [n for n in [*final, *checks] if not _is_leaf(root_of(n))]
    changes = [(leaf, n) for (leaf, _), n in zip(request.updates, right, strict=True)]
    inputs, dims = request.written.inputs, request.written.dims
    plan = clock("plan memory", lambda: plan_memory(schedule, lowered, results, changes, inputs))
    key = schedule.graph.key
    source = clock("print", lambda: back.print_program(plan, dims, key))
    team: TeamProgram | None = None
    if threads > 1:
        shared = clock("share", lambda: lower(schedule, back.ROW_MEMORY, threads))
        team = clock(
            "share",
            lambda: make_team(
                plan_memory(schedule, shared, results, changes, inputs, workers=threads),
                *(back, dims, key),
            ),
        )
    notes = tuple(residuals), (*moved, *sliced_before(computed))
    return Made(schedule.graph, schedule, plan, source, _program(plan, final), team, *notes)


def hoist_and_sink(outputs: Sequence[Node], notes: list[Moved]) -> list[Node]:
    """What recurrences need not do step by step, around them; `notes` is told what moved."""
    made = read_inside(read_tables(hoist(sink(outputs, notes), notes), notes), notes)
    unchanged = all(a is b for a, b in zip(made, outputs, strict=True))
    return made if unchanged else list(simplify(made))


def _program(plan: Plan, final: Sequence[Node]) -> Program:
    """The plan's table, and where in it the outputs are found, which became `final`."""
    results = {node: k for k, node in enumerate(plan.results)}
    leaves = {leaf: k for k, leaf in enumerate(plan.leaves)}
    places: list[Place] = []
    values: list[Constant] = []
    for node in final:
        root = root_of(node)
        if root in results:
            places.append(("result" if root is node else "reshaped", results[root]))
        elif isinstance(root, Input):
            places.append(("leaf", leaves[root]))
        else:
            assert isinstance(root, Constant)
            places.append(("value", len(values)))
            values.append(root)
    return Program(plan, tuple(places), tuple(values))


def simplify_checked(
    outputs: Sequence[Node], count: int, asked: Sequence[tuple[Node, Extent, Gather | Scatter]]
) -> list[Node]:
    """Simplify the first `count` outputs, and keep every index check of the graph as written.

    The other outputs are the indices that it uses; `asked` has their extents and their users.

    A Scatter of labels may become a comparison with an axis index, which proves nothing about the
    labels; then an extra output reads `arange(extent)` at them, and with that they are checked.
    """
    done = list(simplify(outputs))
    kept, indices = done[:count], done[count:]
    checked = {(id(i), e, user.wrap) for i, e, user in _index_uses(toposort(kept))}
    for index, (_, extent, user) in zip(indices, asked, strict=True):
        key = (id(index), extent, user.wrap)
        if key not in checked and not isinstance(index, Constant):
            checked.add(key)
            primal = user if user.backward_of is None else user.backward_of
            with provenance(primal.origin or primal.name, where=user.where):
                places = Map((), AXIS[0], (extent,), INT32)
                labels = tuple(range(index.ndim))
                read = Gather((places, index), (~0,), (labels,), labels, user.wrap)
                kept.append(einsum_node([read], [labels], ()) if labels else read)
    return kept


def _index_uses(nodes: Sequence[Node]) -> list[tuple[Node, Extent, Gather | Scatter]]:
    """Index expressions, the extents that they index, and the nodes that use them."""
    found: dict[tuple[int, Extent, bool], tuple[Node, Extent, Gather | Scatter]] = {}
    for node in nodes:
        if isinstance(node, Gather):
            axes, shape = node.source_axes, node.args[0].shape
        elif isinstance(node, Scatter):
            axes, shape = node.target_axes, node.shape
        else:
            continue
        for axis, extent in zip(axes, shape, strict=True):
            if axis < 0:
                index = node.args[1 + ~axis]
                found.setdefault((id(index), extent, node.wrap), (index, extent, node))
    return list(found.values())


def _is_leaf(node: Node) -> bool:
    return isinstance(node, (Input, Constant))
