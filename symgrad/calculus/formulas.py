r"""LaTeX read back: as MathML for pages that need no network, and as a line of text.

    formula := atom*        atom := base (_ group)? (^ group)?
    base    := letter | number | sign | command | {formula} | \left( formula \right)
             | \begin{aligned} formula & formula \\ .. \end{aligned}

This is the part of LaTeX that symgrad writes. A command that is not known is shown as text, and all
text is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|\s+|.", re.DOTALL)
_SIGNS = {
    "top": "\N{DOWN TACK}", "cdot": "·", "times": "×", "odot": "⊙", "le": "≤", "ge": "≥",
    "ne": "≠", "lt": "<", "gt": ">", "wedge": "∧", "vee": "∨", "oplus": "⊕", "neg": "¬",
    "sim": "\N{TILDE OPERATOR}", "ldots": "…", "vdots": "⋮", "lfloor": "⌊", "rfloor": "⌋",
    "partial": "∂", "in": "∈", "loss": "\N{SCRIPT CAPITAL L}", "backslash": "\\", "infty": "∞",
    "to": "→", "leftarrow": "←", "mid": "|",
}
_LETTERS = {"sigma": "σ", "pi": "π", "alpha": "α", "beta": "β", "lambda": "λ", "chi": "χ"}
_LARGE = {"sum": "∑", "prod": "∏", "max": "max", "min": "min"}
_WORDS = ("log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "arctan", "exp", "bmod")
_SPACES = {",": "0.17em", " ": "0.3em", ";": "0.28em", "quad": "1em", ":": "0.22em", "!": "0em"}
_DEPTH = 200  # nested groups; deeper ones are shown as they are written


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a formula: its kind, its parts, and its text."""

    kind: str
    parts: tuple[Piece, ...] = ()
    text: str = ""


def parse(formula: str) -> Piece:
    """The tree of a formula."""
    parser = _Parser(_TOKEN.findall(formula))
    made: list[Piece] = []
    while parser.peek():
        made += parser.until(())
        if parser.peek():  # a closing brace without an opening one
            parser.take()
    return Piece("row", tuple(made))


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def until(self, ends: tuple[str, ...]) -> list[Piece]:
        """Atoms up to one of these tokens, which is not taken."""
        self.depth += 1
        made: list[Piece] = []
        while self.peek() and self.peek() not in (*ends, "}"):
            if self.peek().isspace():
                self.take()
            else:
                made.append(self.scripted())
        self.depth -= 1
        return made

    def group(self) -> Piece:
        """An argument: `{formula}`, or one atom."""
        while self.peek().isspace():
            self.take()
        if self.peek() != "{":
            return self.base()
        self.take()
        if self.depth > _DEPTH:
            self.at -= 1
            return Piece("word", text=self.words())
        inner = self.until(())
        self.take()
        return inner[0] if len(inner) == 1 else Piece("row", tuple(inner))

    def scripted(self) -> Piece:
        base = self.base()
        scripts: dict[str, Piece] = {}
        while self.peek() in ("_", "^"):
            kind = self.take()
            scripts[kind] = self.group()
        if not scripts:
            return base
        empty = Piece("empty")
        return Piece("scripts", (base, scripts.get("_", empty), scripts.get("^", empty)))

    def base(self) -> Piece:
        token = self.take()
        if token == "{":
            self.at -= 1
            return self.group()
        if token.startswith("\\") and len(token) > 1:
            return self.command(token[1:])
        if token[:1].isdigit():
            return Piece("number", text=token)
        return Piece("letter" if token.isalpha() else "sign", text=token)

    def command(self, name: str) -> Piece:
        if name in _SPACES:
            return Piece("space", text=name)
        if name in _LARGE:
            return Piece("large", text=_LARGE[name])
        if name in _SIGNS:
            return Piece("sign", text=_SIGNS[name])
        if name in _LETTERS:
            return Piece("letter", text=_LETTERS[name])
        if name in _WORDS:
            return Piece("word", text="mod" if name == "bmod" else name)
        if name == "frac":
            return Piece("fraction", (self.group(), self.group()))
        if name in ("sqrt", "overline", "phantom"):
            return Piece(name, (self.group(),))
        if name == "mathcal":
            return Piece("letter", text="\N{SCRIPT CAPITAL L}" if self.words() == "L" else "?")
        if name in ("mathrm", "operatorname", "text"):
            return Piece("word", text=self.words())
        if name == "mathrel":
            return self.group()
        if name == "left":
            opening = self.delimiter()
            inner = self.until(("\\right",))
            self.take()
            return Piece("fenced", tuple(inner), f"{opening}\0{self.delimiter()}")
        if name == "begin":
            return self.table()
        return Piece("sign" if not name.isalpha() else "word", text=name)

    def words(self) -> str:
        """The text in braces, with its escapes undone."""
        if self.peek() != "{":
            return self.take()
        self.take()
        made: list[str] = []
        depth = 1
        while self.peek():
            token = self.take()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                break
            if token.startswith("\\") and len(token) > 1:
                name = token[1:]
                made.append(_SIGNS.get(name, " " if name in _SPACES else name))
            else:
                made.append(token)
        return "".join(made)

    def delimiter(self) -> str:
        token = self.take()
        if token.startswith("\\"):
            return _SIGNS.get(token[1:], token[1:])
        return "" if token == "." else token

    def table(self) -> Piece:
        name = self.words()
        rows: list[Piece] = []
        cells: list[Piece] = []
        while True:
            cells.append(Piece("row", tuple(self.until(("&", "\\\\", "\\end")))))
            end = self.take()
            if end == "&":
                continue
            rows.append(Piece("row", tuple(cells)))
            cells = []
            if end != "\\\\":
                break
        self.words()
        return Piece("table", tuple(rows), name)


# -- MathML ---------------------------------------------------------------------------------------
def mathml(formula: str, block: bool = True) -> str:
    r"""A formula as a `<math>` element.

    >>> mathml(r"\frac{a}{b}", block=False)
    '<math><mfrac><mi>a</mi><mi>b</mi></mfrac></math>'
    """
    inner = "".join(_markup(p) for p in parse(formula).parts)
    return f'<math display="block">{inner}</math>' if block else f"<math>{inner}</math>"


def _markup(piece: Piece) -> str:
    if piece.kind in _LEAVES:
        return _LEAVES[piece.kind].format(escape(piece.text))
    if piece.kind == "space":
        return f'<mspace width="{_SPACES[piece.text]}"/>'
    if piece.kind == "scripts":
        return _scripts(piece)
    if piece.kind == "table":
        return _table(piece)
    inner = [_markup(p) for p in piece.parts]
    if piece.kind == "fenced":
        opening, closing = (escape(t) for t in piece.text.split("\0"))
        body = "".join(inner)
        return f'<mrow><mo fence="true">{opening}</mo>{body}<mo fence="true">{closing}</mo></mrow>'
    return _MARKUP[piece.kind](inner)


_LEAVES = {
    "number": "<mn>{}</mn>",
    "letter": "<mi>{}</mi>",
    "word": '<mi mathvariant="normal">{}</mi>',
    "sign": "<mo>{}</mo>",
    "large": '<mo movablelimits="false">{}</mo>',
}
_MARKUP: dict[str, Callable[[list[str]], str]] = {
    "row": lambda inner: f"<mrow>{''.join(inner)}</mrow>",
    "empty": lambda inner: "<mrow></mrow>",
    "fraction": lambda inner: f"<mfrac>{''.join(inner)}</mfrac>",
    "sqrt": lambda inner: f"<msqrt>{''.join(inner)}</msqrt>",
    "phantom": lambda inner: f"<mphantom>{''.join(inner)}</mphantom>",
    "overline": lambda inner: f'<mover accent="true">{inner[0]}<mo stretchy="true">¯</mo></mover>',
}


def _scripts(piece: Piece) -> str:
    base, below, above = piece.parts
    large = base.kind == "large"
    if below.kind == "empty":
        kind = "mover" if large else "msup"
    elif above.kind == "empty":
        kind = "munder" if large else "msub"
    else:
        kind = "munderover" if large else "msubsup"
    parts = "".join(_markup(p) for p in piece.parts if p.kind != "empty")
    return f"<{kind}>{parts}</{kind}>"


def _table(piece: Piece) -> str:
    rows = "".join(
        "<mtr>" + "".join(f"<mtd>{_markup(cell)}</mtd>" for cell in row.parts) + "</mtr>"
        for row in piece.parts
    )
    if piece.text == "cases":
        table = f'<mtable columnalign="left left">{rows}</mtable>'
        return f'<mrow><mo fence="true">{{</mo>{table}</mrow>'
    return f'<mtable columnalign="right left" displaystyle="true">{rows}</mtable>'


# -- text -----------------------------------------------------------------------------------------
def plain(formula: str) -> str:
    r"""A formula as a line of text; a cotangent is written `v_ct`.

    >>> plain(r"\overline{W_{1}} = {x}^{\top}\, \overline{v_{2}} / \frac{a + b}{2}")
    'W1_ct = x.T v2_ct / (a + b)/2'
    """
    text = re.sub(r"\s+", " ", _text(parse(formula))).strip()
    return text.replace("+ =", "+=").replace("= - ", "= -")


def _text(piece: Piece) -> str:
    if piece.kind in ("number", "letter", "word", "large"):
        shown = "L" if piece.text == _SIGNS["loss"] else piece.text
        spaced = piece.kind != "large" and len(shown) > 2 and shown.isalpha()
        return f" {shown}" if spaced else shown
    if piece.kind == "sign":
        return piece.text if piece.text in "()[]|,^'!" else f" {piece.text} "
    if piece.kind in ("space", "empty", "phantom"):
        return " "
    parts = [_text(p).strip() for p in piece.parts]
    if piece.kind == "scripts":
        base, below, above = parts
        large = piece.parts[0].kind == "large"
        if above == _SIGNS["top"]:
            return f"{base}{below}.T"
        if below:
            simple = below.isdigit() and piece.parts[0].kind == "letter"
            base += below if simple else f"[{below}] " if large else f"[{below}]"
        return f"{base}^{_held(above)}" if above else base
    if piece.kind == "fraction":
        return f"{_held(parts[0])}/{_held(parts[1])}"
    if piece.kind == "sqrt":
        return f"sqrt({parts[0]})"
    if piece.kind == "overline":
        return f"{parts[0]}_ct"
    if piece.kind == "fenced":
        return piece.text.replace("\0", "".join(_text(p) for p in piece.parts).strip())
    if piece.kind == "table":
        return "{" + "; ".join(parts) + "}"
    return "".join(_text(p) for p in piece.parts)


def _held(text: str) -> str:
    """Text in parentheses, unless it is one word."""
    return text if re.fullmatch(r"[\w.\[\]]*|\(.*\)", text) else f"({text})"
