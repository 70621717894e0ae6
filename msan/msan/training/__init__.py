"""Training: from a recipe and pictures to checkpoints."""

__all__: list[str] = []
