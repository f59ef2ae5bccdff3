"""What several commands share: how a model is named, the options of a request, progress."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from textwrap import shorten
from typing import Any

import click
import torch
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text
from torch import nn

from coreprune.cli.log import LOG
from coreprune.clock import Clock, Timing
from coreprune.engine.inputs import PRIORS
from coreprune.errors import CheckpointError, InvalidInputError, UnknownNameError
from coreprune.io import huggingface
from coreprune.io.checkpoint import read_tensors
from coreprune.maths.methods import METHODS
from coreprune.model.groups import KINDS
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.text import Text as TextPrior

__all__ = [
    "Source",
    "by_name",
    "capture_option",
    "example_of",
    "factory_of",
    "files",
    "model_of",
    "model_options",
    "progress_bar",
    "request_of",
    "request_options",
    "source_of",
    "words",
]

Decorator = Callable[[Any], Any]


def factory_of(spec: str) -> Callable[[], nn.Module]:
    """The function or class that ``module:name`` means; modules of the current directory count.

    Raises:
        UnknownNameError: no such module or name.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise UnknownNameError(
            f"{spec!r} is no file or directory and names no factory: check the path, or write module:function, such as "
            "coreprune.demo:lenet"
        )
    if module.endswith(".py") or "/" in module:
        raise UnknownNameError(
            f"{spec!r} names a file where a module belongs: write {Path(module).stem}:{name}, in the file's directory"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UnknownNameError(f"{spec!r} cannot be found ({error}): check the module and the name") from error
    if not callable(found):
        raise InvalidInputError(
            f"{spec!r} is a {type(found).__name__}: name a function or class that returns the model"
        )
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Source:
    """What MODEL means.

    Attributes:
        network: the module.
        example: inputs to capture it with, if they are known.
        directory: the Hugging Face directory it was read from, if it was.
        timing: of reading it.
    """

    network: nn.Module
    example: Any = None
    directory: Path | None = None
    timing: Timing = field(default_factory=Timing)


def source_of(spec: str, factory: str | None, shape: str | None = None) -> Source:
    """The network that MODEL and --factory mean, with an example of its inputs."""
    clock = Clock()
    with progress_bar("reading"), clock.stage("reading"):
        found = _source_of(spec, factory, shape)
    return replace(found, timing=clock.timing())


def _source_of(spec: str, factory: str | None, shape: str | None) -> Source:
    place = Path(spec)
    if place.is_dir() and factory is None:
        found = huggingface.load(place)
        return Source(found.model, _example_for(found.model, shape), place)
    return Source(model_of(spec, factory), example_of(shape))


def model_of(spec: str, factory: str | None) -> nn.Module:
    """The network that MODEL and --factory mean."""
    if Path(spec).suffix in {".pt", ".pth", ".bin", ".pkl", ".safetensors"} or Path(spec).exists():
        tensors = read_tensors(spec)
        if factory is None:
            raise InvalidInputError(
                f"{spec} holds tensors only: name what makes the network with --factory module:name"
            )
        model = _made(factory)
        try:
            model.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            reason = shorten(" ".join(str(error).split()), 240, placeholder=" …")
            raise CheckpointError(
                f"{spec} does not fit what {factory} makes ({reason}): name the right factory"
            ) from None
        return model
    return _made(spec)


def _made(spec: str) -> nn.Module:
    """What the factory makes, if it makes a module."""
    factory = factory_of(spec)
    try:
        model = factory()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInputError(f"{spec!r} failed when it was called without arguments ({reason}): mend it") from error
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"{spec!r} returned a {type(model).__name__}: name what returns a torch.nn.Module")
    return model


def example_of(shape: str | None) -> torch.Tensor | None:
    """Zeros of the shape that --input names, such as 1x784."""
    if shape is None:
        return None
    try:
        sizes = [int(size) for size in shape.replace(",", "x").split("x")]
        return torch.zeros(sizes)
    except (ValueError, RuntimeError) as error:
        raise InvalidInputError(f"--input {shape!r} is not a shape: write one such as 1x784") from error


def _example_for(model: nn.Module, shape: str | None) -> Any:
    """What a network of `transformers` takes, or of the shape that --input names: tokens where it reads tokens."""
    given = example_of(shape)
    if given is None:
        return huggingface.example_inputs(model)
    reads = getattr(model, "main_input_name", "") == "input_ids"
    if not reads or given.dim() != 2:
        return given
    return huggingface.example_inputs(model, batch=given.shape[0], length=given.shape[1])


def words(*offered: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """What a shell offers for an option that takes one of these words."""
    return lambda context, option, begun: [CompletionItem(word) for word in offered if word.startswith(begun)]


def files(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Leaves it to the shell to offer files and directories."""
    return [CompletionItem(begun, type="file")]


def model_options(command: Any) -> Any:
    """MODEL, --factory and --input."""
    command = click.option("--input", "shape", metavar="SHAPE", help="Shape of one batch: 1x3x224x224.")(command)
    command = click.option("--factory", metavar="MODULE:NAME", help="Makes the network of a .safetensors file.")(
        command
    )
    return click.argument("model", shell_complete=files)(command)


def capture_option(command: Any) -> Any:
    """--capture."""
    return click.option(
        "--capture", default="auto", show_default=True, help="auto, export or blocks.",
        shell_complete=words("auto", "export", "blocks"),
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
        remove = _number(plain[0], float) if plain else by_name("--remove", options["remove"], float)
    budget = None
    if options["budget"]:
        kind, equals, value = options["budget"].partition("=")
        if not equals:
            raise InvalidInputError(f"--budget {options['budget']!r} has no '=': write one such as params=60%")
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
        "protect": by_name("--protect", options["protect"], float) or None,
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
        return TextPrior(options["text"])
    return Gaussian(options["mean"] or 0.0, options["std"]) if numbers else options["prior"]


def by_name(option: str, texts: tuple[str, ...], kind: type) -> dict[str, Any]:
    """SITE=NUMBER, any number of times, as a dict."""
    found = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals:
            raise InvalidInputError(f"{option} {text!r} has no '=': write SITE=NUMBER")
        found[name] = _number(value, kind)
    return found


def _number(text: str, kind: type) -> Any:
    """A whole number, or a fraction such as 0.5 or 50%."""
    try:
        return float(text[:-1]) / 100 if kind is float and text.endswith("%") else kind(text)
    except ValueError as error:
        like = "150" if kind is int else "0.5 or 50%"
        raise InvalidInputError(f"{text!r} is not a number: write one such as {like}") from error


class _Time(ProgressColumn):
    """Time left where the end is known, and the time so far where it is not."""

    def render(self, task: Task) -> Text:
        """One time, with a word that says which."""
        if task.total is None:
            return Text(f"{timedelta(seconds=int(task.elapsed or 0))} so far")
        left = task.time_remaining
        return Text("" if left is None else f"{timedelta(seconds=int(left))} left")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr while it is a terminal and nothing is logged there, and nothing otherwise.

    Between the steps of which an end is known it moves to and fro, and counts the time so far.
    """
    console, start = Console(stderr=True), time.perf_counter()
    silent = not console.is_terminal or LOG.isEnabledFor(logging.INFO)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), _Time())
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task(what, total=None, count="")

        def step(done: int, total: int, name: str) -> None:
            LOG.debug("%s %d/%d %s", what, done, total, name)
            if done >= total:
                bar.reset(task, total=None, count="", description=what)
            else:
                bar.update(task, completed=done, total=total, count=f"{done}/{total}", description=f"{what} {name}")

        yield step
    LOG.info("%s took %.2f s", what, time.perf_counter() - start)
