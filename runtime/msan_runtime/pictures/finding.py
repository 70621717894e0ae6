"""Picture files in folders."""

from __future__ import annotations

from pathlib import Path

from msan_runtime.pictures.picture import SUFFIXES

__all__ = ["find_pictures"]


def find_pictures(folder: Path) -> list[Path]:
    """Every file under ``folder`` that is named like a picture, sorted; none if there is no such folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
