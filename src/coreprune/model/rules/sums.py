"""Rules for what mixes positions: reductions, norms, pooling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from coreprune.model.axes import Value
from coreprune.model.rules.table import Args, argument, aten, channels, name_of, rule
from coreprune.model.walk import Walk, shape_of


@aten(
    """
    mean sum amax amin max min std var norm prod linalg_vector_norm logsumexp any all argmax argmin topk
    var_mean median std_mean count_nonzero
    """
)
def reduction(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Any:
    """Many positions become one (or some): their axis must stay."""
    x, shape = args[0], shape_of(node)
    name = name_of(node)
    if len(args) > 1 and isinstance(args[1], Value):  # max(a, b) is elementwise
        return walk.elementwise(shape, args[:2])
    at = 2 if name in {"norm", "linalg_vector_norm", "topk"} else 1
    dims = argument(args, kwargs, at, "dim", -1 if name == "topk" else None)
    if dims is None or dims == [] or isinstance(dims, bool):
        dims = list(range(len(x.shape)))
    axes = {a % len(x.shape) for a in (dims if isinstance(dims, (list, tuple)) else [dims])} if x.shape else set()
    first = shape[0] if isinstance(shape, list) else shape
    same_rank = len(first) == len(x.shape)
    left = walk.drop(x, axes, f"is summed up over its units ({name})", keepdim=same_rank)
    if isinstance(shape, list):
        return [Value(one, left.blocks) for one in shape]
    return Value(shape, left.blocks)


@aten(
    """
    batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit native_batch_norm
    instance_norm
    """
)
def batch_norm(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Any:
    """Every channel on its own: over the positions of the batch where there are no running statistics."""
    x = args[0]
    channels(walk, x, args[1:5])
    if args[3] is None or args[5] is True or "instance" in name_of(node):
        walk.pin(x, range(2, len(x.shape)), "is normalised over all its positions")
    shape = shape_of(node)
    result = replace(x, source=None)
    return [result if one == x.shape else Value(one) for one in shape] if isinstance(shape, list) else result


@rule("aten.group_norm", "aten.native_group_norm")
def group_norm(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Any:
    """The channels of a group are normalised together: a group is a unit."""
    x, groups = args[0], args[1]
    if "native" in name_of(node):
        groups = args[6]
    block = x.at(1)
    weights = [v for v in args[1:4] if isinstance(v, Value)]
    if block is not None and block.axes == (1,):
        ids = block.ids.reshape(groups, -1)
        if groups == 1:
            walk.labels.freeze(ids, "is normalised over all units (group_norm)")
        walk.labels.couple(ids, ids[:, :1])
    else:
        walk.pin(x, [1], "is normalised over all its positions (group_norm)")
    channels(walk, x, weights)
    walk.pin(x, range(2, len(x.shape)), "is normalised over all its positions (group_norm)")
    shape = shape_of(node)
    result = replace(x, source=None)
    return [result if one == x.shape else Value(one) for one in shape] if isinstance(shape, list) else result


@aten(
    """
    layer_norm native_layer_norm rms_norm _fused_rms_norm
    """
)
def layer_norm(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Any:
    """All units are normalised together, so none can go by itself."""
    x, over = args[0], len(args[1])
    name = name_of(node).removeprefix("native_").removeprefix("_fused_")
    axes = range(len(x.shape) - over, len(x.shape))
    for axis in axes:
        walk.pin(x, [axis], f"is normalised over all its units ({name})")
    for value in (*args[2:4], kwargs.get("weight")):
        if isinstance(value, Value):
            walk.freeze([value], f"is normalised over all its units ({name})")
    shape = shape_of(node)
    result = replace(x, source=None)
    return [result if one == x.shape else Value(one) for one in shape] if isinstance(shape, list) else result


POOLS = [f"{kind}_pool{d}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)]


@aten(" ".join(POOLS))
@aten(
    """
    max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d _adaptive_avg_pool2d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
    _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    """
)
def pool(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Any:
    """Positions in space are combined or made; channels are left alone."""
    x, shape = args[0], shape_of(node)
    name = name_of(node)
    space = next(int(d) for d in "123" if f"{d}d" in name)
    axes = range(len(x.shape) - space, len(x.shape))
    left = walk.drop(x, axes, "is pooled", keepdim=True)
    return [Value(one, left.blocks) for one in shape] if isinstance(shape, list) else Value(shape, left.blocks)
