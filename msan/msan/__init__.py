"""MSAN in PyTorch: the network, its training, its evaluation."""
