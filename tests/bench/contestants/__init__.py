"""One module per contestant: `run(workload)` builds it and returns its training loop."""
