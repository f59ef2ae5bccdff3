"""What several commands share: how a model is named, and where results go."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import click
import torch
from click.shell_completion import CompletionItem
from torch import nn

from coreprune.cli.bar import progress_bar
from coreprune.clock import Clock, Timing
from coreprune.errors import CheckpointError, InvalidInputError, UnknownNameError
from coreprune.io import huggingface
from coreprune.io.checkpoint import read_tensors

__all__ = [
    "Source",
    "example_of",
    "factory_of",
    "files",
    "model_of",
    "model_options",
    "output_option",
    "source_of",
    "words",
]


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
    if Path(spec).is_dir():
        raise InvalidInputError(f"{spec} is a directory, and --factory goes with a .safetensors file: leave it out")
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
            reason = _unlike(tensors, model) or shorten(" ".join(str(error).split()), 240, placeholder=" …")
            raise CheckpointError(
                f"{spec} does not fit what {factory} makes ({reason}): name the right factory"
            ) from None
        return model
    return _made(spec)


def _unlike(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> str:
    """The first tensor that a file and a network do not have alike, in words."""
    own = model.state_dict()
    for name in dict.fromkeys([*own, *tensors]):
        if name not in tensors or name not in own:
            return f"{name} is only in {'the file' if name in tensors else 'the network'}"
        if tensors[name].shape != own[name].shape:
            found, made = ("x".join(map(str, one.shape)) or "one number" for one in (tensors[name], own[name]))
            return f"{name} is {found} in the file and {made} in the network"
    return ""


def _made(spec: str) -> nn.Module:
    """What the factory makes, if it makes a module."""
    factory = factory_of(spec)
    try:
        model = factory()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInputError(f"{spec!r} failed when it was called without arguments ({reason}): mend it") from error
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"{spec!r} returned {type(model).__name__!r}: name what returns a torch.nn.Module")
    return model


def example_of(shape: str | None) -> torch.Tensor | None:
    """Zeros of the shape that --input names, such as 1x784."""
    if shape is None:
        return None
    try:
        sizes = [int(size) for size in shape.replace(",", "x").split("x")]
        if min(sizes) < 1:
            raise ValueError(f"a size of {min(sizes)}")
        return torch.zeros(sizes)
    except (ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"--input {shape!r} is not the shape of a batch: write one such as 1x784, sizes from 1"
        ) from error


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


def output_option(what: str, said: str) -> Callable[[Any], Any]:
    """-o, --output."""
    return click.option("-o", "--output", required=True, metavar=what, help=said, shell_complete=files)
