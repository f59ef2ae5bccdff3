"""Time of a forward pass in other runtimes: compiled by torch.compile, and exported to ONNX for onnxruntime."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from coreprune.errors import InvalidInputError
from coreprune.model.capture import first_line
from coreprune.model.quiet import quiet
from coreprune.report.turns import Latency, timed

__all__ = ["RUNTIMES", "Runtime", "check_runtimes", "runtimes"]


@dataclass(frozen=True)
class Runtime:
    """A forward pass in one runtime.

    Attributes:
        name: a key of `RUNTIMES`. said: what that is, in words.
        latency: of both networks; None where it could not be had.
        why: it could not; empty if it could.
    """

    name: str
    said: str
    latency: Latency | None = None
    why: str = ""


def check_runtimes(names: Iterable[str]) -> tuple[str, ...]:
    """The names, if all are known.

    Raises:
        InvalidInputError: one is not.
    """
    found = tuple(names.split(",")) if isinstance(names, str) else tuple(names)
    unknown = [name for name in found if name not in RUNTIMES]
    if unknown or not found:
        raise InvalidInputError(f"runtimes={','.join(found)!r} was asked: give some of {', '.join(RUNTIMES)}")
    return tuple(dict.fromkeys(found))


def runtimes(
    dense: nn.Module, small: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: Iterable[str],
    seconds: float,
) -> tuple[Runtime, ...]:  # fmt: skip
    """Run both networks in each of the runtimes, in turns.

    Args:
        dense: before. small: after. Both are in evaluation mode.
        args, kwargs: of the call. names: keys of `RUNTIMES`. seconds: to spend on each.

    Returns:
        One for each name; what a runtime cannot do is said, and is no error.
    """
    found = []
    for name in names:
        said, road = RUNTIMES[name]
        try:
            with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
                pair = [road(model, args, kwargs, Path(folder) / str(i)) for i, model in enumerate((dense, small))]
                latency = timed(pair[0], pair[1], _device(small), seconds)
        except Exception as error:  # a compiler or an exporter raises whatever it raises
            found.append(Runtime(name, said, None, first_line(error)[:200]))
        else:
            found.append(Runtime(name, said, latency))
    return tuple(found)


def _eager(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], place: Path) -> Callable[[], Any]:
    return lambda: model(*args, **kwargs)


def _compiled(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], place: Path) -> Callable[[], Any]:
    """The model compiled for these shapes alone."""
    torch.compiler.reset()  # or the second network would be compiled for changing shapes
    fast = torch.compile(model, dynamic=False)
    fast(*args, **kwargs)
    return lambda: fast(*args, **kwargs)


def _onnx(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], place: Path) -> Callable[[], Any]:
    """A session of onnxruntime with as many threads as torch has."""
    missing = [one for one in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(one) is None]
    if missing:
        raise InvalidInputError(f"{' and '.join(missing)} not installed: pip install onnx onnxscript onnxruntime")
    import onnxruntime  # type: ignore[import-untyped]

    if _device(model).type != "cpu":
        raise InvalidInputError("it is measured on CPUs alone")
    file = str(place) + ".onnx"
    torch.onnx.export(model, args, kwargs=kwargs, f=file, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    values = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    fed = {one.name: value.numpy() for one, value in zip(session.get_inputs(), values, strict=True)}
    return lambda: session.run(None, fed)


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


Road = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Path], Callable[[], Any]]
#: name → what it is, and how a network is brought there
RUNTIMES: dict[str, tuple[str, Road]] = {
    "eager": ("PyTorch as it is", _eager),
    "compile": ("torch.compile", _compiled),
    "onnx": ("onnxruntime", _onnx),
}
