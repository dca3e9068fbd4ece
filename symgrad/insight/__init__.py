"""Explanations of a network: how large its gradients are, where they grow or vanish, and why."""
