"""Colours that people with any kind of colour vision can tell apart.

The halves and the residuals take colours of Okabe and Ito (2008, "Color Universal Design"). The
scale of magnitudes runs through control points of the perceptually uniform map viridis (Smith and
van der Walt, SciPy 2015), turned round: on white paper more ink means more.
"""

from __future__ import annotations

FORWARD = "#0072B2"  # Okabe-Ito blue
BACKWARD = "#D55E00"  # Okabe-Ito vermillion
RESIDUAL = "#009E73"  # Okabe-Ito bluish green
FORWARD_FILL = "#E3F0F8"
BACKWARD_FILL = "#FCEADB"
LEAF_FILL = "#FFFFFF"
NEUTRAL_FILL = "#F1F1F1"
CLUSTER_FILL = "#FAFAFA"
CLUSTER_LINE = "#C4C4C4"
INK = "#1A1A1A"
MUTED = "#5A5A5A"

# viridis from 0.93 down to 0 in eighths: pale for small, dark for large
_SCALE = (
    (210, 226, 27),
    (132, 212, 75),
    (66, 190, 113),
    (32, 163, 134),
    (35, 136, 142),
    (47, 108, 142),
    (61, 77, 138),
    (72, 41, 121),
    (68, 1, 84),
)


def scale(position: float) -> str:
    """The colour at a position of the scale, 0 for the smallest and 1 for the largest.

    >>> scale(0.0), scale(1.0)
    ('#d2e21b', '#440154')
    """
    place = min(max(position, 0.0), 1.0) * (len(_SCALE) - 1)
    low = min(int(place), len(_SCALE) - 2)
    part = place - low
    mixed = (round(a + part * (b - a)) for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def contrast(color: str) -> str:
    """The ink, dark or white, that is readable on a background `#rrggbb`.

    >>> contrast("#ffffff"), contrast("#440154")
    ('#1A1A1A', '#FFFFFF')
    """
    red, green, blue = (int(color[k : k + 2], 16) / 255.0 for k in (1, 3, 5))
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return INK if luminance > 0.18 else "#FFFFFF"
