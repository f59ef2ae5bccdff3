"""Error against compression, before and after a short training with labels on turned pictures.

Widths are those that `kernel` shares out by its own error curves at that many parameters, for every method, so that only
the method differs. The training is a fifth as long as that of `paper.recovery`, at the same rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import coreprune as cp
from lenet import trained
from paper.choice import best
from paper.costs import cost
from paper.pictures import Pictures, mnist
from paper.starts import PRIOR, Cut, cut
from paper.store import Row, Store
from paper.training import Pupil, Schedule, fit
from train_lenet import error

__all__ = ["METHODS", "REMOVED", "TUNED", "TUNED_SEEDS", "draw_curve"]

REMOVED = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97)  # before training
TUNED = (0.5, 0.7, 0.9, 0.95, 0.97)  # and after
TUNED_SEEDS = 2
METHODS = ("refined", "kernel", "sampling", "magnitude", "from scratch")
TRAINED = "labels, turned"


def draw_curve(choice: list[Row], seeds: int, data: Path) -> list[Row]:
    """Measure every method at every size; rows that are in the record stay."""
    store, pictures = Store("paper-curve"), mnist(data)
    wanted = [key for seed in range(seeds) for key in _keys(seed, choice)]
    for seed in range(seeds):
        dense = trained("mnist", seed, data).eval()
        for share in REMOVED:
            asked = [key for key in wanted if (key["seed"], key["removed"]) == (seed, share)]
            if missing := store.missing(asked):
                widths = cp.plan(dense, remove=share, prior=PRIOR).kept
                both = (widths["0"], widths["2"])
                cuts = {key["method"]: cut(key["method"], dense, both, seed, pictures.x) for key in missing}
                _measure(store, missing, cuts, both, pictures)
    return store.keep(wanted)


def _keys(seed: int, choice: list[Row]) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = []
    for share in REMOVED:
        for method in METHODS:
            key = {"seed": seed, "removed": share, "method": method}
            if method != "from scratch":
                keys.append({**key, "training": "none"})
            if share in TUNED and seed < TUNED_SEEDS:
                how = best(choice, TRAINED, method)
                keys.append({**key, "training": TRAINED, "epochs": how.epochs // 5, "rate": how.rate})
    return keys


def _measure(
    store: Store, missing: list[Mapping[str, Any]], cuts: Mapping[str, Cut], widths: tuple[int, int], p: Pictures
) -> None:
    groups: dict[Schedule | None, list[Mapping[str, Any]]] = {}
    for key in missing:
        how = Schedule(key["epochs"], key["rate"], "turned") if "epochs" in key else None
        groups.setdefault(how, []).append(key)
    for how, keys in groups.items():
        models = [cuts[key["method"]].model for key in keys]
        if how is not None:
            generator = torch.Generator().manual_seed(keys[0]["seed"])
            models = fit([Pupil(model, "labels") for model in models], None, p.x, p.y, how, generator)
        for key, model in zip(keys, models, strict=True):
            said = {"widths": f"{widths[0]}-{widths[1]}", "prior": cuts[key["method"]].prior,
                    "data": "none" if how is None else "60,000 with labels"}  # fmt: skip
            row = store.put(key, {"error": error(model, p.x_measure, p.y_measure), **cost(model, p.x_measure), **said})
            print(f"seed {key['seed']}, −{key['removed']:.0%}, {key['method']}, {key['training']}: {row['error']:.2f} %",
                  flush=True)  # fmt: skip
