"""The dense layers of a VGG-16 on CIFAR-10, as the seed paper has them: cut alone, and trained a little afterwards.

The VGG of benchmarks/networks has one linear layer. It gets the three of the original (Simonyan & Zisserman 2015) in the width that
is usual for CIFAR, WIDTH, trained here on what its convolutions say of flipped and cropped training pictures; these stay
as they are. Both hidden layers then lose the same share of their units. The schedules were fixed beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import coreprune as cp
from cifar import load, pictures, standardised
from paper.cifar10 import EXAMPLE, METHODS, asked_for, error
from paper.costs import cost
from paper.dense import CACHE
from paper.starts import said_of
from paper.store import Row, Store
from paper.training import Pupil, Schedule, fit
from train_cifar import PADDING, batches

__all__ = ["REMOVED", "cut_vgg"]

WIDTH, CLASSES = 512, 10
REMOVED = (0.5, 0.75, 0.9)  # of the units of both hidden dense layers
TRAIN, AFTER = Schedule(8, 1e-3), Schedule(2, 2e-4)
NETWORK = "vgg16-half"


@dataclass
class Seen:
    """The pictures of CIFAR-10 as the dense layers see them.

    Attributes:
        data: the folder of data sets. convolutions: what comes before the dense layers.
    """

    data: Path
    convolutions: nn.Module

    @cached_property
    def trained_on(self) -> tuple[Tensor, Tensor]:
        """Features (N, F) and labels (N,) of every training picture, each flipped and cropped once."""
        x, y = pictures("train", self.data)
        with torch.inference_mode():
            pairs = [
                (self._features(a), b)
                for a, b in batches(F.pad(x, (PADDING,) * 4), y, torch.Generator().manual_seed(0))
            ]
        features, labels = (torch.cat(parts).clone() for parts in zip(*pairs, strict=True))
        return features, labels

    @cached_property
    def measured_on(self) -> tuple[Tensor, Tensor]:
        """The same of the test pictures as they are."""
        x, y = pictures("test", self.data)
        with torch.inference_mode():
            return torch.cat([self._features(standardised(part)) for part in x.split(200)]), y

    @cached_property
    def pictures(self) -> Tensor:
        """Training pictures, (N, 3, 32, 32), 0 … 255."""
        return pictures("train", self.data)[0]

    def _features(self, x: Tensor) -> Tensor:
        result: Tensor = self.convolutions(x.contiguous(memory_format=torch.channels_last)).flatten(1)
        return result


def classifier(before: int) -> nn.Sequential:
    """Three untrained dense layers."""
    hidden = [nn.Linear(before, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))


def vgg(seen: Seen) -> nn.Module:
    """The network, its dense layers from the cache or trained now."""
    model = load(NETWORK)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = classifier(model.classifier.in_features)
    file = CACHE / f"cifar10-{NETWORK}-dense-{TRAIN.epochs}-{TRAIN.rate}.safetensors"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        (head,) = fit([Pupil(head, "labels")], None, *seen.trained_on, TRAIN, torch.Generator().manual_seed(0))
        save_file(head.state_dict(), file)
    head.load_state_dict(load_file(file))
    model.classifier = head
    return model.eval()


def cut_vgg(data: Path) -> list[Row]:
    """Measure every method at every size; rows that are in the record stay."""
    store, seen = Store("paper-vgg"), Seen(data, load(NETWORK).features)
    wanted = _keys()
    missing = store.missing(wanted)
    dense = vgg(seen) if missing else None
    for key in missing:
        row = store.put(key, _measured(key, dense, seen))
        print(f"{NETWORK}, dense layers, {key['method']}, seed {key['seed']}, −{key['removed']:.0%}, {key['training']}: "
              f"{row['error']:.2f} %", flush=True)  # fmt: skip
    return store.keep(wanted)


def _keys() -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = [{"seed": 0, "method": "dense", "removed": 0.0, "training": "none"}]
    for share in REMOVED:
        for method, (_, seeds) in METHODS.items():
            cuts = [{"seed": seed, "method": method, "removed": share} for seed in range(seeds)]
            keys += [{**key, "training": "none"} for key in cuts]
            keys += [{**key, "training": "labels", "epochs": AFTER.epochs, "rate": AFTER.rate} for key in cuts]
    return keys


def _measured(key: Mapping[str, Any], dense: Any, seen: Seen) -> dict[str, Any]:
    """The row of a key: error, costs, prior, data and seconds of the cut."""
    pictured = standardised(seen.pictures[:256])
    if key["method"] == "dense":
        said = {"prior": "–", "data": "50,000 with labels", "seconds": 0.0}
        return {"error": error(dense.classifier, *seen.measured_on), **cost(dense, pictured), **said}
    asked, data = asked_for(key["method"], seen.pictures)
    began = time.perf_counter()
    small = cp.prune(dense, EXAMPLE, remove={"classifier.*": key["removed"]}, seed=key["seed"], **asked)
    said = {"prior": said_of(small), "seconds": time.perf_counter() - began}
    costs = cost(small.model, pictured) if key["seed"] == 0 and key["training"] == "none" else {}
    head: Any = small.model.classifier
    if key["training"] != "none":
        generator = torch.Generator().manual_seed(key["seed"])
        (head,) = fit([Pupil(head, "labels")], None, *seen.trained_on, AFTER, generator)
        data = "50,000 with labels"
    return {"error": error(head, *seen.measured_on), **costs, **said, "data": data}
