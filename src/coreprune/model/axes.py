"""Labels on the axes of tensors: which entries of an axis belong to which hidden unit.

Every entry of every axis of every parameter gets a number, its *label*. As tensors flow through the
network, labels flow with them: a convolution's output axis carries the labels of the rows of its weight,
a concatenation concatenates labels, a flattened image repeats a channel's label for every position, and
a channel shuffle permutes them. An operator that needs two entries to live or die together *couples*
their labels; one that fixes an axis *pins* it, with a reason. Classes of coupled labels are the units.

A label array may run over several axes at once. After ``view(batch, seq, heads, dim)`` the labels of a
projection form a matrix over (heads, dim), so that merging both axes again, in whatever order, finds every
single label back. Pinning `dim`, as an inner product over it does, couples the labels of a head: the
head becomes the unit. Nothing is ever guessed from names or shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Block", "Labels", "Value", "groups_of_reshape", "joined", "reshaped", "trimmed"]

Ids = NDArray[Any]  # of integers


@dataclass(frozen=True)
class Block:
    """Labels over one or more axes of a tensor.

    Attributes:
        axes: ascending.
        ids: one label for every combination of positions, one array axis for each of `axes`.
    """

    axes: tuple[int, ...]
    ids: Ids

    def without(self, axis: int) -> Block | None:
        """The labels at position 0 of one axis; None if it was the only one."""
        if self.axes == (axis,):
            return None
        at = self.axes.index(axis)
        return Block(tuple(a for a in self.axes if a != axis), self.ids.take(0, at))

    def moved(self, where: dict[int, int]) -> Block:
        """The same labels on other axes: `where` gives the new number of each."""
        new = [where[a] for a in self.axes]
        order = sorted(range(len(new)), key=new.__getitem__)
        return Block(tuple(sorted(new)), self.ids.transpose(order))


@dataclass(frozen=True)
class Value:
    """A tensor in the captured graph, as far as labels go.

    Attributes:
        shape: its sizes.
        blocks: labels; no axis is in two blocks, and an axis in none has no units.
        source: the parameter or buffer it is a mere view of.

    Example:
        >>> Value((2, 3)).at(1) is None  # no units run along an axis without labels
        True
    """

    shape: tuple[int, ...]
    blocks: tuple[Block, ...] = ()
    source: str | None = None

    def at(self, axis: int) -> Block | None:
        """The block that runs over an axis."""
        axis %= max(len(self.shape), 1)
        return next((block for block in self.blocks if axis in block.axes), None)


def trimmed(block: Block) -> Block | None:
    """The block without the axes that have one entry or along which labels do not vary."""
    axes, ids = list(block.axes), block.ids
    for at in reversed(range(len(axes))):
        first = ids.take([0], at)
        if ids.shape[at] == 1 or bool((ids == first).all()):
            ids = ids.take(0, at)
            del axes[at]
    return Block(tuple(axes), ids) if axes else None


@dataclass
class Labels:
    """All labels of a network, what couples them, and what holds them fast."""

    count: int = 0
    _edges: list[tuple[Ids, Ids]] = field(default_factory=list)
    _frozen: list[tuple[Ids, str]] = field(default_factory=list)
    _splits: list[Ids] = field(default_factory=list)
    _links: list[tuple[Ids, Ids]] = field(default_factory=list)
    _of: Ids | None = None  # the classes, as long as nothing is coupled

    def fresh(self, size: int) -> Ids:
        """New labels, (size,)."""
        ids = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return ids

    def couple(self, a: Ids, b: Ids) -> None:
        """Entries of `a` live and die with those of `b`; shapes broadcast."""
        a, b = np.broadcast_arrays(a, b)
        if a.size and a is not b:
            self._edges.append((a.ravel(), b.ravel()))
            self._of = None

    def freeze(self, ids: Ids, reason: str) -> None:
        """These labels must stay."""
        self._frozen.append((ids.ravel(), reason))

    def pin(self, block: Block, axis: int, reason: str) -> None:
        """No entry of an axis may go by itself: couple along it, or freeze where it is the only axis."""
        if block.axes == (axis,):
            self.freeze(block.ids, reason)
        else:
            self.couple(block.ids, block.ids.take([0], block.axes.index(axis)))

    def split(self, ids: Ids) -> None:
        """An axis became several: in the end the units must run along one of them, whichever nothing pins."""
        self._splits.append(ids)

    def link(self, big: Block, small: Block) -> None:
        """`small` runs over some axes of `big`: coupled if these turn out to be the axes of units, else fast."""
        extra = [i for i, a in enumerate(big.axes) if a not in small.axes]
        shared = [i for i, a in enumerate(big.axes) if a in small.axes]
        matrix = big.ids.transpose(extra + shared).reshape(-1, small.ids.size)
        self._links.append((matrix, small.ids.ravel()))

    def classes(self) -> tuple[Ids, dict[int, str]]:
        """The class of every label, (count,), and for each class that must stay the first reason given."""
        of = self._components()
        for ids in self._splits:
            self._decide(of[ids], ids)
        for _ in range(8):
            of = self._components()
            before = len(self._edges), len(self._frozen)
            links, self._links = self._links, []
            for matrix, small in links:
                self._resolve(of, matrix, small)
            if (len(self._edges), len(self._frozen)) == before or not links:
                break
        of = self._components()
        frozen: dict[int, str] = {}
        for ids, reason in self._frozen:
            for one in np.unique(of[ids]).tolist():
                frozen.setdefault(one, reason)
        return of, frozen

    def _decide(self, of: Ids, ids: Ids) -> None:
        """Make units run along one axis of a split: the longest, unless couplings have chosen another."""
        fast = [bool((of == of.take([0], axis)).all()) for axis in range(of.ndim)]
        if fast.count(False) <= 1:
            return
        lengths = [0 if fast[axis] else of.shape[axis] for axis in range(of.ndim)]
        keep = int(np.argmax(lengths))
        for axis in range(of.ndim):
            if axis != keep:
                self.couple(ids, ids.take([0], axis))

    def _resolve(self, of: Ids, matrix: Ids, small: Ids) -> None:
        found = of[matrix]
        if bool((found == found[:1]).all()):  # units run along the shared axes
            self.couple(matrix[0], small)
            return
        self.freeze(small, "is used alike for every unit of another axis")
        if not bool((found == found[:, :1]).all()):
            self.freeze(matrix, "is combined with a tensor over a part of its axes")

    def _components(self) -> Ids:
        if self._of is not None and self._of.size == self.count:
            return self._of
        if not self._edges:
            return np.arange(self.count)
        a = np.concatenate([edge[0] for edge in self._edges])
        b = np.concatenate([edge[1] for edge in self._edges])
        graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(self.count, self.count))
        of: Ids = connected_components(graph, directed=False)[1].astype(np.int64)
        if len(self._edges) > 1:  # a spanning forest is enough from here on
            first = np.full(of.max() + 1, -1, dtype=np.int64)
            first[of[::-1]] = np.arange(self.count)[::-1]
            self._edges = [(np.arange(self.count), first[of])]
        self._of = of
        return of


def groups_of_reshape(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of old and new axes that hold the same entries, in order; axes of size 1 are left out.

    Example:
        >>> groups_of_reshape((2, 8, 5, 5), (2, 200))
        [([0], [0]), ([1, 2, 3], [1])]
    """
    olds = [a for a, size in enumerate(old) if size != 1]
    news = [a for a, size in enumerate(new) if size != 1]
    groups: list[tuple[list[int], list[int]]] = []
    while olds and news:
        left, right = [olds.pop(0)], [news.pop(0)]
        a, b = old[left[0]], new[right[0]]
        while a != b:
            if a < b:
                left.append(olds.pop(0))
                a *= old[left[-1]]
            else:
                right.append(news.pop(0))
                b *= new[right[-1]]
        groups.append((left, right))
    return groups


def reshaped(labels: Labels, value: Value, shape: tuple[int, ...]) -> Value:
    """A value with its entries laid out in another shape."""
    if 0 in value.shape:
        for block in value.blocks:
            labels.freeze(block.ids, "has no positions")
        return replace(value, shape=shape, blocks=())
    groups = groups_of_reshape(value.shape, shape)
    blocks: list[Block] = []
    used: dict[int, Block] = {}
    for block in value.blocks:
        touched = [g for g in groups if set(g[0]) & set(block.axes)]
        olds = [a for g in touched for a in g[0]]
        clash = [used[a] for a in olds if a in used]
        for other in clash:
            for one in (block, other):
                labels.freeze(one.ids, "is merged with another axis of units")
        used |= dict.fromkeys(olds, block)
        wide = [block.ids.shape[block.axes.index(a)] if a in block.axes else 1 for a in olds]
        ids = np.broadcast_to(block.ids.reshape(wide), [value.shape[a] for a in olds])
        news = tuple(a for g in touched for a in g[1])
        moved = trimmed(Block(news, ids.reshape([shape[a] for a in news])))
        if moved is None or clash:
            continue
        if len(moved.axes) > len(block.axes):
            labels.split(moved.ids)
        blocks.append(moved)
    return replace(value, shape=shape, blocks=tuple(blocks))


def joined(
    labels: Labels, shape: tuple[int, ...], operands: Iterable[tuple[Value, dict[int, int]]], *, batched: bool = False
) -> tuple[Block, ...]:
    """Labels of an operation that combines its operands position by position.

    Args:
        labels: gets the couplings.
        shape: of the result.
        operands: each with the axis of the result that each of its axes becomes; axes left out are consumed.
        batched: axes of one operand alone are then its own business (as in a matrix product), and units run
            along the common ones.
    """
    found: list[Block] = []
    fixed: set[int] = set()
    for value, where in operands:
        labelled: set[int] = set()
        for block in value.blocks:
            if all(a in where for a in block.axes):
                found.append(block.moved(where))
                labelled |= set(found[-1].axes)
        full = {where[a] for a, size in enumerate(value.shape) if a in where and size > 1}
        fixed |= full - labelled
    result: list[Block] = []
    for block in sorted(found, key=lambda b: -len(b.axes)):
        for axis in set(block.axes) & fixed:
            labels.pin(block, axis, "is combined with a tensor that is not cut")
        over = [other for other in result if set(other.axes) & set(block.axes)]
        if not over:
            result.append(block)
        for other in over:
            _reconcile(labels, other, block, batched)
    return tuple(sorted(result, key=lambda b: b.axes))


def _reconcile(labels: Labels, big: Block, small: Block, batched: bool) -> None:
    """Two blocks share axes."""
    if big.axes == small.axes:
        labels.couple(big.ids, small.ids)
    elif batched:
        common = set(big.axes) & set(small.axes)
        labels.couple(*(_only(labels, block, common).ids for block in (big, small)))
    elif set(small.axes) <= set(big.axes):
        labels.link(big, small)
    else:
        for block in (big, small):
            labels.freeze(block.ids, "is combined with a tensor over other axes")


def _only(labels: Labels, block: Block, axes: set[int]) -> Block:
    """The block over some of its axes, its units made to run along these."""
    for axis in block.axes:
        if axis not in axes:
            labels.pin(block, axis, "runs along another axis")
            rest = block.without(axis)
            assert rest is not None
            block = rest
    return block
