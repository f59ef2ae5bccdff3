"""Where the entries of an axis that is cut lie, before and after, and how they are combined there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreprune.maths.beside import rows_at
from coreprune.maths.layer import Thin, fixed
from coreprune.model.site import Ids, Location

if TYPE_CHECKING:
    from coreprune.surgery.edits import Mix, Take

__all__ = ["Layout", "Mixing", "Where", "places", "selected"]

#: entries of a matrix up to which several of one size are mixed with together
TOGETHER = 2**16
Where = slice | Tensor
Mask = NDArray[np.bool_]


class Runs(NamedTuple):
    """Positions that follow each other by so many, as those of a unit that is read at many places do.

    Attributes:
        first: r, (k,): each stands for the positions r·length … r·length + length − 1. length: of one run.
    """

    first: Tensor
    length: int


Laid = Where | Runs


class _Part(NamedTuple):
    """One location's share of what is mixed.

    Attributes:
        matrix: T, or its rows for the units that go, of several edits beside each other, (edits, …, k); or the factors
            of the units that stay.
        source: positions of what it combines.
        goal: positions of the result.
        own: positions of what is added to the combination: the units that stay, where each stands for itself.
    """

    matrix: Tensor | Thin
    source: Laid
    goal: Laid
    own: Laid | None = None


@dataclass(frozen=True)
class Mixing:
    """What is mixed along one axis, in positions before and after; the rest is copied.

    Attributes:
        size: entries after.
        rest: positions of what is copied, before and after.
        parts: what is mixed.
    """

    size: int
    rest: tuple[Laid, Laid]
    parts: tuple[_Part, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the result."""
        return max((part.matrix.dtype for part in self.parts), key=lambda kind: torch.finfo(kind).bits)

    def __call__(self, old: Tensor, new: Tensor, axis: int) -> None:
        """Fill `new` from `old`, which agree but for the axis that is mixed."""
        old, new, (before, after) = old.movedim(axis, 0), new.movedim(axis, 0), self.rest
        rest = old.shape[1:]
        _put(new, after, selected(old, 0, before))
        for part in self.parts:
            matrix = part.matrix
            units = selected(old, 0, part.source).to(matrix.dtype)
            own = None if part.own is None else selected(old, 0, part.own).to(matrix.dtype)
            if isinstance(matrix, Thin):
                units, matrix = matrix.left.T @ units.reshape(len(matrix.left), -1), matrix.right
            if matrix.dim() == 1:
                product = units.reshape(matrix.numel(), -1, *rest) * matrix.reshape(-1, *[1] * units.dim())
            else:
                matrix = matrix.reshape(-1, *matrix.shape[-2:])
                units = units.reshape(*matrix.shape[:2], -1)
                owned = None if own is None else own.reshape(len(matrix), matrix.shape[2], -1)
                product = matrix.mT @ units if owned is None else torch.baddbmm(owned, matrix.mT, units)
            _put(new, part.goal, product.reshape(-1, *rest))


class Layout:
    """Which entries of the dense axis are left, and where they are now.

    Attributes:
        slots: the dense entries that are left, ascending; entry slots[i] is at position i.
    """

    def __init__(self, slots: Ids) -> None:
        self.slots = slots
        self._touched = np.zeros(slots[-1] + 1 if slots.size else 0, dtype=bool)

    def take(self, edits: Sequence[Take]) -> slice | Ids:
        """Carry out the Takes; gives the positions to select."""
        source = np.arange(self._touched.size)
        left, there = self._left(), self._left()
        for edit in edits:
            entries, indices = self._entries(edit.at, edit.units, there), edit.indices.cpu().numpy()
            left[entries] = False
            goal = entries[np.sort(indices)]
            left[goal] = True
            source[goal] = entries[indices]
        taken = np.flatnonzero(left)
        found = self._positions()[source[taken]]
        self.slots = taken
        return straight(found)

    def copy(self) -> Layout:
        """One that is as this one is now."""
        result = Layout(self.slots)
        result.follow(self)
        return result

    def follow(self, other: Layout) -> None:
        """Be as another one of the same axis is now."""
        self.slots, self._touched = other.slots, other._touched.copy()

    def mix(self, edits: Sequence[Mix], device: torch.device) -> Mixing:
        """Carry out the Mixes, of a tensor on a device."""
        before, left, mixed = self._positions(), self._left(), np.zeros_like(self._touched)
        there = left.copy()
        found = []
        for edit in edits:
            entries, places = self._entries(edit.at, edit.of, there), edit.places
            goal = entries[places]
            found.append(_Placed(edit, entries, places, goal))
            left[entries], mixed[entries] = False, True
            left[goal] = True
        self.slots = np.flatnonzero(left)
        after = self._positions()
        rest = self.slots[~mixed[self.slots]]
        parts = [_part(many, before, after, device) for many in _alike(found)]
        return Mixing(self.slots.size, (runs(before[rest], device), runs(after[rest], device)), tuple(parts))

    def _left(self) -> Mask:
        left = np.zeros_like(self._touched)
        left[self.slots] = True
        return left

    def _positions(self) -> Ids:
        """Of every dense entry, where it is; −1 if it is gone."""
        found = np.full(self._touched.shape, -1)
        found[self.slots] = np.arange(self.slots.size)
        return found

    def _entries(self, at: Location, units: int, there: Mask) -> Ids:
        """The entries of a location, (units, span), which must be there and no other edit's."""
        entries = at.positions(units)
        assert at.last(units) < self._touched.size, f"an edit goes beyond axis {at.axis} of {at.tensor}"
        assert not self._touched[entries].any(), f"two edits change the same entries of {at.tensor}"
        assert there[entries].all(), f"an edit changes entries of {at.tensor} that are gone"
        self._touched[entries] = True
        return entries


class _Placed(NamedTuple):
    """An edit with the dense entries of its units, (n, span), which units' places it fills, and their entries."""

    edit: Mix
    entries: Ids
    places: Ids
    goal: Ids


def _alike(found: Sequence[_Placed]) -> Iterable[Sequence[_Placed]]:
    """Those that are carried out together: with written out matrices of one size, unless these are large."""
    groups: dict[object, list[_Placed]] = {}
    for i, one in enumerate(found):
        T = one.edit.matrix
        small = isinstance(T, Tensor) and T.dim() == 2 and T.numel() <= TOGETHER
        kind = (T.shape, T.dtype, one.edit.block, one.entries.shape)
        groups.setdefault(kind if small else i, []).append(one)
    return groups.values()


def _part(many: Sequence[_Placed], before: Ids, after: Ids, device: torch.device) -> _Part:
    """What is to be done for edits that are alike."""
    edit, goal = many[0].edit, np.concatenate([one.goal.ravel() for one in many])
    put, T = runs(after[goal], device), edit.matrix
    if T.dim() == 1:
        return _Part(T.to(device), runs(before[goal], device), put)
    kept = np.stack([(one.places[:, None] * edit.block + np.arange(edit.block)).ravel() for one in many])
    each = np.stack([one.entries.reshape(T.shape[0], -1) for one in many])
    if isinstance(T, Thin):
        gone = T.gone.cpu().numpy()[None]
        alone = 0 < gone.size == T.shape[0] - kept.size
    else:
        T = T[None] if len(many) == 1 else torch.stack([cast("Tensor", one.edit.matrix) for one in many])
        alone = kept.shape[1] < T.shape[1] and fixed(T, torch.from_numpy(kept).to(T.device))
        if alone:
            mask = np.ones(each.shape[:2], dtype=bool)
            np.put_along_axis(mask, kept, False, 1)
            gone = mask.nonzero()[1].reshape(len(many), -1)
            T = rows_at(T, torch.from_numpy(gone).to(T.device))
    if not alone:
        return _Part(T.to(device), runs(before[each.ravel()], device), put)
    # a unit that stays stands for itself
    own, source = (np.take_along_axis(each, at[:, :, None], 1).ravel() for at in (kept, gone))
    return _Part(T.to(device), runs(before[source], device), put, runs(before[own], device))


def straight(positions: Ids) -> slice | Ids:
    """Positions as a slice if they follow each other."""
    first = int(positions[0]) if positions.size else 0
    many = positions.size
    if not many or (positions[-1] - first == many - 1 and bool((positions[1:] - positions[:-1] == 1).all())):
        return slice(first, first + many)
    return positions


def places(positions: slice | Ids, device: torch.device) -> Where:
    """The same to select by, since a slice needs no copy."""
    found = positions if isinstance(positions, slice) else straight(positions)
    return found if isinstance(found, slice) else torch.from_numpy(found).to(device)


def runs(positions: Ids, device: torch.device) -> Laid:
    """The same, and as runs where they come in such, since these are copied as they lie."""
    found = places(positions, device)
    if isinstance(found, slice):
        return found
    starts = np.concatenate([[0], np.flatnonzero(positions[1:] - positions[:-1] != 1) + 1])
    length = int(np.gcd.reduce(np.concatenate([[positions.size], starts, positions[starts]])))
    return Runs(found[::length] // length, length) if length > 1 else found


def selected(value: Tensor, axis: int, where: Laid) -> Tensor:
    """Positions of an axis; a view where they follow each other."""
    if isinstance(where, slice):
        return value.narrow(axis, where.start, where.stop - where.start)
    if isinstance(where, Runs):
        return _runs(value, axis, where).index_select(axis, where.first).flatten(axis, axis + 1)
    return value.index_select(axis, where)


def _runs(value: Tensor, axis: int, where: Runs) -> Tensor:
    """A view with runs along an axis, and along one behind it what lies in each."""
    count = value.shape[axis] // where.length
    result: Tensor = value.narrow(axis, 0, count * where.length).unflatten(axis, (count, where.length))
    return result


def _put(value: Tensor, where: Laid, new: Tensor) -> None:
    """Write into places along the first axis, rounding to the precision there."""
    if isinstance(where, slice):
        value.narrow(0, where.start, where.stop - where.start).copy_(new)
    elif isinstance(where, Runs):
        _runs(value, 0, where).index_copy_(0, where.first, new.to(value.dtype).unflatten(0, (-1, where.length)))
    else:
        value.index_copy_(0, where, new.to(value.dtype))
