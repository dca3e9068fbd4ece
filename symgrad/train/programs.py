"""From a compiled function to a step that the driver can run: buffers, addresses, extents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.compiled import Compiled
from symgrad.graph.binding import Binding
from symgrad.graph.nodes import Input, Node
from symgrad.train.data import Bound
from symgrad.train.driver import Step

Array = npt.NDArray[Any]


def bind_step(
    f: Compiled,
    bound: Bound,
    batch_size: int,
    values: Mapping[Input, Array],
    outputs: int,
    updated: Iterable[Input] = (),
) -> Step:
    """Bind a compiled function to buffers of one batch and to the arrays that it keeps.

    Args:
        f:          the function; its outputs are float scalars.
        bound:      the data.
        batch_size: rows of a whole batch.
        values:     arrays of all other leaves, used in place.
        outputs:    the number of outputs.
        updated:    the leaves that it writes.
    Raises: DataError and its kinds where the extents of a batch do not fit.
    """
    kept = {leaf.name: array for leaf, array in values.items()}
    binding = Binding(f.stages.graph)
    rest = bound.n % batch_size or batch_size
    _, dims = binding({**bound.batch(0, batch_size), **kept})
    _, dims_of_rest = binding({**bound.batch(bound.n - rest, bound.n), **kept})
    buffers = {
        leaf.name: np.empty((batch_size, *array.shape[1:]), array.dtype)
        for leaf, array in bound.rows.items()
    }
    whole = {leaf.name: array for leaf, array in bound.whole.items()}
    call = f.bind_buffers({**kept, **whole, **buffers}, dims)
    # one workspace for both: it was made for the larger extents
    call.set_dims(dims_of_rest)
    table_of_rest, extents_of_rest = call.table.copy(), call.dims.copy()
    call.set_dims(dims)

    def explain(rows: Sequence[int]) -> str:
        def row_of(leaf: Node, place: tuple[int, ...]) -> int | None:
            return rows[place[0]] if leaf in bound.rows else None

        return str(f.index_error(call, row_of))

    return Step(
        program=f.program_address,
        full=(call.table, call.dims),
        rest=(table_of_rest, extents_of_rest),
        buffers=tuple(buffers.values()),
        outputs=tuple(f.output(call, k) for k in range(outputs)),
        state=tuple(values[leaf] for leaf in updated),
        explain=explain,
        alive=call,
    )
