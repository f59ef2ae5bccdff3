"""The options that say what to remove and how, and what they mean as arguments of `coreprune.plan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from coreprune.budget import number_of
from coreprune.cli.common import Source, files, words
from coreprune.engine.inputs import PRIORS
from coreprune.errors import InvalidInputError
from coreprune.maths.methods import METHODS
from coreprune.model.groups import KINDS
from coreprune.model.network import CAPTURES
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.text import Text

__all__ = ["by_name", "capture_option", "request_of", "request_options"]

Decorator = Callable[[Any], Any]


def capture_option(command: Any) -> Any:
    """--capture."""
    return click.option(
        "--capture", type=click.Choice(CAPTURES), default="auto", show_default=True, metavar="HOW",
        help=f"{', '.join(CAPTURES[:-1])} or {CAPTURES[-1]}.",
    )(command)  # fmt: skip


def request_options(command: Any) -> Any:
    """What to remove and how."""
    options: list[Decorator] = [
        click.option(
            "--remove", multiple=True, metavar="F|SITE=F", help="Fraction of parameters, or of a site's units."
        ),
        click.option("--units", multiple=True, metavar="SITE=K", help="Units a site keeps."),
        click.option("--draws", multiple=True, metavar="SITE=M", help="The paper's draws with replacement."),
        click.option(
            "--method",
            default="kernel",
            show_default=True,
            help=f"One of {', '.join(METHODS)}.",
            shell_complete=words(*METHODS),
        ),
        click.option(
            "--budget",
            multiple=True,
            metavar="KIND=X",
            help="params, flops, bytes, latency (number or 60%), error=0.05, or measured: divergence=0.1, cosine=0.98.",
        ),
        click.option("--table", metavar="FILE", help="Of times, for latency=.", shell_complete=files),
        click.option("--reweight", is_flag=True, help="Least-squares weights for the method's units."),
        click.option(
            "--prior",
            metavar="NAME",
            help=f"Of the moments: auto, {', '.join(PRIORS)}, or several with +.",
            shell_complete=words("auto", *PRIORS),
        ),
        click.option("--text", metavar="FILE", help="Measure on a text file of yours (prior).", shell_complete=files),
        click.option("--mean", type=float, help="Of an input feature (prior)  [default: 0]"),
        click.option("--std", type=float, help="Of an input feature (prior)  [default: radius / sqrt(d)]"),
        click.option("--ignore", multiple=True, metavar="SITE", help="Leave these sites whole (name, glob, re:)."),
        click.option("--protect", multiple=True, metavar="SITE=X", help="Most that may go (0.1, 10%) or units kept."),
        click.option("--radius", type=float, metavar="B", help="Largest norm of an input  [default: sqrt(d)]"),
        click.option(
            "--kinds",
            multiple=True,
            metavar="KIND",
            help=f"Only sites of a kind: {', '.join(KINDS)}.",
            shell_complete=words(*KINDS),
        ),
        click.option("--uneven", is_flag=True, help="Widths that differ from block to block (Hugging Face)."),
        click.option("--round-to", type=int, metavar="N", help="Keep multiples of N units."),
        capture_option,
        click.option("--seed", type=int, default=0, show_default=True, help="Decides every random choice."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def request_of(options: dict[str, Any], source: Source) -> dict[str, Any]:
    """The options of `request_options` as arguments of `coreprune.plan`."""
    remove: Any = None
    if options["remove"]:
        plain = [text for text in options["remove"] if "=" not in text]
        if len(plain) > 1 or (plain and len(options["remove"]) > 1):
            raise InvalidInputError(
                "--remove was given as one fraction and again: give one fraction, or SITE=F for each"
            )
        remove = (
            _number("--remove", plain[0], plain[0], float) if plain else by_name("--remove", options["remove"], float)
        )
    budget = None
    if options["budget"]:
        text, *more = options["budget"]
        if more:
            raise InvalidInputError(
                f"--budget was given {1 + len(more)} times, {', '.join(options['budget'])}: give one"
            )
        kind, equals, value = text.partition("=")
        if not equals:
            raise InvalidInputError(f"--budget {text!r} has no '=': write one such as params=60%")
        budget = {kind: value} | ({} if options["table"] is None else {"table": options["table"]})
    if options["table"] is not None and (budget is None or "latency" not in budget):
        raise InvalidInputError("--table goes with --budget latency=X: give both")
    return {
        "remove": remove,
        "budget": budget,
        "prior": _prior_of(options),
        "reweight": options["reweight"],
        "units": by_name("--units", options["units"], int) or None,
        "draws": by_name("--draws", options["draws"], int) or None,
        "method": options["method"],
        "ignore": options["ignore"],
        "protect": _protected(options["protect"]) or None,
        "radius": options["radius"],
        "kinds": options["kinds"] or None,
        "uniform": "config" if source.directory is not None and not options["uneven"] else False,
        "round_to": options["round_to"],
        "capture": options["capture"],
        "seed": options["seed"],
    }


def _prior_of(options: dict[str, Any]) -> Any:
    """The prior that --prior, --text, or --mean and --std mean; None for what suits the network."""
    numbers = options["mean"] is not None or options["std"] is not None
    given = [f"--{name}" for name in ("prior", "text") if options[name] is not None] + ["--mean or --std"] * numbers
    if len(given) > 1 and not (options["prior"] == "noise" and options["text"] is None):
        raise InvalidInputError(f"{' and '.join(given)} were given, which are priors each: give one of them")
    if options["text"] is not None:
        return Text(options["text"])
    return Gaussian(options["mean"] or 0.0, options["std"]) if numbers else options["prior"]


def _protected(texts: tuple[str, ...]) -> dict[str, Any]:
    """SITE=X, where X is a share that may go, or how many units stay."""
    found = by_name("--protect", texts, float)
    for text in texts:
        if text.endswith("%") and number_of(text.rpartition("=")[2]) >= 1:
            raise InvalidInputError(f"--protect {text!r} was asked: give the share that may go, below 100%")
    return found


def by_name(option: str, texts: tuple[str, ...], kind: type) -> dict[str, Any]:
    """SITE=NUMBER, any number of times, as a dict."""
    found = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals:
            raise InvalidInputError(f"{option} {text!r} has no '=': write SITE=NUMBER")
        if name in found:
            raise InvalidInputError(f"{option} was given twice for {name!r}: give it once")
        found[name] = _number(option, text, value, kind)
    return found


def _number(option: str, said: str, text: str, kind: type) -> Any:
    """A whole number, or a fraction such as 0.5 or 50%."""
    try:
        return number_of(text) if kind is float else kind(text)
    except ValueError as error:
        what, like = ("whole number", "150") if kind is int else ("number", "0.5 or 50%")
        raise InvalidInputError(f"{option} {said!r} has no {what}: write one such as {like}") from error
