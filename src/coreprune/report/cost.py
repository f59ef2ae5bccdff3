"""What a network costs to run: multiply-adds, counted as they happen, time, and tokens per second."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from coreprune.errors import InvalidInputError
from coreprune.model.capture import arguments, first_line, rows_of
from coreprune.model.untouched import evaluating
from coreprune.report.generation import Generation, generation
from coreprune.report.runtimes import Runtime, check_runtimes, runtimes
from coreprune.report.turns import Latency, timed

__all__ = ["Change", "Cost", "Latency", "measure", "multiply_adds"]


@dataclass(frozen=True)
class Change:
    """A number before and after; None where it is not known.

    Example:
        >>> Change(200, 50).removed
        0.75
    """

    before: int | None = None
    after: int | None = None

    @property
    def removed(self) -> float | None:
        """The share that went."""
        return None if not self.before or self.after is None else 1 - self.after / self.before


@dataclass(frozen=True)
class Cost:
    """What both networks cost on the same inputs.

    Attributes:
        inputs: shapes of the inputs, in words.
        multiply_adds: of one of them: of a forward pass, shared out over the first axis.
        latency: of a forward pass on all of them, in PyTorch as it is.
        dtype: of the small network's tensors.
        generation: of causal language models, how fast they read and write.
        runtimes: the same forward pass elsewhere, where that was asked for.

    Example:
        >>> import coreprune as cp
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> cost = cp.prune(net, units={"0": 4}).speed(net, seconds=0)
        >>> cost.multiply_adds.removed, cost.dtype
        (0.5, 'float32')
    """

    inputs: str
    multiply_adds: Change
    latency: Latency
    dtype: str = "float32"
    generation: Generation | None = None
    runtimes: tuple[Runtime, ...] = ()

    def __str__(self) -> str:
        """What was timed, as a table."""
        from coreprune.report.speed import speed_text

        return speed_text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from coreprune.report.speed import speed_html

        return speed_html(self)


def measure(
    dense: nn.Module,
    small: nn.Module,
    example_inputs: Any,
    *,
    seconds: float = 2.0,
    others: Iterable[str] = ("eager",),
) -> Cost:
    """Run both networks on the same inputs, in evaluation mode.

    Args:
        dense: before. small: after. Neither is changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        seconds: to spend on each thing that is timed; each network runs 5 times at least and 200 times at most.
        others: runtimes to measure in beside PyTorch as it is: "compile", "onnx".

    Raises:
        InvalidInputError: the inputs do not fit, or a runtime is not known.

    Example:
        >>> net, less = nn.Linear(6, 4), nn.Linear(6, 2)
        >>> measure(net, less, torch.zeros(3, 6), seconds=0).multiply_adds
        Change(before=24, after=12)
    """
    names = [name for name in check_runtimes(others) if name != "eager"]
    args, kwargs = arguments(example_inputs)
    with evaluating(dense, small), torch.no_grad():
        try:
            rows = max(rows_of((args, kwargs)), 1)
            counted = Change(*(multiply_adds(model, args, kwargs) // rows for model in (dense, small)))
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"the inputs do not fit the network ({first_line(error)}): give one batch as the network takes "
                "it, on the command line its shape (--input)"
            ) from error
        latency = timed(lambda: dense(*args, **kwargs), lambda: small(*args, **kwargs), _device(small), seconds)
        written = generation(dense, small, seconds)
        elsewhere = runtimes(dense, small, args, kwargs, names, seconds)
    kind = next((str(t.dtype).removeprefix("torch.") for t in small.parameters()), "float32")
    return Cost(_words(args, kwargs), counted, latency, kind, written, elsewhere)


def multiply_adds(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Multiply-adds of one call: of matrix products, convolutions, and attention as the products it is made of.

    Example:
        >>> multiply_adds(nn.Conv2d(3, 5, 3, padding=1), (torch.zeros(1, 3, 8, 8),), {}) == 8 * 8 * 5 * 3 * 9
        True
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def _words(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Shapes and dtypes of the tensors, by their names where they have some."""
    found = []
    for path, leaf in pytree.tree_flatten_with_path((args, kwargs))[0]:
        if isinstance(leaf, Tensor):
            key = getattr(path[-1], "key", None)
            size = "×".join(str(n) for n in leaf.shape) or "one"
            found.append(f"{key + ' ' if isinstance(key, str) else ''}{size} {str(leaf.dtype).removeprefix('torch.')}")
    return ", ".join(found) or "no tensors"
