"""Training: the compiled epoch, its history, its files."""
