"""``coreprune verify MODEL OUT``."""

from __future__ import annotations

import click

from coreprune.cli.common import model_options

__all__ = ["verify"]


@click.command(short_help="Recompute the guarantees from the tensors.")
@model_options
@click.argument("out")
def verify(model: str, factory: str | None, shape: str | None, out: str) -> None:
    """Check the smaller network in OUT against MODEL."""
