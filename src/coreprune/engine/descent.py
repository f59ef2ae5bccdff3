"""What descents on samples have in common: inputs split in those learnt from and those held back, and the way down.

The error of ŷ for y, over positions i, is

    mean_i w_i ‖y_i − ŷ_i‖² / median ‖y‖²,        w_i = min(1, median ‖y‖² / ‖y_i‖²),

so that a token that makes massive outputs weighs as one (`coreprune.engine.observe.clipped`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

__all__ = [
    "POSITIONS",
    "Batch",
    "Left",
    "descend",
    "median",
    "most",
    "positions",
    "rows_of_all",
    "split",
    "weighed",
    "wide",
]

POSITIONS, HELD = 256, 10
RATE = 5e-3  # of Adam, as a share of the root mean square of a tensor's entries
WARM = 20  # steps in which the rate rises

Batch = tuple[dict[str, Any], Tensor]  # incoming values, and which rows of them


class Left(NamedTuple):
    """Mean over positions of the weighed squared error, of the squared error, and of the energy."""

    weighed: float
    error: float
    energy: float


def descend(
    leaves: Mapping[str, Tensor],
    loss: Callable[[int, Tensor], Tensor],
    learnt: Sequence[Batch],
    each: int,
    epochs: int,
    generator: Generator,
) -> None:
    """Take the leaves downhill by Adam, at a rate that rises for WARM steps and falls along a cosine.

    Args:
        leaves: by name; changed.
        loss: of some rows of one pass.
        learnt: every pass with the rows that are learnt from.
        each: rows of a step. epochs: how often all are gone through.
        generator: of their order.
    """
    sizes = [_size(leaf.detach()) for leaf in leaves.values()]
    rates = [RATE * (size or max(sizes)) for size in sizes]
    groups = [{"params": [leaf], "lr": rate} for leaf, rate in zip(leaves.values(), rates, strict=True)]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
    order = [part for _ in range(epochs) for part in _order(learnt, each, generator)]
    for step, (at, own) in enumerate(order):
        pace = min(1.0, (step + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * step / len(order)))
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * pace
        with torch.enable_grad():
            value = loss(at, own)
            adam.zero_grad()
            value.backward()
        adam.step()


def _order(learnt: Sequence[Batch], each: int, generator: Generator) -> list[tuple[int, Tensor]]:
    """One epoch: rows of every pass in parts, each of one pass, in an order that is drawn."""
    parts = [
        (at, own)
        for at, (_, rows) in enumerate(learnt)
        for own in torch.randperm(len(rows), generator=generator).split(each)
    ]
    return [parts[j] for j in torch.randperm(len(parts), generator=generator).tolist()]


def split(values: Sequence[dict[str, Any]]) -> tuple[list[Batch], list[Batch]]:
    """Rows of every pass: those to learn from, and one in HELD."""
    learnt, back, seen = [], [], 0
    for one in values:
        rows = most(one)
        at = torch.arange(seen, seen + rows) % HELD == HELD - 1
        seen += rows
        learnt.append((one, (~at).nonzero()[:, 0]))
        back.append((one, at.nonzero()[:, 0]))
    return [batch for batch in learnt if len(batch[1])], [batch for batch in back if len(batch[1])]


def rows_of_all(values: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Some rows of all values that have as many as the largest, those in narrow precision widened."""
    many, result = most(values), {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            own = value[rows.to(value.device)] if value.dim() and len(value) == many else value
            result[name] = wide(own)
        else:
            result[name] = value
    return result


def most(values: Mapping[str, Any]) -> int:
    """Rows of the largest value."""
    return max((len(v) for v in values.values() if isinstance(v, Tensor) and v.dim()), default=0)


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32 at least."""
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor


def positions(y: Tensor, axis: int) -> int:
    """How many positions there are, when the axis runs over features."""
    return y.numel() // max(y.shape[axis], 1)


def median(parts: Sequence[Tensor], axis: int) -> Tensor:
    """The median energy of a position."""
    return torch.cat([y.square().sum(axis).flatten() for y in parts]).median().clamp(min=1e-30)


def weighed(given: Tensor, wanted: Tensor, axis: int, usual: Tensor) -> Tensor:
    """The mean over positions of w ‖y − ŷ‖² / median, w = min(1, median / ‖y‖²)."""
    weight = 1 / wanted.square().sum(axis).clamp(min=float(usual))
    return ((given - wanted).square().sum(axis) * weight).mean()


def _size(tensor: Tensor) -> float:
    return float(tensor.float().square().mean().sqrt())
