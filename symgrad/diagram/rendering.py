"""From DOT text to SVG, PNG, PDF or HTML, in a child process that is killed at a time limit.

A layout can take minutes, and a call into a C library cannot be interrupted from Python; hence the
child. It runs `pygraphviz` (whose wheels carry Graphviz); where that is missing, the `dot` program
found on PATH; where that is missing too, the error says what to install.
"""

from __future__ import annotations

import contextlib
import html
import os
import re
import secrets
import shutil
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from symgrad.graph.errors import DataError, SymgradError

TIMEOUT = 60.0  # seconds
FORMATS = ("svg", "png", "pdf", "dot", "html")
_CHILD = Path(__file__).with_name("pygraphviz_child.py")
_ELEMENTS = frozenset(
    {"svg", "g", "title", "a", "path", "polygon", "polyline", "ellipse", "circle", "rect"}
    | {"text", "tspan", "defs", "linearGradient", "radialGradient", "stop"}
)
_INSTALL = 'pip install "symgrad[viz]"'


class RenderError(SymgradError):
    """A picture could not be rendered; its DOT text is still good."""


def available_renderers() -> tuple[str, ...]:
    """What can render here, best first: "pygraphviz", "dot", both or none."""
    found = []
    if sys.executable and find_spec("pygraphviz") is not None:
        found.append("pygraphviz")
    if shutil.which("dot"):
        found.append("dot")
    return tuple(found)


def _command(renderer: str, form: str) -> list[str]:
    if renderer == "pygraphviz":
        # -P: neither the folder of the child nor the current one may shadow a module.
        return [sys.executable, "-P", str(_CHILD), form]
    return [shutil.which("dot") or "dot", f"-T{form}"]


def render(dot: str, form: str = "svg", timeout: float = TIMEOUT) -> bytes:
    """Lay out DOT text and return the picture's bytes.

    Args:
        dot: DOT text.
        form: "svg", "png" or "pdf".
        timeout: seconds after which the child process is killed.
    Raises: RenderError when nothing can render, the renderer fails, or time is up.
    """
    renderers = available_renderers()
    if not renderers:
        raise RenderError(
            f"draw: nothing here can render a picture: neither pygraphviz nor the program 'dot' "
            f"was found. Install one with  {_INSTALL}"
        )
    complaint = ""
    for renderer in renderers:
        try:
            done = subprocess.run(
                _command(renderer, form),
                input=dot.encode("utf-8"),
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RenderError(
                f"draw: the layout by {renderer} took longer than {timeout:g} s and was stopped.\n"
                '  Draw less: level="layers", or a part of the graph; or give more time: '
                "save(path, timeout=300)."
            ) from None
        except OSError as error:
            complaint = str(error)
            continue
        if done.returncode == 0 and done.stdout:
            return done.stdout
        complaint = _last_line(done.stderr) or f"it ended with code {done.returncode}"
    raise RenderError(
        f"draw: {' and '.join(renderers)} could not render the picture: {complaint}\n"
        f"  If the installation is damaged:  {_INSTALL}"
    )


def _last_line(text: bytes) -> str:
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


@lru_cache(maxsize=8)
def render_svg(dot: str, timeout: float = TIMEOUT) -> str:
    """The picture as one `<svg>` element, safe to put into a page.

    Prolog, document type and comments are dropped. Labels are escaped in the DOT text; should an
    active element, a link or an event handler be found in the result all the same, it is refused.

    Args:
        dot: DOT text.
        timeout: seconds that the layout may take.
    Raises: RenderError as `render`, and for active content.
    """
    text = render(dot, "svg", timeout).decode("utf-8")
    text = re.sub(r"<!--.*?-->\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    # A picture wider than its window shrinks to it.
    text = text.replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1)
    for element in ElementTree.fromstring(text).iter():
        tag = element.tag.rpartition("}")[2]
        names = {name.rpartition("}")[2].lower() for name in element.attrib}
        if tag not in _ELEMENTS or "href" in names or any(n.startswith("on") for n in names):
            raise RenderError(f"draw: the rendered SVG has an active <{tag}> and is not shown.")
    return text


def save(dot: str, path: str | os.PathLike[str], title: str, timeout: float = TIMEOUT) -> None:
    """Write a picture to a file whose ending names the form; see `Diagram.save`."""
    target = Path(path)
    form = target.suffix[1:].lower()
    if form not in FORMATS:
        raise DataError(
            f"save: cannot tell the form of {str(path)!r}. End it with one of "
            f"{', '.join('.' + f for f in FORMATS)}."
        )
    if form == "dot":
        return write_atomically(target, dot.encode("utf-8"))
    try:
        if form in ("png", "pdf"):
            content = render(dot, form, timeout)
        else:
            svg = render_svg(dot, timeout)
            content = (_PROLOG + svg if form == "svg" else page(svg, title)).encode("utf-8")
    except RenderError as error:
        fallback = target.with_suffix(".dot")
        write_atomically(fallback, dot.encode("utf-8"))
        raise RenderError(f"{error}\n  The DOT text was written to {fallback}") from None
    write_atomically(target, content)


_PROLOG = '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>body {{ margin: 1em; background: white; }} svg {{ max-width: 100%; height: auto; }}</style>
</head>
<body>
{svg}
</body>
</html>
"""


def page(svg: str, title: str) -> str:
    """A complete HTML page around an SVG element; it loads nothing and runs nothing."""
    return _PAGE.format(title=html.escape(title), svg=svg)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all.

    Raises: DataError when the folder is missing or cannot be written.
    """
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(6)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DataError(
            f"save: cannot write {str(path)!r}: {error.strerror or error}. "
            "Choose a folder that exists and that you may write to."
        ) from None
