"""From expressions to a function that can be called: by the road, or from the cache.

A program that this user compiled before is found by the graph as written, before any pass; what the
passes would make is made when somebody looks at `f.stages`.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex

from codegen import records, targets
from codegen.cache import OWN_SETTINGS
from codegen.compiled import Compiled
from codegen.loading import Loaded
from codegen.request import Clock, Request
from codegen.runtime.team_words import MOST
from codegen.stages import Stages
from symgrad.graph import streams
from symgrad.graph.dims import free_dims, same
from symgrad.graph.errors import CompileError, DTypeError, LeafError, ShapeError
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import as_node
from symgrad.graph.nodes import Input, Node, describe
from symgrad.graph.structure import flatten

if TYPE_CHECKING:
    from codegen.stages import Made


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
    threads = check_options(target, threads, seed)
    streams.as_flag("training", training)
    nodes, rebuild = flatten(outputs, "compile")
    pairs = checked_updates(updates or {}, "updates")
    clock = Clock()
    back = clock("find target", lambda: targets.find(target))
    written = Graph.of([*nodes, *(n for _, n in pairs), *(leaf for leaf, _ in pairs)])
    request = Request(written, tuple(nodes), tuple(pairs), target, back, threads, bool(training))
    made, loaded, key = None, None, ""
    found = None
    if back.KEEPS and threads == 1:
        key = clock("key", lambda: records.key_of(request))
        found = clock("look up", lambda: records.find(key, written))
    if found is not None:
        program, loaded = found
    else:
        made = _made(request, clock)
        program, loaded = made.program, _loaded(request, made, clock)
        if key and loaded is not None:
            records.keep(key, written, program, loaded)
    stages = Stages(written, clock.seconds, lambda: _made(request, Clock()), made)
    owned = [leaf for leaf, _ in pairs]
    return Compiled(stages, back, loaded, program, nodes, rebuild, owned, seed)


def _made(request: Request, clock: Clock) -> Made:
    """What the passes make of a request."""
    from codegen.road import make  # a warm process does without

    return make(request, clock)


def _loaded(request: Request, made: Made, clock: Clock) -> Loaded | None:
    """The code of a program, or that of its team: the other one is compiled when it is needed."""
    if made.team is not None and made.team.is_worth():
        clock("load", made.team.code)
        return None
    key = made.schedule.graph.key
    return clock("load", lambda: request.back.load_program(made.source, key))


def check_options(
    target: str, threads: SupportsIndex, seed: int, asked: str = "compile"
) -> int:
    """The number of threads.

    Raises: SymgradError and CompileError for options that no program can have, and for settings of
        the environment that no processor has.
    """
    targets.check(target, asked)
    try:
        count = 0 if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        count = 0
    if not 1 <= count <= MOST:
        raise CompileError(
            f"{asked}: threads={threads!r:.40}: needs a whole number from 1 to {MOST}; "
            "threads=1 runs on the thread that calls."
        )
    if target == "cpu":
        _check_settings(asked)
    if count > 1 and target != "cpu":
        raise CompileError(
            f'{asked}: threads={count} is for target="cpu"; a program with target={target!r:.40} '
            "shares its work among the device's own threads. Use threads=1."
        )
    streams.as_seed(seed)
    return count


def _check_settings(asked: str) -> None:
    if not any(map(os.environ.get, OWN_SETTINGS)):
        return  # nothing to import for
    from codegen.runtime.instruction_sets import instruction_set
    from codegen.runtime.settings import products_from

    try:
        instruction_set()
        products_from()
    except ValueError as error:
        raise CompileError(f"{asked}: the environment has {error}") from None


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
