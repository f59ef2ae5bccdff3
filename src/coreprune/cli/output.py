"""What commands write: results with the command that made them, and JSON in place of text."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from coreprune.cli.common import Source
from coreprune.cli.log import LOG
from coreprune.clock import Clock, Timing
from coreprune.io.checkpoint import headers
from coreprune.io.huggingface import weight_files
from coreprune.plan import Plan
from coreprune.report.beside import Beside
from coreprune.report.cost import Change
from coreprune.report.numbers import Numbers, numbers
from coreprune.report.text import wrap
from coreprune.result import Pruned, read_structure

__all__ = [
    "dumped",
    "echo_perplexities",
    "echo_timing",
    "json_option",
    "numbers_of",
    "recorded",
    "seconds_option",
    "weight_bytes",
    "write",
]


def json_option(command: Any) -> Any:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print as JSON.")(command)


def seconds_option(command: Any) -> Any:
    """--seconds."""
    return click.option(
        "--seconds", type=click.FloatRange(min=0), default=2.0, show_default=True, help="To spend on each timing."
    )(command)


def dumped(body: Any) -> str:
    """Data as JSON text."""
    return json.dumps(body, indent=1, ensure_ascii=False, default=list)


def recorded(plan: Plan) -> Plan:
    """The plan with the command that is running written behind those that came before."""
    words = click.get_current_context().find_root().obj
    if not words:
        return plan
    commands = [*plan.recipe.get("commands", ()), shlex.join(["coreprune", *words])]
    return replace(plan, recipe={**plan.recipe, "commands": commands})


def write(small: Pruned, out: str, source: Source, *, force: bool, as_json: bool = False) -> None:
    """Write a result and print what it is.

    It is a directory that ``from_pretrained`` opens if it came from one and its configuration fits.
    """
    small, clock = replace(small, plan=recorded(small.plan)), Clock()
    with clock.stage("saving"):
        how = _saved(small, out, source, force)
    timing = source.timing + small.timing + clock.timing()
    if as_json:
        click.echo(dumped(numbers_of(out, source.directory).to_json() | {"timing": timing.to_json()}))
        return
    click.echo(small.summary())
    echo_perplexities(small.plan.recipe)
    click.echo("\n".join(wrap(f"written to {out}{how}")))
    echo_timing(timing)


def echo_timing(timing: Timing) -> None:
    """Say on stderr, where that is a terminal or -v is given, what took how long."""
    LOG.info("%s", timing)
    if sys.stderr.isatty() and not LOG.isEnabledFor(logging.INFO):
        click.echo("\n".join(wrap(str(timing))), err=True)


def _saved(small: Pruned, out: str, source: Source, force: bool) -> str:
    """Write it, and return how it is opened, in words that follow its place."""
    if source.directory is not None and small.configuration.config is not None:
        small.save_pretrained(out, source.directory, force=force)
        return f": open it with transformers.{type(small.model).__name__}.from_pretrained({out!r})"
    small.save(out, force=force)
    if source.directory is None:
        return ""
    kind = type(small.model).__name__
    return (
        f": no configuration of transformers describes its widths, so that {kind}.from_pretrained does not open it: "
        f"coreprune.load({out!r}, lambda: {kind}.from_pretrained({str(source.directory)!r})) does"
    )


def echo_perplexities(recipe: Mapping[str, Any]) -> None:
    """Print what `coreprune.cli.foretold` measured, if it did."""
    for one in recipe.get("perplexity", ()):
        click.echo("\n".join(wrap(f"perplexity on {one['text']}: {one['dense']:.2f} -> {one['small']:.2f}")))


def numbers_of(out: str | Path, dense: str | Path | None = None, beside: Beside | None = None) -> Numbers:
    """The numbers of a saved result, with the bytes of its files.

    Args:
        out: the result's directory. dense: file or directory of the dense network, if it has one.
        beside: what else is known.
    """
    structure = read_structure(out)
    for file in Path(out).glob("*.safetensors"):
        headers(file)  # refuses one that is not whole
    beside = replace(
        beside or Beside(),
        place=str(out),
        opens=_opens(Path(out)),
        file_bytes=Change(None if dense is None else weight_bytes(dense), weight_bytes(out)),
    )
    return numbers(structure, Path(out).resolve().name, beside)


def weight_bytes(place: str | Path) -> int | None:
    """Bytes of a safetensors file, or of all those in a directory that hold weights; None without any."""
    path = Path(place)
    files = [path] if path.suffix == ".safetensors" else weight_files(path) if path.is_dir() else []
    sizes = [file.stat().st_size for file in files if file.is_file() and file.name != "turned.safetensors"]
    return sum(sizes) or None


def _opens(place: Path) -> str:
    """The class of `transformers` that the configuration beside the weights names."""
    try:
        (name,) = json.loads((place / "config.json").read_text())["architectures"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return name if isinstance(name, str) and name.isidentifier() else ""
