"""Pictures for training and measuring: found on disk, decoded, cut into samples, and handed out in order."""

__all__: list[str] = []
