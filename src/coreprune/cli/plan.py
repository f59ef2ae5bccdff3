"""``coreprune plan MODEL -o PLAN``."""

from __future__ import annotations

from typing import Any

import click

from coreprune import api
from coreprune.cli.bar import progress_bar
from coreprune.cli.common import model_options, output_option, source_of
from coreprune.cli.output import dumped, echo_timing, json_option, recorded
from coreprune.cli.request import request_of, request_options
from coreprune.clock import Clock
from coreprune.io.directory import check_new

__all__ = ["plan"]


@click.command(short_help="Decide which units go; nothing is cut.")
@model_options
@output_option("PLAN", "Directory to write the plan into.")
@request_options
@click.option("--force", is_flag=True, help="Replace PLAN if it is there.")
@json_option
def plan(
    model: str, factory: str | None, shape: str | None, output: str, force: bool, as_json: bool, **options: Any
) -> None:
    """Decide which units go and what stands for them; nothing is cut.

    Example: coreprune plan coreprune.demo:lenet -o plan/ --remove 0.5
    """
    check_new(output, force=force)
    source = source_of(model, factory, shape)
    with progress_bar("planning") as progress:
        decided = api.plan(source.network, source.example, progress=progress, **request_of(options, source))
    decided, clock = recorded(decided), Clock()
    with clock.stage("saving"):
        decided.save(output, force=force)
    timing = source.timing + decided.timing + clock.timing()
    if as_json:
        sites = [
            {"name": cut.site.name, "kind": cut.site.kind, "units": cut.site.units, "kept": cut.kept.tolist()}
            | {"evidence": cut.evidence}
            for cut in decided.cuts
        ]
        click.echo(dumped({"recipe": decided.recipe, "sites": sites, "written_to": output, "timing": timing.to_json()}))
        return
    click.echo(f"{decided}\nwritten to {output}")
    echo_timing(timing)
