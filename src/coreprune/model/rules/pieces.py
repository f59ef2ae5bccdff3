"""Rules for pieces: concatenation, splitting, slicing, gathering."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from coreprune.model.axes import Block, Value, joined, trimmed
from coreprune.model.rules.table import Args, argument, aten, name_of, rule
from coreprune.model.walk import Walk, kept, shape_of


@rule("aten.glu")
def glu(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """One half times the sigmoid of the other."""
    x, shape = args[0], shape_of(node)
    axis = argument(args, kwargs, 1, "dim", -1) % len(x.shape)
    block = x.at(axis)
    if block is None:
        return Value(shape, x.blocks)
    left, right = np.split(block.ids, 2, block.axes.index(axis))
    walk.labels.couple(left, right)
    walk.gated.append(block.ids)
    one = trimmed(Block(block.axes, left))
    return Value(shape, tuple(b for b in x.blocks if b is not block) + (() if one is None else (one,)))


@rule("aten.cat", "aten.concat")
def cat(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Labels one after the other."""
    shape = shape_of(node)
    parts = [v for v in args[0] if isinstance(v, Value) and v.shape != (0,)]
    axis = argument(args, kwargs, 1, "dim", 0) % len(shape)
    along = [v.at(axis) for v in parts]
    over = {b.axes for b in along if b is not None}
    if not over:
        return walk.elementwise(shape, [replace(v, shape=tuple(1 if a == axis else s for a, s in enumerate(v.shape)))
                                        for v in parts])  # fmt: skip
    if len(over) > 1 or (len(next(iter(over))) > 1 and None in along):
        walk.freeze(parts, "is concatenated with tensors over other axes")
        return Value(shape)
    axes = next(iter(over))
    pieces = []
    for value, block in zip(parts, along, strict=True):
        ids = block.ids if block is not None else walk.labels.fresh(value.shape[axis])
        if block is None:
            walk.labels.freeze(ids, "a fixed part of a concatenation")
        pieces.append(ids)
    whole = Block(axes, np.concatenate(pieces, axes.index(axis)))
    others = [
        (
            Value(shape, tuple(b for b in v.blocks if axis not in b.axes)),
            {a: a for a in range(len(shape)) if a not in axes},
        )
        for v in parts
    ]
    return Value(shape, (whole, *joined(walk.labels, shape, others)))


@rule("aten.stack")
def stack(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """A new axis that runs over the tensors."""
    shape = shape_of(node)
    axis = argument(args, kwargs, 1, "dim", 0) % len(shape)
    parts = [v for v in args[0] if isinstance(v, Value)]
    along = [v.blocks for v in parts]
    if all(len(blocks) == 1 for blocks in along) and len({blocks[0].axes for blocks in along}) == 1:
        axes = tuple(a if a < axis else a + 1 for a in along[0][0].axes)
        at = sum(a < axis for a in axes)
        ids = np.stack([blocks[0].ids for blocks in along], at)
        block = trimmed(Block(tuple(sorted((*axes, axis))), ids))
        if block is not None and len(block.axes) > 1:
            walk.labels.split(block.ids)
        return Value(shape, () if block is None else (block,))
    return walk.elementwise(shape, [replace(v, shape=(*v.shape[:axis], 1, *v.shape[axis:]), blocks=tuple(
        b.moved({a: a if a < axis else a + 1 for a in b.axes}) for b in v.blocks)) for v in parts])  # fmt: skip


@aten(
    """
    chunk split split_with_sizes unbind tensor_split
    """
)
def split(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Any:
    """Equal pieces stay equal: positions that correspond are coupled. Unequal pieces hold the axis."""
    x, shapes = args[0], shape_of(node)
    unbind = "unbind" in name_of(node)
    axis = argument(args, kwargs, 1 if unbind else 2, "dim", 0) % len(x.shape)
    block = x.at(axis)
    if unbind:
        where = {a: a if a < axis else a - 1 for a in range(len(x.shape)) if a != axis}
        return [_selected(walk, x, axis, i, where, shape) for i, shape in enumerate(shapes)]
    sizes = [shape[axis] for shape in shapes]
    if block is None or len(sizes) == 1:
        return [replace(x, shape=shape) for shape in shapes]
    at = block.axes.index(axis)
    if len(set(sizes)) > 1:
        walk.labels.pin(block, axis, "is split into unequal pieces at fixed places")
    pieces = np.split(block.ids, np.cumsum(sizes)[:-1], at)
    if len(set(sizes)) == 1:
        for piece in pieces[1:]:
            walk.labels.couple(pieces[0], piece)
    result = []
    for piece, shape in zip(pieces, shapes, strict=True):
        one = trimmed(Block(block.axes, piece))
        rest = tuple(b for b in x.blocks if b is not block)
        result.append(replace(x, shape=shape, blocks=rest + (() if one is None else (one,))))
    return result


def _selected(walk: Walk, x: Value, axis: int, index: int, where: dict[int, int], shape: tuple[int, ...]) -> Value:
    """One position of an axis."""
    blocks = []
    for block in x.blocks:
        one: Block | None = block
        if axis in block.axes:
            walk.labels.pin(block, axis, "a single position of it is taken")
            rest = tuple(a for a in block.axes if a != axis)
            one = Block(rest, block.ids.take(index, block.axes.index(axis))) if rest else None
        if one is not None:
            blocks.append(one.moved(where))
    return replace(x, shape=shape, blocks=tuple(blocks))


@rule("aten.select")
def select(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """One position of an axis."""
    x, axis, index = args[0], args[1] % len(args[0].shape), args[2]
    where = {a: a if a < axis else a - 1 for a in range(len(x.shape)) if a != axis}
    if not isinstance(index, int):
        return walk.drop(x, [axis], "a position of it is taken")
    return _selected(walk, x, axis, index, where, shape_of(node))


@rule("aten.slice", "aten.narrow")
def slices(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """A run of positions: the whole axis, or fixed places that hold it."""
    x: Value = args[0]
    shape = shape_of(node)
    axis = argument(args, kwargs, 1, "dim", 0) % len(x.shape)
    block = x.at(axis)
    if block is None or shape == x.shape:
        return replace(x, shape=shape, source=x.source if shape == x.shape else None)
    walk.labels.pin(block, axis, "is cut at fixed places")
    start = argument(args, kwargs, 2, "start", 0) or 0
    step = argument(args, kwargs, 4, "step", 1) if "slice" in name_of(node) else 1
    start = max(start + x.shape[axis], 0) if start < 0 else min(start, x.shape[axis])
    if not shape[axis]:
        return Value(shape)
    ids = block.ids.take(range(start, min(start + shape[axis] * step, x.shape[axis]), step), block.axes.index(axis))
    one = trimmed(Block(block.axes, ids))
    rest = tuple(b for b in x.blocks if b is not block)
    return replace(x, shape=shape, blocks=rest + (() if one is None else (one,)))


@rule("aten.index")
def index(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Positions gathered by tensors."""
    x, indices, shape = args[0], args[1], shape_of(node)
    walk.freeze([v for v in indices if v is not None], "is used as an index")
    axes = [a for a, v in enumerate(indices) if v is not None]
    gone = walk.drop(x, axes, "positions of it are gathered", keepdim=True)
    wide = len(shape) - (len(x.shape) - len(axes))
    front = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    rest = [a for a in range(len(x.shape)) if a not in axes]
    where = {a: i if i < front else i + wide for i, a in enumerate(rest)}
    return Value(shape, kept(gone.blocks, where), x.source if rest else None)


@aten(
    """
    index_select flip roll sort argsort cumsum softmax _softmax log_softmax cummax special_softmax
    """
)
def along(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Any:
    """Mixes the positions of some axes, which must stay, and leaves the others alone."""
    x, shape = args[0], shape_of(node)
    name = name_of(node)
    default = -1 if "sort" in name else None
    dims = argument(args, kwargs, {"roll": 2}.get(name, 1), "dims" if name in {"flip", "roll"} else "dim", default)
    if dims is None or (name == "roll" and not dims):
        dims = list(range(len(x.shape)))
    axes = {a % len(x.shape) for a in (dims if isinstance(dims, (list, tuple)) else [dims])} if x.shape else set()
    left = walk.drop(x, axes, f"its positions are taken together ({name})", keepdim=True)
    if isinstance(shape, list):
        return [Value(one, left.blocks) for one in shape]
    return Value(shape, left.blocks)


@rule("aten.embedding")
def embedding(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Rows of a table."""
    table, indices, shape = args[0], args[1], shape_of(node)
    walk.freeze([indices], "is used as an index")
    walk.pin(table, [0], "is looked up (embedding)")
    block = table.at(1)
    return Value(shape, () if block is None else (Block((len(shape) - 1,), block.ids),))


@aten(
    """
    pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad2d reflection_pad3d
    replication_pad1d replication_pad3d
    """
)
def pad(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """More positions on the last axes; units that get more of their own kind are held."""
    x, widths, shape = args[0], args[1], shape_of(node)
    axes = [len(x.shape) - 1 - i // 2 for i, width in enumerate(widths) if width != 0]
    return Value(shape, walk.drop(x, axes, "is padded with positions that are no units", keepdim=True).blocks)
