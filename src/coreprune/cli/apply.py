"""``coreprune apply MODEL PLAN -o OUT``."""

from __future__ import annotations

import click

from coreprune import api
from coreprune.cli.common import model_of, model_options
from coreprune.plan import Plan

__all__ = ["apply"]


@click.command(short_help="Cut a network as planned.")
@model_options
@click.argument("plan")
@click.option("-o", "--output", required=True, metavar="OUT", help="Directory to write the smaller network into.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def apply(model: str, factory: str | None, shape: str | None, plan: str, output: str, force: bool) -> None:
    """Cut MODEL as PLAN says.

    Example: coreprune apply coreprune.demo:lenet plan/ -o small/
    """
    small = api.apply(model_of(model, factory), Plan.load(plan))
    small.save(output, force=force)
    click.echo(small.summary())
    click.echo(f"written to {output}")
