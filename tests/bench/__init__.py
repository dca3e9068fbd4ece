"""Benchmarks: symgrad beside its peers, on one core, in one run.

    python -m tests.bench mlp_small --peers jax,torch

Every contestant is a process of its own, pinned to the same core with one thread, and starts from
the same file of data, weights and row orders. The blocks of steps are timed in turn (A B C A B C),
so that what the machine does meanwhile falls on all of them alike; what is quoted is the ratio.
Nothing here is asserted but that the contestants reach the same losses.
"""
