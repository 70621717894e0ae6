"""Backends: each runs the network on batches of equal, padded tiles."""
