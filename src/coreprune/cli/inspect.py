"""``coreprune inspect MODEL``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from coreprune import api
from coreprune.cli.bar import progress_bar
from coreprune.cli.common import model_options, source_of
from coreprune.cli.request import capture_option
from coreprune.cli.spoken import spoken
from coreprune.report.text import inspection_text

__all__ = ["inspect"]


@click.command(short_help="What can shrink, and what cannot and why.")
@model_options
@capture_option
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def inspect(model: str, factory: str | None, shape: str | None, capture: str, as_json: bool) -> None:
    """What can shrink, and what cannot and why.

    \b
    Examples:
      coreprune inspect coreprune.demo:lenet
      coreprune inspect module:factory --input 1x3x224x224
      coreprune inspect path/to/hugging-face-directory
    """
    source = source_of(model, factory, shape)
    with progress_bar("inspecting"):
        found = api.inspect(source.network, source.example, capture=capture)
    if as_json:
        sites = [site.to_json() | {"governs_parameters": found.governs(site)} for site in found.sites]
        click.echo(json.dumps({"sites": sites, "refused": [asdict(refusal) for refusal in found.refused]}, indent=1))
    else:
        click.echo(spoken(inspection_text(found)))
