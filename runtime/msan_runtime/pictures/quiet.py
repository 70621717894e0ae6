"""Pillow without its warnings, in several threads at once."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["quiet_pillow"]

_lock = threading.Lock()
_users = 0
_filter: list[tuple[object, ...]] = []


@contextmanager
def quiet_pillow() -> Generator[None]:
    """Silence the warnings that Pillow's own modules give, whatever the filters say.

    Pillow warns of oddities in metadata that are no error here, and under ``-W error`` each would
    become one. ``warnings.catch_warnings`` is not made for threads: where two overlap, it leaves its
    filters behind. Here the first user adds one filter for Pillow and the last takes it away; all
    other filters, and warnings of other modules, are left alone.
    """
    global _users
    with _lock:
        if _users == 0:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _filter[:] = [warnings.filters[0]]
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                with contextlib.suppress(ValueError):  # gone: somebody restored all filters meanwhile
                    warnings.filters.remove(_filter[0])  # pyright: ignore[reportAttributeAccessIssue]
