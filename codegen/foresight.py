"""What a step of a recurrence needs after each of its products, so that these can fetch it.

The places of a step in sequences, and in what is stacked, are far from the processor: they were
last touched a whole recurrence before, or never. Products keep its units busy and its memory idle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from codegen.loop_ir import Call, Kernel
from codegen.memory import InnerPlace, Invoked, InvokedLoop, LoweredLoop
from symgrad.graph.dims import typical
from symgrad.graph.dtypes import DType

# Products with fewer terms end too soon, those with more rows read more than a step has; places
# with fewer elements are not worth a range.
LEAST_TERMS, MOST_ROWS, LEAST_ELEMENTS = 16, 95, 512
# Ranges that one product fetches, at most.
MOST_RANGES = 16


def is_product(kernel: Kernel) -> bool:
    """Whether a kernel is one product that may fetch: A as it lies, B by rows, by one worker."""
    if len(kernel.body) != 1 or not isinstance(call := kernel.body[0], Call):
        return False
    small = typical(call.k) >= LEAST_TERMS and typical(call.m) <= MOST_ROWS
    return small and not (call.shared or call.transposed[1])


def needed_after(loop: LoweredLoop) -> Iterator[tuple[Invoked, list[tuple[int, DType, bool]]]]:
    """Products of a body, and the entries that are needed between them and the next product.

    With each entry, its dtype, and whether it is that of the next step.
    """
    if loop.turns or loop.live is not None:
        return
    calls: Sequence[Invoked | InvokedLoop] = loop.calls
    for number, call in enumerate(calls):
        if isinstance(call, InvokedLoop) or not is_product(call.kernel):
            continue
        near = {e for c in calls[: number + 1] if isinstance(c, Invoked) for e in c.entries}
        found: dict[tuple[int, bool], DType] = {}
        for later, other in enumerate((*calls[number + 1 :], *calls[: number + 1]), number + 1):
            if isinstance(other, InvokedLoop):
                break
            again = later >= len(calls)
            for entry, buffer in zip(other.entries, other.kernel.buffers, strict=True):
                if _moves(loop.places[entry]) and (again or entry not in near):
                    found.setdefault((entry, again), buffer.dtype)
            if is_product(other.kernel):
                break
        if found:
            yield call, [(e, d, again) for (e, again), d in found.items()][:MOST_RANGES]


def _moves(place: InnerPlace) -> bool:
    """Whether an entry is another place in each step, and far from the last one."""
    return not (place.each or place.rows) and typical(place.step) >= LEAST_ELEMENTS
