"""Silence for what talks to the terminal while it works: exporters and compilers."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

__all__ = ["quiet"]

_LOGS = ("torch.export", "torch.fx", "torch.onnx", "torch._subclasses")


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor what PyTorch's exporters print and log; what they raise says all that is needed.

    Example:
        >>> with quiet():
        ...     print("a graph of a thousand lines")
    """
    logs = [log for name in _LOGS for log in _family(name)]
    levels = [log.level for log in logs]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for log in logs:
            log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


def _family(name: str) -> list[logging.Logger]:
    """A logger and those below it, which may have levels of their own."""
    known = logging.Logger.manager.loggerDict
    below = [one for key, one in known.items() if key.startswith(f"{name}.") and isinstance(one, logging.Logger)]
    return [logging.getLogger(name), *below]
