"""The code generator: Graph -> schedule -> memory plan -> loop IR -> source -> loaded kernels."""
