"""LeNet-300-100 cut to 30-100, 89.6 % fewer parameters, and trained afterwards; the paper's experiment with its rivals.

The dense networks are those of benchmarks/lenet.py, one for each seed. Small networks of one schedule see the same pictures
in the same order. The dense network trained on, which is there to compare and to teach, has a schedule of its own.
Schedules are those of `paper.choice`; the test pictures are read only to measure what is in the record.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lenet import trained
from paper.choice import TRAININGS, WIDTHS, best, taught
from paper.costs import cost
from paper.dense import ON, trained_on
from paper.pictures import Pictures, mnist
from paper.starts import STARTS, Cut, cut
from paper.store import Row, Store
from paper.training import Pupil, Schedule, fit
from train_lenet import error

__all__ = ["DISTILLED", "recover"]

#: what distillation is measured for; labels for every start
DISTILLED = ("refined", "kernel", "sampling", "from scratch")


def recover(choice: list[Row], seeds: int, data: Path) -> list[Row]:
    """Measure every start and way of training for every seed; rows that are in the record stay."""
    store, pictures = Store("paper-recovery"), mnist(data)
    wanted = [key for seed in range(seeds) for key in _keys(seed, choice)]
    for seed in range(seeds):
        missing = store.missing(key for key in wanted if key["seed"] == seed)
        if missing:
            dense = trained("mnist", seed, data).eval()
            _dense_rows(store, missing, dense, seed, pictures)
            cuts = {key["start"]: cut(key["start"], dense, WIDTHS, seed, pictures.x)
                    for key in missing if key["start"] in STARTS}  # fmt: skip
            _cut_rows(store, missing, cuts, pictures)
            _trained_rows(store, missing, cuts, dense, pictures)
    return store.keep(wanted)


def _keys(seed: int, choice: list[Row]) -> list[dict[str, Any]]:
    """What is measured of one seed."""
    dense = {"seed": seed, "start": "dense", "training": "none"}
    keys = [dense, {**dense, "training": "labels, turned", "epochs": ON[0], "rate": ON[1]}]
    for start, way in STARTS.items():
        if way.arguments is not None:
            keys.append({"seed": seed, "start": start, "training": "none"})
        for label, training in TRAININGS.items():
            if training.teacher is None or start in DISTILLED:
                how = best(choice, label, start)
                keys.append({"seed": seed, "start": start, "training": label, "epochs": how.epochs, "rate": how.rate})
    return keys


def _dense_rows(store: Store, missing: list[Mapping[str, Any]], dense: nn.Module, seed: int, p: Pictures) -> None:
    for key in missing:
        if key["start"] == "dense":
            model = dense if key["training"] == "none" else trained_on(dense, "turned", seed, p.x, p.y, "all")
            _put(store, key, model, p, data="60,000 with labels", prior="–")


def _cut_rows(store: Store, missing: list[Mapping[str, Any]], cuts: Mapping[str, Cut], p: Pictures) -> None:
    for key in missing:
        if key["start"] in cuts and key["training"] == "none":
            one = cuts[key["start"]]
            data = "10,000 without labels" if STARTS[key["start"]].data else "none"
            _put(store, key, one.model, p, data=data, prior=one.prior, seconds=one.seconds)


def _trained_rows(
    store: Store, missing: list[Mapping[str, Any]], cuts: Mapping[str, Cut], dense: nn.Module, p: Pictures
) -> None:
    """Those of one schedule and the same pictures are trained side by side."""
    groups: dict[Schedule, list[Mapping[str, Any]]] = {}
    for key in missing:
        if key["start"] in cuts and key["training"] != "none":
            how = Schedule(key["epochs"], key["rate"], TRAININGS[key["training"]].pictures)
            groups.setdefault(how, []).append(key)
    for how, keys in groups.items():
        seed, began = keys[0]["seed"], time.perf_counter()
        on = trained_on(dense, how.pictures, seed, p.x, p.y, "all") if how.pictures != "as they are" else None
        teachers = [taught(key["training"], dense, on) for key in keys]
        teacher = next((one for one in teachers if one is not None), None)
        pupils = [Pupil(cuts[key["start"]].model, TRAININGS[key["training"]].loss) for key in keys]
        found = fit(pupils, teacher, p.x, p.y, how, torch.Generator().manual_seed(seed))
        seconds = (time.perf_counter() - began) / len(keys)
        for key, model in zip(keys, found, strict=True):
            labels = "with" if TRAININGS[key["training"]].teacher is None else "without"
            data = f"60,000 {labels} labels"
            _put(store, key, model, p, data=data, prior=cuts[key["start"]].prior, seconds=seconds)


def _put(store: Store, key: Mapping[str, Any], model: nn.Module, p: Pictures, **said: Any) -> None:
    row = store.put(key, {"error": error(model, p.x_measure, p.y_measure), **cost(model, p.x_measure), **said})
    print(f"seed {key['seed']}, {key['start']}, {key['training']}: {row['error']:.2f} %", flush=True)
