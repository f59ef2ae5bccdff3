"""What an operator gives on tensors without values.

PyTorch says it for every operator, and for some in many steps of Python. A network of hundreds of operators is run on
shapes several times, so that those which are met most are told here in a few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["shaped"]

_aten = torch.ops.aten


def shaped(operator: Any, args: Sequence[Any]) -> Any:
    """The result of an operator on the meta device.

    Args:
        operator: any of ATen. args: as it takes them, tensors on the meta device.

    Raises:
        RuntimeError: or whatever the operator itself raises where they do not fit.

    Example:
        >>> x, weight = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(4, 3, 3, 3, device="meta")
        >>> shaped(torch.ops.aten.conv2d.default, (x, weight, None, [2, 2])).shape
        torch.Size([2, 4, 3, 3])
    """
    quick = _QUICK.get(operator)
    result = None if quick is None else quick(*args)
    return operator(*args) if result is None else result


def _same(x: Tensor, *_: Any) -> Tensor | None:
    """An activation."""
    return _like(x) if x.is_floating_point() else None


def _normed(x: Tensor, *more: Any) -> Tensor | None:
    """A BatchNorm."""
    given = [value for value in more[:4] if value is not None]
    fit = x.dim() > 1 and all(v.dtype == x.dtype == torch.float32 and v.shape == x.shape[1:2] for v in given)
    return _like(x) if fit else None


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """A convolution of images."""
    fits = x.dim() == weight.dim() == 4 and x.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
    alike = x.dtype == weight.dtype and (bias is None or (bias.dtype == x.dtype and bias.shape == weight.shape[:1]))
    if not (fits and alike) or isinstance(padding, str):
        return None
    numbers = zip(x.shape[2:], weight.shape[2:], _two(stride), _two(padding), _two(dilation), strict=True)
    sides = [(size + 2 * p - d * (k - 1) - 1) // s + 1 if s > 0 else 0 for size, k, s, p, d in numbers]
    return _empty(x, [x.shape[0], weight.shape[0], *sides]) if min(sides) > 0 and x.numel() else None


def _two(value: Any) -> Sequence[int]:
    """One number for each axis of an image."""
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _joined(values: Sequence[Tensor], axis: int = 0) -> Tensor | None:
    """A concatenation."""
    first = values[0]
    axis %= max(first.dim(), 1)
    rest = [[*v.shape[:axis], *v.shape[axis + 1 :]] for v in values]
    if first.dim() < 2 or any(v.dtype != first.dtype or r != rest[0] for v, r in zip(values, rest, strict=True)):
        return None
    return _empty(first, [*first.shape[:axis], sum(v.shape[axis] for v in values), *first.shape[axis + 1 :]])


def _like(x: Tensor) -> Tensor:
    """`torch.empty_like`, which is twenty times as slow without values."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    """`Tensor.new_empty`, likewise."""
    return torch.empty(shape, dtype=x.dtype, device=x.device)


_QUICK: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys(
        [_aten.relu.default, _aten.sigmoid.default, _aten.silu.default, _aten.gelu.default, _aten.hardtanh.default],
        _same,
    ),
    _aten.batch_norm.default: _normed,
    _aten.conv2d.default: _convolved,
    _aten.cat.default: _joined,
}
