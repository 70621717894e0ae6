"""Synthetic degradation: from a sharp picture to what a moving camera would have written."""

__all__: list[str] = []
