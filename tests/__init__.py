"""The tests of symgrad, and its benchmarks in `tests/bench/`."""
