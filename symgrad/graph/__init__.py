"""The language: dims, dtypes, scalar functions, nodes, graphs, their text and meaning."""
