"""VGG-16 at half width and ResNet-20 on CIFAR-10: channels cut without data, and trained for one epoch afterwards.

The networks are those of benchmarks/train_cifar.py, whose only dense layer is the one that gives the scores: all that
can be cut are channels. The epoch after the cut is train_cifar.py's (flips, crops, SGD, weight decay) with a rate that falls from RATE
to 0, on labels, or towards the dense network's scores. RATE was fixed beforehand, as a fifth of what the networks
were trained with, and not chosen.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import coreprune as cp
from cifar import load, pictures, standardised
from paper.costs import cost
from paper.starts import said_of
from paper.store import Row, Store
from paper.training import losses_of
from train_cifar import BATCH, PADDING, batches, optimiser_of

__all__ = [
    "EXAMPLE",
    "METHODS",
    "NETWORKS",
    "REAL",
    "REMOVED",
    "Coloured",
    "asked_for",
    "cut_cifar10",
    "error",
    "trained_after",
]

NETWORKS, REMOVED = ("resnet20", "vgg16-half"), (0.5,)  # of the units of every site
REAL, GIVEN = "kernel, real data", 1000  # training pictures, without labels
#: method → what is asked, and the seeds of the cut, which decide what is drawn, the images of a prior too
METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "kernel": ({}, 3),
    REAL: ({}, 1),
    "sampling": ({"method": "sampling"}, 3),
    "uniform": ({"method": "uniform"}, 3),
    "magnitude": ({"method": "magnitude"}, 1),
}
TRAINED, TRAININGS = ("kernel", "magnitude"), ("labels", "distilled")
EPOCHS, RATE = 1, 0.02
EXAMPLE = torch.zeros(2, 3, 32, 32)


@dataclass(frozen=True)
class Coloured:
    """Pictures to learn from, x (N, 3, 32, 32) in 0 … 255 and y (N,), and standardised ones to measure on."""

    x: Tensor
    y: Tensor
    x_measure: Tensor
    y_measure: Tensor


def cut_cifar10(data: Path) -> list[Row]:
    """Measure every method on both networks, first all cuts; rows that are in the record stay."""
    store = Store("paper-cifar10")
    wanted = [key for training in ("none", *TRAININGS) for name in NETWORKS for key in _keys(name, training)]
    missing = store.missing(wanted)
    if missing:
        x, y = pictures("test", data)
        p = Coloured(*pictures("train", data), standardised(x).contiguous(memory_format=torch.channels_last), y)
        for key in missing:
            row = store.put(key, measured(key, load(key["network"]), p))
            print(f"{key['network']}, {key['method']}, seed {key['seed']}, −{key['removed']:.0%}, {key['training']}: "
                  f"{row['error']:.2f} %", flush=True)  # fmt: skip
    return store.keep(wanted)


def _keys(network: str, training: str) -> list[dict[str, Any]]:
    key: dict[str, Any] = {"network": network, "training": training}
    if training == "none":
        dense = {**key, "seed": 0, "method": "dense", "removed": 0.0}
        cuts = [{**key, "seed": seed, "method": method, "removed": share}
                for share in REMOVED for method, (_, seeds) in METHODS.items() for seed in range(seeds)]  # fmt: skip
        return [dense, *cuts]
    after = {"epochs": EPOCHS, "rate": RATE}
    return [{**key, "seed": 0, "method": method, "removed": share, **after} for share in REMOVED for method in TRAINED]


def measured(key: Mapping[str, Any], dense: nn.Module, p: Coloured) -> dict[str, Any]:
    """The row of a key: error, costs of what was not trained, prior, data and seconds of the cut."""
    if key["method"] == "dense":
        said = {"prior": "–", "data": f"{len(p.x):,} with labels", "seconds": 0.0}
        return {"error": error(dense, p.x_measure, p.y_measure), **cost(dense, p.x_measure), **said}
    asked, seen = asked_for(key["method"], p.x)
    began = time.perf_counter()
    small = cp.prune(dense, EXAMPLE, remove={"*": key["removed"]}, seed=key["seed"], **asked)
    said = {"prior": said_of(small), "seconds": time.perf_counter() - began, "data": seen}
    if key["training"] == "none":
        costs = cost(small.model, p.x_measure) if key["seed"] == 0 else {}  # other seeds have the same widths
        return {"error": error(small.model, p.x_measure, p.y_measure), **costs, **said}
    model = trained_after(small.model, dense, p.x, p.y, key["training"], key["seed"])
    said["data"] = f"{len(p.x):,} {'with' if key['training'] == 'labels' else 'without'} labels"
    return {"error": error(model, p.x_measure, p.y_measure), **said}


def asked_for(method: str, x: Tensor) -> tuple[dict[str, Any], str]:
    """What `coreprune.prune` is asked for a method, and in words the pictures that it sees.

    Args:
        method: of METHODS. x: training pictures, (N, 3, 32, 32), 0 … 255, in the order of classes, of which GIVEN are
            taken evenly.
    """
    asked = METHODS[method][0]
    if method != REAL:
        return asked, "none"
    return {**asked, "data": list(standardised(x[:: len(x) // GIVEN][:GIVEN]).split(100))}, f"{GIVEN:,} without labels"


def trained_after(small: nn.Module, dense: nn.Module, x: Tensor, y: Tensor, loss: str, seed: int) -> nn.Module:
    """A copy of the cut network after EPOCHS epochs.

    Args:
        small: not changed. dense: what "distilled" learns from. x: (N, 3, 32, 32), 0 … 255. y: (N,).
        loss: of `paper.training.LOSSES`. seed: of the order, flips and crops.
    """
    model = copy.deepcopy(small).to(memory_format=torch.channels_last).train()
    optimiser, padded = optimiser_of(model), F.pad(x, (PADDING,) * 4)
    steps, done = len(x) // BATCH * EPOCHS, 0
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for inputs, labels in batches(padded, y, generator):
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 + math.cos(math.pi * done / steps)) / 2
            seen = inputs.contiguous(memory_format=torch.channels_last)
            taught = None
            if loss != "labels":
                with torch.no_grad():
                    taught = dense(seen)
            optimiser.zero_grad()
            losses_of(model(seen)[None], taught, labels, [loss]).sum().backward()
            optimiser.step()
            done += 1
    return model.eval()


def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of pictures that are told wrongly, in per cent."""
    with torch.inference_mode():
        wrong = sum(int((model(a).argmax(1) != b).sum()) for a, b in zip(x.split(200), y.split(200), strict=True))
    return 100 * wrong / len(y)
