"""What the commands of the PyTorch room do: one module a command."""

__all__: list[str] = []
