"""What generated kernels are made of: their language and its compiler, and what they call.

The modules here know LLVM and Numba and nothing of graphs. `kernels` translates a function,
`object_files` makes machine code of a program and `linking` runs it. What a program may call is
listed in `names`: memory access, vector mathematics, matrix products, random draws, meetings of
threads. Each is an intrinsic, which writes LLVM's code in its place, or another kernel.
"""
