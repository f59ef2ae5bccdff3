"""Rules for linear maps: products, convolutions, attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from coreprune.model.axes import Block, Ids, Value, joined
from coreprune.model.rules.table import Args, argument, aten, name_of, on_axis, rule
from coreprune.model.walk import Walk, kept, norm_behind, shape_of


def _constant(
    walk: Walk, node: fx.Node, operands: tuple[Value, int, Any], channel: int = 1
) -> tuple[str, float] | None:
    """What can take up a constant that a read no longer sees: the bias, or the mean of a BatchNorm behind.

    Args:
        walk: the pass. node: the map.
        operands: weight, its axis of outputs, and bias.
        channel: the axis of the node that runs over the outputs.
    """
    w, outputs, bias = operands
    if w.source is None or sum(s > 1 for s in w.shape) != sum(ids.size > 1 for ids in walk.axes[w.source]):
        return None  # one of several matrices in a parameter
    sign = 1.0
    if bias is None:
        norm = norm_behind(node, channel)
        mean = None if norm is None else norm.args[3]
        bias, sign = walk.values.get(mean.name) if isinstance(mean, fx.Node) else None, -1.0
    if not isinstance(bias, Value) or bias.source is None or len(walk.axes[bias.source]) != len(bias.shape) != 1:
        return None
    same = _positions(walk, w, outputs) == _positions(walk, bias, 0)
    return (bias.source, sign) if same else None


def _positions(walk: Walk, value: Value, axis: int) -> tuple[int, list[int]]:
    """Which entries of a parameter's axis a value holds along its own: how many there are, and those."""
    block = value.at(axis)
    if block is None:
        return value.shape[axis], [0] * value.shape[axis]
    own: Ids = next(ids for ids in walk.axes[str(value.source)] if ids[0] <= block.ids.flat[0] <= ids[-1])
    return own.size, (block.ids - own[0]).ravel().tolist()


@rule("aten.linear")
def linear(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Y = x Wᵀ + c."""
    x, w, bias = args[0], args[1], argument(args, kwargs, 2, "bias")
    shape = shape_of(node)
    constant = _constant(walk, node, (w, 0, bias), len(shape) - 1) if len(w.shape) == 2 else None
    walk.contract(x, -1, w, -1, node, "linear", 0 if len(w.shape) == 2 else None, constant)
    last = len(shape) - 1
    blocks = kept(walk.consumed(x, [last]).blocks, {a: a for a in range(last)})
    out = w.at(0) if len(w.shape) == 2 else None
    own = bias.at(0) if isinstance(bias, Value) else None
    if own is not None and out is not None:
        walk.labels.couple(out.ids, own.ids)
    return Value(shape, blocks + (() if out is None else (Block((last,), out.ids),)))


def _product(
    walk: Walk,
    node: fx.Node,
    x: Value,
    y: Value,
    spec: tuple[Sequence[str], Sequence[str], Sequence[str]],
    bias: tuple[str, float] | None = None,
) -> Value:
    """A product of two tensors summed over the letters that the result lacks, as einsum writes it."""
    left, right, out = spec
    data, weight, swapped = (x, y, False) if y.source is not None or x.source is None else (y, x, True)
    d, w = (right, left) if swapped else (left, right)
    for letter in dict.fromkeys(d):
        if letter in w and letter not in out:
            free = [c for c in w if c in out and c not in d]
            to = w.index(free[0]) if len(free) == 1 else None
            walk.contract(data, d.index(letter), weight, w.index(letter), node, "matmul", to, bias)
        elif letter not in out:
            walk.pin(data, [d.index(letter)], "is summed up over its units")
    for letter in w:
        if letter not in out and letter not in d:
            walk.pin(weight, [w.index(letter)], "is summed up over its units")
    parts = []
    for value, letters in ((x, left), (y, right)):
        rest = walk.consumed(value, [i for i, c in enumerate(letters) if c not in out])
        where = {i: out.index(c) for i, c in enumerate(letters) if c in out}
        parts.append((rest, where))
    result = Value(shape_of(node), joined(walk.labels, shape_of(node), parts, batched=True))
    if weight.source is not None:
        return result
    common = {out.index(c) for c in left if c in right and c in out}
    walk.attended += [block.ids for block in result.blocks if set(block.axes) <= common]
    return walk.renewed(result)


def _letters(x: Value, y: Value) -> tuple[list[str], list[str], list[str]]:
    """The letters of ``x @ y``; broadcast axes of one entry get letters of their own."""
    a, b = len(x.shape), len(y.shape)
    batch = max(a, b, 2) - 2
    names = [f"b{i}" for i in range(batch)]
    left = [*names[batch - (a - 2) :], "m", "k"] if a > 1 else ["k"]
    right = [*names[batch - (b - 2) :], "k", "n"] if b > 1 else ["k"]
    out = [*names, *(["m"] if a > 1 else []), *(["n"] if b > 1 else [])]
    for letters, shape, other, sizes in ((left, x.shape, right, y.shape), (right, y.shape, left, x.shape)):
        for i, c in enumerate(letters):
            if c in other and c in out and shape[i] == 1 and sizes[other.index(c)] != 1:
                letters[i] = f"{c}'"
    return left, right, out


@aten(
    """
    matmul mm bmm mv dot
    """
)
def matmul(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """X @ y."""
    return _product(walk, node, args[0], args[1], _letters(args[0], args[1]))


@rule("aten.addmm", "aten.baddbmm")
def addmm(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Bias + x @ y, as the Conv1D of language models writes it."""
    bias, x, y = args[:3]
    plain = len(y.shape) == 2 and y.source is not None and len(bias.shape) == 1 and not kwargs
    own = _constant(walk, node, (y, 1, bias)) if plain else None
    product = _product(walk, node, x, y, _letters(x, y), own)
    return walk.elementwise(product.shape, [product, bias])


@rule("aten.einsum")
def einsum(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Two operands; more, or dots, are not followed."""
    equation, operands = args[0].replace(" ", ""), args[1]
    if len(operands) != 2 or "." in equation or "->" not in equation:
        walk.freeze(operands, f"goes through an einsum that is not followed ({equation})")
        return Value(shape_of(node))
    inputs, out = equation.split("->")
    left, right = inputs.split(",")
    if len(set(left)) < len(left) or len(set(right)) < len(right):
        walk.freeze(operands, f"goes through an einsum that is not followed ({equation})")
        return Value(shape_of(node))
    return _product(walk, node, operands[0], operands[1], (list(left), list(right), list(out)))


@rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped_mm(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Rows of x, sorted by expert, each run times its expert's matrix: (N, K) and (E, K, M)."""
    x, w = args[0], args[1]
    walk.pin(w, [0], "runs over experts")
    walk.contract(x, -1, w, -2, node, "experts", 2)
    out = w.at(2)
    blocks = tuple(b for b in x.blocks if b.axes == (0,))
    return Value(shape_of(node), blocks + (() if out is None else (Block((1,), out.ids),)))


@rule("aten.scaled_dot_product_attention")
def attention(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Softmax(q kᵀ + mask) v; with grouped queries every key head serves several query heads."""
    q, k, v = args[:3]
    mask = argument(args, kwargs, 3, "attn_mask")
    shape = shape_of(node)
    for value in (q, k):
        walk.pin(value, [-1], "is multiplied with another activation (attention)")
        walk.pin(value, [-2], "runs over positions")
    walk.pin(v, [-2], "runs over positions")
    scores = []
    last = len(q.shape) - 1
    for value in (q, k):
        left = walk.drop(value, [-1, -2], "attention", keepdim=True)
        times = q.shape[-3] // value.shape[-3] if last > 2 else 1
        scores.append(_heads(left, times))
        walk.attended += [b.ids for b in left.blocks]
    v = _heads(v, q.shape[-3] // v.shape[-3] if last > 2 else 1)
    walk.attended += [b.ids for b in v.blocks]
    wide = (*q.shape[:-1], k.shape[-2])
    if isinstance(mask, Value):
        shift = len(wide) - len(mask.shape)
        where = {a: a + shift for a, s in enumerate(mask.shape) if s == wide[a + shift]}
        walk.pin(mask, [-1, -2], "runs over positions")
        padded = (*(1,) * shift, *mask.shape)
        scores.append(walk.drop(Value(padded, kept(mask.blocks, where)), [-1, -2], "runs over positions", keepdim=True))
    parts = [(s, {a: a for a in range(last - 1) if s.shape[a] == shape[a]}) for s in scores]
    parts.append((v, {a: a for a in range(last + 1) if a != last - 1}))
    return walk.renewed(Value(shape, joined(walk.labels, shape, parts, batched=True)))


def _heads(value: Value, times: int) -> Value:
    """Each entry of the axis of heads `times` over."""
    if times == 1:
        return value
    axis = len(value.shape) - 3
    blocks = tuple(
        Block(b.axes, b.ids.repeat(times, b.axes.index(axis))) if axis in b.axes else b for b in value.blocks
    )
    return replace(
        value, shape=(*value.shape[:axis], value.shape[axis] * times, *value.shape[axis + 1 :]), blocks=blocks
    )


@aten(
    """
    conv1d conv2d conv3d convolution
    """
)
def convolution(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Channels are axis 1 of x and w; a group of channels that is read alone is a unit."""
    x, w, bias = args[0], args[1], argument(args, kwargs, 2, "bias")
    padding = argument(args, kwargs, 4, "padding", 0)
    full = "convolution" in name_of(node)
    groups = argument(args, kwargs, 8 if full else 6, "groups", 1)
    if full and args[6]:
        result: Value = transposed(walk, node, [*args[:5], args[7], groups, args[5]], {})
        return result
    padded = padding == "same" or (padding != "valid" and any(np.atleast_1d(padding)))
    _weight_space(walk, w)
    exact = None if padded else _constant(walk, node, (w, 0, bias), len(shape_of(node)) - (len(w.shape) - 1))
    return _convolved(walk, node, (x, w, bias), groups, (1, 0), exact, "conv")


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """The weight has inputs on axis 0 and outputs on axis 1."""
    x, w, bias = args[0], args[1], argument(args, kwargs, 2, "bias")
    groups = argument(args, kwargs, 6, "groups", 1)
    _weight_space(walk, w)
    return _convolved(walk, node, (x, w, bias), groups, (0, 1), None, "deconv")


def _weight_space(walk: Walk, w: Value) -> None:
    walk.pin(w, range(2, len(w.shape)), "is a position of a kernel")


def _convolved(
    walk: Walk,
    node: fx.Node,
    operands: tuple[Value, Value, Any],
    groups: int,
    axes: tuple[int, int],
    exact: tuple[str, float] | None,
    what: str,
) -> Value:
    x, w, bias = operands
    axis_in, axis_out = axes
    shape = shape_of(node)
    channel = len(shape) - (len(w.shape) - 1)
    walk.pin(x, range(channel + 1, len(x.shape)), "runs over positions")
    if groups == 1:
        walk.contract(x, channel, w, axis_in, node, what, axis_out, exact)
        out = w.at(axis_out)
        ids = None if out is None else out.ids
    else:
        ids = _grouped(walk, x.at(channel), w, groups, axes)
    own = bias.at(0) if isinstance(bias, Value) else None
    if own is not None:
        if ids is None:
            walk.labels.freeze(own.ids, "belongs to channels that are not cut")
        else:
            walk.labels.couple(ids, own.ids)
    rest = tuple(b for b in x.blocks if channel not in b.axes and max(b.axes) < channel)
    return Value(shape, rest + (() if ids is None else on_axis(channel, ids)))


def _grouped(walk: Walk, block: Block | None, w: Value, groups: int, axes: tuple[int, int]) -> Any:
    """A group's channels, its rows of the weight and its outputs are one unit."""
    axis_out = axes[1]
    rows = w.at(0)
    if rows is None:
        walk.freeze([Value((1,), (block,))] if block else [], "is read by a group convolution of one row")
        return None
    inner = w.at(1)
    if inner is not None:
        walk.labels.freeze(inner.ids, "lies within the groups of a convolution")
    each = rows.ids.reshape(groups, -1)
    walk.labels.couple(each, each[:, :1])
    if block is None or len(block.axes) > 1:
        walk.labels.freeze(rows.ids, "reads what is not cut")
        if block is not None:
            walk.labels.freeze(block.ids, "is read by a group convolution along one of its axes")
    else:
        walk.labels.couple(block.ids.reshape(groups, -1), each[:, :1])
    if axis_out == 0:
        return rows.ids
    return np.repeat(each[:, :1], w.shape[1], 1).ravel()  # transposed: outputs per group on axis 1
