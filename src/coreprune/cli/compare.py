"""``coreprune compare A B``."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import click

from coreprune.cli.bar import progress_bar
from coreprune.cli.common import files, words
from coreprune.cli.output import dumped, json_option, numbers_of, seconds_option
from coreprune.errors import CheckpointError, InvalidInputError
from coreprune.io import huggingface
from coreprune.io.checkpoint import headers
from coreprune.report.compare import compare as compared
from coreprune.report.compare import comparison_text, dense_numbers
from coreprune.report.cost import Cost, measure
from coreprune.report.numbers import Numbers
from coreprune.report.runtimes import RUNTIMES, check_runtimes
from coreprune.result import read_structure

__all__ = ["compare"]


@click.command(short_help="Two results side by side.")
@click.argument("a", shell_complete=files)
@click.argument("b", shell_complete=files)
@click.option("--speed", is_flag=True, help="Also run both, in turns (directories that transformers opens).")
@seconds_option
@click.option("--runtimes", default="eager", show_default=True, metavar="LIST", shell_complete=words(*RUNTIMES),
              help="eager,compile,onnx (--speed).")  # fmt: skip
@json_option
def compare(a: str, b: str, speed: bool, seconds: float, runtimes: str, as_json: bool) -> None:
    """Put two results side by side: sizes, widths, errors, priors.

    A and B are directories that coreprune wrote; one of them may be the dense
    network, a .safetensors file or a directory of such. With --speed both are run:
    time of a forward pass, and tokens per second that a language model writes.

    \b
    Examples:
      coreprune compare small/ smaller/
      coreprune compare path/to/hugging-face-directory small/ --speed
    """
    results = [place for place in (a, b) if (Path(place) / "structure.json").exists()]
    if not results:
        raise InvalidInputError(f"neither {a} nor {b} has a structure.json: give a directory that coreprune wrote")
    known = set(read_structure(results[0])["tensors"])
    sides = [_numbers(Path(place), known) for place in (a, b)]
    found = compared(*sides)
    if speed:
        found = replace(found, cost=_run(a, b, seconds, check_runtimes(runtimes)))
    click.echo(dumped(found.to_json()) if as_json else comparison_text(found))


def _run(a: str, b: str, seconds: float, runtimes: tuple[str, ...]) -> Cost:
    """Both networks, in turns, on inputs that are drawn."""
    for place in (a, b):
        if not huggingface.is_directory(place):
            raise InvalidInputError(
                f"{place} is no directory that transformers opens, so that --speed cannot run it: use 'coreprune "
                "report OUT --model MODEL'"
            )
    with progress_bar("reading"):
        first, second = (huggingface.load(place).model for place in (a, b))
    with progress_bar("measuring"):
        return measure(first, second, huggingface.example_inputs(first), seconds=seconds, others=runtimes)


def _numbers(place: Path, known: set[str]) -> Numbers:
    """Of a result, or of a dense network as its files say: of all tensors there those that are known in the result.

    A checkpoint can hold what its class no longer keeps, and tied tensors under each of their names.
    """
    if (place / "structure.json").exists():
        return numbers_of(place)
    if (place / "plan.json").exists():
        raise CheckpointError(f"{place} is a plan, and no network is cut yet: apply it first")
    files = [place] if place.suffix == ".safetensors" else huggingface.weight_files(place)
    if not files:
        raise CheckpointError(f"{place} holds neither a structure.json nor *.safetensors: check the path")
    stored = {name: one for file in files for name, one in headers(file).items()}
    ends = min(known, default="")
    for prefix in [name.removesuffix(ends) for name in stored if name.endswith(ends)]:  # "", or as "bert."
        if all(prefix + name in stored for name in known):
            stored = {name: stored[prefix + name] for name in known}
            break
    entries = [(math.prod(shape), bits) for shape, bits in stored.values()]
    size = sum(count * bits // 8 for count, bits in entries)
    parameters = sum(count for count, _ in entries)
    return dense_numbers(place.resolve().name, parameters, size, sum(file.stat().st_size for file in files))
