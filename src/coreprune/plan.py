"""The plan: everything that was decided, as data. Applying comes last and asks nothing more.

A plan is JSON with its matrices in a safetensors file beside it. It turns into a list of tensor
edits, and the same list cuts a live module, a state dict or a file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreprune.clock import Timing
from coreprune.errors import CheckpointError
from coreprune.io.checkpoint import read_tensors, write_tensors
from coreprune.io.directory import new_directory
from coreprune.io.sidecar import read_json, write_json
from coreprune.maths.layer import Coreset, Thin
from coreprune.model.site import Location, Reader, Shape, Site
from coreprune.model.text import table
from coreprune.surgery.edits import Add, Edit, Mix, Take, constant
from coreprune.surgery.mixing import Mask

__all__ = ["Cut", "Plan", "reading"]

FORMAT = 1


@dataclass(frozen=True)
class Cut:
    """What becomes of one site.

    Attributes:
        site: the site.
        coresets: one for each of its readers; all keep the same units.
        evidence: what is known of the error, as plain data.
    """

    site: Site
    coresets: tuple[Coreset, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> Tensor:
        """Indices of the kept units, (k,) int64, ascending."""
        return self.coresets[0].indices

    def lost(self, at: Location) -> Tensor:
        """Where the units that go lie on the axis of a location of the site, ascending for each unit, int64."""
        gone = torch.ones(self.site.units, dtype=torch.bool)
        gone[self.kept.cpu()] = False
        lost: Tensor = at.entries(self.site.units)[gone].flatten()
        return lost

    def to(self, dtype: torch.dtype) -> Cut:
        """The cut with its matrices in another precision."""

        def wide(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        coresets = tuple(
            Coreset(one.indices, one.mix.to(dtype), wide(one.offset), wide(one.incoming), wide(one.shift))
            for one in self.coresets
        )
        return replace(self, coresets=coresets)

    def edits(self, tensors: Mapping[str, Tensor], made: Collection[str] = ()) -> list[Edit]:
        """The edits that carry the cut out.

        Args:
            tensors: the dense network's, by name; only the readers' weights are read.
            made: biases that earlier edits make.
        """
        return [*self.reading(tensors), *self.owning(tensors, made)]

    def reading(self, tensors: Mapping[str, Tensor]) -> list[Edit]:
        """What becomes of the readers: see `reading`."""
        return reading([self], tensors)

    def owning(self, tensors: Collection[str], made: Collection[str] = ()) -> list[Edit]:
        """What becomes of all else that the units own: writers, biases, norms.

        Args:
            tensors: names of those that are there; the site's bias may be missing.
            made: biases that edits before make.
        """
        site, first = self.site, self.coresets[0]
        there = site.bias.tensor in tensors or site.bias.tensor in made
        own = dict.fromkeys([site.incoming, *([site.bias] if there else []), *site.others])
        edits: list[Edit]
        if first.incoming is None:
            edits = [Take(at, self.kept, site.units) for at in own]
        else:
            edits = [Mix(at, first.incoming, self.kept, site.units) for at in own]
        if first.shift is not None:
            places = site.bias.entries(site.units)[self.kept.cpu()].flatten() if there else None
            edits.append(Add(site.bias.tensor, first.shift.repeat_interleave(site.bias.span), places))
        return edits


def reading(cuts: Iterable[Cut], tensors: Mapping[str, Tensor]) -> list[Edit]:
    """What becomes of the readers: constants go into their biases, and what is left of the units is mixed.

    Args:
        cuts: of which several may have the same readers.
        tensors: the dense network's, by name; only the readers' weights are read.
    """
    constants: dict[tuple[Any, ...], list[tuple[Reader, Tensor, int]]] = {}
    edits: list[Edit] = []
    for cut in cuts:
        units = cut.site.units
        for reader, coreset in zip(cut.site.readers, cut.coresets, strict=True):
            at, offset = reader.weight, coreset.offset
            if offset is not None and reader.bias:
                key = (
                    reader.bias,
                    reader.sign,
                    reader.outputs,
                    at.tensor,
                    at.axis,
                    at.span // reader.block,
                    offset.dtype,
                )
                constants.setdefault(key, []).append((reader, offset, units))
            else:
                assert offset is None or not bool(offset.any()), f"{cut.site.name} takes no constant"
            if isinstance(coreset.mix, Tensor) and coreset.mix.dim() == 1 and bool((coreset.mix == 1).all()):
                edits.append(Take(at, cut.kept, units))
            else:
                edits.append(Mix(at, coreset.mix, cut.kept, units, reader.block))
    found: list[Edit] = []
    for parts in constants.values():
        readers, offsets, units_of = zip(*parts, strict=True)
        found.append(Add(readers[0].bias, constant(tensors[readers[0].weight.tensor], readers, offsets, units_of)))
    return [*found, *edits]


@dataclass(frozen=True, repr=False)
class Plan:
    """All cuts of a network, in forward order.

    Attributes:
        cuts: one for each site that shrinks.
        recipe: how the plan came about (method, prior, seed, what was asked): enough to make it again.
        shapes: shapes of the dense tensors, by name, which `apply` compares.
        shifts: what is added to tensors of the dense network before anything is cut, by name, each of the tensor's
            shape: statistics (`coreprune.engine.correction`), and rows that turn (`coreprune.engine.turning`).
        timing: how long the stages took that led here; no file holds it.

    Example:
        >>> plan = Plan((), {"method": "sampling"}, {"0.weight": (3, 2)})
        >>> plan.edits({})
        []
    """

    cuts: tuple[Cut, ...]
    recipe: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    shifts: Mapping[str, Tensor] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing, compare=False)

    def __repr__(self) -> str:
        """The units of every site, before and after, as a table."""
        rows = [[cut.site.name, f"{cut.site.units}", f"{cut.kept.numel()}"] for cut in self.cuts]
        return table(["site", "units", "kept"], rows) if rows else "nothing to cut"

    def edits(self, tensors: Mapping[str, Tensor]) -> list[Edit]:
        """All edits for the dense network's tensors.

        Shifts first, while tensors have their dense shape, then the readers, as these read the dense weights, shifted.
        """
        shifts: list[Edit] = [Add(name, vector) for name, vector in self.shifts.items()]
        pairs = [pair for cut in self.cuts for pair in zip(cut.site.readers, cut.coresets, strict=True)]
        weights = {reader.weight.tensor for reader, coreset in pairs if coreset.offset is not None}
        moved = {name: vector for name, vector in self.shifts.items() if name in weights}
        dense = replace(self, shifts=moved).shifted(tensors) if moved else tensors
        edits = reading(self.cuts, dense)
        made = {edit.tensor for edit in edits if isinstance(edit, Add)}
        return [*shifts, *edits, *(edit for cut in self.cuts for edit in cut.owning(tensors, made))]

    def shifted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The dense network's tensors with all shifts, those in float64."""
        return {**tensors, **{name: Add(name, vector.double())(tensors[name]) for name, vector in self.shifts.items()}}

    def to(self, dtype: torch.dtype) -> Plan:
        """The plan with its matrices in another precision, in which the edits are then computed."""
        shifts = {name: vector.to(dtype) for name, vector in self.shifts.items()}
        return replace(self, cuts=tuple(cut.to(dtype) for cut in self.cuts), shifts=shifts)

    @property
    def kept(self) -> dict[str, int]:
        """Units kept, by site."""
        return {cut.site.name: cut.kept.numel() for cut in self.cuts}

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Raise CheckpointError if the plan was made for other tensors than these."""
        for name, shape in self.shapes.items():
            if tuple(shapes.get(name, ())) != tuple(shape):
                found = f"it is {tuple(shapes[name])} here" if name in shapes else "there is none here"
                raise CheckpointError(
                    f"the plan was made for a network whose {name} is {tuple(shape)}, but {found}: "
                    "apply it to the network it was made for"
                )
        for name, vector in self.shifts.items():
            if tuple(shapes.get(name, ())) != tuple(vector.shape) or name not in shapes:
                raise CheckpointError(
                    f"the plan corrects {name}, {tuple(vector.shape)}, which the network does not have in that shape: "
                    "the plan is damaged, make it again"
                )
        taken: dict[tuple[str, int], Mask] = {}
        for cut in self.cuts:
            _check_locations(cut.site, shapes, taken)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write plan.json and plan.safetensors into a new directory."""
        with new_directory(path, force=force) as draft:
            write_tensors(draft / "plan.safetensors", self._tensors())
            write_json(draft / "plan.json", "plan", FORMAT, self._body())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what `save` wrote.

        Raises:
            CheckpointError: not a plan, or a damaged one.
        """
        body = read_json(Path(path) / "plan.json", "plan", FORMAT)
        tensors = read_tensors(Path(path) / "plan.safetensors")
        try:
            return cls(
                tuple(_read_cut(cut, tensors) for cut in body["cuts"]),
                body["recipe"],
                {name: tuple(shape) for name, shape in body["shapes"].items()},
                {name: tensors[f"{name}/shift"] for name in body.get("shifts", ())},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the plan in {path} is damaged ({error!r}): make it again") from error

    def _body(self) -> dict[str, Any]:
        return {
            "recipe": dict(self.recipe),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "shifts": sorted(self.shifts),
            "cuts": [{"site": cut.site.to_json(), "evidence": dict(cut.evidence)} for cut in self.cuts],
        }

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"{name}/shift": vector for name, vector in self.shifts.items()}
        for cut in self.cuts:
            tensors[f"{cut.site.name}/kept"] = cut.kept
            first = cut.coresets[0]
            if first.incoming is not None and first.shift is not None:
                tensors |= {f"{cut.site.name}/incoming": first.incoming, f"{cut.site.name}/shift": first.shift}
            for r, coreset in enumerate(cut.coresets):
                mix = coreset.mix
                tensors[f"{cut.site.name}/{r}/mix"] = mix.dense() if isinstance(mix, Thin) else mix
                if coreset.offset is not None:
                    tensors[f"{cut.site.name}/{r}/offset"] = coreset.offset
        return tensors


def _check_locations(site: Site, shapes: Mapping[str, Shape], taken: dict[tuple[str, int], Mask]) -> None:
    """Raise CheckpointError unless everything the site owns lies where the plan says, and is no other site's.

    Args:
        site: the site.
        shapes: of the dense tensors.
        taken: for each axis, which entries are owned; brought up to date.
    """
    for at in dict.fromkeys(site.locations):
        shape = shapes.get(at.tensor)
        if shape is None and at == site.bias:
            continue
        if shape is None or at.axis >= len(shape) or at.last(site.units) >= shape[at.axis]:
            found = "is not there" if shape is None else f"is {tuple(shape)}"
            raise CheckpointError(
                f"the plan looks for the {site.units} units of {site.name} on axis {at.axis} of {at.tensor}, "
                f"which {found}: the plan is damaged, make it again"
            )
        owned = taken.setdefault((at.tensor, at.axis), np.zeros(shape[at.axis], dtype=bool))
        entries = at.positions(site.units)
        if owned[entries].any():
            raise CheckpointError(
                f"the plan says twice whose the entries on axis {at.axis} of {at.tensor} are, the second time "
                f"those of {site.name}: the plan is damaged, make it again"
            )
        owned[entries] = True
    for reader in site.readers:
        if reader.outputs >= len(shapes[reader.weight.tensor]):
            raise CheckpointError(
                f"the plan looks for the outputs on axis {reader.outputs} of {reader.weight.tensor}, "
                f"which is {tuple(shapes[reader.weight.tensor])}: the plan is damaged, make it again"
            )


def _read_cut(body: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Cut:
    site = Site.from_json(body["site"])
    _check_site(site)
    kept = tensors[f"{site.name}/kept"]
    if kept.dtype != torch.int64 or kept.dim() != 1 or not 0 < kept.numel() <= site.units:
        raise ValueError(f"kept units of {site.name}")
    if bool((kept.diff() <= 0).any()) or int(kept[0]) < 0 or int(kept[-1]) >= site.units:
        raise ValueError(f"kept units of {site.name}")
    coresets = tuple(
        Coreset(
            kept,
            tensors[f"{site.name}/{r}/mix"],
            tensors.get(f"{site.name}/{r}/offset"),
            tensors.get(f"{site.name}/incoming"),
            tensors.get(f"{site.name}/shift"),
        )
        for r in range(len(site.readers))
    )
    for reader, coreset in zip(site.readers, coresets, strict=True):
        n, k = site.units, kept.numel()
        shapes: dict[str, list[tuple[int, ...]]] = {
            "mix": [(k,), (n * reader.block, k * reader.block)],
            "offset": [(n * reader.block,)],
            "incoming": [(n, k)],
            "shift": [(k,)],
        }
        for part, allowed in shapes.items():
            value = getattr(coreset, part)
            if value is not None and (tuple(value.shape) not in allowed or not value.is_floating_point()):
                raise ValueError(f"{part} of {site.name}")
        if not reader.bias and coreset.offset is not None and bool(coreset.offset.any()):
            raise ValueError(f"constant of {site.name}, which no bias takes up")
    return Cut(site, coresets, body["evidence"])


def _check_site(site: Site) -> None:
    """Raise ValueError unless the numbers of a site can be those of a site."""

    def whole(value: object, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    sound = whole(site.units, 1) and bool(site.readers)
    for at in site.locations if sound else ():
        sound = isinstance(at.tensor, str) and whole(at.axis, 0) and whole(at.start, 0) and whole(at.span, 1) and sound
        sound = all(whole(entry, 0) for entry in at.order) and len(set(at.order)) == len(at.order) and sound
        sound = len(at.order) in {0, site.units * at.span} and sound
    for reader in site.readers if sound else ():
        sound = isinstance(reader.bias, str) and whole(reader.outputs, 0) and whole(reader.block, 1) and sound
        sound = sound and reader.weight.span % reader.block == 0 and reader.outputs != reader.weight.axis
        sound = sound and isinstance(reader.sign, (int, float)) and abs(reader.sign) == 1
    if not sound:
        raise ValueError(f"places of {site.name}")
