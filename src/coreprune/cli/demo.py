"""``coreprune demo``."""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from coreprune.cli.bar import progress_bar
from coreprune.cli.common import files
from coreprune.demo.run import SHOWN, WIDTHS, Row, rows
from coreprune.errors import CheckpointError
from coreprune.report.text import bytes_text, table
from coreprune.result import Pruned

__all__ = ["demo"]


@click.command(short_help="A trained LeNet-300-100 made smaller, on real images.")
@click.option("-o", "--output", default="coreprune-demo", show_default=True, shell_complete=files,
              help="Where a smaller network is written.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides every random choice.")
def demo(output: str, as_json: bool, seed: int) -> None:
    """Cut a trained LeNet-300-100 by six methods and measure it on MNIST.

    The network comes with the package, and so do the 10,000 MNIST test images,
    which are used to measure and for nothing else. No fine-tuning.

    \b
    Examples:
      coreprune demo
      coreprune demo --json --seed 1 -o my-demo
    """
    target = Path(output)
    if target.exists() and not (target / "structure.json").exists():
        raise CheckpointError(f"{output} exists and is not a demo of before: give another place with --output")
    torch.set_num_threads(1)  # the network is too small to share out, and one thread gives the same bits everywhere
    kept: list[Pruned] = []
    measured: list[Row] = []
    with progress_bar("pruning") as progress:
        for row in rows(seed, kept.append):
            measured.append(row)
            progress(len(measured), 1 + len(SHOWN) * len(WIDTHS), f"{row.method} {row.widths}")
    kept[0].save(target, force=True)
    if as_json:
        click.echo(json.dumps([row.to_json() for row in measured], indent=1))
    else:
        click.echo("LeNet-300-100 on 10,000 MNIST test images, no data used, no fine-tuning\n")
        click.echo(demo_table(measured))
        click.echo(f"\nthe network of the second row ({measured[1].method} {measured[1].widths}):\n{kept[0].summary()}")
        click.echo(f"\nwritten to {output}/: load it with coreprune.load({output!r}, coreprune.demo.architecture)")


def demo_table(measured: list[Row]) -> str:
    """The rows as text."""
    head = ["method", "widths", "parameters", "size", "test error %", "seconds"]
    body = [
        [r.method, r.widths, f"{r.params:,}", bytes_text(r.bytes), f"{r.test_error_percent:.2f}", f"{r.seconds:.3f}"]
        for r in measured
    ]
    return table(head, body)
