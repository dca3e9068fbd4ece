"""A compiled program as a Python object: values in, arrays out, state kept, stages to look at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from codegen.blas import one_blas_thread
from codegen.culprits import culprit_at
from codegen.loading import Loaded
from codegen.program import Program
from codegen.stages import Stages
from codegen.state import Array, Invocation, State
from symgrad.graph import dims as dm
from symgrad.graph.binding import Binding
from symgrad.graph.checkpoints import BudgetedChunk
from symgrad.graph.dim_inference import dims_by_name
from symgrad.graph.dims import Dim, keyword, listed, printable, quoted, show
from symgrad.graph.errors import CompileError, DataError, DataShapeError, LeafError, LeafTypeError
from symgrad.graph.leaves import initial_value
from symgrad.graph.nodes import Input, Node
from symgrad.graph.positions import RowOf, no_row, out_of_range
from symgrad.graph.streams import supplied

if TYPE_CHECKING:
    from codegen.benching import Bench
    from codegen.chunking import Chunks
    from codegen.reporting import Report
    from codegen.targets import Target
    from codegen.teamwork import TeamProgram
    from codegen.timing import Timed


_RESULTS = ("result", "reshaped")


class Compiled:
    """A compiled graph: call it with values by name, as in `f(x=X, W=W0)`.

    Attributes: `source`, `stages`, `state` (name -> array, of the leaves that `updates` names).
    """

    def __init__(
        self,
        stages: Stages,
        target: Target,
        loaded: Loaded | None,
        program: Program,
        outputs: Sequence[Node],
        rebuild: Callable[[Sequence[Any]], Any],
        updated: Sequence[Input],
        seed: int,
    ) -> None:
        self.stages = stages
        self.target = target
        self._loaded = loaded
        self._outputs = tuple(outputs)
        self._rebuild = rebuild
        self._updated = tuple(updated)
        self._dims = stages.graph.dims
        self._chunks = stages.chunks = _chunks_of(stages, program)
        self._binding = Binding(stages.graph)
        self._names = frozenset(x.name for x in stages.graph.inputs if not x.is_supplied)
        self._defaults: dict[str, Array] = {}
        self._program = program
        self._table, self._places = program.table, program.places
        self._leaves = program.table.leaves
        self._state: State | None = None
        self._seed = seed
        self._steps = 0
        self._lock = threading.RLock()
        self._local = threading.local()
        self._spare: list[Invocation] = []
        self._timed: dict[TeamProgram | None, Timed] = {}
        self.measured: Report | None = None
        kept = set(self._updated)
        self._held_places = [(k, leaf) for k, leaf in enumerate(self._leaves) if leaf in kept]

    @property
    def loaded(self) -> Loaded:
        """The program for one worker, compiled if it was not yet."""
        if self._loaded is None:
            graph = self.stages.schedule.graph
            self._loaded = self.target.load_program(self.stages.source, graph.key)
        return self._loaded

    # -- running ---------------------------------------------------------------------------------
    @property
    def dims(self) -> tuple[Dim, ...]:
        """The symbolic extents, in the order in which the program takes them."""
        return self._dims

    @property
    def leaves(self) -> tuple[Input, ...]:
        """The leaves of the expressions as written, in the order of the table."""
        return self._leaves

    @property
    def state(self) -> State:
        """The leaves that the program updates; they start from their initial values."""
        with self._lock:
            if self._state is None:
                values = [self.initial(leaf) for leaf in self._updated]
                self._state = self.target.hold(self._updated, values)
            return self._state

    def __call__(self, /, *arrays: Any, **values: Any) -> Any:
        """Run the program on values by name, `f(x=X, y=Y)`.

        Args:
            values: arrays by the names of the leaves as written; a parameter left out takes its
                initial value, a leaf under `updates` its state. A value for such a leaf is first
                copied into the state. A dim that no leaf tells is given by its name, `f(B=5)`, or
                by a leaf of the formula that was differentiated.
        Returns: fresh arrays in the structure of the outputs.
        Raises: LeafError, DataError naming the leaf, the shapes and the dims. The state is then as
            it was.

        Several threads may call at once, each with a workspace of its own; calls that change the
        state run one after the other.
        """
        self._refuse_unnamed(arrays)
        by_name: dict[Dim, int] = {}
        if not self._names.issuperset(values):
            by_name = dims_by_name(self.stages.graph, values)
        if not self._updated:
            return self._called(values, by_name)
        with self._lock:
            return self._called(values, by_name)

    def _refuse_unnamed(self, arrays: Sequence[Any], asked: str = "f") -> None:
        if arrays:
            raise LeafTypeError(
                f"values are passed by name, got {len(arrays)} without one. "
                f"Write {self._example(asked)}."
            )

    def _example(self, asked: str) -> str:
        """A call, for messages."""
        names = [x.name for x in self._leaves if x.kind == "input"] or sorted(self._names)
        names = names or [d.name for d in self._dims]
        if all(name.isidentifier() for name in names):
            return f"{asked}({listed((f'{keyword(name)}=...' for name in names), 4)})"
        return f"{asked}(**{{{listed((f'{quoted(name)}: ...' for name in names), 4)}}})"

    def _called(self, values: Mapping[str, Any], by_name: Mapping[Dim, int]) -> Any:
        arrays, dims = self._bound(values, by_name)
        if self._updated:
            self._take_state(arrays)
        call = self._invocation()
        call.set_dims(dims)
        call.set_leaves(arrays)
        call.set_outputs(self._empty_results(dims))
        self.run(call)
        self._steps += 1
        return self._collect(call.outputs, arrays, dims)

    def _bound(
        self, values: Mapping[str, Any], by_name: Mapping[Dim, int] | None = None
    ) -> tuple[list[Array], dict[Dim, int]]:
        """The leaves' arrays and the extents that values give."""
        if by_name is None:
            known = self._names.issuperset(values)
            by_name = {} if known else dims_by_name(self.stages.graph, values)
        given = {**self._held(), **values}
        arrays, dims = self._binding(given, 0, self._steps, by_name, draws=self._seed)
        if self._chunks is not None:
            dims = self._chunks.settled(dims)
        for d, n in by_name.items():
            if dims[d] != n:
                raise DataShapeError(
                    f"the dim {quoted(d.name)} is {n} by name and {dims[d]} by the leaves' shapes."
                )
        return arrays, dims

    def _take_state(self, arrays: list[Array]) -> None:
        """Put the state in the places of the leaves that it holds.

        The program writes there, so no other leaf may share that memory.
        """
        state = self.state
        for k, array in enumerate(arrays):
            if state.may_hold(array) and array is not state._arrays.get(self._leaves[k].name):
                arrays[k] = array.copy()
        for k, leaf in self._held_places:
            own = state._arrays[leaf.name]
            if arrays[k] is not own:
                state.put(leaf.name, arrays[k])
                arrays[k] = own

    def initial(self, leaf: Input) -> Array:
        """The value that a leaf starts from."""
        if leaf.kind == "parameter":
            return initial_value(leaf)
        if leaf.is_supplied:
            return supplied(leaf, self._binding.numbers, self._seed)
        return np.zeros(dm.values(leaf.shape, {}), leaf.dtype)

    def _held(self) -> Mapping[str, Array]:
        """The state, and initial values of the other parameters, made once."""
        if not self._defaults:
            self._defaults = {
                leaf.name: self.initial(leaf)
                for leaf in self._leaves
                if leaf.kind == "parameter" and not dm.free_dims(leaf.shape)
            }
        return {**self._defaults, **self.state._arrays} if self._updated else self._defaults

    def run(self, call: Invocation) -> None:
        """Run the program on prepared memory.

        Raises: DataError when an index was out of range.
        """
        with one_blas_thread():
            status = call.run()
        if status:
            raise self.index_error(call)

    def index_error(
        self,
        call: Invocation,
        row_of: RowOf = no_row,
        known: Mapping[str, Array] | None = None,
    ) -> DataError:
        """The error that the report of a call describes; `known` has values by name in a loop."""
        number, index, extent, position = (int(v) for v in call.report)
        node, source = self.stages.schedule.checked[number - 1]
        dims = self._extents(call)
        values = {x.name: a for x, a in zip(self._leaves, call.arrays, strict=False)}
        values.update(known or {})
        source, place = culprit_at(source, position, dims, values)
        return DataError(out_of_range(node, index, extent, source, place, dims, row_of))

    def prepared(self, values: Mapping[str, Array], dims: Mapping[Dim, int]) -> Invocation:
        """Memory for many runs, in which leaves are read where they are.

        Args:
            values: contiguous arrays of the leaves' dtypes by name; what is missing takes its state
                or its initial value.
            dims:   the extents.
        """
        try:
            call = self._spare.pop()
        except IndexError:
            call = self._prepared()
        call.set_dims(self._all_dims(dims))
        given = {**self._held(), **values}
        call.set_leaves(
            [
                given[leaf.name]
                if leaf.name in given and not leaf.is_supplied
                else self.initial(leaf)
                for leaf in self._leaves
            ]
        )
        call.set_outputs(self._empty_results(dims))
        return call

    def _all_dims(self, dims: Mapping[Dim, int]) -> dict[Dim, int]:
        """The dims that values tell, and those that follow from them."""
        if self._chunks is not None:
            return self._chunks.settled(dims)
        return {**dims, **dm.derived_values(self._dims, dims)}

    def release(self, call: Invocation) -> None:
        """Keep the memory of a prepared call that is over for the next one, without its arrays."""
        call.forget()
        self._spare[:] = [call]

    def rebind(
        self,
        call: Invocation,
        leaves: Mapping[Input, Array],
        dims: Mapping[Dim, int],
        targets: Sequence[Array] = (),
    ) -> None:
        """Prepare a call once more.

        Args:
            leaves:  other values for some leaves; those that the program does not have are ignored.
            dims:    the extents.
            targets: arrays that the first outputs are written into, where the program writes them;
                all other results are fresh.
        """
        dims = self._all_dims(dims)
        call.set_dims(dims)
        for k, leaf in enumerate(self._leaves):
            if leaf in leaves:
                call.set_leaf(k, leaves[leaf])
        places = zip(targets, self._places, strict=False)
        own = {place: target for target, (kind, place) in places if kind in _RESULTS}
        call.set_outputs(
            [
                own[k] if k in own else np.empty(dm.values(n.shape, dims), n.dtype)
                for k, n in enumerate(self._table.results)
            ]
        )

    def output(self, call: Invocation, k: int) -> Array:
        """The array of output k (in flattened order) in a prepared call."""
        kind, place = self._places[k]
        if kind == "result":
            return call.outputs[place]
        if kind == "reshaped":  # it shows another one's memory
            return call.outputs[place].reshape(
                dm.values(self._outputs[k].shape, self._extents(call))
            )
        return call.arrays[place] if kind == "leaf" else self._constant(k, self._extents(call))

    def _extents(self, call: Invocation) -> dict[Dim, int]:
        return {d: int(n) for d, n in zip(self._dims, call.dims, strict=False)}

    def _invocation(self) -> Invocation:
        call = getattr(self._local, "call", None)
        if call is None:
            call = self._local.call = self._prepared()
        return call

    def _prepared(self) -> Invocation:
        def alone() -> Invocation:
            return self.target.prepare(self._table, self._dims, self.loaded, self.state)

        if self.stages.team is None:
            return alone()
        from codegen.teamwork import TeamInvocation

        return TeamInvocation(self.stages.team, self._dims, alone)

    def _empty_results(self, dims: Mapping[Dim, int]) -> list[Array]:
        return [np.empty(dm.values(n.shape, dims), n.dtype) for n in self._table.results]

    def _constant(self, k: int, dims: Mapping[Dim, int]) -> Array:
        value = self._program.values[self._places[k][1]].value
        return value.reshape(dm.values(self._outputs[k].shape, dims)).copy()

    def _collect(
        self, results: Sequence[Array], leaves: Sequence[Array], dims: Mapping[Dim, int]
    ) -> Any:
        collected: list[Array] = []
        taken: set[int] = set()
        for k, (kind, place) in enumerate(self._places):
            if kind == "value":
                collected.append(self._constant(k, dims))
                continue
            array = leaves[place] if kind == "leaf" else results[place]
            if kind == "leaf" or place in taken:
                array = array.copy()
            else:
                taken.add(place)
            collected.append(array.reshape(dm.values(self._outputs[k].shape, dims)))
        return self._rebuild(collected)

    # -- looking ---------------------------------------------------------------------------------
    @property
    def source(self) -> str:
        """The generated program, with a legend of its table of addresses."""
        rows = [("bad index report", "")]
        rows += [(leaf.name, f"{leaf.dtype} {show(leaf.shape)}") for leaf in self._leaves]
        rows += [("constant", f"{c.dtype} {show(c.shape)}") for c in self._table.constants]
        rows += [("result", f"{n.dtype} {show(n.shape)}") for n in self._table.results]
        rows += [(f"slot {s.number}", "workspace") for s in self._table.slots]
        legend = [f"# table[{k}]  {printable(a)!s:<20} {b}" for k, (a, b) in enumerate(rows)]
        return "\n".join([*legend, "", self.stages.source])

    def report(self, /, *arrays: Any, **values: Any) -> Report:
        """Every kernel: formula, shape, flops, bytes, time, its bound, the share of the roofline.

        Measures on these values, or else on those of this thread's last call, with a form of the
        program that times its kernels; that one is compiled the first time, kept in the cache
        folder, and leaves the state as it was. Before any call there is nothing to measure.

        Returns: text, with the figures as attributes; see `codegen.reporting.Report`.
        """
        from codegen.reporting import make_report

        self._refuse_unnamed(arrays, "f.report")
        with self._lock:
            call = self._last_call()
            if values or not (self._dims or any(x.kind == "input" for x in self._leaves)):
                return make_report(self, *self._bound(values))
            if call is not None:
                return make_report(self, call.arrays, self._extents(call))
            why = f"Not measured: call the function first, or ask {self._example('f.report')}."
            return make_report(self, None, None if self._dims else {}, why)

    def team_for(self, dims: Mapping[Dim, int] | None) -> TeamProgram | None:
        """The program for several workers, where these or typical dims are worth it."""
        team = self.stages.team
        return team if team is not None and team.is_worth(dims) else None

    def timed(self, team: TeamProgram | None = None) -> Timed:
        """The form of the program that times its kernels; compiled when it is first asked for."""
        from codegen.timing import Timed

        with self._lock:
            if team not in self._timed:
                self._timed[team] = Timed(self, team)
            return self._timed[team]

    def on_copies(
        self,
        arrays: Sequence[Array],
        dims: Mapping[Dim, int],
        make: Callable[[State], Invocation],
    ) -> Invocation:
        """A call of its own, of this program or another form of it, on these leaves.

        What the program updates is a copy; `make` gives the memory for it.
        """
        own = list(arrays)
        place = {leaf: k for k, leaf in enumerate(self._leaves)}
        state = self.target.hold(self._updated, [own[place[x]].copy() for x in self._updated])
        for k, leaf in self._held_places:
            own[k] = state._arrays[leaf.name]
        call = make(state)
        call.set_dims(dims)
        call.set_leaves(own)
        call.set_outputs(self._empty_results(dims))
        return call

    def bench(self, /, *arrays: Any, **values: Any) -> Bench:
        """Seconds of a call on these values, or else on those of this thread's last call.

        Returns: `compile`, `first`, `warm_up`, `median`, `lower`, `upper`, `least`, `program`,
            `calls`, `spread` and `busy` by name, printed as a few lines, with a warning where the
            machine is noisy. The state is afterwards what it was before.
        """
        from codegen.benching import bench

        self._refuse_unnamed(arrays, "f.bench")
        with self._lock:
            call = self._last_call()
            if not values and call is not None:
                held = set(self._updated)
                given = zip(self._leaves, call.arrays, strict=True)
                values = {x.name: a for x, a in given if x not in held and not x.is_supplied}
                try:
                    self._bound(values)
                except LeafError:  # no leaf tells some dim
                    values |= {d.name: n for d, n in self._extents(call).items()}
            state = {name: array.copy() for name, array in self.state.items()}
            steps = self._steps
            try:
                return bench(self, values)
            finally:
                self._steps = steps
                for name, array in state.items():
                    self.state.put(name, array)

    def _last_call(self) -> Invocation | None:
        """The memory of this thread's last call."""
        call: Invocation | None = getattr(self._local, "call", None)
        return call

    def last_call(self) -> Invocation:
        """The memory of this thread's last call; running it again repeats the call."""
        call = self._last_call()
        assert call is not None
        return call

    def save(self, path: str | Path) -> None:
        """Write the program as one Python file that needs NumPy, SciPy and Numba only."""
        from codegen.saving import save_program

        save_program(self, Path(path))

    def __reduce__(self) -> NoReturn:
        raise CompileError(
            "a compiled program cannot be copied or pickled: its code lies in this process. Write "
            "it with save(path), or compile the expressions again: the cache makes that quick."
        )

    def __repr__(self) -> str:
        names = listed(printable(x.name[:40]) for x in self._leaves if x.name in self._names)
        return f"<compiled f({names}) -> {len(self._outputs)} outputs>"

    def _repr_html_(self) -> str:
        from html import escape

        return (
            f"<details><summary>{escape(repr(self))}</summary><pre>{escape(self.report())}</pre>"
            f"<pre>{escape(self.source)}</pre></details>"
        )


def _chunks_of(stages: Stages, program: Program) -> Chunks | None:
    """What chooses the lengths of chunks, where a recurrence has a budget of memory."""
    dims = stages.graph.dims
    if not any(isinstance(d, BudgetedChunk) for d in dims):
        return None
    from codegen.chunking import Chunks

    team = [] if stages.team is None else [stages.team.plan.layout]
    chunks = Chunks(stages.graph, [program.table.layout, *team])
    if not any(dm.roots(d) for d in dims):
        chunks.settled({})  # a budget that cannot be met is known now
    return chunks
