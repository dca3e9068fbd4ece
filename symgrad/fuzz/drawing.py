"""A random program from a seed."""

from __future__ import annotations

from symgrad.fuzz import elements, loops, moves, sums
from symgrad.fuzz.generation import Generator, Unfit, Variable
from symgrad.fuzz.programs import Program

PRODUCTIONS: tuple[tuple[float, loops.Production], ...] = (
    (6, elements.function),
    (5, elements.arithmetic),
    (1, elements.negative),
    (1.5, elements.comparison),
    (1.5, elements.logic),
    (2, elements.choice),
    (1, elements.clipped),
    (1.5, elements.typed),
    (1.5, elements.elementwise),
    (0.7, elements.integers),
    (1, elements.truth),
    (3, sums.summed),
    (2, sums.extremum),
    (1.5, sums.running),
    (1.5, sums.normalised),
    (3, sums.product),
    (1, sums.tensordot),
    (2.5, sums.einsum),
    (1, sums.diagonal),
    (2, sums.loss),
    (1, moves.permuted),
    (1.5, moves.reshaped),
    (1, moves.of_one),
    (1.2, moves.stretched),
    (1.5, moves.joined),
    (0.7, moves.cut),
    (1.2, moves.padded),
    (1.2, moves.turned),
    (2, moves.sliced),
    (2.5, moves.taken),
    (1.5, moves.accumulated),
    (1.5, moves.made),
    (3, loops.scanned),
    (1.5, loops.drawn),
    (2, loops.derived),
    (1, loops.rewritten),
    (2.5, loops.naive),
)
"""What a line is drawn from, with weights."""
ATTEMPTS = 8  # productions per line that is wanted, at most


def random_program(seed: int) -> Program:
    """The program of a seed: the same in every process.

    >>> random_program(7).outputs == random_program(7).outputs
    True
    """
    g = Generator(seed)
    g.leaf(("B", 3), g.floats)
    g.leaf((g.pick(g.pool), "C"), g.floats)
    for _ in range(g.whole(0, 2)):
        g.leaf(g.shape_terms(), g.floats)
    g.leaf(g.shape_terms(2), g.pick([g.ints, g.other, "bool"]))
    weights = [w for w, _ in PRODUCTIONS]
    shares = [w / sum(weights) for w in weights]
    wanted, tried = g.whole(3, 12), 0
    while wanted and tried < 12 * ATTEMPTS:
        tried += 1
        k = int(g.rng.choice(len(PRODUCTIONS), p=shares))
        wanted -= g.attempt(PRODUCTIONS[k][1])
    return finished(g)


def finished(g: Generator) -> Program:
    """The program with outputs: what no line reads, and sometimes more."""
    scope = g.scopes[0]
    leaves = {leaf.name for leaf in g.leaves}
    made = [v for v in scope.variables if v.name not in leaves] or scope.variables[:1]
    program = Program(g.dims, tuple(g.leaves), tuple(scope.lines), ())
    read = {n for line in program.lines for n in _names(line)}
    outputs = [v for v in made if v.name not in read] or made[-1:]
    if g.chance(0.3):
        outputs.append(g.pick(made))
    outputs = list(dict.fromkeys(outputs))[-6:]
    updates = _updates(g, scope.variables, read)
    return Program(
        g.dims, tuple(g.leaves), tuple(scope.lines), tuple(v.name for v in outputs), updates,
        tuple(g.equal), g.seed, g.training, g.smooth, g.stable,
    ).tidy()  # fmt: skip


def _names(line: object) -> set[str]:
    from symgrad.fuzz.programs import names_in

    return set(names_in(line))


def _updates(
    g: Generator, variables: list[Variable], read: set[str]
) -> tuple[tuple[str, str], ...]:
    """The next value of a leaf or two: they keep shape and dtype, and places and lengths stay."""
    if not g.chance(0.3):
        return ()
    pairs: list[tuple[str, str]] = []
    for leaf in g.leaves:
        if leaf.kind == "constant" or not all(isinstance(e, int) for e in leaf.shape):
            continue
        if leaf.data.dtype.kind == "i" and leaf.name in read:
            continue
        node = g.built.node(leaf.name)
        fits = [v for v in variables if v.node.dtype == node.dtype and v.shape == node.shape]
        pairs.append((leaf.name, g.pick(fits).name))
    return tuple(pairs[:2])


__all__ = ["PRODUCTIONS", "Unfit", "random_program"]
