"""Where a small LeNet-300-100 may come from: cut by a method of coreprune, or not cut at all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import coreprune as cp

__all__ = ["PRIOR", "STARTS", "Cut", "Start", "cut", "lenet_of", "said_of"]

PRIOR = cp.Gaussian(std=0.5)  # pixels lie in [0, 1], so their standard deviation is at most 1/2


@dataclass(frozen=True)
class Start:
    """A way to a small network.

    Attributes:
        arguments: of `coreprune.prune`; None for one that is drawn anew, as `torch.nn.Linear` does.
        data: whether the cut looks at training pictures (10,000 of them, no labels).
    """

    arguments: Mapping[str, Any] | None = field(default_factory=dict)
    data: bool = False


#: label → way; a new one is one row
STARTS: dict[str, Start] = {
    "refined": Start({"method": "refined", "prior": PRIOR}),
    "kernel": Start({"method": "kernel", "prior": PRIOR}),
    "kernel, real data": Start({"method": "kernel"}, data=True),
    "sampling": Start({"method": "sampling"}),
    "uniform": Start({"method": "uniform"}),
    "magnitude": Start({"method": "magnitude"}),
    "from scratch": Start(None),
}


@dataclass(frozen=True)
class Cut:
    """A small network before training, the prior in words, and the seconds that it took."""

    model: nn.Sequential
    prior: str
    seconds: float


def lenet_of(first: int, second: int) -> nn.Sequential:
    """An untrained LeNet with these widths."""
    return nn.Sequential(nn.Linear(784, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 10))


def cut(label: str, dense: nn.Module, widths: tuple[int, int], seed: int, pictures: Tensor) -> Cut:
    """The small network that a way leads to.

    Args:
        label: of STARTS. dense: LeNet-300-100. widths: of the two hidden layers. seed: of every draw.
        pictures: training pictures, of which ways with data see 10,000.
    """
    start = STARTS[label]
    began = time.perf_counter()
    if start.arguments is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Cut(lenet_of(*widths), "none: drawn anew", time.perf_counter() - began)
    asked = dict(start.arguments) | ({"data": list(pictures[:10_000].split(1000))} if start.data else {})
    small = cp.prune(dense, units={"0": widths[0], "2": widths[1]}, seed=seed, **asked)
    return Cut(small.model, said_of(small), time.perf_counter() - began)


def said_of(small: cp.Pruned) -> str:
    """The prior that a cut was made with, in words; methods that look at weights alone have none."""
    recipe = small.plan.recipe
    law = cp.METHODS[recipe["method"]].law or recipe.get("reweight")
    return str(recipe["prior"]) if law else "none: weights alone"
