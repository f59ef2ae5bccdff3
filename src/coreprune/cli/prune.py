"""``coreprune prune MODEL OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coreprune import api
from coreprune.cli.common import example_of, model_of, model_options, progress_bar, request_of, request_options
from coreprune.errors import CheckpointError

__all__ = ["prune"]


@click.command(short_help="Plan and cut in one step.")
@model_options
@click.argument("out")
@request_options
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def prune(model: str, factory: str | None, shape: str | None, out: str, force: bool, **options: Any) -> None:
    """Make MODEL smaller and write it to OUT.

    \b
    Examples:
      coreprune prune coreprune.demo:lenet small/ --remove 0.5
      coreprune prune coreprune.demo:lenet small/ --units 0=150 --units 2=50
    """
    if Path(out).exists() and not force:
        raise CheckpointError(f"{out} exists already: give another name, or --force to replace it")
    network = model_of(model, factory)
    with progress_bar("pruning") as progress:
        small = api.prune(network, example_of(shape), progress=progress, **request_of(options))
    small.save(out, force=force)
    click.echo(small.summary())
    click.echo(f"written to {out}")
