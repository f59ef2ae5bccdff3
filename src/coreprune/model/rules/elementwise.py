"""Rules for what happens position by position."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import fx

from coreprune.model.axes import Value
from coreprune.model.rules.table import Args, aten, channels, name_of, rule
from coreprune.model.walk import Walk, shape_of

ELEMENTWISE = """
    abs acos acosh add add_ addcdiv addcmul alpha_dropout asin asinh atan atan2 atanh bitwise_and bitwise_not
    bitwise_or bitwise_xor ceil celu celu_ clamp clamp_ clamp_max clamp_min clip copysign cos cosh div div_ dropout
    dropout_ elu elu_ eq erf erfc erfinv exp exp_ exp2 expm1 feature_alpha_dropout feature_dropout fill fill_ floor
    floor_divide fmod frac ge gelu gt hardshrink hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_
    isfinite isinf isnan le leaky_relu leaky_relu_ lerp log log10 log1p log2 log_sigmoid logical_and logical_not
    logical_or logical_xor logit lt masked_fill masked_fill_ maximum minimum mish mish_ mul mul_ nan_to_num ne neg
    neg_ pow pow_ reciprocal relu relu6 relu6_ relu_ remainder round rrelu rsqrt rsub selu selu_ sigmoid sigmoid_
    sign silu silu_ sin sinh softplus softshrink sqrt square sub sub_ subtract tan tanh tanh_ threshold threshold_
    true_divide divide multiply trunc where xlogy __and__ __or__ __xor__ logaddexp float_power greater less hypot
"""

SAME = """
    alias clone contiguous detach detach_ to _to_copy type_as lift_fresh lift_fresh_copy
    positive requires_grad_ _conj resolve_conj resolve_neg pin_memory zeros_like ones_like empty_like full_like
    rand_like randn_like
"""


@aten(ELEMENTWISE)
def elementwise(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Positions that meet live and die together."""
    values = [v for v in (*args, *kwargs.values()) if isinstance(v, Value)]
    result = walk.elementwise(shape_of(node), values)
    labelled = [v for v in values if v.blocks and v.source is None]
    if name_of(node) in {"mul", "mul_", "multiply"} and len(labelled) == 2:
        walk.gated += [block.ids for v in labelled for block in v.blocks if v.shape == result.shape]
    return result


@aten(SAME)
def same(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """A view or a copy; or numbers of their own in the same shape."""
    value: Value = args[0]
    return replace(value, source=None) if name_of(node).endswith("_like") else value


@rule("aten.copy_", "aten.copy")
def copied(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """Writing over a tensor: both must agree."""
    return walk.elementwise(shape_of(node), args[:2])


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(walk: Walk, node: fx.Node, args: Args, kwargs: dict[str, Any]) -> Value:
    """A slope for every channel, or one for all."""
    x: Value = args[0]
    slope: Value = args[1]
    channels(walk, x, [slope] if math.prod(slope.shape) > 1 else [])
    return replace(x, source=None)
