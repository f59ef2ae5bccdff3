"""``coreprune verify MODEL OUT``."""

from __future__ import annotations

import json
from dataclasses import replace

import click

from coreprune import api
from coreprune.cli.bar import progress_bar
from coreprune.cli.common import files, model_options, source_of, words
from coreprune.engine.inputs import PRIORS
from coreprune.errors import InvalidInputError
from coreprune.priors.gaussian import Gaussian
from coreprune.report.text import wrap
from coreprune.result import read_structure

__all__ = ["verify"]


@click.command(short_help="Recompute the guarantees from the tensors.")
@model_options
@click.argument("out", shell_complete=files)
@click.option(
    "--prior",
    metavar="NAME",
    help=f"Of the inputs: auto, {', '.join(PRIORS)}, or several with +  [default: as when OUT was cut]",
    shell_complete=words("auto", *PRIORS),
)
@click.option("--mean", type=float, help="Of an input feature (prior)  [default: as when OUT was cut]")
@click.option("--std", type=float, help="Of an input feature (prior)  [default: as when OUT was cut]")
@click.option("--radius", type=float, metavar="B", help="Largest norm of an input  [default: as when OUT was cut]")
@click.option("--box", metavar="LOW,HIGH", help="Range of every input feature, in place of the ball.")
@click.option("--delta", type=float, default=0.05, show_default=True, help="Probability that a statement may fail.")
@click.option(
    "--samples",
    type=int,
    help="Inputs to measure on, as far as the prior makes so many  [default: 10000, or 256 if it is no stack]",
)
@click.option("--no-worst", is_flag=True, help="Leave out the worst cases, which take longest.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of samples and searches.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def verify(
    model: str,
    factory: str | None,
    shape: str | None,
    out: str,
    prior: str | None,
    mean: float | None,
    std: float | None,
    radius: float | None,
    box: str | None,
    delta: float,
    samples: int | None,
    no_worst: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Check the smaller network in OUT against MODEL, from the tensors alone.

    Example: coreprune verify coreprune.demo:lenet small/ --std 0.5 --radius 10
    """
    source = source_of(model, factory, shape)
    with progress_bar("verifying") as progress:
        checked = api.verify(
            source.network,
            out,
            prior=_prior(out, prior, mean, std),
            radius=radius,
            box=_ends(box),
            samples=samples,
            delta=delta,
            worst=not no_worst,
            seed=seed,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(checked.to_json(), indent=1))
    else:
        for line in checked.statements():
            click.echo("\n".join(wrap(f"- {line}")))


def _prior(out: str, name: str | None, mean: float | None, std: float | None) -> Gaussian | str | None:
    """The prior of the cut, with what the options say in place of its own; None if they say nothing.

    Raises:
        InvalidInputError: they say two things.
    """
    if mean is None and std is None:
        return name
    if name not in {None, "noise"}:
        raise InvalidInputError("--prior and --mean or --std were given, which are priors each: give one of them")
    known = read_structure(out)["recipe"].get("prior_values")
    law = Gaussian.from_json(known) if known else Gaussian()
    return replace(law, mean=law.mean if mean is None else mean, std=law.std if std is None else std)


def _ends(box: str | None) -> tuple[float, float] | None:
    if box is None:
        return None
    try:
        low, high = (float(end) for end in box.split(","))
    except ValueError as error:
        raise InvalidInputError(f"--box {box!r} is not a range: write one such as 0,1") from error
    return low, high
