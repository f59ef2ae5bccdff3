"""Coresets of edges, drawn by their importance on data, beside coresets of neurons, which need none: the same LeNet.

No training afterwards. At each size the neurons' networks have the widths that `kernel` shares out by its own error curves,
and the edges' networks as many edges as those have weights.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import coreprune as cp
from lenet import trained
from paper.costs import cost, latency
from paper.edges import Sparse, edges, sparse_bytes
from paper.pictures import Pictures, mnist
from paper.starts import PRIOR, STARTS, cut
from paper.store import Row, Store
from train_lenet import error

__all__ = ["SAMPLES", "SIZES", "compare"]

SIZES = (0.5, 0.75, 0.9)  # shares of parameters removed
SAMPLES = (16, 64, 256)  # |S|, pictures that edges are judged on
NEURONS = ("refined", "kernel", "kernel, real data", "sampling", "uniform", "magnitude")


def compare(seeds: int, data: Path) -> list[Row]:
    """Measure every method at every size for every seed; rows that are in the record stay."""
    store, pictures = Store("paper-edges"), mnist(data)
    wanted = [
        {"seed": seed, "removed": size, "method": label}
        for seed in range(seeds)
        for size in SIZES
        for label in [*(f"edges, {count} pictures" for count in SAMPLES), *NEURONS]
    ]
    for key in store.missing(wanted):
        dense = trained("mnist", key["seed"], data).eval()
        widths = cp.plan(dense, remove=key["removed"], prior=PRIOR).kept
        row = store.put(key, _measured(key, dense, (widths["0"], widths["2"]), pictures))
        print(f"seed {key['seed']}, −{key['removed']:.0%}, {key['method']}: {row['error']:.2f} %", flush=True)
    return store.keep(wanted)


def _measured(key: Mapping[str, Any], dense: nn.Module, widths: tuple[int, int], p: Pictures) -> dict[str, Any]:
    label = key["method"]
    if not label.startswith("edges"):
        found = cut(label, dense, widths, key["seed"], p.x)
        data = 10_000 if STARTS[label].data else 0
        extra = {"pictures": data, "prior": found.prior, "seconds": found.seconds, "widths": f"{widths[0]}-{widths[1]}"}
        return {"error": error(found.model, p.x_measure, p.y_measure), **cost(found.model, p.x_measure), **extra}
    count = int(label.split()[1])
    generator = torch.Generator().manual_seed(key["seed"])
    sample = p.x[torch.randperm(len(p.x), generator=generator)[:count]]
    size = 784 * widths[0] + widths[0] * widths[1] + widths[1] * 10
    began = time.perf_counter()
    model = edges(dense, sample, size, generator)
    seconds = time.perf_counter() - began
    return {"error": error(model, p.x_measure, p.y_measure), **_cost(model, p.x_measure), "pictures": count,
            "prior": "none: the pictures", "seconds": seconds, "widths": "300-100, sparse"}  # fmt: skip


def _cost(model: nn.Sequential, x: Tensor) -> dict[str, Any]:
    kept = sum(int((value != 0).sum()) for name, value in model.state_dict().items() if name.endswith("weight"))
    biases = sum(value.numel() for name, value in model.state_dict().items() if name.endswith("bias"))
    return {
        "parameters": kept + biases,
        "bytes": sparse_bytes(model),
        "multiply_adds": kept,
        "milliseconds": latency(Sparse(model), x),
        "milliseconds_as_zeros": latency(model, x),
    }
