"""Interoperation: expressions for other libraries."""
