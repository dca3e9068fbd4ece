"""What the chapters share: the command line, the colours, figures, and errors of functions."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from symgrad.diagram.records import Diagram

# Colours that people with any kind of colour vision can tell apart: Okabe and Ito 2008.
BLACK, BLUE, ORANGE, GREEN, PURPLE, SKY = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9",
)  # fmt: skip


def command_line(chapter: str, description: str, quick: str) -> argparse.ArgumentParser:
    """The options of a chapter; its figures go to `output/` beside it, or where `--out` says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    path = Path(chapter)
    parser.add_argument("--out", type=Path, default=path.parent / "output" / path.stem)
    return parser


def save(picture: Diagram | Figure, path: Path) -> None:
    """Write a picture and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, Figure):
        picture.savefig(path, dpi=150)
    else:
        picture.save(path)
    print(f"-> {path}")


def grid(n: int, low: float, high: float, points: int) -> np.ndarray:
    """Return the middles of points^n equal boxes, (points^n, n)."""
    middles = low + (np.arange(points) + 0.5) * (high - low) / points
    return np.stack(np.meshgrid(*[middles] * n, indexing="ij"), axis=-1).reshape(-1, n)


def missed(found: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the L1 error as a part of the integral of |f|; the last axis runs over the points."""
    return np.abs(found - y).mean(axis=-1) / np.abs(y).mean()
