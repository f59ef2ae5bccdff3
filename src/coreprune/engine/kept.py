"""The rows that make the kept units of a site, and the columns that read them, as what may turn.

Turned rows and columns are told as shifts of the dense tensors (`Plan.shifts`), so that the plan carries them out with
the same edits, and the cut network is compared with the dense one as ever: shifted, its removed units replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from coreprune.engine.descent import Batch, Left, median, positions, rows_of_all, weighed, wide
from coreprune.engine.runner import Part, part_between
from coreprune.maths.layer import Coreset
from coreprune.model.capture import Captured
from coreprune.model.site import Inspection
from coreprune.model.tensors import narrow
from coreprune.plan import Cut
from coreprune.surgery.edits import edited

__all__ = ["Kept", "Turned", "Work", "works"]

KINDS = ("linear", "gated", "conv")  # units with few operators around them


class Turned(NamedTuple):
    """Cuts with those that were turned in their places, and what is added to the dense network's tensors before."""

    cuts: tuple[Cut, ...]
    shifts: dict[str, Tensor]


class Work(NamedTuple):
    """A site that can be turned.

    Attributes:
        cut: of the site. own: tensors that are its own. part: what lies between it and its readers.
        behind: those of them by which BatchNorms shift what readers give.
    """

    cut: Cut
    own: frozenset[str]
    part: Part
    behind: frozenset[str]


def works(found: Inspection, tensors: Mapping[str, Tensor], cuts: Sequence[Cut]) -> list[Work]:
    """The cuts that can be turned, in the order in which their inputs are there; no two of them share a tensor."""
    captured, result, taken = found.graphs[0], [], set[str]()
    nodes = {node.name: node for node in captured.graph.graph.nodes}
    order = {name: i for i, name in enumerate(nodes)}
    for cut in cuts:
        site, taps = cut.site, [tap for taps in found.taps[cut.site.name] for tap in taps]
        once = len(taps) == len(site.readers)  # no reader is called twice
        own = {at.tensor for at in site.locations} | {reader.bias for reader in site.readers}
        own |= {name for maker in found.makers[site.name] for name in (maker.bias, *(maker.norm or ())[:4])}
        ends = [_end(captured, nodes[tap.node]) for tap in taps if not tap.graph]
        behind = frozenset().union(*(names for _, names in ends))
        own = (own | behind) - {""}  # a bias that is not there
        if site.kind not in KINDS or captured.path or own & taken or not once or any(tap.graph for tap in taps):
            continue
        if any(
            _puts(coreset) and reader.bias not in tensors
            for reader, coreset in zip(site.readers, cut.coresets, strict=True)
        ):
            continue
        held = frozenset(name for name in own if name in tensors)
        part = part_between(captured, held, [name for name, _ in ends])
        if part is not None and part.incoming:
            result.append(Work(cut, held, part, behind))
            taken |= own
    return sorted(result, key=lambda work: max(order[name] for name in work.part.incoming))


def _puts(coreset: Coreset) -> bool:
    return coreset.offset is not None and bool(coreset.offset.any())


def _end(captured: Captured, node: fx.Node) -> tuple[str, frozenset[str]]:
    """The node behind a reader, itself or a BatchNorm, where its outputs are compared; and what shifts them there."""
    for norm in node.users:
        if str(norm.target).startswith("aten.batch_norm") and norm.args[0] is node and len(node.users) == 1:
            bias = norm.args[2]
            if isinstance(bias, fx.Node) and bias.name in captured.states and len(bias.users) == 1:
                return norm.name, frozenset({captured.states[bias.name]})
    return node.name, frozenset()


class Kept:
    """One site: the tensors between its inputs and its readers' outputs, and those of them that may turn.

    Attributes:
        work: the site. dense: the tensors that its part uses, in float32 or more. small: what they are cut.
        start: those of `small` that may turn, by name. told: those that took up a constant.
        axes: for each reader, the axis of its outputs that runs over features.
    """

    def __init__(
        self, found: Inspection, tensors: Mapping[str, Tensor], work: Work, start: Mapping[str, Tensor] | None = None
    ) -> None:
        """A site before it turns.

        Args:
            found: sites with their graphs. tensors: the dense network's, by name. work: the site.
            start: those that are cut, if they are others.
        """
        self.work, self.part = work, work.part
        cut, start = work.cut, tensors if start is None else start
        self.dense = {name: wide(tensors[name].detach()) for name in self.part.states}
        edits = [*cut.reading(start), *cut.owning(start)]
        changed = edited(edits, {edit.tensor: start[edit.tensor] for edit in edits})
        changed |= {name: start[name].detach() for name in {*work.behind, *self.part.states} - set(changed)}
        self.small = {name: wide(value) for name, value in changed.items()}
        makers = found.makers[cut.site.name]
        made = [name for one in makers for name in (one.weight.tensor, one.bias, *(one.norm or ())[:2])]
        takers = {one.bias: one.sign for one in cut.site.readers if one.bias in self.small}
        read = [one.weight.tensor for one in cut.site.readers] + [name for name, sign in takers.items() if sign == 1]
        self.told = {name: self.small[name] for name in takers}  # constants are told with what turns
        turning = [*made, *read, *sorted(work.behind)]
        self.start = {name: self.small[name] for name in turning if name in self.small}
        device = next(iter(tensors.values())).device.type
        half = narrow(device) and all("linear" in str(node.target) for node in self.part.last)
        self.half = torch.autocast(device, dtype=torch.bfloat16, enabled=half)
        self.axes = [
            1 if any(kind in str(node.target) for kind in ("conv", "batch_norm")) else -1 for node in self.part.last
        ]

    def leaves(self) -> dict[str, Tensor]:
        """What may turn, to descend on."""
        return {name: tensor.clone().requires_grad_() for name, tensor in self.start.items()}

    def outputs(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> list[Tensor]:
        """What the readers give."""
        with self.half:
            return [y.float() for y in self.part(tensors, values)]

    @torch.no_grad()
    def left(self, leaves: Mapping[str, Tensor], back: Sequence[Batch]) -> Left:
        """The error on what was held back; energies are about the mean where a constant costs nothing."""
        summed, error, energy, count = 0.0, 0.0, 0.0, 0
        values = [rows_of_all(*batch) for batch in back]
        dense = [self.outputs(self.dense, one) for one in values]
        small = [self.outputs({**self.dense, **self.small, **leaves}, one) for one in values]
        for at, (axis, reader) in enumerate(zip(self.axes, self.work.cut.site.readers, strict=True)):
            pairs = [(ys[at], zs[at]) for ys, zs in zip(dense, small, strict=True)]
            rows = torch.cat([y.movedim(axis, -1).flatten(0, -2) for y, _ in pairs])
            energy += float((rows - rows.mean(0) if reader.bias else rows).square().sum())
            usual = median([y for y, _ in pairs], axis)
            summed += sum(float(weighed(z, y, axis, usual)) * positions(y, axis) for y, z in pairs)
            error += sum(float((z - y).square().sum()) for y, z in pairs)
            count += len(rows)
        return Left(summed / max(count, 1), error / max(count, 1), energy / max(count, 1))

    def turned(self, leaves: Mapping[str, Tensor], after: Left, told: Mapping[str, Any]) -> Turned:
        """The cut that keeps units as they are told by shifts, with what is known of them, and the shifts.

        Args:
            leaves: turned. after: what they leave of the error. told: further evidence.
        """
        cut = self.work.cut
        coresets = tuple(
            Coreset(one.indices, torch.ones(one.units * reader.block, dtype=torch.float64))
            for one, reader in zip(cut.coresets, cut.site.readers, strict=True)
        )
        known = {
            "relative_error": (after.error / after.energy) ** 0.5 if after.energy > 0 else 0.0,
            "mean_square": after.error,
            "output_variance": after.energy,
            **told,
        }
        shifts = self._shifts({**self.told, **leaves})
        return Turned((replace(cut, coresets=coresets, evidence={**cut.evidence, **known}),), shifts)

    def _shifts(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is to be added to the dense tensors, so that keeping the site's units gives the leaves."""
        result = {}
        for name, leaf in leaves.items():
            dense = self.dense[name]
            new = dense.clone()
            new[_places(self.work.cut, name, dense)] = leaf.detach()
            result[name] = new - dense
        return result


def _places(cut: Cut, name: str, dense: Tensor) -> tuple[Tensor, ...]:
    """Index of the entries of a dense tensor that are left when the site is cut."""
    alive = [torch.arange(size) for size in dense.shape]
    for at in dict.fromkeys(cut.site.locations):
        if at.tensor == name:
            alive[at.axis] = alive[at.axis][~torch.isin(alive[at.axis], cut.lost(at))]
    return torch.meshgrid(*alive, indexing="ij")
