"""Refined cuts, one site at a time: kept rows and columns descend on the error of what the site's readers give.

Inputs are those that the dense network's own pass brings to the site. No other site, and no output of the network,
plays a part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from coreprune.engine.descent import (
    POSITIONS,
    Batch,
    descend,
    median,
    most,
    positions,
    rows_of_all,
    split,
    weighed,
)
from coreprune.engine.kept import Kept, Turned

__all__ = ["Alone"]

EPOCHS = 2  # of a site


class Alone:
    """One site and its inputs.

    Attributes:
        kept: what may turn. learnt, back: inputs to descend on, and those that are held back.
    """

    def __init__(self, kept: Kept, values: Sequence[dict[str, Any]]) -> None:
        self.kept = kept
        self.learnt, self.back = split(values)
        if self._by_position():
            self.learnt, self.back = [_merged(self.learnt)], [_merged(self.back)]

    @torch.no_grad()
    def _by_position(self) -> bool:
        """Whether the part gives for every position, as a row of its own, what it gives for it in a sequence."""
        values, rows = self.learnt[0]
        few, kept = rows_of_all(values, rows[:1]), self.kept
        if not all(isinstance(v, Tensor) and v.dim() == 3 and len(v) == 1 for v in few.values()):
            return False
        try:
            whole, flat = (kept.part(kept.dense, one) for one in (few, {k: v.flatten(0, 1) for k, v in few.items()}))
        except (RuntimeError, IndexError, TypeError):  # the graph holds sizes
            return False
        pairs = zip(whole, flat, strict=True)
        return all(y.dim() == 3 and torch.allclose(y.flatten(0, 1), z, rtol=1e-4, atol=1e-5) for y, z in pairs)

    def result(self, generator: Generator) -> Turned | None:
        """The cut and its shifts; None where the error on what was held back does not fall, or the part cannot run."""
        leaves = self.kept.leaves()
        try:
            before = self.kept.left(leaves, self.back)
        except (RuntimeError, IndexError, TypeError):  # the graph holds widths, which are others now
            return None
        self._descend(leaves, generator)
        after = self.kept.left(leaves, self.back)
        if not after.weighed < before.weighed:
            return None
        return self.kept.turned(leaves, after, {"turned": {"before": before.weighed, "after": after.weighed}})

    def _descend(self, leaves: Mapping[str, Tensor], generator: Generator) -> None:
        kept, axes = self.kept, self.kept.axes
        wanted = [kept.outputs(kept.dense, rows_of_all(*batch)) for batch in self.learnt]
        medians = [median([ys[at] for ys in wanted], axis) for at, axis in enumerate(axes)]

        def loss(at: int, own: Tensor) -> Tensor:
            values, rows = self.learnt[at]
            given = kept.outputs({**kept.dense, **kept.small, **leaves}, rows_of_all(values, rows[own]))
            pairs = zip(given, wanted[at], axes, medians, strict=True)
            return torch.stack([weighed(z, y[own], axis, m) for z, y, axis, m in pairs]).sum()

        each = max(1, POSITIONS * len(wanted[0][0]) // positions(wanted[0][0], axes[0]))
        descend(leaves, loss, self.learnt, each, EPOCHS, generator)


def _merged(batches: Sequence[Batch]) -> Batch:
    """All positions of all rows as rows of one batch, so that neighbours in a text are not met together."""
    chosen = [rows_of_all(*batch) for batch in batches]
    values = {name: torch.cat([one[name].flatten(0, 1) for one in chosen]) for name in chosen[0]}
    return values, torch.arange(most(values))
