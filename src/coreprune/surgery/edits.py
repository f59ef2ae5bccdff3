"""The whole vocabulary of surgery: Take, Mix, Add.

An edit names a tensor and says what becomes of it. A live module, a state dict and a checkpoint
that is streamed from disk are all cut by the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from coreprune.model.site import Location

__all__ = ["Add", "Edit", "Mix", "Take", "constant", "edited"]


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

    def __call__(self, value: Tensor) -> Tensor:
        """The tensor after the edit."""
        indices = self.indices.to(value.device)
        return _on_units(value, self.at, self.units, lambda block: block.index_select(0, indices))


@dataclass(frozen=True)
class Mix:
    """Replace the units of a location by combinations of them: W' = W T.

    Attributes:
        at: where the units lie.
        matrix: T, (n, k); column s says what the new unit s is made of.
    """

    at: Location
    matrix: Tensor

    def __call__(self, value: Tensor) -> Tensor:
        """The tensor after the edit, computed in the precision of T and rounded once to the tensor's own."""

        def mixed(block: Tensor) -> Tensor:
            matrix = self.matrix.to(value.device)
            new = matrix.T @ block.to(matrix.dtype).flatten(1)
            return new.to(value.dtype).reshape(-1, *block.shape[1:])

        return _on_units(value, self.at, self.matrix.shape[0], mixed)


@dataclass(frozen=True)
class Add:
    """Add a vector to a bias, which is made if there is none.

    Attributes:
        tensor: name of the bias.
        vector: (p,).
    """

    tensor: str
    vector: Tensor

    def __call__(self, value: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The bias after the edit; `dtype` is for a bias that has to be made."""
        if value is None:
            return self.vector.to(dtype)
        return (value.to(self.vector.dtype) + self.vector.to(value.device)).to(value.dtype)


Edit = Take | Mix | Add


def edited(edits: Iterable[Edit], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Carry the edits out, in order, and return the tensors that changed; `tensors` is left alone.

    Args:
        edits: the list; a later edit sees the result of an earlier one.
        tensors: all tensors by name. A bias that an `Add` names may be missing.

    Returns:
        New tensors by name, those that an edit touched and no others.

    Example:
        >>> w = {"w": torch.arange(6.0).reshape(2, 3)}
        >>> edited([Take(Location("w", 1), torch.tensor([0, 2]), 3)], w)["w"]
        tensor([[0., 2.],
                [3., 5.]])
    """
    changed: dict[str, Tensor] = {}

    def current(name: str) -> Tensor | None:
        return changed[name] if name in changed else tensors.get(name)

    for edit in edits:
        if isinstance(edit, Add):
            sibling = current(edit.tensor.removesuffix("bias") + "weight")
            dtype = sibling.dtype if sibling is not None else edit.vector.dtype
            changed[edit.tensor] = edit(current(edit.tensor), dtype)
        else:
            value = current(edit.at.tensor)
            assert value is not None, f"an edit names {edit.at.tensor}, which does not exist"
            changed[edit.at.tensor] = edit(value)
    return changed


def _on_units(value: Tensor, at: Location, units: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Bring the units of a location to the front as (units, span, …), change them, and put them back."""
    end = at.start + units * at.span
    front = value.movedim(at.axis, 0)
    before, block, after = front[: at.start], front[at.start : end], front[end:]
    new = change(block.reshape(units, at.span, *block.shape[1:])).flatten(0, 1)
    return torch.cat([before, new, after]).movedim(0, at.axis).contiguous()


def constant(weight: Tensor, at: Location, offset: Tensor) -> Tensor:
    """What constant units add to the output of their reader: Σ_j W_ij t_j, summed over span and kernel positions.

    Args:
        weight: the reader's weight, outputs on axis 0.
        at: where the units lie in it.
        offset: t, (n,).

    Returns:
        (p,), in the precision of `offset`.
    """
    units = offset.numel()
    front = weight.movedim(at.axis, 0)[at.start : at.start + units * at.span].to(offset.dtype)
    each = front.reshape(units, at.span, front.shape[1], -1).sum((1, 3))
    return offset.to(weight.device) @ each
