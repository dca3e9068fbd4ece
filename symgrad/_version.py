"""The version of symgrad, in a module that imports nothing, so that any room may read it."""

from __future__ import annotations

__version__ = "0.1.0"
