"""How to train, chosen on 5,000 training pictures that are held out; the test pictures are not read here.

For each way of training, and for networks that were cut and networks from scratch on their own, every schedule of GRID is
tried, with a dense network that never saw the pictures held out. Networks that are cut by other methods take what is best
for `kernel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paper.dense import trained_on, without_held_out
from paper.pictures import Pictures, held_out
from paper.starts import cut
from paper.store import Row, Store
from paper.training import Pupil, Schedule, fit
from train_lenet import error

__all__ = ["GRID", "TRAININGS", "WIDTHS", "Training", "best", "choose", "kind", "taught"]

WIDTHS, SEED = (30, 100), 100


@dataclass(frozen=True)
class Training:
    """A way of training: what for, on which pictures, and who teaches.

    Attributes:
        loss: of `paper.training.LOSSES`. pictures: see `paper.pictures.moved`.
        teacher: "dense", the network that was cut; "dense, trained on", the same after the schedule that dense
            networks get on the same pictures; None where labels alone are asked for.
    """

    loss: str
    pictures: str
    teacher: str | None = None


#: label → way; a new one is one row
TRAININGS: dict[str, Training] = {
    "labels": Training("labels", "as they are"),
    "distilled": Training("distilled", "as they are", "dense"),
    "labels, turned": Training("labels", "turned"),
    "distilled, turned": Training("distilled", "turned", "dense, trained on"),
}

#: pictures → (epochs, rate) that are tried
GRID = {
    "as they are": ((8, 2e-3), (8, 5e-3), (20, 5e-3)),
    "turned": ((20, 2e-3), (20, 5e-3), (20, 1e-2), (40, 1e-2)),
}


def kind(start: str) -> str:
    """Which of the two that are tried stands for a way to a small network."""
    return start if start == "from scratch" else "kernel"


def taught(label: str, dense: nn.Module, on: nn.Module | None) -> nn.Module | None:
    """The network whose outputs a way of training learns.

    Args:
        label: of TRAININGS. dense: the network that was cut. on: the same, trained on.
    """
    return {None: None, "dense": dense, "dense, trained on": on}[TRAININGS[label].teacher]


def choose(data: Path) -> list[Row]:
    """Try every schedule; rows that are in the record stay."""
    store, keys = Store("paper-choice"), _keys()
    if missing := store.missing(keys):
        held = held_out(data)
        dense = without_held_out(SEED, held.x, held.y)
        base = error(dense, held.x_measure, held.y_measure)
        for pictures, schedules in GRID.items():
            for epochs, rate in schedules:
                asked = [k for k in missing if (k["pictures"], k["epochs"], k["rate"]) == (pictures, epochs, rate)]
                for key, model in _fitted(asked, dense, held, Schedule(epochs, rate, pictures)):
                    row = store.put(key, {"error": error(model, held.x_measure, held.y_measure), "dense_error": base})
                    print(
                        f"held out: {key['start']}, {key['training']}, {epochs} × {rate}: {row['error']:.2f} %",
                        flush=True,
                    )
    return store.keep(keys)


def _fitted(
    asked: list[Mapping[str, Any]], dense: nn.Module, held: Pictures, how: Schedule
) -> list[tuple[Mapping[str, Any], nn.Module]]:
    """Networks for these keys, which all have the same schedule."""
    if not asked:
        return []
    on = trained_on(dense, how.pictures, SEED, held.x, held.y, "without-held-out") if how.pictures == "turned" else None
    teachers = [taught(key["training"], dense, on) for key in asked]
    pupils = [Pupil(cut(key["start"], dense, WIDTHS, SEED, held.x).model, key["loss"]) for key in asked]
    teacher = next((one for one in teachers if one is not None), None)
    found = fit(pupils, teacher, held.x, held.y, how, torch.Generator().manual_seed(SEED))
    return list(zip(asked, found, strict=True))


def _keys() -> list[Mapping[str, Any]]:
    return [
        {"training": label, **asdict(training), "epochs": epochs, "rate": rate, "start": start, "seed": SEED}
        for label, training in TRAININGS.items()
        for epochs, rate in GRID[training.pictures]
        for start in ("kernel", "from scratch")
    ]


def best(rows: list[Row], label: str, start: str) -> Schedule:
    """The schedule of least error on the pictures held out; of equal ones the first."""
    mine = [row for row in rows if row["key"]["training"] == label and row["key"]["start"] == kind(start)]
    key = min(mine, key=lambda row: row["error"])["key"]
    return Schedule(key["epochs"], key["rate"], key["pictures"])
