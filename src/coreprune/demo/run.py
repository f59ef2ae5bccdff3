"""The demonstration: one trained network, every method, several widths, measured on real images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.api import prune
from coreprune.demo import lenet, test_images
from coreprune.io.checkpoint import write_tensors
from coreprune.maths.methods import METHODS
from coreprune.priors.gaussian import Gaussian
from coreprune.result import Pruned

__all__ = ["SHOWN", "WIDTHS", "Row", "rows"]

#: units kept of 300 and of 100
WIDTHS = ((150, 50), (100, 35), (60, 20), (30, 100))

#: the methods of the table: ours, the paper's and its baselines; benchmarks/lenet.py measures the others too
SHOWN = ("kernel", "refined", "sampling", "uniform", "magnitude", "sensitivity")

#: pixels lie in [0, 1], so their standard deviation is at most 1/2 (Popoviciu); nothing else is said of images
PRIOR = Gaussian(std=0.5)


@dataclass(frozen=True)
class Row:
    """One line of the table; `seconds` is the time to decide and to cut."""

    method: str
    widths: str
    params: int
    bytes: int
    test_error_percent: float
    seconds: float
    prior: str
    data_used: bool

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def rows(seed: int = 0, keep: Callable[[Pruned], None] | None = None) -> Iterator[Row]:
    """Measure the dense network, then the methods shown at every width, without fine-tuning.

    Args:
        seed: of the random methods.
        keep: called with every smaller network.
    """
    model, (images, labels) = lenet(), test_images()
    yield _row("dense", (300, 100), model, 0.0, "none", images, labels)
    prune(model, units={"0": 299}, prior=PRIOR, seed=seed)  # the first call pays for what Python loads lazily
    for name in (name for name in METHODS if name in SHOWN):
        for first, second in WIDTHS:
            start = time.perf_counter()
            small = prune(model, units={"0": first, "2": second}, method=name, prior=PRIOR, seed=seed)
            seconds = time.perf_counter() - start
            if keep:
                keep(small)
            yield _row(name, (first, second), small.model, seconds, small.plan.recipe["prior"], images, labels)


def _row(
    method: str, widths: tuple[int, int], model: nn.Module, seconds: float, prior: str, x: Tensor, y: Tensor
) -> Row:
    state = model.state_dict()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        write_tensors(file, state)
        size = file.stat().st_size
    with torch.no_grad():
        wrong = 100 * float((model(x).argmax(1) != y).double().mean())
    params = sum(tensor.numel() for tensor in state.values())
    return Row(method, f"{widths[0]}-{widths[1]}", params, size, round(wrong, 2), round(seconds, 4), prior, False)
