"""What a network costs to run: multiply-adds, counted as they happen, and time, dense and small in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from coreprune.errors import InvalidInputError
from coreprune.model.capture import arguments, evaluating, first_line

__all__ = ["Change", "Cost", "Latency", "measure", "multiply_adds"]

FEWEST, MOST = 5, 200  # runs of each network


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
class Latency:
    """Time of one forward pass, in seconds.

    Attributes:
        before, after: medians. before_quartiles, after_quartiles: first and third.
        runs: of each network, in turns. threads: of torch. device: type of device.
    """

    before: float
    after: float
    before_quartiles: tuple[float, float]
    after_quartiles: tuple[float, float]
    runs: int
    threads: int
    device: str

    @property
    def speedup(self) -> float:
        """Before / after."""
        return self.before / self.after


@dataclass(frozen=True)
class Cost:
    """What both networks cost on the same inputs.

    Attributes:
        inputs: shapes of the inputs, in words.
        multiply_adds: of one forward pass on all of them.
        latency: of the same.
    """

    inputs: str
    multiply_adds: Change
    latency: Latency


def measure(dense: nn.Module, small: nn.Module, example_inputs: Any, *, seconds: float = 2.0) -> Cost:
    """Run both networks on the same inputs, in evaluation mode.

    Args:
        dense: before. small: after. Neither is changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        seconds: to spend on timing; each network runs 5 times at least and 200 times at most.

    Raises:
        InvalidInputError: the inputs do not fit.

    Example:
        >>> net, less = nn.Linear(6, 4), nn.Linear(6, 2)
        >>> measure(net, less, torch.zeros(3, 6), seconds=0).multiply_adds
        Change(before=72, after=36)
    """
    args, kwargs = arguments(example_inputs)
    with evaluating(dense, small), torch.no_grad():
        try:
            counted = Change(multiply_adds(dense, args, kwargs), multiply_adds(small, args, kwargs))
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"the inputs do not fit the network ({first_line(error)}): give one batch as the network takes "
                "it, on the command line its shape (--input)"
            ) from error
        latency = _latency(lambda: dense(*args, **kwargs), lambda: small(*args, **kwargs), _device(small), seconds)
    return Cost(_words(args, kwargs), counted, latency)


def multiply_adds(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Multiply-adds of one call: of matrix products, convolutions, and attention as the products it is made of.

    Example:
        >>> multiply_adds(nn.Conv2d(3, 5, 3, padding=1), (torch.zeros(1, 3, 8, 8),), {}) == 8 * 8 * 5 * 3 * 9
        True
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


def _latency(before: Callable[[], Any], after: Callable[[], Any], device: torch.device, seconds: float) -> Latency:
    """Both in turns, so that what else the machine does falls on both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    calls = (before, after)
    for call in (*calls, *calls):  # the first calls pay for what is set up once
        call()
    end = time.perf_counter() + seconds
    while len(times[0]) < FEWEST or (time.perf_counter() < end and len(times[0]) < MOST):
        for call, taken in zip(calls, times, strict=True):
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            taken.append(time.perf_counter() - start)
    (a, x, b), (c, y, d) = (statistics.quantiles(taken, n=4) for taken in times)
    return Latency(x, y, (a, b), (c, d), len(times[0]), torch.get_num_threads(), device.type)


def _wait(device: torch.device) -> None:
    """For the device to have done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
