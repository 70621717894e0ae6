"""``python -m msan``: the command line, in the form that torchrun starts."""

from __future__ import annotations

from msan_runtime.cli import main

__all__ = []

if __name__ == "__main__":
    main()
