"""The plan: everything that was decided, as data. Applying comes last and asks nothing more.

A plan is JSON with its matrices in a safetensors file beside it. It turns into a list of tensor
edits, and the same list cuts a live module, a state dict or a file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coreprune.errors import CheckpointError
from coreprune.io.checkpoint import read_tensors, write_tensors
from coreprune.io.directory import new_directory
from coreprune.io.sidecar import read_json, write_json
from coreprune.maths.layer import Coreset
from coreprune.model.site import Shape, Site
from coreprune.surgery.edits import Add, Edit, Mix, Take, constant

__all__ = ["Cut", "Plan"]

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

    def edits(self, tensors: Mapping[str, Tensor], made: Collection[str] = ()) -> list[Edit]:
        """The edits that carry the cut out.

        Args:
            tensors: the dense network's, by name; only the readers' weights are read.
            made: biases that earlier edits make.
        """
        own = [at for at in (self.site.incoming, self.site.bias) if at.tensor in tensors or at.tensor in made]
        edits: list[Edit]
        turned = self.coresets[0].incoming
        if turned is None:
            edits = [Take(at, self.kept, self.site.units) for at in own]
        else:
            edits = [Mix(at, turned) for at in own]
        if self.coresets[0].shift is not None:
            edits.append(Add(self.site.bias.tensor, self.coresets[0].shift))
        for reader, coreset in zip(self.site.readers, self.coresets, strict=True):
            if coreset.offset is not None:
                edits.append(Add(reader.bias, constant(tensors[reader.weight.tensor], reader.weight, coreset.offset)))
            edits.append(Mix(reader.weight, coreset.matrix(self.site.units)))
        return edits


@dataclass(frozen=True)
class Plan:
    """All cuts of a network, in forward order.

    Attributes:
        cuts: one for each site that shrinks.
        recipe: how the plan came about (method, prior, seed, what was asked): enough to make it again.
        shapes: shapes of the dense tensors, by name, which `apply` compares.

    Example:
        >>> plan = Plan((), {"method": "sampling"}, {"0.weight": (3, 2)})
        >>> plan.edits({})
        []
    """

    cuts: tuple[Cut, ...]
    recipe: Mapping[str, Any]
    shapes: Mapping[str, Shape]

    def edits(self, tensors: Mapping[str, Tensor]) -> list[Edit]:
        """All tensor edits, in order, for the dense network's tensors."""
        edits: list[Edit] = []
        for cut in self.cuts:
            edits += cut.edits(tensors, {edit.tensor for edit in edits if isinstance(edit, Add)})
        return edits

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
        for cut in self.cuts:
            _check_locations(cut.site, shapes)

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
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the plan in {path} is damaged ({error!r}): make it again") from error

    def _body(self) -> dict[str, Any]:
        return {
            "recipe": dict(self.recipe),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "cuts": [{"site": cut.site.to_json(), "evidence": dict(cut.evidence)} for cut in self.cuts],
        }

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for cut in self.cuts:
            tensors[f"{cut.site.name}/kept"] = cut.kept
            first = cut.coresets[0]
            if first.incoming is not None and first.shift is not None:
                tensors |= {f"{cut.site.name}/incoming": first.incoming, f"{cut.site.name}/shift": first.shift}
            for r, coreset in enumerate(cut.coresets):
                tensors[f"{cut.site.name}/{r}/mix"] = coreset.mix
                if coreset.offset is not None:
                    tensors[f"{cut.site.name}/{r}/offset"] = coreset.offset
        return tensors


def _check_locations(site: Site, shapes: Mapping[str, Shape]) -> None:
    """Raise CheckpointError unless everything the site owns lies where the plan says."""
    for at in site.locations:
        shape = shapes.get(at.tensor)
        if shape is None and at == site.bias:
            continue
        if shape is None or not 0 <= at.axis < len(shape) or at.start + site.units * at.span > shape[at.axis]:
            found = "is not there" if shape is None else f"is {tuple(shape)}"
            raise CheckpointError(
                f"the plan looks for the {site.units} units of {site.name} on axis {at.axis} of {at.tensor}, "
                f"which {found}: the plan is damaged, make it again"
            )


def _read_cut(body: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Cut:
    site = Site.from_json(body["site"])
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
    for coreset in coresets:
        if tuple(coreset.mix.shape) not in {(kept.numel(),), (site.units, kept.numel())}:
            raise ValueError(f"replacement matrix of {site.name}")
    return Cut(site, coresets, body["evidence"])
