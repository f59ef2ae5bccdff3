"""``coreprune apply MODEL PLAN -o OUT``."""

from __future__ import annotations

import click

from coreprune import api
from coreprune.cli.bar import progress_bar
from coreprune.cli.common import files, model_options, output_option, source_of
from coreprune.cli.output import json_option, write
from coreprune.io.directory import check_new
from coreprune.plan import Plan

__all__ = ["apply"]


@click.command(short_help="Cut a network as planned.")
@model_options
@click.argument("plan", shell_complete=files)
@output_option("OUT", "Directory to write the smaller network into.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@json_option
def apply(
    model: str, factory: str | None, shape: str | None, plan: str, output: str, force: bool, as_json: bool
) -> None:
    """Cut MODEL as PLAN says.

    Example: coreprune apply coreprune.demo:lenet plan/ -o small/
    """
    check_new(output, force=force)
    source = source_of(model, factory, shape)
    with progress_bar("cutting"):
        small = api.apply(source.network, Plan.load(plan))
    write(small, output, source, force=force, as_json=as_json)
