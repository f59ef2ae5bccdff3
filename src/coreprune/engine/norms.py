"""BatchNorms on the statistics of what they get, and what these statistics are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from coreprune.engine.double import name_of
from coreprune.model.capture import Captured

__all__ = ["Norms", "normalised", "normalises", "normed"]

#: positions per channel below which a BatchNorm keeps its running statistics
POSITIONS = 32
#: share of a channel's mean square from which the variance is what the squared mean leaves of it in float32
CLEAR = 0.01

#: gets mean and variance of every channel, (C,) each, and the number of values
Take = Callable[[Tensor, Tensor, int], None]


def normalises(operator: Any) -> bool:
    """Whether an operator is a BatchNorm as networks have it in eval mode."""
    return name_of(operator).startswith(("aten.batch_norm", "aten._native_batch_norm_legit_no_training"))


def normed(captured: Captured) -> bool:
    """Whether there is such a BatchNorm in a graph."""
    return any(normalises(node.target) for node in captured.graph.graph.nodes)


def normalised(operands: Sequence[Any], eps: float, take: Take | None = None) -> Tensor:
    """BatchNorm of x, (N, C, …), with the mean m and variance v of x itself in place of the running ones.

        y = γ √(σ²/(σ²+ε)) (x − m)/√v + β

    σ² is the running variance: the output has mean β and standard deviation |γ| √(σ²/(σ²+ε)), as it had in training,
    which is |γ| but for channels that were all but dead. Channels that are constant in x keep the running
    statistics, and so do all where fewer than POSITIONS values per channel are at hand. To a gradient m and v are
    constants.

    Args:
        operands: x, γ or None, β or None, the running mean, σ². eps: ε.
        take: gets m, v and the number of values.
    """
    x, weight, bias, mean, variance = operands
    count = x.numel() // max(x.shape[1], 1)
    own, spread = mean, variance + eps
    half = x.dtype in {torch.float16, torch.bfloat16}  # whose range a variance may be beyond
    if count >= POSITIONS or take is not None:
        m, v = _moments(x.detach().float() if half else x.detach())
        if take is not None:
            take(m, v, count)
        if count >= POSITIONS:
            moves = v > 1e-12 * m.square()
            own = torch.where(moves, m, mean)
            spread = torch.where(moves, v / variance, 1.0) * spread
    if half:
        scale = torch.rsqrt(spread)
        weight, spread = scale if weight is None else weight * scale, torch.ones_like(spread)
    own, spread = own.to(x.dtype), spread.to(x.dtype)
    weight, bias = (value if value is None else value.to(x.dtype) for value in (weight, bias))
    return F.batch_norm(x, own, spread, weight, bias, eps=0.0)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel of (N, C, …)."""
    flat = x.flatten(2) if x.dim() > 2 else x.T[None]
    if _lies_by_pixels(x):
        mean, variance = x.mean((0, 2, 3)), torch.batch_norm_update_stats(x, None, None, 0.0)[1]
        square = variance + mean.square()
    else:
        mean, square = flat.mean(2).mean(0), _mean_square(flat)
        variance = square - mean.square()
    unclear = (variance < CLEAR * square).nonzero()[:, 0]
    if unclear.numel():
        centred = flat[:, unclear] - mean[unclear, None]
        variance[unclear] = _mean_square(centred)
    return mean, variance


def _lies_by_pixels(x: Tensor) -> bool:
    """Whether the channels of images are next to each other."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return last and x.device.type == "cpu" and x.dtype == torch.float32


def _mean_square(flat: Tensor) -> Tensor:
    """Mean square of every channel of (N, C, positions)."""
    each: Tensor = torch.linalg.vector_norm(flat, dim=2) / math.sqrt(flat.shape[2])
    return each.square().mean(0)


class Norm(NamedTuple):
    """A BatchNorm of a graph: its node, and the names of its running statistics."""

    node: fx.Node
    mean: str
    variance: str


class Norms:
    """Mean and variance of what each BatchNorm with running statistics gets in runs of a graph, if it is used once.

    Attributes:
        every: the BatchNorms, in forward order.
    """

    def __init__(self, captured: Captured) -> None:
        """Nothing seen yet."""
        found = []
        for node in captured.graph.graph.nodes:
            if normalises(node.target):
                named = (captured.states.get(a.name, "") if isinstance(a, fx.Node) else "" for a in node.args[3:5])
                mean, variance = named
                if mean and variance:
                    found.append(Norm(node, mean, variance))
        names = [norm.mean for norm in found]
        self.every = tuple(norm for norm in found if names.count(norm.mean) == 1)
        self._seen: Mapping[fx.Node, _Sums] = {norm.node: _Sums() for norm in self.every}

    def __contains__(self, node: object) -> bool:
        """Whether a node is one of them."""
        return node in self._seen

    def taking(self, node: fx.Node) -> Take | None:
        """What takes in one batch's statistics of a node, if it is one of them."""
        return self._seen[node].add if node in self._seen else None

    def count(self, norm: Norm) -> int:
        """Values per channel that were seen."""
        return self._seen[norm.node].count

    def moments(self, norm: Norm) -> tuple[Tensor, Tensor]:
        """Mean and variance over all that was seen, float64, (C,) each."""
        return self._seen[norm.node].both


class _Sums:
    """Sum, sum of squares and number of what each channel got."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def add(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Take in a batch."""
        m, v = mean.double().cpu(), variance.double().cpu()
        self.sum, self.squares = self.sum + count * m, self.squares + count * (v + m.square())
        self.count += count

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """Mean and variance."""
        mean = self.sum / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0)
