"""``coreprune prune MODEL OUT``."""

from __future__ import annotations

from typing import Any

import click

from coreprune import api
from coreprune.cli.bar import progress_bar
from coreprune.cli.common import files, model_options, source_of
from coreprune.cli.foretold import check_text, foretold
from coreprune.cli.output import json_option, write
from coreprune.cli.request import request_of, request_options
from coreprune.io.directory import check_new

__all__ = ["prune"]


@click.command(short_help="Plan and cut in one step.")
@model_options
@click.argument("out", shell_complete=files)
@request_options
@click.option("--eval-text", metavar="FILE", shell_complete=files, help="Also give the perplexity on this text.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@json_option
def prune(
    model: str,
    factory: str | None,
    shape: str | None,
    out: str,
    eval_text: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make MODEL smaller and write it to OUT.

    \b
    Examples:
      coreprune prune coreprune.demo:lenet small/ --remove 0.5
      coreprune prune coreprune.demo:lenet small/ --units 0=150 --units 2=50
      coreprune prune module:factory small/ --input 1x3x224x224 --remove "*=0.3"
      coreprune prune path/to/hugging-face-directory small/ --remove 0.2
    """
    check_new(out, force=force)
    source = source_of(model, factory, shape)
    check_text(source, eval_text)
    with progress_bar("pruning") as progress:
        small = api.prune(source.network, source.example, progress=progress, **request_of(options, source))
    with progress_bar("measuring") as progress:
        small = foretold(source, small, eval_text, progress)
    write(small, out, source, force=force, as_json=as_json)
