"""``coreprune report OUT``."""

from __future__ import annotations

import copy
import webbrowser
from typing import NamedTuple

import click

from coreprune import api
from coreprune.cli.bar import progress_bar
from coreprune.cli.common import files, source_of, words
from coreprune.cli.output import dumped, json_option, numbers_of, seconds_option
from coreprune.errors import InvalidInputError
from coreprune.report.beside import Beside, beside_of
from coreprune.report.page import write
from coreprune.report.runtimes import RUNTIMES, check_runtimes
from coreprune.result import load, read_structure

__all__ = ["report"]


@click.command(short_help="A page about a smaller network, to read and print.")
@click.argument("out", shell_complete=files)
@click.option("-o", "--output", default="report.html", show_default=True, metavar="PAGE", shell_complete=files,
              help="Where to write it.")  # fmt: skip
@click.option(
    "--model",
    metavar="MODEL",
    shell_complete=files,
    help="The dense network: measures both, and says what was refused.",
)
@click.option("--factory", metavar="MODULE:NAME", help="Makes the network of a .safetensors file.")
@click.option("--input", "shape", metavar="SHAPE", help="Shape of the batch to measure on  [default: as when cut]")
@click.option("--verify", "check", is_flag=True, help="Recompute the guarantees too; takes --model.")
@seconds_option
@click.option(
    "--runtimes",
    default="eager",
    show_default=True,
    metavar="LIST",
    help="To time a forward pass in: eager,compile,onnx.",
    shell_complete=words(*RUNTIMES),
)
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@click.option("--force", is_flag=True, help="Replace a PAGE that coreprune did not write.")
@json_option
def report(
    out: str,
    output: str,
    model: str | None,
    factory: str | None,
    shape: str | None,
    check: bool,
    seconds: float,
    runtimes: str,
    show: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write a page about the smaller network in OUT, with its numbers as JSON beside it.

    It needs no network and no script, and prints well. With --json the numbers are
    printed and no page is written.

    \b
    Examples:
      coreprune report small/
      coreprune report small/ -o small.html --model coreprune.demo:lenet --open
    """
    beside, names = Beside(), check_runtimes(runtimes)
    if model is not None:
        beside = _looked_at(out, model, factory, shape, check, Timed(seconds, names))
    elif check or factory is not None or shape is not None or names != ("eager",):
        raise InvalidInputError(
            "--verify, --factory, --input and --runtimes speak of the dense network: name it with --model"
        )
    found = numbers_of(out, model, beside)
    if as_json:
        click.echo(dumped(found.to_json()))
        return
    page = write(output, found, force=force)
    click.echo(f"written to {page} and {page.with_suffix('.json')}")
    if show:
        webbrowser.open(page.resolve().as_uri())


class Timed(NamedTuple):
    """How long each thing is timed, and in what runtimes."""

    seconds: float
    runtimes: tuple[str, ...]


def _looked_at(out: str, model: str, factory: str | None, shape: str | None, check: bool, timed: Timed) -> Beside:
    """What the dense network tells beside the result."""
    source = source_of(model, factory, shape)
    small = load(out, lambda: copy.deepcopy(source.network))
    checked = None
    if check:
        with progress_bar("verifying") as progress:
            checked = api.verify(source.network, out, progress=progress)
    inputs = None if shape is None else source.example
    recipe = read_structure(out)["recipe"]
    with progress_bar("measuring"):
        return beside_of(source.network, small, recipe, inputs, checked=checked, **timed._asdict())
