"""The numbers in `coefficients.py`, derived: minimax polynomials, split constants, thresholds.

    python -m codegen.runtime.minimax            write coefficients.py anew
    python -m codegen.runtime.minimax --check    derive all again and compare
    python -m codegen.runtime.minimax --errors   print the error of every polynomial

A polynomial p of a table minimises the largest error |w(x) (p(x) - g(x))| on an interval. Remez'
exchange algorithm finds it: the best p has an error that alternates between +E and -E at one point
more than p has coefficients; a linear system gives p and E for guessed points, which then move to
the extrema of the error (Remez 1934; Cheney 1966). All of it runs in 50 digits of mpmath on a fine
grid. Coefficients are rounded from the lowest power up, and after each of the first few roundings
the rest is fitted again, so that they make up for it (Brisebarre, Muller and Tisserand 2006).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mpmath
from mpmath import mpf

Real = Any  # an mpmath number; mpmath ships no types
Function = Callable[[Real], Real]

DIGITS = 50
BITS = {32: 24, 64: 53}
# Points of the grid for each coefficient.
DENSITY = 24
# So many coefficients, from the lowest power on, are rounded before the others are fitted again.
REFITTED = 3
# How near the largest error must come to the level at which the errors alternate.
CLOSE = 1.002


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A polynomial of `count` coefficients in x, lowest power first, for a float of `width` bits.

    Fields:
        goal:     g, what the polynomial approximates.
        weight:   w: w (p - g) is the relative error of the function in the end.
        low, high: the interval.
    """

    width: int
    count: int
    goal: Function
    weight: Function
    low: Real
    high: Real

    def grid(self) -> list[tuple[Real, Real, Real]]:
        """Points with their goals and weights, denser towards the ends as Chebyshev's points."""
        n = DENSITY * self.count
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        points = [middle - half * mpmath.cos(mpmath.pi * (k + mpf(1) / 3) / n) for k in range(n)]
        return [(x, self.goal(x), self.weight(x)) for x in points]


def value(coefficients: Sequence[Real], x: Real) -> Real:
    """The polynomial at x; coefficients from the lowest power up."""
    total = mpf(0)
    for c in reversed(coefficients):
        total = total * x + c
    return total


def remez(
    grid: Sequence[tuple[Real, Real, Real]], count: int, fixed: Sequence[Real] = ()
) -> list[Real]:
    """The minimax coefficients whose first ones are `fixed`, lowest power first."""
    free = range(len(fixed), count)
    goals = [g - value(fixed, x) for x, g, _ in grid]
    nodes = _spread(len(grid), len(free) + 1)
    found: list[Real] = []
    for _ in range(30):
        rows = [
            [*(grid[j][0] ** k for k in free), (-1) ** i / grid[j][2]] for i, j in enumerate(nodes)
        ]
        right = mpmath.matrix([goals[j] for j in nodes])
        *found, level = mpmath.lu_solve(mpmath.matrix(rows), right)
        whole = [*fixed, *found]
        errors = [w * (value(whole, x) - g) for x, g, w in grid]
        if max(map(abs, errors)) <= CLOSE * abs(level):
            return whole
        nodes = _extrema(errors, len(nodes)) or nodes
    return [*fixed, *found]


def _spread(size: int, count: int) -> list[int]:
    """So many indices below `size`, even on a grid of Chebyshev points."""
    return [round(k * (size - 1) / (count - 1)) for k in range(count)]


def _extrema(errors: list[Real], count: int) -> list[int]:
    """Where the error is largest in each run of one sign; of more than `count`, the larger end."""
    best: list[int] = []
    for k, e in enumerate(errors):
        if best and (errors[best[-1]] > 0) == (e > 0):
            if abs(e) > abs(errors[best[-1]]):
                best[-1] = k
        else:
            best.append(k)
    while len(best) > count:
        best.pop(0 if abs(errors[best[0]]) < abs(errors[best[-1]]) else -1)
    return best if len(best) == count else []


def rounded(x: Real, width: int) -> float:
    """The nearest float of the width, as a Python float."""
    with mpmath.workprec(BITS[width]):
        return float(+x)


@cache
def coefficients(fit: Fit) -> tuple[float, ...]:
    """The polynomial of a fit, its coefficients floats of the width, highest power first."""
    with mpmath.workdps(DIGITS):
        grid = fit.grid()
        fixed: list[Real] = []
        whole = remez(grid, fit.count, fixed)
        for _ in range(min(REFITTED, fit.count - 1)):
            fixed.append(mpf(rounded(whole[len(fixed)], fit.width)))
            whole = remez(grid, fit.count, fixed)
        return tuple(rounded(c, fit.width) for c in reversed(whole))


def error(fit: Fit) -> float:
    """The largest error of the rounded polynomial, in exact arithmetic, in units of 2^-bits."""
    with mpmath.workdps(DIGITS):
        p = [mpf(c) for c in reversed(coefficients(fit))]
        worst = max(abs(w * (value(p, x) - g)) for x, g, w in fit.grid())
        return float(worst * 2 ** BITS[fit.width])


def parts(x: Real, bits: Sequence[int]) -> tuple[float, ...]:
    """The number x as a sum of floats of so many bits each, the largest first."""
    found = []
    for count in bits:
        with mpmath.workprec(count):
            part = float(+x)
        found.append(part)
        x = x - mpf(part)
    return tuple(found)


# -- what is fitted -------------------------------------------------------------------------------
# Each takes the width of a float and the count of coefficients. Intervals are a little wider than
# their formulas say, for the rounding of the quotient that reduces an argument.
WIDER = 1 + 2.0**-12


def _exp(width: int, count: int) -> Fit:
    """exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2) / 2; the error is that of exp(r) - 1."""
    half = mpmath.ln2 / 2 * WIDER

    def goal(r: Real) -> Real:
        return (mpmath.expm1(r) - r) / r**2

    return Fit(width, count, goal, lambda r: r**2 / mpmath.expm1(r), -half, half)


def _exp2(width: int, count: int) -> Fit:
    """2^r = 1 + r P(r) for |r| <= 1/2."""
    half = mpf(WIDER) / 2
    return Fit(width, count, lambda r: (2**r - 1) / r, lambda r: r / 2**r, -half, half)


def _ratio(z: Real) -> Real:
    """log(1 + f) / s where s = f / (2 + f) and z = s^2: it is 2 artanh(s) / s."""
    s = mpmath.sqrt(z)
    return 2 * mpmath.atanh(s) / s


def _widest() -> Real:
    """s^2 where 1 + f is sqrt(2) or its inverse."""
    root = mpmath.sqrt(2)
    return ((root - 1) / (root + 1)) ** 2 * WIDER


def _log(width: int, count: int) -> Fit:
    """log(1 + f) = s (2 + z P(z))."""
    return Fit(
        width,
        count,
        lambda z: (_ratio(z) - 2) / z,
        lambda z: z / _ratio(z),
        mpf(0),
        _widest(),
    )


def _log2_lead(width: int) -> tuple[float, ...]:
    """2 / ln 2 in two parts, and 2 / (3 ln 2) in one: what it lacks, the fit makes up for."""
    two = [BITS[width]] * 2
    return (*parts(2 / mpmath.ln2, two), rounded(2 / (3 * mpmath.ln2), width))


def _log2_tail(width: int, count: int) -> Fit:
    """log2(1 + f) = s (2 / ln 2 + z (2 / (3 ln 2) + z P(z)))."""
    lead = mpf(_log2_lead(width)[2])

    def goal(z: Real) -> Real:
        return ((_ratio(z) - 2) / z / mpmath.ln2 - lead) / z

    def weight(z: Real) -> Real:
        return z**2 * mpmath.ln2 / _ratio(z)

    return Fit(width, count, goal, weight, mpf(0), _widest())


# How far the float quotient by pi / 2 can push an argument out of its interval: REDUCIBLE of it, by
# 2^-24 or 2^-53 of themselves and once more for the rounded 2 / pi.
SLACK = {32: 0.008, 64: 0.001}


def _quarter(width: int) -> Real:
    """The square of pi / 4 and of what an argument can exceed it."""
    return (mpmath.pi / 4 + SLACK[width]) ** 2


def _sine(width: int, count: int) -> Fit:
    """sin(r) = r + r z P(z) where z = r^2 and |r| <= pi / 4."""

    def goal(z: Real) -> Real:
        r = mpmath.sqrt(z)
        return (mpmath.sin(r) / r - 1) / z

    def weight(z: Real) -> Real:
        r = mpmath.sqrt(z)
        return r * z / mpmath.sin(r)

    return Fit(width, count, goal, weight, mpf(0), _quarter(width))


def _cosine(width: int, count: int) -> Fit:
    """cos(r) = 1 - z / 2 + z^2 P(z) where z = r^2 and |r| <= pi / 4."""

    def goal(z: Real) -> Real:
        return (mpmath.cos(mpmath.sqrt(z)) - 1 + z / 2) / z**2

    def weight(z: Real) -> Real:
        return z**2 / mpmath.cos(mpmath.sqrt(z))

    return Fit(width, count, goal, weight, mpf(0), _quarter(width))


def _tangent(width: int, count: int) -> Fit:
    """tan(r) = r + r z P(z) where z = r^2 and |r| <= pi / 4."""

    def goal(z: Real) -> Real:
        r = mpmath.sqrt(z)
        return (mpmath.tan(r) / r - 1) / z

    def weight(z: Real) -> Real:
        r = mpmath.sqrt(z)
        return r * z / mpmath.tan(r)

    return Fit(width, count, goal, weight, mpf(0), _quarter(width))


def _sinh(width: int, count: int) -> Fit:
    """sinh(x) = x + x z P(z) where z = x^2 <= 1."""

    def goal(z: Real) -> Real:
        x = mpmath.sqrt(z)
        return (mpmath.sinh(x) / x - 1) / z

    def weight(z: Real) -> Real:
        x = mpmath.sqrt(z)
        return x * z / mpmath.sinh(x)

    return Fit(width, count, goal, weight, mpf(0), mpf(1))


def _arctan(width: int, count: int) -> Fit:
    """arctan(t) = t + t z P(z) where z = t^2 and |t| <= 1/2."""

    def goal(z: Real) -> Real:
        t = mpmath.sqrt(z)
        return (mpmath.atan(t) / t - 1) / z

    def weight(z: Real) -> Real:
        t = mpmath.sqrt(z)
        return t * z / mpmath.atan(t)

    return Fit(width, count, goal, weight, mpf(0), mpf(WIDER) / 4)


def _erf_near(width: int, count: int) -> Fit:
    """erf(x) = x + x P(z) where z = x^2 <= 1."""

    def goal(z: Real) -> Real:
        x = mpmath.sqrt(z)
        return mpmath.erf(x) / x - 1

    def weight(z: Real) -> Real:
        x = mpmath.sqrt(z)
        return x / mpmath.erf(x)

    return Fit(width, count, goal, weight, mpf(0), mpf(1))


def _erf_far(width: int, count: int) -> Fit:
    """erf(x) = 1 - exp(-P(x)) for 1 <= x <= the place where erf(x) rounds to 1."""
    return Fit(
        width,
        count,
        lambda x: -mpmath.log(mpmath.erfc(x)),
        lambda x: mpmath.erfc(x) / mpmath.erf(x),
        mpf(1),
        mpf(erf_settled(width)),
    )


# name -> its meaning, and the count of coefficients for each width of a float
FITS: dict[str, tuple[Callable[[int, int], Fit], dict[int, int]]] = {
    "EXP": (_exp, {32: 6, 64: 10}),
    "EXP2": (_exp2, {32: 6, 64: 11}),
    "LOG": (_log, {32: 3, 64: 7}),
    "LOG2_TAIL": (_log2_tail, {32: 3, 64: 7}),
    "SINE": (_sine, {32: 3, 64: 6}),
    "COSINE": (_cosine, {32: 3, 64: 6}),
    "TANGENT": (_tangent, {32: 7, 64: 14}),
    "SINH": (_sinh, {32: 4, 64: 7}),
    "ARCTAN": (_arctan, {32: 5, 64: 13}),
    "ERF_NEAR": (_erf_near, {32: 7, 64: 12}),
    "ERF_FAR": (_erf_far, {32: 7, 64: 19}),
}


def fitted(name: str, width: int) -> Fit:
    """The fit of a table for floats of a width."""
    make, counts = FITS[name]
    with mpmath.workdps(DIGITS):
        return make(width, counts[width])


# -- thresholds and split constants ---------------------------------------------------------------
def below(x: Real, width: int) -> float:
    """The largest float of the width not above x."""
    with mpmath.workprec(BITS[width]):
        return float(mpmath.fadd(x, 0, rounding="f"))


def erf_settled(width: int) -> float:
    """A float from which on erf(x) rounds to 1, with half a unit to spare."""
    target = mpf(2) ** -(BITS[width] + 2)
    return rounded(mpmath.findroot(lambda x: mpmath.log(mpmath.erfc(x) / target), 4), width)


def tanh_settled(width: int) -> float:
    """A float from which on tanh(x) rounds to 1, with half a unit to spare."""
    return rounded(mpmath.atanh(1 - mpf(2) ** -(BITS[width] + 2)), width)


EXPONENTS = {32: 128, 64: 1024}


def constants() -> dict[str, dict[int, Any]]:
    """Tables that are no polynomials, by name and width."""
    largest = {w: (1 - mpf(2) ** -BITS[w]) * mpf(2) ** EXPONENTS[w] for w in BITS}
    tiny = {w: mpf(2) ** (2 - EXPONENTS[w]) for w in BITS}
    return {
        "LN2": {w: parts(mpmath.ln2, (BITS[w] - (8 if w == 32 else 11), BITS[w])) for w in BITS},
        "PI": {w: parts(mpmath.pi, [BITS[w]] * 3) for w in BITS},
        "LOG2_LEAD": {w: _log2_lead(w) for w in BITS},
        "EXP_LOW": {w: -below(-mpmath.log(tiny[w]), w) for w in BITS},
        "EXP_HIGH": {w: below(mpmath.log(largest[w]), w) for w in BITS},
        "EXP_ZERO": {w: below(mpmath.log(tiny[w] * mpf(2) ** -(BITS[w] + 1)), w) for w in BITS},
        "TANH_SETTLED": {w: tanh_settled(w) for w in BITS},
        "ERF_SETTLED": {w: erf_settled(w) for w in BITS},
    }


WORDS = 20


def two_over_pi() -> list[int]:
    """A word of zeros, then the binary digits of 2 / pi in words of 64."""
    with mpmath.workprec(64 * WORDS + 64):
        digits = int(mpmath.floor(2 / mpmath.pi * mpf(2) ** (64 * (WORDS - 1))))
    return [(digits >> 64 * (WORDS - 1 - k)) & (2**64 - 1) for k in range(WORDS)]


# -- the file ---------------------------------------------------------------------------------
HEADER = '''"""Numbers of the vector mathematics, by the width of a float: made, not written.

`python -m codegen.runtime.minimax` writes this file; what each table means stands there, with the
function of its name. Polynomials have their highest power first.
"""

from __future__ import annotations
'''


def text() -> str:
    """The source of `coefficients.py`."""
    lines = [HEADER]
    for name in FITS:
        table = {width: coefficients(fitted(name, width)) for width in FITS[name][1]}
        lines.append(_table(name, "tuple[float, ...]", table))
    with mpmath.workdps(DIGITS):
        for name, numbers in constants().items():
            kind = "tuple[float, ...]" if isinstance(numbers[64], tuple) else "float"
            lines.append(_table(name, kind, numbers))
    words = [f"    0x{word:016X}," for word in two_over_pi()]
    lines.append("\n".join(["TWO_OVER_PI: tuple[int, ...] = (", *words, ")"]))
    return "\n".join(lines) + "\n"


def _table(name: str, kind: str, numbers: dict[int, Any]) -> str:
    rows = [f"{name}: dict[int, {kind}] = {{"]
    for width, entry in numbers.items():
        if isinstance(entry, float):
            rows.append(f"    {width}: {entry!r},")
        else:
            rows += [f"    {width}: (", *(f"        {number!r}," for number in entry), "    ),"]
    return "\n".join([*rows, "}"])


PLACE = Path(__file__).with_name("coefficients.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or compare it, or print the errors; 1 where it differs."""
    parser = argparse.ArgumentParser(prog="python -m codegen.runtime.minimax")
    parser.add_argument("--check", action="store_true", help="derive all and compare")
    parser.add_argument("--errors", action="store_true", help="print the error of each polynomial")
    chosen = parser.parse_args(arguments)
    if chosen.errors:
        for name, (make, counts) in FITS.items():
            for width, count in counts.items():
                wrong = error(fitted(name, width))
                what = (make.__doc__ or "").partition(";")[0].rstrip(".")
                print(f"{name:15} float{width} {count:3} {wrong:9.2e} of 2^-{BITS[width]}  {what}")
        return 0
    made = text()
    if not chosen.check:
        PLACE.write_text(made, encoding="utf-8")
        return 0
    same = made == PLACE.read_text(encoding="utf-8")
    print(f"{PLACE.name}: {'as derived' if same else 'differs from what is derived'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
