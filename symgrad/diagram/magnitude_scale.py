"""Magnitudes as colour and width, by their logarithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from symgrad.diagram import palette
from symgrad.diagram.records import ColorBar, Swatch

_STEPS = 7  # fields of the colour bar
_NOT_FINITE = "#CC79A7"  # Okabe-Ito reddish purple, far from every colour of the scale
_ZERO = palette.NEUTRAL_FILL


@dataclass(frozen=True, slots=True)
class MagnitudeScale:
    """Colour and pen width of magnitudes between `10**low` and `10**high`."""

    low: float = 0.0
    high: float = 0.0
    zero: bool = False
    broken: bool = False

    @classmethod
    def of(cls, magnitudes: Sequence[float]) -> MagnitudeScale:
        """The scale that spans the positive finite ones; at least a factor of ten wide."""
        logs = [math.log10(m) for m in magnitudes if m > 0 and math.isfinite(m)]
        low, high = (min(logs), max(logs)) if logs else (0.0, 0.0)
        missing = max(0.0, 1.0 - (high - low)) / 2
        return cls(
            low - missing,
            high + missing,
            any(m == 0 for m in magnitudes),
            any(not math.isfinite(m) for m in magnitudes),
        )

    def _position(self, magnitude: float) -> float:
        return (math.log10(magnitude) - self.low) / (self.high - self.low or 1.0)

    def color(self, magnitude: float) -> str:
        """`#rrggbb`; zero and not-finite have colours of their own."""
        if not math.isfinite(magnitude):
            return _NOT_FINITE
        return palette.scale(self._position(magnitude)) if magnitude > 0 else _ZERO

    def width(self, magnitude: float) -> float:
        """Pen width in points, 1 to 6."""
        if not math.isfinite(magnitude):
            return 6.0
        return 1.0 + 5.0 * self._position(magnitude) if magnitude > 0 else 0.6

    def bar(self, title: str) -> ColorBar:
        """The colour bar of the legend."""
        places = [k / (_STEPS - 1) for k in range(_STEPS)]
        values = [10.0 ** (self.low + p * (self.high - self.low)) for p in places]
        return ColorBar(
            title,
            tuple((palette.scale(p), f"{v:.1e}") for p, v in zip(places, values, strict=True)),
        )

    def swatches(self) -> tuple[Swatch, ...]:
        """Entries for zero and not-finite magnitudes, where there are any."""
        zero = (Swatch("box", "#BBBBBB", "exactly zero"),) if self.zero else ()
        broken = (Swatch("box", _NOT_FINITE, "not finite"),) if self.broken else ()
        return zero + broken
