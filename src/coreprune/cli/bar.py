"""Progress of long work, on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from coreprune.cli.log import LOG

__all__ = ["progress_bar"]


class _Time(ProgressColumn):
    """Time left where the end is known and something is done, and else the time so far."""

    def render(self, task: Task) -> Text:
        """One time, with a word that says which."""
        left = None if task.total is None or not task.completed else task.time_remaining
        if left is None:
            return Text(f"{timedelta(seconds=int(task.elapsed or 0))} so far")
        return Text(f"{timedelta(seconds=int(left))} left")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr while it is a terminal and nothing is logged there, and nothing otherwise.

    Between the steps of which an end is known it moves to and fro, and counts the time so far. What a network's own
    code prints meanwhile goes to stderr too: stdout holds results alone.
    """
    console, start = Console(stderr=True), time.perf_counter()
    silent = not console.is_terminal or LOG.isEnabledFor(logging.INFO)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), _Time())
    with redirect_stdout(sys.stderr), Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task(what, total=None, count="")

        def step(done: int, total: int, name: str) -> None:
            LOG.debug("%s %d/%d %s", what, done, total, name)
            if done >= total:
                bar.reset(task, total=None, count="", description=what)
            else:
                words = what if name == what else f"{what} {name}"
                bar.update(task, completed=done, total=total, count=f"{done}/{total}", description=words)

        yield step
    LOG.info("%s took %.2f s", what, time.perf_counter() - start)
