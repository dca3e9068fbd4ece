"""What generated kernels call: memory access, vector mathematics, BLAS, and their export as text.

The modules here know LLVM and Numba and nothing of graphs. Everything they offer to a generated
module is an LLVM intrinsic, so a call costs no Numba front-end work of its own: a kernel with ten
exponentials compiles as quickly as one with ten additions.
"""
