"""Evaluation: from a method and a data set to tables."""

__all__: list[str] = []
