"""DOT text is escaped, rendering happens in a child that can be killed, files appear whole."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from symgrad.diagram import rendering
from symgrad.diagram.dot_text import printable, shorten
from symgrad.diagram.palette import contrast, scale
from symgrad.diagram.records import Box, Cluster, ColorBar, Diagram, Edge, Legend, Swatch
from symgrad.diagram.rendering import RenderError
from symgrad.graph.errors import DataError, SymgradError

EVIL = [
    'x"];evil',
    "__import__('os')",
    "two\nlines",
    "line\u2028separator\u2029s",
    "back\\slash\\",
    "\\N \\G \\l",
    "<b>bold</b>",
    "<script>alert(1)</script>",
    "]]>&amp;&#0;--><!--",
    "nul\x00bell\x07",
    "lone\ud800surrogate",
    "right\u202eto left",
    "self",
    "<",
    ' onload="x" href="y"',
]


def picture(name: str = "x") -> Diagram:
    return Diagram(
        title=name,
        caption=name,
        boxes=(
            Box("n0", name, name, kind="input", tooltip=name),
            Box("n1", "tanh", "bi,ij→bj", tooltip="first\nsecond"),
            Box("n2", name, half="backward", kind="result", fill="#440154"),
        ),
        edges=(
            Edge("n0", "n1", name),
            Edge("n1", "n2", name, letter=name, kind="residual", tooltip=name),
        ),
        clusters=(Cluster("1", name, ("n1", "n2"), times=3),),
        legend=Legend((Swatch("box", "#0072B2", name),), ColorBar(name, (("#440154", "1"),))),
    )


def text_of(svg: str) -> str:
    return " ".join(t for t in ElementTree.fromstring(svg).itertext())


@pytest.mark.parametrize("name", EVIL)
def test_names_are_escaped_in_dot_and_survive_rendering(name: str) -> None:
    diagram = picture(name)
    dot = diagram.dot
    dot.encode("utf-8")
    assert set(re.findall(r"(?m)^\s*(\w+) (?:->|\[)", dot)) <= {
        "n0", "n1", "n2", "graph", "node", "edge",
    }  # fmt: skip
    svg = diagram.svg
    assert printable(name).replace(" ", "") in text_of(svg).replace(" ", "").replace("\u00a0", "")
    assert "<script" not in svg
    assert svg.count('class="node"') == 3


def test_dot_declares_backward_edges_against_the_ranking() -> None:
    edges = (Edge("n0", "n1"), Edge("n1", "n2", kind="backward"), Edge("n0", "n2", kind="residual"))
    dot = replace(picture(), edges=edges, order=(("n1", "n2"),)).dot
    assert re.search(r"n0 -> n1 \[", dot)
    assert re.search(r"n2 -> n1 \[.*dir=back", dot)
    assert re.search(r"n0 -> n2 \[.*constraint=false.*style=dashed", dot)
    assert re.search(r"n1 -> n2 \[style=invis", dot)


def test_repeated_cluster_bears_its_counter() -> None:
    assert "×3" in picture("layer").dot


def test_markup_in_a_tooltip_stays_text() -> None:
    assert 'tooltip="<b>bold</b>"' in picture("<b>bold</b>").dot


def test_equal_diagrams_give_equal_text() -> None:
    assert picture().dot == picture().dot


def test_svg_is_one_self_contained_element() -> None:
    svg = picture().svg
    assert svg.startswith("<svg")
    assert "<!DOCTYPE" not in svg
    assert "<!--" not in svg
    assert "href" not in svg
    assert picture()._repr_svg_() == svg


@pytest.mark.parametrize("form", ["svg", "png", "pdf", "dot", "html"])
def test_save_writes_each_form(tmp_path, form: str) -> None:
    path = tmp_path / f"picture.{form}"
    picture("a & b").save(path)
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF", "dot": b"digraph"}
    assert path.read_bytes().startswith(start.get(form, b"<!DOCTYPE html>"))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_html_page_forbids_everything_but_styles(tmp_path) -> None:
    path = tmp_path / "picture.html"
    picture("<script>1</script>").save(path)
    page = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "<script" not in page


def test_save_names_the_forms_it_knows(tmp_path) -> None:
    with pytest.raises(DataError, match=r"\.svg, \.png, \.pdf, \.dot, \.html"):
        picture().save(tmp_path / "picture.gif")


def test_save_into_a_missing_folder_says_so(tmp_path) -> None:
    with pytest.raises(DataError, match="cannot write"):
        picture().save(tmp_path / "missing" / "picture.dot")


def test_without_a_renderer_one_line_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rendering, "available_renderers", lambda: ())
    rendering.render_svg.cache_clear()
    with pytest.raises(RenderError, match=r'pip install "symgrad\[viz\]"'):
        _ = picture("unrendered").svg
    path = tmp_path / "picture.svg"
    with pytest.raises(SymgradError, match=r"picture\.dot"):
        picture("unrendered").save(path)
    assert not path.exists()
    assert (tmp_path / "picture.dot").read_text(encoding="utf-8").startswith("digraph")


def test_renderers_are_found_by_import_and_on_path(monkeypatch) -> None:
    monkeypatch.setattr(rendering, "find_spec", lambda name: None)
    monkeypatch.setattr(rendering.shutil, "which", lambda name: "/somewhere/dot")
    assert rendering.available_renderers() == ("dot",)
    assert rendering._command("dot", "svg") == ["/somewhere/dot", "-Tsvg"]


def test_child_is_killed_at_the_time_limit(tmp_path, monkeypatch) -> None:
    note = tmp_path / "pid"
    program = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    command = [sys.executable, "-c", program, str(note)]
    monkeypatch.setattr(rendering, "_command", lambda renderer, form: command)
    began = time.monotonic()
    with pytest.raises(RenderError, match=r"longer than 2 s.*stopped"):
        rendering.render("digraph {}", timeout=2.0)
    assert time.monotonic() - began < 30
    if note.exists() and os.name == "posix":
        with pytest.raises(ProcessLookupError):
            os.kill(int(note.read_text()), 0)


def test_a_failing_child_falls_back_and_then_complains(monkeypatch) -> None:
    tried = []

    def command(renderer: str, form: str) -> list[str]:
        tried.append(renderer)
        return [sys.executable, "-c", "import sys; sys.exit('no layout today')"]

    monkeypatch.setattr(rendering, "available_renderers", lambda: ("pygraphviz", "dot"))
    monkeypatch.setattr(rendering, "_command", command)
    with pytest.raises(RenderError, match="no layout today"):
        rendering.render("digraph {}")
    assert tried == ["pygraphviz", "dot"]


def test_active_content_is_refused(monkeypatch) -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
    monkeypatch.setattr(rendering, "render", lambda dot, form, timeout: svg)
    rendering.render_svg.cache_clear()
    with pytest.raises(RenderError, match="active <script>"):
        rendering.render_svg("digraph { refused }")


def test_a_users_module_does_not_shadow_the_renderer(tmp_path, monkeypatch) -> None:
    (tmp_path / "pygraphviz.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert b"<svg" in rendering.render("digraph { a -> b }")


def test_short_text() -> None:
    assert shorten("x" * 100, 10) == "x" * 9 + "…"
    assert shorten("short", 10) == "short"


def test_scale_is_monotone_in_lightness() -> None:
    def lightness(color: str) -> float:
        red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    values = [lightness(scale(k / 20)) for k in range(21)]
    assert values == sorted(values, reverse=True)
    assert contrast(scale(0.0)) != contrast(scale(1.0))
