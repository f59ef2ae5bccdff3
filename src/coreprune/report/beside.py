"""What a result does not know of itself: files, what both networks cost to run, what was refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from coreprune.engine.verify import Verification
from coreprune.model.capture import rebuilt
from coreprune.model.discover import discover
from coreprune.model.site import Inspection
from coreprune.report.cost import Change, Cost, measure

__all__ = ["Beside", "beside_of"]


@dataclass(frozen=True)
class Beside:
    """What is known of a result beside its structure.

    Attributes:
        place: the directory it is in; empty where it is not saved yet.
        opens: the class of `transformers` that opens it; empty if `coreprune.load` does.
        file_bytes: of the weights as they are written, None where there are no files.
        cost: what both networks cost to run, if they were run.
        inspection: of the dense network: what was refused, and what stayed whole.
        checked: statements of `verify`, and the same as data.
    """

    place: str = ""
    opens: str = ""
    file_bytes: Change = field(default_factory=Change)
    cost: Cost | None = None
    inspection: Inspection | None = None
    checked: tuple[Sequence[str], Mapping[str, Any]] | None = None


def beside_of(
    dense: nn.Module,
    small: nn.Module,
    recipe: Mapping[str, Any],
    example_inputs: Any = None,
    *,
    checked: Verification | None = None,
    seconds: float = 2.0,
    runtimes: Iterable[str] = ("eager",),
) -> Beside:
    """Look at the dense network and run both.

    Args:
        dense: the network that was cut. small: what came of it. Neither is changed.
        recipe: of the plan; its inputs are used where none are given.
        example_inputs: one batch as the networks take it.
        checked: what `verify` found, to be reported too.
        seconds: to spend on each thing that is timed.
        runtimes: see `coreprune.report.cost.measure`.

    Raises:
        InvalidInputError: the inputs do not fit.

    Example:
        >>> net, less = (nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2)) for n in (8, 3))
        >>> beside_of(net, less, {}, seconds=0).cost.multiply_adds
        Change(before=48, after=18)
    """
    captured = recipe.get("inputs") is not None
    inputs = example_inputs if example_inputs is not None or not captured else rebuilt(recipe["inputs"])
    found = discover(dense, inputs if captured else None, recipe.get("capture", "auto"))
    if inputs is None:
        like = next(dense.parameters())
        inputs = torch.zeros(1, found.features, dtype=like.dtype, device=like.device)
    cost = measure(dense, small, inputs, seconds=seconds, others=runtimes)
    statements = None if checked is None else (checked.statements(), checked.to_json())
    return Beside(cost=cost, inspection=found, checked=statements)
