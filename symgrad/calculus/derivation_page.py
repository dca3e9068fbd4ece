"""The page of a derivation: one HTML fragment that needs no network and no script."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from symgrad.calculus.formulas import mathml
from symgrad.graph.dims import printable, show
from symgrad.graph.graph import Graph

if TYPE_CHECKING:
    from symgrad.calculus.derivation import Derivation, Step, Value

_STYLE = """
.sgd{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:1rem auto;padding:0 1rem;
color:CanvasText;background:Canvas}
.sgd math{font-size:1.12em}
.sgd h1{font-size:1.5rem}.sgd h2{font-size:1.15rem;margin-top:2rem}
.sgd table{border-collapse:collapse;width:100%}
.sgd td{padding:.2rem .6rem;border-bottom:1px solid #8884;vertical-align:middle}
.sgd ol{list-style:none;padding:0;counter-reset:step}
.sgd li.step{border:1px solid #8886;border-left:5px solid #0072b2;border-radius:6px;
padding:.5rem 1rem;margin:.7rem 0}
.sgd li.goal{border-left-color:#d55e00}
.sgd .rule{font-weight:600}.sgd .why,.sgd .small{color:#777;font-size:.87em}
.sgd .formula{margin:.3rem 0;padding:.2rem 0;overflow-x:auto;overflow-y:hidden}
.sgd code,.sgd pre{font:13px/1.5 ui-monospace,monospace}
.sgd pre{overflow-x:auto;border:1px solid #8886;border-radius:6px;padding:.7rem}
""".replace("\n", "")


def page(derivation: Derivation) -> str:
    """The derivation as HTML: what is computed, then each step back, then the result."""
    loss = derivation.loss.symbol
    names = ", ".join(
        mathml(rf"\frac{{\partial {loss}}}{{\partial {w.symbol}}}", block=False)
        for w in derivation.wrt
    )
    goals = {id(w.node) for w in derivation.wrt}
    values = "".join(_row(v) for v in derivation.values)
    steps = "".join(_item(s, id(s.target.node) in goals) for s in derivation.steps)
    bar = mathml(r"\overline{v}", block=False)
    own = mathml("v", block=False)
    slope = mathml(rf"\overline{{v}} = \frac{{\partial {loss}}}{{\partial v}}", block=False)
    start = mathml(rf"\overline{{{loss}}} = 1")
    result = escape(printable_lines(str(Graph.of(derivation.gradient))))
    return (
        f"<style>{_STYLE}</style><div class='sgd'>"
        f"<h1>{names}, step by step</h1>"
        f"<p>The chain rule walks from the loss back to the leaves. For every value {own} of the "
        f"forward pass it finds the <em>cotangent</em> {bar}, where {slope}: how much the loss "
        f"changes when an element of {own} does. It has the shape of {own}. A value that is used "
        "several times collects one contribution from each use.</p>"
        f"<h2>Forward: what is computed</h2><table>{values}</table>"
        "<h2>Backward: one rule at a time</h2><ol>"
        "<li class='step'><span class='rule'>0. start</span> "
        "<span class='why'>the loss changes with itself one to one</span>"
        f"<div class='formula'>{start}</div></li>"
        f"{steps}</ol>"
        "<h2>The same, simplified: what the compiler gets</h2>"
        f"<pre>{result}</pre></div>"
    )


def printable_lines(text: str) -> str:
    """Text of several lines, without control characters."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _row(value: Value) -> str:
    formula = f"{value.symbol} = {value.formula}" if value.formula else value.symbol
    return (
        f"<tr><td>{mathml(formula, block=False)}</td>"
        f"<td><code>{escape(show(value.shape))}</code></td>"
        f"<td class='small'>{escape(printable(value.origin))}</td></tr>"
    )


def _item(step: Step, goal: bool) -> str:
    which, of = step.share
    shared = f" · contribution {which} of {of}" if of > 1 else ""
    line = f" · {escape(printable(str(step.where)))}" if step.where is not None else ""
    parts = [
        f"<li class='step{' goal' if goal else ''}'>"
        f"<span class='rule'>{step.number}. {escape(step.rule)}</span> "
        f"<span class='why'>{escape(step.why)}</span>",
        f"<div class='small'>from {mathml(step.forward, block=False)}{line}{shared}</div>",
        f"<div class='formula'>{mathml(step.formula)}</div>",
        f"<div class='small'>shape <code>{escape(show(step.target.shape))}</code>",
    ]
    if step.einsum:
        contractions = ", ".join(f"<code>{escape(e)}</code>" for e in step.einsum)
        parts.append(f" · einsum {contractions}")
    if step.residuals:
        parts.append(" · reads " + ", ".join(_residual(r) for r in step.residuals))
    return "".join((*parts, "</div></li>"))


def _residual(value: Value) -> str:
    origin = f" ({escape(printable(value.origin))})" if value.origin else ""
    kept = "" if not value.formula else ", kept from the forward pass"
    return f"{mathml(value.symbol, block=False)}{origin}{kept}"
