"""The whole vocabulary of surgery: Take, Mix, Add.

An edit names a tensor and says what becomes of it. A live module, a state dict and a checkpoint
that is streamed from disk are all cut by the same list. Locations speak of the dense tensor, whatever
has been cut from it already, so that several sites can lie on one axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from coreprune.maths.layer import Thin
from coreprune.model.site import Ids, Location, Reader
from coreprune.surgery.mixing import Layout, Mixing, Where, places, selected

__all__ = ["Add", "Edit", "Mix", "Take", "constant", "edited"]

#: Takes of whole axes → positions to select, and what the axis is like then
Known = dict[tuple[Any, ...], tuple[slice | Ids, Layout]]

CHUNK = 2**18  # entries that are computed on at a time


@dataclass(frozen=True)
class Take:
    """Keep some units of a location, in the order given.

    Attributes:
        at: where the units lie.
        indices: units to keep, (k,) int64.
        units: n, how many the location holds before the edit.
    """

    at: Location
    indices: Tensor
    units: int

    @property
    def tensor(self) -> str:
        """Name of the tensor that changes."""
        return self.at.tensor

    def __call__(self, value: Tensor) -> Tensor:
        """The tensor after the edit."""
        return edited([self], {self.tensor: value})[self.tensor]


@dataclass(frozen=True)
class Mix:
    """Replace the units of a location by combinations of them: W' = W T.

    Attributes:
        at: where the units lie; a unit's entries are (block, share), and all of a share have the same T.
        matrix: T, (n·block, k·block), whose columns say what the new entries are made of; or (k,), where the new
            unit s is unit indices[s] times a number.
        indices: units whose places the new ones take, (k,) int64, ascending; the first k where it is not given.
        units: n; as many as T has rows where it is not given.
        block: entries of a unit that have rows of T of their own.
    """

    at: Location
    matrix: Tensor | Thin
    indices: Tensor | None = None
    units: int | None = None
    block: int = 1

    @property
    def tensor(self) -> str:
        """Name of the tensor that changes."""
        return self.at.tensor

    @property
    def of(self) -> int:
        """How many units the location holds before the edit."""
        return self.units or self.matrix.shape[0] // self.block

    @property
    def places(self) -> Ids:
        """Units whose places the new ones take."""
        if self.indices is None:
            return np.arange(self.matrix.shape[-1] // self.block)
        places: Ids = self.indices.cpu().numpy()
        return places

    def __call__(self, value: Tensor) -> Tensor:
        """The tensor after the edit, computed in the precision of T and rounded once to the tensor's own."""
        return edited([self], {self.tensor: value})[self.tensor]


@dataclass(frozen=True)
class Add:
    """Add a vector to a bias, which is made if there is none.

    Attributes:
        tensor: name of the bias.
        vector: (p,).
        entries: of the dense bias, those that it is added to, (p,); all where it is not given.
    """

    tensor: str
    vector: Tensor
    entries: Tensor | None = None

    def __call__(self, value: Tensor | None, alive: Ids | None = None) -> Tensor:
        """The bias after the edit, in the precision of the vector; `alive` are the dense entries it has left."""
        if value is None:
            return self.vector
        result = value.to(self.vector.dtype, copy=True)
        vector = self.vector.to(value.device)
        if self.entries is None:
            return result.add_(vector)
        at = self.entries.cpu()
        at = at if alive is None else torch.from_numpy(np.searchsorted(alive, at.numpy()))
        return result.index_add_(0, at.to(value.device), vector)


Edit = Take | Mix | Add


@torch.no_grad()
def edited(
    edits: Iterable[Edit], tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Carry the edits out, in order, and return the tensors that changed; `tensors` is left alone.

    Tensors are worked on one by one, a large one in pieces of rows: beside a tensor and its result only a
    few tens of megabytes are needed at any time.

    Args:
        edits: the list. Two edits of one axis speak of different entries of it.
        tensors: all tensors by name. A bias that an `Add` names may be missing.
        dtype: of the results, unrounded; by default each tensor's own.

    Returns:
        New tensors by name, those that an edit touched and no others.

    Example:
        >>> w = {"w": torch.arange(6.0).reshape(2, 3)}
        >>> edited([Take(Location("w", 1), torch.tensor([0, 2]), 3)], w)["w"]
        tensor([[0., 2.],
                [3., 5.]])
    """
    lists: dict[str, list[Edit]] = {}
    for edit in edits:
        lists.setdefault(edit.tensor, []).append(edit)
    known: Known = {}
    return {name: _carried_out(name, many, tensors, dtype, known) for name, many in lists.items()}


def constant(weight: Tensor, readers: Sequence[Reader], offsets: Sequence[Tensor], units: Sequence[int]) -> Tensor:
    """What constant units add to the output of a map that reads them: ± Σ_j W_ij t_j, over all entries and positions.

    Args:
        weight: the map's, of the dense network.
        readers: where the units and the outputs lie in it, and the sign: of several sites, if it reads several, that
            agree but for where their units lie.
        offsets: t of each, (n·block,).
        units: n of each.

    Returns:
        (p,), in the precision of the offsets.
    """
    t = (torch.cat(list(offsets)) if len(offsets) > 1 else offsets[0]).to(weight.device)
    first, at = readers[0], [reader.weight.positions(n).ravel() for reader, n in zip(readers, units, strict=True)]
    entries = places(np.concatenate(at), weight.device)
    rows = weight.detach().movedim((first.outputs, first.weight.axis), (0, 1))
    result = []
    for piece in rows.split(max(1, CHUNK // max(1, math.prod(rows.shape[1:])))):
        each = selected(piece, 1, entries).to(t.dtype).reshape(len(piece), t.numel(), -1)
        result.append((each.sum(2) if each.shape[2] > 1 else each[:, :, 0]) @ t)
    return torch.cat(result) * first.sign


# ---------------------------------------------------------------- one tensor


def _carried_out(
    name: str, edits: Sequence[Edit], tensors: Mapping[str, Tensor], dtype: torch.dtype | None, known: Known
) -> Tensor:
    """All edits of one tensor. Constants come first or last, and what lies between is done in one go."""
    value = tensors[name].detach() if name in tensors else None
    like = value if value is not None else tensors.get(name.removesuffix("bias") + "weight")
    assert value is not None or isinstance(edits[0], Add), f"an edit names {name}, which does not exist"
    goal = like.dtype if like is not None else cast(Add, edits[0]).vector.dtype
    if dtype is not None and goal.is_floating_point:
        goal = dtype
    alive: dict[int, Ids] = {}
    runs = [(adds, list(run)) for adds, run in groupby(edits, lambda edit: isinstance(edit, Add))]
    for i, (adds, run) in enumerate(runs):
        if adds:
            for add in run:
                value = cast(Add, add)(value, alive.get(0))
        else:
            assert value is not None
            value = _cut(value, cast("list[Take | Mix]", run), alive, goal if i == len(runs) - 1 else None, known)
    assert value is not None
    return value.to(goal).to(like.device if like is not None else value.device).contiguous()


def _cut(
    value: Tensor, edits: Sequence[Take | Mix], alive: dict[int, Ids], goal: torch.dtype | None, known: Known
) -> Tensor:
    """Takes and Mixes of one tensor: first every Take, as it makes the rest cheaper, then axis by axis the Mixes.

    Args:
        value: the tensor.
        edits: on any of its axes.
        alive: for every axis that was cut before, the dense entries that are left; brought up to date.
        goal: what to round to; None to leave the result as it was computed.
        known: what Takes came to on axes before this one; added to.
    """
    takes: dict[int, Where] = {}
    mixings: dict[int, Mixing] = {}
    for axis in dict.fromkeys(edit.at.axis for edit in edits):
        here = [edit for edit in edits if edit.at.axis == axis]
        layout = Layout(alive[axis] if axis in alive else np.arange(value.shape[axis]))
        take = _taken(layout, [edit for edit in here if isinstance(edit, Take)], {} if axis in alive else known)
        if not (isinstance(take, slice) and take == slice(0, value.shape[axis])):
            takes[axis] = places(take, value.device)
        mixes = [edit for edit in here if isinstance(edit, Mix)]
        if mixes:
            mixings[axis] = layout.mix(mixes, value.device)
        alive[axis] = layout.slots
    if not mixings:
        return _pass(value, takes, None, goal or value.dtype)
    for i, mixing in enumerate(list(mixings.items())):
        last = i == len(mixings) - 1
        value = _pass(value, {} if i else takes, mixing, goal if last and goal else mixing[1].dtype)
    return value


def _taken(layout: Layout, takes: Sequence[Take], known: Known) -> slice | Ids:
    """`Layout.take`, once for axes that are cut alike, as those of a BatchNorm's four vectors are."""
    key = (len(layout.slots), *((e.at.start, e.at.span, e.at.order, e.units, id(e.indices)) for e in takes))
    if key not in known:
        take = layout.take(takes)
        known[key] = take, layout.copy()
        return take
    take, after = known[key]
    layout.follow(after)
    return take


def _pass(value: Tensor, takes: Mapping[int, Where], mixing: tuple[int, Mixing] | None, dtype: torch.dtype) -> Tensor:
    """Take along several axes and mix along one, piece by piece along another."""
    if mixing is None and len(takes) == 1 and dtype == value.dtype:
        ((axis, where),) = takes.items()
        part = selected(value, axis, where)
        return part.clone(memory_format=torch.contiguous_format) if isinstance(where, slice) else part
    shape = list(value.shape)
    for axis, where in takes.items():
        shape[axis] = where.stop - where.start if isinstance(where, slice) else where.numel()
    if mixing is not None:
        shape[mixing[0]] = mixing[1].size
    out = torch.empty(shape, dtype=dtype, device=value.device)
    free = max((a for a in range(value.dim()) if mixing is None or a != mixing[0]), key=shape.__getitem__, default=None)
    length = 1 if free is None else shape[free]
    step = length if free is None else max(1, CHUNK * value.shape[free] // max(1, value.numel()))
    for low in range(0, length, step):
        piece, target = value, out
        if free is not None:
            where = takes.get(free, slice(0, length))
            start = where.start if isinstance(where, slice) else 0
            many = slice(start + low, start + min(low + step, length))
            piece = selected(value, free, many if isinstance(where, slice) else where[many])
            target = out.narrow(free, low, min(step, length - low))
        for axis, where in takes.items():
            if axis != free:
                piece = selected(piece, axis, where)
        if mixing is None:
            target.copy_(piece)
        else:
            mixing[1](piece, target, mixing[0])
    return out
