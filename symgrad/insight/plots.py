"""Figures by Matplotlib. They are built without pyplot: no window, no global state."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from symgrad.diagram.palette import BACKWARD, FORWARD, INK, MUTED, RESIDUAL
from symgrad.diagram.rendering import write_atomically
from symgrad.graph.errors import DataError, SymgradError
from symgrad.insight.mean_field import chi_1, critical_sigma_w2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from symgrad.insight.explosion import Growth
    from symgrad.insight.flow import FlowRow, GradientFlow

_FORMS = ("svg", "png", "pdf")
_COLORS = {"vanishing": FORWARD, "critical": RESIDUAL, "exploding": BACKWARD}
# SVG text stays text, and equal figures give equal files.
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "symgrad"}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches.

    Raises: SymgradError when Matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SymgradError(
            'plot: Matplotlib is not installed. Install it with  pip install "symgrad[demo]"'
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis of few decades with plain numbers: 0.1, 0.2, 0.5, 1."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(LogLocator(subs=range(1, 10)))
    axis.set_minor_formatter("")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure whose ending names the form; the file appears complete or not at all.

    Raises: DataError for an unknown ending or a folder that cannot be written.
    """
    from matplotlib import rc_context

    target = Path(path)
    form = target.suffix[1:].lower()
    if form not in _FORMS:
        raise DataError(
            f"save: cannot tell the form of {str(path)!r}. End it with one of "
            f"{', '.join('.' + f for f in _FORMS)}."
        )
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        metadata = {"Date": None} if form == "svg" else None
        figure.savefig(buffer, format=form, dpi=150, metadata=metadata)
    write_atomically(target, buffer.getvalue())


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)


# -- gradient flow ----------------------------------------------------------------------------
def plot_flow(flow: GradientFlow) -> Figure:
    """Norms of the gradient at the layers' outputs and parameters, with the mean-field forecast."""
    figure = new_figure(9.0, 4.6)
    axes = figure.add_subplot()
    _plain(axes)
    layers = flow.layers
    if len(layers) > 1:
        _plot_layers(axes, flow, layers)
    else:
        _plot_nodes(axes, flow)
    axes.set_ylabel("L2 norm of the gradient")
    axes.set_title(flow.verdict, fontsize=11, color=INK, loc="left", wrap=True)
    return figure


def _positive(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)


def _plot_layers(axes: Axes, flow: GradientFlow, layers: Sequence[FlowRow]) -> None:
    numbers = [row.layer for row in layers]
    norms = _positive([row.gradient_norm for row in layers])
    size = 5.0 if len(numbers) <= 60 else 2.5
    axes.plot(
        numbers, norms, "o-", color=BACKWARD, markersize=size, label="layer's output", zorder=3
    )
    forecast = _forecast(layers)
    if forecast is not None:
        axes.plot(numbers, forecast, "--", color=INK, linewidth=1.3, label="mean-field forecast")
    leaves = [row for row in flow.nodes if row.kind == "parameter"]
    matrices = [row for row in leaves if len(row.shape) > 1]
    vectors = [row for row in leaves if len(row.shape) <= 1]
    for rows, marker, label in ((matrices, "s", "matrices"), (vectors, "^", "vectors")):
        if rows:
            axes.plot(
                [row.layer for row in rows],
                _positive([row.gradient_norm for row in rows]),
                marker,
                color=FORWARD,
                fillstyle="none" if marker == "^" else "full",
                markersize=size,
                label=f"parameters: {label}",
            )
    if np.isfinite(norms).any():
        axes.set_yscale("log")
    axes.set_xlabel("layer (gradients walk from right to left)")
    if len(numbers) <= 30:
        axes.set_xticks(numbers)
    axes.legend(frameon=False, fontsize=9.5)


def _forecast(layers: Sequence[FlowRow]) -> np.ndarray | None:
    """The last layer's norm walked back by the mean-field growth; nan where there is none."""
    norms = np.full(len(layers), np.nan)
    known = False
    for k in range(len(layers) - 1, 0, -1):
        growth = layers[k].chi_1_theory
        if growth is None:
            continue
        start = norms[k] if np.isfinite(norms[k]) else layers[k].gradient_norm
        norms[k] = start
        norms[k - 1] = start * np.sqrt(growth)
        known = True
    return norms if known else None


def _plot_nodes(axes: Axes, flow: GradientFlow) -> None:
    rows = flow.nodes[-60:]
    norms = _positive([row.gradient_norm for row in rows])
    axes.plot(range(len(rows)), norms, "o", color=BACKWARD)
    if np.isfinite(norms).any():
        axes.set_yscale("log")
    axes.set_xticks(range(len(rows)), [row.name[:14] for row in rows], rotation=60, ha="right")


# -- explosion --------------------------------------------------------------------------------
def plot_growth(measured: Sequence[Growth]) -> Figure:
    """Squared gradient norms from the output back to the input, and growth against theory."""
    figure = new_figure(12.0, 5.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.65, 1.0))
    depth = measured[0].squared_norms.shape[1] - 1
    seeds, bias = len(measured[0].squared_norms), measured[0].sigma_b2
    figure.suptitle(
        f"One {depth}-layer tanh network at three initialisations: "
        "vanishing, critical and exploding gradients",
        fontsize=13.5,
        fontweight="bold",
    )
    _plain(left)
    for growth in measured:
        _plot_walk(left, growth, depth)
    left.set_yscale("log")
    left.set_xlim(0, depth * 1.36)
    left.set_xticks(range(0, depth + 1, 5), [str(depth - k) for k in range(0, depth + 1, 5)])
    left.set_xlabel("layer $l$, from the output back to the input")
    left.set_ylabel(r"$\|\partial L/\partial h_l\|^2$ relative to the output")
    left.plot([], [], color=MUTED, linewidth=0.7, alpha=0.6, label=f"each of {seeds} networks")
    left.plot([], [], color=MUTED, linewidth=2.6, label="geometric mean, measured")
    left.plot([], [], color=INK, linewidth=1.2, linestyle="--", label=r"mean field, $\chi_1^{\,n}$")
    left.legend(frameon=False, fontsize=9.5, loc="upper left")
    _plot_theory(right, measured, bias)
    return figure


def _plot_walk(axes: Axes, growth: Growth, depth: int) -> None:
    color = _COLORS[growth.state]
    back = np.arange(depth + 1)
    relative = growth.squared_norms[:, ::-1] / growth.squared_norms[:, -1:]
    for run in relative:
        axes.plot(back, run, color=color, linewidth=0.7, alpha=0.35)
    mean = np.exp(np.log(relative).mean(axis=0))
    axes.plot(back, mean, color=color, linewidth=2.6)
    axes.plot(back, growth.theory**back, color=INK, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"{growth.state}\n$\\sigma_w^2={growth.sigma_w2:g}$\n×{growth.measured:.3f} per layer\n"
        f"theory ×{growth.theory:.3f}",
        (depth, mean[-1]),
        xytext=(10, 0),
        textcoords="offset points",
        va="center",
        color=color,
        fontsize=10,
        fontweight="bold",
    )


def _plot_theory(axes: Axes, measured: Sequence[Growth], bias: float) -> None:
    _plain(axes)
    variances = np.linspace(1.0, 3.0, 81)
    axes.plot(variances, [chi_1(w, bias) for w in variances], "--", color=INK, linewidth=1.2)
    axes.axhline(1.0, color=MUTED, linewidth=0.8)
    critical = critical_sigma_w2(bias)
    axes.axvspan(1.0, critical, color=FORWARD, alpha=0.06, linewidth=0)
    axes.axvspan(critical, 3.0, color=BACKWARD, alpha=0.06, linewidth=0)
    for growth in measured:
        color = _COLORS[growth.state]
        axes.plot(growth.sigma_w2, growth.measured, "o", color=color, markersize=9)
    axes.text(0.03, 0.97, "ordered:\ngradients vanish", transform=axes.transAxes, va="top",
              color=FORWARD, fontsize=10)  # fmt: skip
    axes.text(0.97, 0.03, "chaotic:\ngradients explode", transform=axes.transAxes, ha="right",
              color=BACKWARD, fontsize=10)  # fmt: skip
    axes.annotate(
        f"critical\n$\\sigma_w^2={critical:.4f}$",
        (critical, 1.0),
        xytext=(14, -40),
        textcoords="offset points",
        color=RESIDUAL,
        fontsize=10,
    )
    axes.set_xlim(1.0, 3.0)
    axes.set_xlabel(f"weight variance $\\sigma_w^2$  (bias variance {bias:g})")
    axes.set_ylabel(r"growth of $\|$gradient$\|^2$ per layer")
    axes.set_title(r"measured (dots) on $\chi_1$ (dashes)", fontsize=11)
