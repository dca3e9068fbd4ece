"""The child process of `rendering.py`: DOT on standard input, the picture on standard output.

Run as a file, so that it imports pygraphviz and nothing of symgrad.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Render standard input in the form that the first argument names."""
    import pygraphviz

    graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode("utf-8"))
    picture = graph.draw(format=sys.argv[1], prog="dot")
    sys.stdout.buffer.write(picture)
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
