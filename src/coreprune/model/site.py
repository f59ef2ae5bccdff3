"""A site: a set of units that can be cut, and the places in the network's tensors that they own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from coreprune.maths.activation import Activation, activation

__all__ = ["Inspection", "Location", "Reader", "Refusal", "Site", "parameters_after"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Location:
    """Where the units of a site lie in one tensor: unit j owns start + j·span + [0, span) along an axis.

    Attributes:
        tensor: the name in the state dict.
        axis: the axis that runs over units.
        start: the first entry of unit 0.
        span: entries per unit (more than one where a convolution is flattened).
    """

    tensor: str
    axis: int
    start: int = 0
    span: int = 1


@dataclass(frozen=True)
class Reader:
    """A linear map that reads the units: W is at `weight`, its constant c in the tensor `bias`.

    Attributes:
        weight: where W has its columns.
        bias: the name of the bias tensor, which is made where the module has none.
    """

    weight: Location
    bias: str


@dataclass(frozen=True)
class Site:
    """n hidden units between linear writers and linear readers.

    Attributes:
        name: the module that produces the units.
        kind: how the units are made; "linear" for rows of a Linear layer.
        units: n.
        activation: name of φ, and `parameters` its numbers.
        incoming: where P has its rows.
        bias: where b is, or would be: the writer may have none.
        readers: every map that reads the units.
    """

    name: str
    kind: str
    units: int
    activation: str
    parameters: tuple[tuple[str, float], ...]
    incoming: Location
    bias: Location
    readers: tuple[Reader, ...]

    @property
    def phi(self) -> Activation:
        """φ as a value."""
        return activation(self.activation, **dict(self.parameters))

    @property
    def locations(self) -> tuple[Location, ...]:
        """Everything the units own: what becomes smaller when they go."""
        return (self.incoming, self.bias, *(reader.weight for reader in self.readers))

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"parameters": dict(self.parameters)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Site:
        """The inverse of `to_json`."""
        return cls(
            name=data["name"],
            kind=data["kind"],
            units=data["units"],
            activation=data["activation"],
            parameters=tuple((k, float(v)) for k, v in data["parameters"].items()),
            incoming=Location(**data["incoming"]),
            bias=Location(**data["bias"]),
            readers=tuple(Reader(Location(**r["weight"]), r["bias"]) for r in data["readers"]),
        )


@dataclass(frozen=True)
class Refusal:
    """Units that stay as they are, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """What can shrink, and what cannot and why.

    Attributes:
        sites: in the order of the forward pass.
        refused: everything that looked like a site.
        shapes: shape of every tensor of the state dict, by name.
        features: size d of one input of the network.
        chain: every hidden layer in forward order, whether it can be cut or not; None where what follows
            it is not known to be an elementwise activation.
        tail: what follows the last Linear layer and is not the identity, in words; empty if nothing does.
    """

    sites: tuple[Site, ...]
    refused: tuple[Refusal, ...]
    shapes: Mapping[str, Shape]
    features: int
    chain: tuple[Site | None, ...] = ()
    tail: str = ""

    def governs(self, site: Site) -> int:
        """How many numbers would go if every unit of the site went."""
        return parameters_after(self.shapes, [], {}) - parameters_after(self.shapes, [site], {site.name: 0})


def parameters_after(shapes: Mapping[str, Shape], sites: Iterable[Site], kept: Mapping[str, int]) -> int:
    """Number of entries of all tensors once each named site has only `kept[site.name]` units.

    Readers without a bias are taken to get one when their site is cut, as the constant of the removed units asks.

    Args:
        shapes: tensors of the dense network.
        sites: those that may be cut.
        kept: units kept, by site name; sites that are not named stay whole.
    """
    now = {name: list(shape) for name, shape in shapes.items()}
    sites = tuple(sites)
    for site in sites:
        if 0 < kept.get(site.name, site.units) < site.units:  # the constant of what goes may need a bias
            for reader in site.readers:
                now.setdefault(
                    reader.bias, [shapes[reader.weight.tensor][0]] if reader.weight.tensor in shapes else [0]
                )
    for site in sites:
        removed = site.units - kept.get(site.name, site.units)
        for at in site.locations:
            if at.tensor in now:
                now[at.tensor][at.axis] -= removed * at.span
    return sum(math.prod(shape) for shape in now.values())
