"""Loops whose turns go side by side, so that a chain of operations does not wait for itself."""

from __future__ import annotations

from llvmlite import ir


def interleaved(count: int, *bounds: int) -> range:
    """`range(*bounds)` for a loop that LLVM makes vectors of, `count` of them in a turn.

    Args:
        count: a number, which LLVM follows where it is a power of 2.

    >>> list(interleaved(4, 2, 5))
    [2, 3, 4]
    """
    return range(*bounds)


def interleave(back: ir.Instruction, count: int) -> None:
    """Attach to the branch that begins a loop's next turn: LLVM works on `count` vectors in each.

    Source: LLVM Language Reference Manual, metadata `llvm.loop`.
    """
    module, word = back.module, "llvm.loop.interleave.count"
    wish = module.add_metadata([ir.MetaDataString(module, word), ir.IntType(32)(count)])
    advice = ir.MDValue(module, [], name=str(len(module.metadata)))
    advice.operands = (advice, wish)  # its own first part: so it is this loop's alone
    back.set_metadata("llvm.loop", advice)
