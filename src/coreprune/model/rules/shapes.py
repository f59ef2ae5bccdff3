"""Rules for new shapes: views, permutations, repetitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from coreprune.model.axes import Block, Value, reshaped
from coreprune.model.rules.table import Args, argument, aten, name_of, on_axis, rule
from coreprune.model.walk import Walk, kept, shape_of


@aten(
    """
    view reshape _unsafe_view flatten unflatten squeeze unsqueeze squeeze_ unsqueeze_ view_as reshape_as
    ravel _reshape_copy
    """
)
def reshape(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """The same entries in another shape."""
    return reshaped(walk.labels, args[0], shape_of(node))


def _permuted(x: Value, order: Sequence[int]) -> Value:
    order = [axis % len(x.shape) for axis in order]
    where = {old: new for new, old in enumerate(order)}
    return replace(x, shape=tuple(x.shape[a] for a in order), blocks=tuple(b.moved(where) for b in x.blocks))


@rule("aten.permute")
def permute(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Axes in another order."""
    return _permuted(args[0], args[1])


@rule("aten.transpose", "aten.swapaxes", "aten.transpose_")
def transpose(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Two axes exchanged."""
    order = list(range(len(args[0].shape)))
    a, b = args[1], args[2]
    order[a], order[b] = order[b], order[a]
    return _permuted(args[0], order)


@aten(
    """
    t numpy_T mT adjoint
    """
)
def turned(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """The last two axes exchanged."""
    order = list(range(len(args[0].shape)))
    return _permuted(args[0], order[::-1] if "numpy" in name_of(node) else [*order[:-2], *order[:-3:-1]])


@rule("aten.movedim", "aten.moveaxis")
def movedim(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Axes moved to other places."""
    n = len(args[0].shape)
    source, goal = ([a % n for a in (v if isinstance(v, (list, tuple)) else [v])] for v in args[1:3])
    order = [a for a in range(n) if a not in source]
    for to, axis in sorted(zip(goal, source, strict=True)):
        order.insert(to, axis)
    return _permuted(args[0], order)


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """New axes in front, or axes of one entry repeated: no units there."""
    shape = shape_of(node)
    x: Value = args[0]
    where = {a: a + len(shape) - len(x.shape) for a in range(len(x.shape))}
    return replace(x, shape=shape, blocks=kept(x.blocks, where), source=None)


@rule("aten.repeat", "aten.tile")
def repeat(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Labels repeated with the entries."""
    shape = shape_of(node)
    shift = len(shape) - len(args[0].shape)
    blocks = []
    for block in args[0].blocks:
        axes = tuple(a + shift for a in block.axes)
        times = [shape[a] // size for a, size in zip(axes, block.ids.shape, strict=True)]
        blocks.append(Block(axes, np.tile(block.ids, times)))
    return Value(shape, tuple(blocks))


@rule("aten.repeat_interleave")
def repeat_interleave(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Every entry of an axis several times over."""
    x, times, axis = args[0], args[1], argument(args, kwargs, 2, "dim")
    shape = shape_of(node)
    if not isinstance(times, int) or axis is None:
        walk.freeze(args, "is repeated by a tensor")
        return Value(shape)
    axis %= len(x.shape)
    blocks = [Block(b.axes, b.ids.repeat(times, b.axes.index(axis))) if axis in b.axes else b for b in x.blocks]
    return Value(shape, tuple(blocks))


@rule("aten.pixel_shuffle", "aten.pixel_unshuffle", "aten.channel_shuffle")
def pixels(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Channels traded for positions, or shuffled."""
    x, r, name = args[0], args[1], name_of(node)
    if "pixel" in name:
        x = walk.drop(x, [-1, -2], "is traded for channels", keepdim=True)
    block = x.at(-3 if "pixel" in name else 1)
    shape = shape_of(node)
    if block is None or len(block.axes) > 1:
        walk.freeze([x], "is shuffled with other axes")
        return Value(shape)
    axis = block.axes[0]
    if name.startswith("pixel_shuffle"):
        ids = block.ids.reshape(-1, r * r)
        walk.labels.couple(ids, ids[:, :1])
        new = ids[:, 0]
    elif name.startswith("pixel_unshuffle"):
        new = block.ids.repeat(r * r)
    else:
        ids = block.ids.reshape(r, -1)
        walk.labels.couple(ids, ids[:1])  # there will be as many groups
        new = ids.T.ravel()
    return Value(shape, tuple(b for b in x.blocks if b is not block) + on_axis(axis, new))
