"""Calculus: graphs to graphs. Simplification, cotangents, tangents, derivation steps, costs."""
