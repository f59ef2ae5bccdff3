"""``coreprune inspect MODEL``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from coreprune import api
from coreprune.cli.common import example_of, model_of, model_options
from coreprune.report.text import inspection_text

__all__ = ["inspect"]


@click.command(short_help="What can shrink, and what cannot and why.")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def inspect(model: str, factory: str | None, shape: str | None, as_json: bool) -> None:
    """What can shrink, and what cannot and why.

    Example: coreprune inspect coreprune.demo:lenet
    """
    found = api.inspect(model_of(model, factory), example_of(shape))
    if as_json:
        sites = [site.to_json() | {"governs_parameters": found.governs(site)} for site in found.sites]
        click.echo(json.dumps({"sites": sites, "refused": [asdict(refusal) for refusal in found.refused]}, indent=1))
    else:
        click.echo(inspection_text(found))
