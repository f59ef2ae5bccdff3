"""What cuts make of a network's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from coreprune.plan import Cut, Plan
from coreprune.surgery.edits import edited

__all__ = ["Made"]


class Made:
    """What cuts make of a network's tensors, computed when it is first asked for, and then known.

    Attributes:
        cuts: all of them.
        shifts: what is added to tensors before: see `Plan.shifts`.
    """

    def __init__(
        self,
        cuts: tuple[Cut, ...],
        tensors: Mapping[str, Tensor],
        shifts: Mapping[str, Tensor] | None = None,
        known: Made | None = None,
    ) -> None:
        """Cuts of the dense network with these tensors, which are not changed; `known` is the same without shifts."""
        self.cuts, self.shifts, self._tensors, self._known = cuts, shifts or {}, tensors, known

    def shifted(self, shifts: Mapping[str, Tensor]) -> Made:
        """The same where further tensors are shifted; what is known of all else is not computed again."""
        return Made(self.cuts, self._tensors, {**self.shifts, **shifts}, self) if shifts else self

    @property
    def dense(self) -> Mapping[str, Tensor]:
        """The tensors before the cuts, with the shifts."""
        return Plan(self.cuts, {}, {}, self.shifts).shifted(self._tensors)

    @cached_property
    def exact(self) -> dict[str, Tensor]:
        """The tensors that change, in float64 and unrounded, by name."""
        edits, known = Plan(self.cuts, {}, {}, self.shifts).to(torch.float64).edits(self._tensors), {}
        if self._known is not None:
            edits, known = [edit for edit in edits if edit.tensor in self.shifts], self._known.exact
        return {**known, **edited(edits, self._tensors, dtype=torch.float64)}

    @cached_property
    def rounded(self) -> dict[str, Tensor]:
        """The same in their own precision."""
        known = {} if self._known is None else self._known.rounded
        first = next(iter(self._tensors.values()))
        return {
            name: known[name]
            if name in known and name not in self.shifts
            else value.to(self._tensors.get(name, first).dtype)
            for name, value in self.exact.items()
        }
