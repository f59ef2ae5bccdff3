"""Keep Python's search for cyclic garbage from going through everything that was there before."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["searched_less"]


@contextmanager
def searched_less() -> Iterator[None]:
    """Context in which the search visits only what is made within.

    Importing torch leaves hundreds of thousands of objects, and a captured graph has so many of its own that the
    search through all of them is set off several times in one cut. What is made in the context is searched for garbage
    as ever, so that no memory is held back; what was garbage before it waits. Nothing is done where objects are frozen
    already, by the program for reasons of its own or by a context around this one.

    Example:
        >>> with searched_less():
        ...     gc.get_freeze_count() > 0
        True
        >>> gc.get_freeze_count()
        0
    """
    own = gc.get_freeze_count() == 0
    if own:
        gc.freeze()
    try:
        yield
    finally:
        if own:
            gc.unfreeze()
