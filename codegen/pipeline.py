"""The road from expressions to a running program; the whole story on one screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from codegen import targets
from codegen.access import root_of
from codegen.compiled import Compiled
from codegen.contractions import order_contractions
from codegen.fusion import in_memory, make_schedule
from codegen.loading import Loaded
from codegen.memory import plan_memory
from codegen.pieces import join_pieces
from codegen.places import places_by_value
from codegen.recurrences import lower
from codegen.residuals import read_outputs
from codegen.runtime.team_words import MOST
from codegen.stages import Stages
from codegen.teamwork import TeamProgram, make_team
from symgrad.calculus.hoisting import hoist
from symgrad.calculus.loop_parts import Moved
from symgrad.calculus.residuals import Residual, save_residuals
from symgrad.calculus.simplification import simplify
from symgrad.calculus.sinking import sink
from symgrad.calculus.stabilization import stabilize
from symgrad.calculus.stops import without_cuts
from symgrad.graph import streams
from symgrad.graph.dims import Extent, free_dims, same
from symgrad.graph.dtypes import INT32
from symgrad.graph.errors import CompileError, DTypeError, LeafError, ShapeError
from symgrad.graph.functions import AXIS
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import as_node
from symgrad.graph.nodes import (
    Constant,
    Gather,
    Input,
    Map,
    Node,
    Scatter,
    describe,
    einsum_node,
)
from symgrad.graph.provenance import provenance
from symgrad.graph.structure import flatten
from symgrad.graph.traversal import replace, toposort


def compile(
    outputs: Any,
    updates: Mapping[Input, Any] | None = None,
    target: str = "cpu",
    threads: int = 1,
    seed: int = 0,
    training: bool = False,
) -> Compiled:
    """Compile expressions into a function of their leaves.

    Args:
        outputs:  an expression, or a sequence or dict of expressions.
        updates:  {leaf: expression}: after each call the leaf holds the expression's value. All
            right-hand sides read old values. The program owns such leaves in `f.state`.
        target:   the name of a module in `codegen/targets`.
        threads:  how many threads a call may use. Small work stays on one; the rest is shared by
                  all, also where they are more than the cores, on which they then take turns. The
                  same number of threads gives the same bits.
        seed:     of random numbers; initial values are those of seed 0, as in `evaluate`.
        training: whether dropout is active.
    Returns: a function that takes arrays by name and returns arrays in the structure of `outputs`.
    Raises: LeafError, ShapeError, DTypeError for updates that do not fit; CompileError.

    >>> import symgrad as sg
    >>> x = sg.input("x", (3,))
    >>> f = sg.compile((x * x).sum())
    >>> float(f(x=[1.0, 2.0, 3.0]))
    14.0
    """
    check_options(target, threads, seed)
    streams.as_flag("training", training)
    nodes, rebuild = flatten(outputs, "compile")
    pairs = checked_updates(updates or {}, "updates")
    clock = _Clock()
    back = clock("find target", lambda: targets.find(target))
    written = Graph.of([*nodes, *(n for _, n in pairs), *(leaf for leaf, _ in pairs)])
    told: dict[Node, Node] = {streams.training: Constant(np.asarray(bool(training)))}
    wanted = replace([*nodes, *(n for _, n in pairs)], told)
    asked = _index_uses(toposort(wanted))
    stable = clock("stabilize", lambda: stabilize([*wanted, *(index for index, _, _ in asked)]))
    stable = clock("drop cuts", lambda: without_cuts(stable))
    wanted = clock("simplify", lambda: simplify_checked(stable, len(wanted), asked))
    residuals: list[Residual] = []
    wanted = clock("save residuals", lambda: save_residuals(wanted, residuals))
    moved: list[Moved] = []
    wanted = clock("hoist and sink", lambda: hoist_and_sink(wanted, moved))
    wanted = clock("join pieces", lambda: join_pieces(wanted))
    wanted = clock("order contractions", lambda: order_contractions(places_by_value(wanted)))
    wanted = clock("read outputs", lambda: read_outputs(wanted))
    updated = {leaf for leaf, _ in pairs}
    wanted = [
        in_memory(n) if k >= len(nodes) or root_of(n) in updated else n
        for k, n in enumerate(wanted)
    ]
    count = len(nodes) + len(pairs)
    final, right, checks = wanted[: len(nodes)], wanted[len(nodes) : count], wanted[count:]
    computed = [n for n in [*final, *checks, *right] if not _is_leaf(n)]  # updates last: see memory
    schedule = clock("schedule", lambda: make_schedule(computed))
    lowered = clock("lower", lambda: lower(schedule, back.ROW_MEMORY))
    results = [n for n in [*final, *checks] if not _is_leaf(root_of(n))]
    changes = [(leaf, n) for (leaf, _), n in zip(pairs, right, strict=True)]
    inputs = written.inputs
    plan = clock("plan memory", lambda: plan_memory(schedule, lowered, results, changes, inputs))
    key = schedule.graph.key
    source = clock("print", lambda: back.print_program(plan, written.dims, key))
    team: TeamProgram | None = None
    if threads > 1:
        shared = clock("share", lambda: lower(schedule, back.ROW_MEMORY, threads))
        team = clock(
            "share",
            lambda: make_team(
                plan_memory(schedule, shared, results, changes, inputs, workers=threads),
                *(back, written.dims, key),
            ),
        )
    loaded: Loaded | None = None
    if team is not None and team.is_worth():  # the other one is compiled when it is needed
        clock("load", team.address)
    else:
        loaded = clock("load", lambda: back.load_program(source, key))
    done = written, schedule.graph, schedule, plan, source
    stages = Stages(*done, clock.seconds, team, tuple(residuals), tuple(moved))
    owned = [leaf for leaf, _ in pairs]
    return Compiled(stages, back, loaded, nodes, rebuild, owned, final, seed)


def hoist_and_sink(outputs: Sequence[Node], notes: list[Moved]) -> list[Node]:
    """What recurrences need not do step by step, around them; `notes` is told what moved."""
    made = hoist(sink(outputs, notes), notes)
    return list(simplify(made)) if notes else made


def check_options(target: str, threads: int, seed: int, asked: str = "compile") -> None:
    """Raises: SymgradError and CompileError for options that no program can have."""
    targets.check(target, asked)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST:
        raise CompileError(
            f"{asked}: threads={threads!r:.40}: needs a whole number from 1 to {MOST}; "
            "threads=1 runs on the thread that calls."
        )
    if threads > 1 and target != "cpu":
        raise CompileError(
            f'{asked}: threads={threads} is for target="cpu"; a program with target={target!r:.40} '
            "shares its work among the device's own threads. Use threads=1."
        )
    streams.as_seed(seed)


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


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result


def _is_leaf(node: Node) -> bool:
    return isinstance(node, (Input, Constant))


def checked_updates(updates: Mapping[Input, Any], asked: str) -> list[tuple[Input, Node]]:
    """Leaves and what they become; `asked` begins the messages.

    Raises: LeafError, ShapeError, DTypeError where one is no leaf, or changes shape or dtype.
    """
    if not isinstance(updates, Mapping):
        raise LeafError(
            f"{asked}: needs a dictionary such as {{W: W - 0.1 * dW}}, "
            f"got {type(updates).__name__}."
        )
    pairs: list[tuple[Input, Node]] = []
    for leaf, given in updates.items():
        if not isinstance(leaf, Input):
            raise LeafError(f"{asked}: the key {leaf!r} is no leaf. Keys are inputs or parameters.")
        node = as_node(given, leaf.dtype)
        if free_dims(leaf.shape):
            raise ShapeError(
                f"{asked}: a leaf of symbolic shape cannot be kept between calls\n"
                f"  {describe(leaf)}\n"
                "  Give it a shape of numbers."
            )
        if len(node.shape) != len(leaf.shape) or any(
            same(a, b) is False for a, b in zip(node.shape, leaf.shape, strict=False)
        ):
            raise ShapeError(
                f"{asked}: a leaf keeps its shape\n  {describe(leaf)}\n  {describe(node)}\n"
                "  The right-hand side must have the leaf's shape."
            )
        if node.dtype != leaf.dtype:
            raise DTypeError(
                f"{asked}: a leaf keeps its dtype\n  {describe(leaf)}\n  {describe(node)}\n"
                f"  Cast the right-hand side: astype(x, '{leaf.dtype}')."
            )
        pairs.append((leaf, node))
    return pairs
