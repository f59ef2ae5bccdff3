"""How large a network is at given widths, for thousands of widths in a row: `parameters_after` kept in arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coreprune.model.site import Shape, Site

__all__ = ["Size"]

Ints = NDArray[np.int64]


class Size:
    """Entries of all tensors as a function of the widths of groups of sites, each group with one width.

    A tensor with axes of D₁, D₂, … entries is left with ∏ₐ (Dₐ − Σ_g r_g·C_g,ₐ) of them, where r_g units go from
    every site of group g and C_g,ₐ is how many entries of axis a one of these owns. C has an entry only where a
    group meets a tensor, so that a whole network is a few thousand numbers, and what one group costs is seen from
    the few tensors it meets.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        groups: Sequence[Sequence[Site]],
        *,
        biases: bool = True,
        times: Mapping[str, int] | None = None,
    ) -> None:
        """The tensors, and the sites group by group.

        Args:
            shapes: tensors of the dense network, those that count.
            groups: all sites of a group have the same number of units.
            biases: count the biases that cuts make in readers that have none, see `parameters_after`.
            times: how often each tensor counts, once without.
        """
        times = times or {}
        made = _made(shapes, groups) if biases else {}
        sizes = {name: tuple(shape) for name, shape in shapes.items()} | {name: (size,) for name, size in made.items()}
        rank = max((len(shape) for shape in sizes.values()), default=1) or 1
        pairs: dict[tuple[str, int], list[int]] = {}  # tensor, group → entries of each axis; then whether it makes it
        for g, sites in enumerate(groups):
            for site in sites:
                for at in site.locations:
                    if at.tensor in sizes:
                        pairs.setdefault((at.tensor, g), [0] * (rank + 1))[at.axis] += at.span
                for reader in site.readers:
                    if reader.bias in made:
                        pairs.setdefault((reader.bias, g), [0] * (rank + 1))[-1] = 1
        order = sorted(pairs)
        names = sorted({name for name, _ in order})
        row = {name: i for i, name in enumerate(names)}
        table = np.array([pairs[key] for key in order], dtype=np.int64).reshape(-1, rank + 1)
        self._group = np.array([g for _, g in order], dtype=np.int64)
        self._row = np.array([row[name] for name, _ in order], dtype=np.int64)
        self._starts = np.searchsorted(self._row, np.arange(len(names)))
        dims = np.array([_padded(sizes[name], rank) for name in names], dtype=np.int64).reshape(-1, rank)
        axes = [a for a in range(rank) if table[:, a].any()]
        self._change, self._makes = [table[:, a].copy() for a in axes], table[:, -1] > 0
        self._dims = [dims[:, a].copy() for a in axes]
        self._fixed = dims[:, [a for a in range(rank) if a not in axes]].prod(1)
        self._fixed *= np.array([times.get(name, 1) for name in names], dtype=np.int64)
        self._there = np.array([name not in made for name in names], dtype=bool)
        self._rest = sum(times.get(name, 1) * math.prod(shape) for name, shape in shapes.items() if name not in row)
        self.units = np.array([sites[0].units for sites in groups], dtype=np.int64)

    def __call__(self, kept: Ints) -> int:
        """Entries left when group g keeps kept[g] units in each of its sites."""
        return self._rest + int(self._left(kept)[1].sum())

    def moved(self, kept: Ints, by: Ints | int) -> Ints:
        """How many entries come when one group alone keeps `by` units more, for every group: (groups,)."""
        dims, before, count = self._left(kept)
        new = kept + by
        step = (new - kept)[self._group]
        after = self._fixed[self._row]
        for d, c in zip(dims, self._change, strict=True):
            after *= d[self._row] + step * c
        was, now = ((self._makes & self._cut(widths)[self._group]) for widths in (kept, new))
        after *= self._there[self._row] | (count[self._row] - was + now > 0)
        delta = np.bincount(self._group, weights=after - before[self._row], minlength=len(kept))
        return delta.astype(np.int64)

    def _cut(self, kept: Ints) -> NDArray[np.bool_]:
        return (kept > 0) & (kept < self.units)

    def _left(self, kept: Ints) -> tuple[list[Ints], Ints, Ints]:
        """Of every tensor that some group meets: the axes that change, its entries, and how many groups make it."""
        gone = (self.units - kept)[self._group]
        dims = [d - self._sum(gone * c) for d, c in zip(self._dims, self._change, strict=True)]
        count = self._sum(self._makes & self._cut(kept)[self._group])
        entries = self._fixed * (self._there | (count > 0))
        for d in dims:
            entries *= d
        return dims, entries, count

    def _sum(self, values: Ints | NDArray[np.bool_]) -> Ints:
        """Over the groups that a tensor meets."""
        return np.add.reduceat(values, self._starts, dtype=np.int64) if len(values) else values.astype(np.int64)


def _made(shapes: Mapping[str, Shape], groups: Sequence[Sequence[Site]]) -> dict[str, int]:
    """Biases that are not there and that a cut would make, with their sizes."""
    made: dict[str, int] = {}
    for sites in groups:
        for site in sites:
            for reader in site.readers:
                if reader.bias and reader.bias not in shapes and reader.weight.tensor in shapes:
                    made.setdefault(reader.bias, shapes[reader.weight.tensor][reader.outputs])
    return made


def _padded(shape: Shape, rank: int) -> list[int]:
    return [*shape, *[1] * (rank - len(shape))]
