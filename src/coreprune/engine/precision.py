"""Observing in bfloat16, where the processor has instructions for it.

Text: the products of Linear layers take both operands in bfloat16 and sum up in float32; norms, attention, residual
streams and all else stay in float32. Rounding adds about 2⁻⁹ of a unit's size to what is seen of it, as noise, far
below what a sample of text leaves open. Products of convolutions without norms likewise, where the images are noise.
Moments are summed as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coreprune.engine.double import name_of
from coreprune.model.capture import Captured
from coreprune.model.tensors import narrow

__all__ = ["multiplies", "product", "reduced"]

#: operators that read images
_CONVOLUTIONS = ("aten.conv1d.", "aten.conv2d.", "aten.conv3d.")
#: operator → where its operands are: rows, matrix, and what is added
_PRODUCTS = {"aten.linear.": (0, 1, 2), "aten.addmm.": (1, 2, 0), "aten.mm.": (0, 1, None)}


def reduced(captured: Captured, tensors: Mapping[str, Tensor], *, images: bool = False) -> Mapping[str, Tensor]:
    """The tensors with matrices that only Linear layers read in bfloat16; the graph's runner then calls `product`.

    They are as they were where there are no such instructions, or where not all are float32.

    Args:
        captured: the graph. tensors: parameters and buffers, by name; not changed.
        images: kernels that only convolutions read, and not matrices.
    """
    held = [tensors[name] for name in captured.states.values()]
    kinds = {t.dtype for t in held if t.is_floating_point()}
    if kinds != {torch.float32} or not narrow(held[0].device.type):
        return tensors
    matrices: set[str | None] = set()
    others: set[str | None] = set()
    for node in captured.graph.graph.nodes:
        at = _operands(node.target)
        matrix = node.args[at[1]] if at and not images else None
        if images and str(node.target).startswith(_CONVOLUTIONS):
            matrix = node.args[1]
        for read in node.all_input_nodes:
            (matrices if read is matrix else others).add(captured.states.get(read.name))
    return {**tensors, **{name: tensors[name].detach().to(torch.bfloat16) for name in matrices - others if name}}


def multiplies(operator: Any) -> bool:
    """Whether an operator is one that `product` knows.

    Example:
        >>> multiplies(torch.ops.aten.linear.default), multiplies(torch.ops.aten.relu.default)
        (True, False)
    """
    return name_of(operator).startswith(_CONVOLUTIONS) or _operands(operator) is not None


def product(operator: Any, args: Sequence[Any]) -> Tensor | None:
    """The product of float32 rows or images and a bfloat16 matrix, in float32; None where an operator is another.

    What is added is added in float32, so that a unit whose weights are zero stays the constant that it is.

    Example:
        >>> product(torch.ops.aten.linear.default, (torch.ones(1, 2), torch.ones(3, 2, dtype=torch.bfloat16))).dtype
        torch.float32
    """
    image = name_of(operator).startswith(_CONVOLUTIONS)
    at = (0, 1, 2) if image else _operands(operator)
    if at is None or args[at[1]].dtype is not torch.bfloat16 or args[at[0]].dtype is not torch.float32:
        return None
    rows, added = args[at[0]].to(torch.bfloat16), args[at[2]] if at[2] is not None and len(args) > at[2] else None
    if image:
        result: Tensor = operator(rows, args[1], None, *args[3:]).float()
        return result if added is None else result.add_(added.unflatten(0, (-1, *[1] * (args[1].dim() - 2))))
    matrix = args[at[1]].T if at[0] == 0 and at[2] == 2 else args[at[1]]
    result = (rows @ matrix).float()
    return result if added is None else result + added


def _operands(operator: Any) -> tuple[int, int, int | None] | None:
    return next((at for start, at in _PRODUCTS.items() if name_of(operator).startswith(start)), None)
