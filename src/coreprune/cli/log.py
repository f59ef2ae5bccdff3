"""What commands tell of their work on stderr when they are asked to: -v and --log-level, on every command."""

from __future__ import annotations

import logging
import sys
from textwrap import fill

import click

__all__ = ["LOG", "add_log_options"]

LOG = logging.getLogger("coreprune")
_LEVELS = ("debug", "info", "warning", "error")


def add_log_options(command: click.Command) -> None:
    """Give a command -v and --log-level; without them it says nothing."""
    command.params += [
        click.Option(
            ["-v", "--verbose"], is_flag=True, expose_value=False, callback=_verbose, help="As --log-level info."
        ),
        click.Option(
            ["--log-level"], type=click.Choice(_LEVELS), expose_value=False, callback=_level, metavar="LEVEL",
            help="Tell on stderr what is done: debug (every site), info, warning, error.",
        ),
    ]  # fmt: skip


def _verbose(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        _tell(logging.INFO)


def _level(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None and not context.resilient_parsing:
        _tell(getattr(logging, value.upper()))


def _tell(level: int) -> None:
    """Write what is logged to stderr, each line with the seconds since the start."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Seconds())
    LOG.handlers = [handler]
    LOG.propagate = False
    LOG.setLevel(level)


class _Seconds(logging.Formatter):
    """Seconds since the program started, and what happened."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and more in a terminal that is too narrow for it."""
        line = f"{record.relativeCreated / 1000:8.2f} s  {record.levelname.lower()}: {record.getMessage()}"
        return fill(line, 80, subsequent_indent=" " * 12) if sys.stderr.isatty() else line
