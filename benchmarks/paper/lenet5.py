"""LeNet-5 on MNIST: channels and dense layers cut without data, and trained a little afterwards.

Two convolutions of 6 and 16 channels with ReLU and 2 × 2 maxima, dense layers of 120 and 84, as LeCun et al. 1998 have them
but for ReLU, maxima and the softmax; trained here (cached) for 6 epochs on pictures shifted by up to a pixel.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import coreprune as cp
from paper.costs import cost
from paper.dense import CACHE
from paper.pictures import Pictures, mnist
from paper.starts import PRIOR, said_of
from paper.store import Row, Store
from paper.training import Pupil, Schedule, fit
from train_lenet import error

__all__ = ["METHODS", "REMOVED", "architecture", "cut_lenet5"]

REMOVED = (0.25, 0.5, 0.75)  # of the units of every site
METHODS: dict[str, dict[str, Any]] = {
    "kernel": {"prior": PRIOR},
    "kernel, real data": {},
    "sampling": {"method": "sampling"},
    "uniform": {"method": "uniform"},
    "magnitude": {"method": "magnitude"},
}
TRAIN, AFTER = Schedule(6, 3e-3, "shifted"), Schedule(2, 1e-3, "shifted")
EXAMPLE = torch.zeros(2, 784)


def architecture() -> nn.Sequential:
    """An untrained LeNet-5; its inputs are pixels / 255, flattened."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def lenet5(seed: int, x: Tensor, y: Tensor) -> nn.Module:
    """A trained network, from the cache or trained now."""
    file = CACHE / f"mnist-lenet5-{TRAIN.epochs}-{TRAIN.rate}-{seed}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture()
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        (model,) = fit([Pupil(model, "labels")], None, x, y, TRAIN, torch.Generator().manual_seed(seed))
        save_file(model.state_dict(), file)
    model.load_state_dict(load_file(file))
    return model.eval()


def cut_lenet5(seeds: int, data: Path) -> list[Row]:
    """Measure every method at every size; rows that are in the record stay."""
    store, p = Store("paper-lenet5"), mnist(data)
    wanted = [key for seed in range(seeds) for key in _keys(seed)]
    for seed in range(seeds):
        missing = store.missing(key for key in wanted if key["seed"] == seed)
        dense = lenet5(seed, p.x, p.y) if missing else None
        for key in missing:
            row = store.put(key, _measured(key, dense, p))
            print(f"LeNet-5, seed {seed}, {key['method']}, −{key['removed']:.0%}, {key['training']}: "
                  f"{row['error']:.2f} %", flush=True)  # fmt: skip
    return store.keep(wanted)


def _keys(seed: int) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = [{"seed": seed, "method": "dense", "removed": 0.0, "training": "none"}]
    for share in REMOVED:
        for method in METHODS:
            key = {"seed": seed, "method": method, "removed": share}
            keys.append({**key, "training": "none"})
            keys.append({**key, "training": "labels", "epochs": AFTER.epochs, "rate": AFTER.rate})
    return keys


def _measured(key: Mapping[str, Any], dense: nn.Module, p: Pictures) -> dict[str, Any]:
    if key["method"] == "dense":
        said = {"prior": "–", "data": "60,000 with labels", "seconds": 0.0}
        return {"error": error(dense, p.x_measure, p.y_measure), **cost(dense, p.x_measure), **said}
    asked = dict(METHODS[key["method"]])
    data = "none"
    if key["method"].endswith("real data"):
        asked["data"], data = list(p.x[:1000].split(100)), "1,000 without labels"
    began = time.perf_counter()
    small = cp.prune(dense, EXAMPLE, remove={"*": key["removed"]}, seed=key["seed"], **asked)
    said = {"prior": said_of(small), "seconds": time.perf_counter() - began}
    model: nn.Module = small.model
    if key["training"] != "none":
        generator = torch.Generator().manual_seed(key["seed"])
        (model,) = fit([Pupil(model, "labels")], None, p.x, p.y, AFTER, generator)
        data = "60,000 with labels"
    return {"error": error(model, p.x_measure, p.y_measure), **cost(model, p.x_measure), **said, "data": data}
