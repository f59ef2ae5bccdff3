"""Results for the tests of the report: cut networks, and structures with names and numbers of any kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import coreprune as cp
from coreprune.cli.output import numbers_of
from coreprune.report.beside import Beside
from coreprune.report.numbers import Numbers, numbers

EVIL = '<script>alert("x")</script>'


def stack() -> nn.Sequential:
    """Two sites between 6 inputs and 4 outputs."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


class Convolutions(nn.Module):
    """A site of 8 channels and one of 10, and an output that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 10, 3)
        self.last = nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def convolutions() -> nn.Module:
    torch.manual_seed(5)
    return Convolutions()


def saved(folder: Any, model: nn.Module, *example: Any, **request: Any) -> tuple[cp.Pruned, Numbers]:
    """A cut network in `folder`, and its numbers."""
    small = cp.prune(model, *example, **request)
    small.save(folder)
    return small, numbers_of(folder)


def site(name: str, units: int, kind: str = "conv", reads: str = "") -> dict[str, Any]:
    """A site as structure.json holds it; `reads` names the site that reads it."""

    def at(tensor: str, axis: int) -> dict[str, Any]:
        return {"tensor": tensor, "axis": axis, "start": 0, "span": 1, "order": []}

    reader = {"weight": at(f"{reads or name + '.next'}.weight", 1), "bias": "", "sign": 1.0, "block": 1, "outputs": 0}
    return {
        "name": name, "kind": kind, "units": units, "activation": "relu", "parameters": {},
        "incoming": at(f"{name}.weight", 0), "bias": at(f"{name}.bias", 0), "readers": [reader], "others": [],
    }  # fmt: skip


def structure(rows: list[tuple[dict[str, Any], int, dict[str, Any]]], /, **recipe: Any) -> dict[str, Any]:
    """A structure.json of (site, units kept, evidence)."""
    known = {
        "method": "kernel", "reweight": False, "remove": 0.5, "seed": 0, "prior": "random inputs",
        "data_used": False, "radius": None, "inputs": {"tensor": [1, 3, 8, 8], "dtype": "float32"},
    }  # fmt: skip
    return {
        "recipe": known | recipe,
        "size": {"dense_parameters": 1000, "dense_bytes": 4000, "parameters": 400, "bytes": 1600},
        "tensors": {},
        "changed": {},
        "sites": [{"site": one, "kept": list(range(kept)), "evidence": seen} for one, kept, seen in rows],
    }


def made(count: int, name: str = "block.{}.mlp", **recipe: Any) -> Numbers:
    """Numbers of a network of so many alike sites with error curves."""
    curve = {"units": [0, 16, 32, 64], "errors": [1.0, 0.5, 0.25, 0.0]}
    rows = [
        (site(name.format(i), 64), 16 + i % 3, {"relative_error": 0.1 + i / 1000, "curve": curve}) for i in range(count)
    ]
    return numbers(structure(rows, **recipe), "made")


def evil() -> Numbers:
    """Every text that can come from a file or an argument is markup."""
    tag = '"><img src=x onerror=alert(1)>'
    rows = [(site(EVIL, 64), 20, {"relative_error": 0.5, "domain": EVIL}), (site(tag + "a" * 200, 64), 30, {})]
    recipe = {
        "prior": EVIL,
        "prior_reason": EVIL,
        "method": tag,
        "refused": [[EVIL, f"{tag}{EVIL}"]],
        "commands": [f"coreprune prune {EVIL}"],
    }
    more = {"remove": None, "units": {EVIL: 20}, "versions": {EVIL: tag}}
    return numbers(structure(rows, **recipe, **more), EVIL, Beside(place=f'{EVIL}"', checked=([EVIL], {})))
