"""symgrad: networks written as mathematics, differentiated, drawn, compiled and trained.

    import symgrad as sg

This module is the face of the house: it holds names and nothing else. Every name is imported when
it is first used, so that `import symgrad` costs little and loads neither Numba nor SciPy. A module
of symgrad never imports the face; it imports the rooms below it directly.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import lazy_loader

from symgrad._version import __version__ as __version__

_ROOMS: dict[str, list[str]] = {
    "calculus.costs": ["cost"],
    "calculus.derivation": ["derive"],
    "calculus.jvp": ["jvp"],
    "calculus.second_order": ["hessian", "hvp", "jacobian"],
    "calculus.simplification": ["simplify", "substitute"],
    "calculus.stabilization": ["stabilize"],
    "calculus.vjp": ["grad", "value_and_grad", "vjp"],
    "graph.arithmetic": [
        "astype",
        "clip",
        "maximum",
        "minimum",
        "power",
        "reciprocal",
        "square",
        "where",
    ],
    "graph.contractions": ["diag", "dot", "einsum", "matmul", "outer", "tensordot", "trace"],
    "graph.dims": ["dim"],
    "graph.elementwise": [
        "abs",
        "arctan",
        "cos",
        "cosh",
        "elementwise",
        "elu",
        "erf",
        "exp",
        "expm1",
        "floor",
        "gelu",
        "isfinite",
        "isnan",
        "leaky_relu",
        "log",
        "log1p",
        "relu",
        "rsqrt",
        "sigmoid",
        "sign",
        "silu",
        "sin",
        "sinh",
        "softplus",
        "sqrt",
        "stop_gradient",
        "tan",
        "tanh",
    ],
    "graph.errors": [
        "CompileError",
        "DTypeError",
        "DataError",
        "GradError",
        "LeafError",
        "ShapeError",
        "SymgradError",
    ],
    "graph.evaluator": ["evaluate"],
    "graph.indexing": ["one_hot", "take", "take_along_axis", "tril", "triu"],
    "graph.latex": ["latex"],
    "graph.leaves": [
        "arange",
        "constant",
        "eye",
        "full",
        "input",
        "inputs",
        "ones",
        "ones_like",
        "parameter",
        "parameters",
        "zeros",
        "zeros_like",
    ],
    "graph.losses": ["binary_cross_entropy", "cross_entropy", "mse"],
    "graph.nodes": ["Node"],
    "graph.reductions": [
        "all",
        "any",
        "argmax",
        "argmin",
        "cumprod",
        "cumsum",
        "log_softmax",
        "logsumexp",
        "max",
        "mean",
        "min",
        "prod",
        "softmax",
        "std",
        "sum",
        "var",
    ],
    "graph.scanning": ["scan"],
    "graph.shapes": [
        "broadcast_to",
        "concatenate",
        "expand_dims",
        "flip",
        "moveaxis",
        "pad",
        "repeat",
        "reshape",
        "split",
        "squeeze",
        "stack",
        "swapaxes",
        "tile",
        "transpose",
    ],
    "graph.streams": ["dropout"],
    "insight.flow": ["gradient_flow"],
    "insight.not_finite": ["explain_nan"],
    "insight.pictures": ["draw"],
    "interop.digraph": ["to_networkx"],
    "interop.formulas": ["to_sympy"],
    "train.callbacks": ["Checkpoint", "CsvLog", "EarlyStopping"],
    "train.trainer": ["Trainer"],
}
_SUBMODULES: list[str] = ["init", "nn", "optim", "random"]
_COMPILER: dict[str, list[str]] = {"pipeline": ["compile"]}


def _refuse_shadowed_codegen() -> None:
    """Check that `codegen`, symgrad's second package, is ours and not a user's file of that name.

    Raises: ImportError that names the shadowing file and says what to do.
    """
    ours = Path(__file__).resolve().parent.parent / "codegen"
    loaded = sys.modules.get("codegen")
    if loaded is not None:
        found = getattr(loaded, "__file__", None)
    else:
        spec = importlib.util.find_spec("codegen")
        found = spec.origin if spec is not None else None
    if found is not None and Path(found).resolve().parent == ours:
        return
    if found is None:
        raise ImportError(
            "symgrad: its package 'codegen' is missing.\n"
            f"  expected in  {ours}\n"
            "  Install symgrad again:  pip install --force-reinstall symgrad"
        )
    raise ImportError(
        "symgrad: its package 'codegen' is hidden by another module of that name.\n"
        f"  found     {found}\n"
        f"  expected  {ours}\n"
        "  Python takes the first 'codegen' on its path. Rename that file or folder, or start "
        "Python from another folder."
    )


_refuse_shadowed_codegen()

_from_symgrad, _, _names = lazy_loader.attach(__name__, _SUBMODULES, _ROOMS)
_from_codegen, _, _compiler_names = lazy_loader.attach("codegen", [], _COMPILER)
__all__ = sorted([*_names, *_compiler_names, "__version__"])


if not TYPE_CHECKING:  # a type checker reads the imports below instead

    def __getattr__(name: str) -> object:
        """Import a name of the face when it is first used."""
        if name in _compiler_names:
            value = _from_codegen(name)
            globals()[name] = value
            return value
        if name not in _names:
            raise AttributeError(
                f"module 'symgrad' has no attribute {name!r}", name=name, obj=sys.modules[__name__]
            )  # with these Python asks: Did you mean ...?
        return _from_symgrad(name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from codegen.pipeline import compile as compile
    from symgrad import init as init, nn as nn, optim as optim, random as random
    from symgrad.calculus.costs import cost as cost
    from symgrad.calculus.derivation import derive as derive
    from symgrad.calculus.jvp import jvp as jvp
    from symgrad.calculus.second_order import hessian as hessian, hvp as hvp, jacobian as jacobian
    from symgrad.calculus.simplification import simplify as simplify, substitute as substitute
    from symgrad.calculus.stabilization import stabilize as stabilize
    from symgrad.calculus.vjp import grad as grad, value_and_grad as value_and_grad, vjp as vjp
    from symgrad.graph.arithmetic import (
        astype as astype,
        clip as clip,
        maximum as maximum,
        minimum as minimum,
        power as power,
        reciprocal as reciprocal,
        square as square,
        where as where,
    )
    from symgrad.graph.contractions import (
        diag as diag,
        dot as dot,
        einsum as einsum,
        matmul as matmul,
        outer as outer,
        tensordot as tensordot,
        trace as trace,
    )
    from symgrad.graph.dims import dim as dim
    from symgrad.graph.elementwise import (
        abs as abs,
        arctan as arctan,
        cos as cos,
        cosh as cosh,
        elementwise as elementwise,
        elu as elu,
        erf as erf,
        exp as exp,
        expm1 as expm1,
        floor as floor,
        gelu as gelu,
        isfinite as isfinite,
        isnan as isnan,
        leaky_relu as leaky_relu,
        log as log,
        log1p as log1p,
        relu as relu,
        rsqrt as rsqrt,
        sigmoid as sigmoid,
        sign as sign,
        silu as silu,
        sin as sin,
        sinh as sinh,
        softplus as softplus,
        sqrt as sqrt,
        stop_gradient as stop_gradient,
        tan as tan,
        tanh as tanh,
    )
    from symgrad.graph.errors import (
        CompileError as CompileError,
        DataError as DataError,
        DTypeError as DTypeError,
        GradError as GradError,
        LeafError as LeafError,
        ShapeError as ShapeError,
        SymgradError as SymgradError,
    )
    from symgrad.graph.evaluator import evaluate as evaluate
    from symgrad.graph.indexing import (
        one_hot as one_hot,
        take as take,
        take_along_axis as take_along_axis,
        tril as tril,
        triu as triu,
    )
    from symgrad.graph.latex import latex as latex
    from symgrad.graph.leaves import (
        arange as arange,
        constant as constant,
        eye as eye,
        full as full,
        input as input,
        inputs as inputs,
        ones as ones,
        ones_like as ones_like,
        parameter as parameter,
        parameters as parameters,
        zeros as zeros,
        zeros_like as zeros_like,
    )
    from symgrad.graph.losses import (
        binary_cross_entropy as binary_cross_entropy,
        cross_entropy as cross_entropy,
        mse as mse,
    )
    from symgrad.graph.nodes import Node as Node
    from symgrad.graph.reductions import (
        all as all,
        any as any,
        argmax as argmax,
        argmin as argmin,
        cumprod as cumprod,
        cumsum as cumsum,
        log_softmax as log_softmax,
        logsumexp as logsumexp,
        max as max,
        mean as mean,
        min as min,
        prod as prod,
        softmax as softmax,
        std as std,
        sum as sum,
        var as var,
    )
    from symgrad.graph.scanning import scan as scan
    from symgrad.graph.shapes import (
        broadcast_to as broadcast_to,
        concatenate as concatenate,
        expand_dims as expand_dims,
        flip as flip,
        moveaxis as moveaxis,
        pad as pad,
        repeat as repeat,
        reshape as reshape,
        split as split,
        squeeze as squeeze,
        stack as stack,
        swapaxes as swapaxes,
        tile as tile,
        transpose as transpose,
    )
    from symgrad.graph.streams import dropout as dropout
    from symgrad.insight.flow import gradient_flow as gradient_flow
    from symgrad.insight.not_finite import explain_nan as explain_nan
    from symgrad.insight.pictures import draw as draw
    from symgrad.interop.digraph import to_networkx as to_networkx
    from symgrad.interop.formulas import to_sympy as to_sympy
    from symgrad.train.callbacks import (
        Checkpoint as Checkpoint,
        CsvLog as CsvLog,
        EarlyStopping as EarlyStopping,
    )
    from symgrad.train.trainer import Trainer as Trainer
