"""A cut as the dense network would feel it: the units of a reader's input, replaced by what stands for them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from coreprune.maths.layer import Coreset, Thin
from coreprune.model.site import Inspection, Tap
from coreprune.plan import Cut

__all__ = ["reconstructed", "tapped"]

#: entries of an operand that are rebuilt at a time
PIECE = 2**20


def tapped(found: Inspection, cut: Cut) -> list[tuple[Tap, Coreset]]:
    """The taps of a site's readers, each with what stands for the units there."""
    readers = zip(found.taps[cut.site.name], cut.coresets, strict=True)
    return [(tap, coreset) for taps, coreset in readers for tap in taps]


def reconstructed(value: Tensor, tap: Tap, coreset: Coreset, *, own: bool = False) -> Tensor:
    """A reader's input with its units replaced by what stands for them.

        x̂_(j,d) = Σ_(s,e) T_(j,d),(s,e) x_(s,e) + t_(j,d)       for every position that shares T

    Args:
        value: the input.
        tap: where the units are in it, entries (n, block, share).
        coreset: T, (n·block, k·block), and t, (n·block,). With (n, k) and (n,) all entries of a unit share T.
        own: whether the value may be written into. Otherwise it is copied first.
    """
    n, block, _ = tap.entries.shape
    sizes = {coreset.mix.shape[0]} if coreset.mix.dim() > 1 else {n}
    sizes |= set() if coreset.offset is None else {coreset.offset.numel()}
    each = max(sizes) // n
    assert each in {1, block}, f"T of {max(sizes)} rows for {n} units with blocks of {block}"
    device = value.device
    entries = tap.entries.to(device).reshape(n, each, -1)
    kept = coreset.indices.to(device)
    mix = _spread_out(coreset.mix.to(device, value.dtype), n, each)
    offset = 0 if coreset.offset is None else coreset.offset.to(device, value.dtype).reshape(-1, 1)
    if isinstance(offset, Tensor) and offset.numel() < n * each:
        offset = offset.repeat_interleave(each, 0)

    at, places = entries.flatten(), entries.index_select(0, kept).flatten()
    result = value if own else value.clone()
    axis = tap.axis % value.dim()
    along = max((a for a in range(value.dim()) if a != axis), key=lambda a: value.shape[a], default=None)
    length = 1 if along is None else value.shape[along]
    many = max(1, PIECE * length // max(1, value.numel()))
    for low in range(0, length, many):  # one view at a time, which gradients can follow
        piece = result if along is None or many >= length else result.narrow(along, low, min(many, length - low))
        left = piece.index_select(axis, places).movedim(axis, 0)
        rest, left = left.shape[1:], left.reshape(kept.numel() * each, -1)
        if isinstance(mix, Tensor) and mix.dim() > 1 and isinstance(offset, Tensor):
            new = torch.addmm(offset, mix, left)
        elif mix.dim() > 1:
            new = mix @ left + offset
        else:
            new = left.new_zeros(n * each, left.shape[1])
            new.unflatten(0, (n, each))[kept] = (left * cast("Tensor", mix)[:, None]).unflatten(0, (-1, each))
            new += offset
        piece.index_copy_(axis, at, new.reshape(-1, *rest).movedim(0, axis))
    return result


def _spread_out(mix: Tensor | Thin, n: int, each: int) -> Tensor | Thin:
    """T for `each` entries of a unit, where it is given for one."""
    if isinstance(mix, Thin):
        return mix
    if mix.dim() == 1:
        return mix.repeat_interleave(each)
    return mix if mix.shape[0] == n * each else torch.kron(mix, torch.eye(each, dtype=mix.dtype, device=mix.device))
