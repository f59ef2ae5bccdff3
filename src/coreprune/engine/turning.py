"""Refined cuts of captured networks: what is kept of a site turns to where it stands for the whole of it best.

`network.decide_network` keeps units as they are and replaces the others by the closed form. Here the rows that make
the kept units, and the columns that read them, descend from there on the mean square of what the readers give,

    Σ_i w_i ‖y(x_i) − ŷ(x_i)‖²,        w_i = min(1, median ‖y‖² / ‖y(x_i)‖²),

over the inputs x_i that the dense network's own pass brings to the site, under the prior. Every site is on its own: no
label, and no output of the network, plays a part. A token that makes massive outputs weighs as one (`observe.clipped`).

One input in HELD is never descended on. A site whose error on these does not fall stays as the closed form left it.

Turned rows and columns are told as shifts of the dense tensors (`Plan.shifts`), so that the plan carries them out with
the same edits, and the cut network is compared with the dense one as ever: shifted, its removed units replaced.

Source: maths/refine.py does this in closed form for layers in a row. Layer by layer on samples and without labels,
there for rounding: Nagel et al. 2020, arXiv:2004.10568 (AdaRound). The optimiser is Adam, Kingma & Ba 2015.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from coreprune.engine.local import Progress, generator_for
from coreprune.engine.precision import reduced
from coreprune.engine.probes import token_tables
from coreprune.engine.runner import Part, Steps, part_between
from coreprune.errors import InvalidInputError
from coreprune.maths.layer import Coreset
from coreprune.model.capture import Arguments, rows_of
from coreprune.model.site import Inspection, Reader
from coreprune.model.tensors import narrow
from coreprune.plan import Cut
from coreprune.surgery.edits import edited

__all__ = ["Turned", "turned"]

KINDS = ("linear", "gated", "conv")  # units with few operators around them
EPOCHS, POSITIONS, HELD = 2, 256, 10
RATE = 5e-3  # of Adam, as a share of the root mean square of a tensor's entries
WARM = 20  # steps in which the rate rises
FEWEST = 20  # inputs below which nothing is descended on

Batch = tuple[dict[str, Any], Tensor]  # incoming values, and which rows of them


class Turned(NamedTuple):
    """Cuts with those that were turned in their places, and what is added to the dense network's tensors before."""

    cuts: tuple[Cut, ...]
    shifts: dict[str, Tensor]


class _Work(NamedTuple):
    cut: Cut
    part: Part


def turned(
    found: Inspection,
    tensors: Mapping[str, Tensor],
    cuts: Sequence[Cut],
    batches: Sequence[Arguments],
    *,
    seed: int = 0,
    batch_statistics: bool = False,
    progress: Progress | None = None,
) -> Turned:
    """Turn what is kept of every site that allows it.

    Args:
        found: sites with their captured graphs.
        tensors: the dense network's, by name; not changed.
        cuts: by the closed form.
        batches: inputs of the network.
        seed: of the order of the inputs.
        batch_statistics: see `coreprune.engine.runner.run`.
        progress: called with (sites done, all, name).

    Raises:
        InvalidInputError: no site allows it.
    """
    captured, works = found.graphs[0], _works(found, tensors, cuts)
    if cuts and (not works or sum(map(rows_of, batches)) < FEWEST):
        raise InvalidInputError(
            "method='refined' was asked, and there is nothing to turn: it needs sites of Linear layers, or of "
            f"convolutions without norms behind, and a prior of {FEWEST} inputs or more: use method='kernel'"
        )
    held = reduced(captured, tensors) if token_tables(captured) else tensors
    wanted = [work.part.incoming for work in works]
    steps = Steps(captured, held, batches, wanted, batch_statistics=batch_statistics)
    done: dict[str, Cut] = {}
    shifts: dict[str, Tensor] = {}
    for i, work in enumerate(works):
        name = work.cut.site.name
        if progress:
            progress(i, len(works), name)
        values = steps.values(work.part.incoming)
        new = _Descent(found, tensors, work, values).result(generator_for(seed, name))
        if new is not None:
            done[name] = new.cuts[0]
            shifts |= new.shifts
    if progress:
        progress(len(works), len(works), "")
    return Turned(tuple(done.get(cut.site.name, cut) for cut in cuts), shifts)


def _works(found: Inspection, tensors: Mapping[str, Tensor], cuts: Sequence[Cut]) -> list[_Work]:
    """The cuts that can be turned, in the order in which their inputs are there; no two of them share a tensor."""
    captured, works, taken = found.graphs[0], [], set[str]()
    order = {node.name: i for i, node in enumerate(captured.graph.graph.nodes)}
    for cut in cuts:
        site, taps = cut.site, [tap for taps in found.taps[cut.site.name] for tap in taps]
        once = len(taps) == len(site.readers)  # no reader is called twice
        own = {at.tensor for at in site.locations} | {reader.bias for reader in site.readers}
        own |= {name for maker in found.makers[site.name] for name in (maker.bias, *(maker.norm or ())[:4])}
        own -= {""}  # a bias that is not there
        if site.kind not in KINDS or captured.path or own & taken or not once or any(tap.graph for tap in taps):
            continue
        if any(
            _puts(coreset) and not _takes(reader, tensors)
            for reader, coreset in zip(site.readers, cut.coresets, strict=True)
        ):
            continue
        part = part_between(captured, {name for name in own if name in tensors}, [tap.node for tap in taps])
        if part is not None and part.incoming:
            works.append(_Work(cut, part))
            taken |= own
    return sorted(works, key=lambda work: max(order[name] for name in work.part.incoming))


def _puts(coreset: Coreset) -> bool:
    return coreset.offset is not None and bool(coreset.offset.any())


def _takes(reader: Reader, tensors: Collection[str]) -> bool:
    """Whether the reader has a bias of its own, which a constant can go into before anything is cut."""
    return reader.bias in tensors and reader.sign == 1


class _Descent:
    """One site: its inputs, what its readers are to give, and the kept rows and columns on their way.

    Attributes:
        dense: the tensors that the part uses, in float32 or more. small: those of them that the cut changes, cut.
        start: those of `small` that descend, by name.
        axes: for each reader, the axis of its outputs that runs over features.
        learnt, back: inputs to descend on, and those that are held back.
    """

    def __init__(
        self, found: Inspection, tensors: Mapping[str, Tensor], work: _Work, values: Sequence[dict[str, Any]]
    ) -> None:
        self.cut, self.part = work
        self.dense = {name: _wide(tensors[name].detach()) for name in self.part.states}
        edits = [*self.cut.reading(tensors), *self.cut.owning(tensors)]
        self.small = {k: _wide(v) for k, v in edited(edits, {e.tensor: tensors[e.tensor] for e in edits}).items()}
        makers = found.makers[self.cut.site.name]
        made = [name for one in makers for name in (one.weight.tensor, one.bias, *(one.norm or ())[:2])]
        read = [name for one in self.cut.site.readers for name in (one.weight.tensor, one.bias)]
        self.start = {name: self.small[name] for name in [*made, *read] if name in self.small}
        device = next(iter(tensors.values())).device.type
        half = narrow(device) and all("linear" in str(node.target) for node in self.part.last)
        self.half = torch.autocast(device, dtype=torch.bfloat16, enabled=half)
        self.axes = [1 if "conv" in str(node.target) else -1 for node in self.part.last]
        self.learnt, self.back = _split(values)
        if self._by_position():
            self.learnt, self.back = [_merged(self.learnt)], [_merged(self.back)]

    @torch.no_grad()
    def _by_position(self) -> bool:
        """Whether the part gives for every position, as a row of its own, what it gives for it in a sequence."""
        values, rows = self.learnt[0]
        few = _rows(values, rows[:1])
        if not all(isinstance(v, Tensor) and v.dim() == 3 and len(v) == 1 for v in few.values()):
            return False
        try:
            whole, flat = (self.part(self.dense, one) for one in (few, {k: v.flatten(0, 1) for k, v in few.items()}))
        except (RuntimeError, IndexError, TypeError):  # the graph holds sizes
            return False
        pairs = zip(whole, flat, strict=True)
        return all(y.dim() == 3 and torch.allclose(y.flatten(0, 1), z, rtol=1e-4, atol=1e-5) for y, z in pairs)

    def result(self, generator: Generator) -> Turned | None:
        """The cut and its shifts; None where the error on what was held back does not fall, or the part cannot run."""
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in self.start.items()}
        try:
            before = self._left(leaves)
        except (RuntimeError, IndexError, TypeError):  # the graph holds widths, which are others now
            return None
        self._descend(leaves, generator)
        after = self._left(leaves)
        if not after.weighed < before.weighed:
            return None
        return Turned((self._cut(before, after),), self._shifts(leaves))

    def _descend(self, leaves: dict[str, Tensor], generator: Generator) -> None:
        """Take the leaves downhill by Adam, at a rate that rises for WARM steps and falls along a cosine."""
        wanted = [self._outputs(self.dense, _rows(*batch)) for batch in self.learnt]
        medians = [_median([ys[at] for ys in wanted], axis) for at, axis in enumerate(self.axes)]
        each = max(1, POSITIONS * len(wanted[0][0]) // _positions(wanted[0][0], self.axes[0]))
        usual = max(_size(tensor) for tensor in self.start.values())
        rates = [RATE * (_size(tensor) or usual) for tensor in self.start.values()]
        groups = [{"params": [leaf], "lr": rate} for leaf, rate in zip(leaves.values(), rates, strict=True)]
        adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
        order = [part for _ in range(EPOCHS) for part in self._order(each, generator)]
        for step, (at, own) in enumerate(order):
            pace = min(1.0, (step + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * step / len(order)))
            for group, rate in zip(adam.param_groups, rates, strict=True):
                group["lr"] = rate * pace
            values, rows = self.learnt[at]
            with torch.enable_grad():
                given = self._outputs({**self.dense, **self.small, **leaves}, _rows(values, rows[own]))
                losses = [
                    _weighed(z, y[own], a, m) for z, y, a, m in zip(given, wanted[at], self.axes, medians, strict=True)
                ]
                adam.zero_grad()
                torch.stack(losses).sum().backward()
            adam.step()

    def _order(self, each: int, generator: Generator) -> list[tuple[int, Tensor]]:
        """One epoch: rows of every pass in parts, each of one pass, in an order that is drawn."""
        parts = [
            (at, own)
            for at, (_, rows) in enumerate(self.learnt)
            for own in torch.randperm(len(rows), generator=generator).split(each)
        ]
        return [parts[j] for j in torch.randperm(len(parts), generator=generator).tolist()]

    def _outputs(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> list[Tensor]:
        with self.half:
            return [y.float() for y in self.part(tensors, values)]

    @torch.no_grad()
    def _left(self, leaves: Mapping[str, Tensor]) -> _Left:
        """The error on what was held back; energies are about the mean where a constant costs nothing."""
        weighed, error, energy, count = 0.0, 0.0, 0.0, 0
        values = [_rows(*batch) for batch in self.back]
        dense = [self._outputs(self.dense, one) for one in values]
        small = [self._outputs({**self.dense, **self.small, **leaves}, one) for one in values]
        for at, (axis, reader) in enumerate(zip(self.axes, self.cut.site.readers, strict=True)):
            pairs = [(ys[at], zs[at]) for ys, zs in zip(dense, small, strict=True)]
            rows = torch.cat([y.movedim(axis, -1).flatten(0, -2) for y, _ in pairs])
            energy += float((rows - rows.mean(0) if reader.bias else rows).square().sum())
            median = _median([y for y, _ in pairs], axis)
            weighed += sum(float(_weighed(z, y, axis, median)) * _positions(y, axis) for y, z in pairs)
            error += sum(float((z - y).square().sum()) for y, z in pairs)
            count += len(rows)
        return _Left(weighed / max(count, 1), error / max(count, 1), energy / max(count, 1))

    def _cut(self, before: _Left, after: _Left) -> Cut:
        """The kept units as they are told by shifts, and what is known of them."""
        coresets = tuple(
            Coreset(one.indices, torch.ones(one.units * reader.block, dtype=torch.float64))
            for one, reader in zip(self.cut.coresets, self.cut.site.readers, strict=True)
        )
        known = {
            "relative_error": (after.error / after.energy) ** 0.5 if after.energy > 0 else 0.0,
            "mean_square": after.error,
            "output_variance": after.energy,
            "turned": {"before": before.weighed, "after": after.weighed},
        }
        return replace(self.cut, coresets=coresets, evidence={**self.cut.evidence, **known})

    def _shifts(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is to be added to the dense tensors, so that keeping the site's units gives the leaves."""
        result = {}
        for name, leaf in leaves.items():
            dense = self.dense[name]
            new = dense.clone()
            new[_places(self.cut, name, dense)] = leaf.detach()
            result[name] = new - dense
        return result


class _Left(NamedTuple):
    """Mean over positions of the weighed squared error, of the squared error, and of the energy."""

    weighed: float
    error: float
    energy: float


def _places(cut: Cut, name: str, dense: Tensor) -> tuple[Tensor, ...]:
    """Index of the entries of a dense tensor that are left when the site is cut."""
    alive = [torch.arange(size) for size in dense.shape]
    for at in dict.fromkeys(cut.site.locations):
        if at.tensor == name:
            alive[at.axis] = alive[at.axis][~torch.isin(alive[at.axis], cut.lost(at))]
    return torch.meshgrid(*alive, indexing="ij")


def _split(values: Sequence[dict[str, Any]]) -> tuple[list[Batch], list[Batch]]:
    """Rows of every pass: those to descend on, and one in HELD."""
    learnt, back, seen = [], [], 0
    for one in values:
        rows = _most(one)
        at = torch.arange(seen, seen + rows) % HELD == HELD - 1
        seen += rows
        learnt.append((one, (~at).nonzero()[:, 0]))
        back.append((one, at.nonzero()[:, 0]))
    return [batch for batch in learnt if len(batch[1])], [batch for batch in back if len(batch[1])]


def _merged(batches: Sequence[Batch]) -> Batch:
    """All positions of all rows as rows of one batch, so that neighbours in a text are not met together."""
    chosen = [_rows(*batch) for batch in batches]
    values = {name: torch.cat([one[name].flatten(0, 1) for one in chosen]) for name in chosen[0]}
    return values, torch.arange(_most(values))


def _rows(values: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Some rows of all values that have as many as the largest, those in narrow precision widened."""
    most, result = _most(values), {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            own = value[rows.to(value.device)] if value.dim() and len(value) == most else value
            result[name] = _wide(own)
        else:
            result[name] = value
    return result


def _most(values: Mapping[str, Any]) -> int:
    return max((len(v) for v in values.values() if isinstance(v, Tensor) and v.dim()), default=0)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor


def _size(tensor: Tensor) -> float:
    return float(tensor.float().square().mean().sqrt())


def _positions(y: Tensor, axis: int) -> int:
    return y.numel() // max(y.shape[axis], 1)


def _median(parts: Sequence[Tensor], axis: int) -> Tensor:
    """The median energy of a position."""
    return torch.cat([y.square().sum(axis).flatten() for y in parts]).median().clamp(min=1e-30)


def _weighed(given: Tensor, wanted: Tensor, axis: int, median: Tensor) -> Tensor:
    """The mean over positions of w ‖y − ŷ‖² / median, w = min(1, median / ‖y‖²)."""
    weight = 1 / wanted.square().sum(axis).clamp(min=float(median))
    return ((given - wanted).square().sum(axis) * weight).mean()
