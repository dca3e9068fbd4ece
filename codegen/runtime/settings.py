"""What the environment sets about products; it loads no Numba."""

from __future__ import annotations

import os

PRODUCTS = ("own", "blas")


def products_from() -> str:
    """Whose products programs call: "own", or "blas" where SYMGRAD_PRODUCTS says so.

    Raises: ValueError for anything else.
    """
    chosen = os.environ.get("SYMGRAD_PRODUCTS") or PRODUCTS[0]
    if chosen not in PRODUCTS:
        raise ValueError(f"SYMGRAD_PRODUCTS={chosen!r}: set one of {', '.join(PRODUCTS)}.")
    return chosen
