"""A site: a set of units that can be cut, and the places in the network's tensors that they own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreprune.maths.activation import Activation, activation
from coreprune.model.capture import Captured

__all__ = ["Ids", "Inspection", "Location", "Maker", "Reader", "Refusal", "Shape", "Site", "Tap", "locations_of",
           "parameters_after", "shapes_after"]  # fmt: skip

Shape = tuple[int, ...]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Location:
    """Where the units of a site lie in one tensor: unit j owns start + j·span + [0, span) along an axis.

    Attributes:
        tensor: the name in the state dict.
        axis: the axis that runs over units.
        start: the first entry of unit 0.
        span: entries per unit (more than one where a convolution is flattened).
        order: all entries, unit by unit, where they do not lie like that (as behind a channel shuffle).
    """

    tensor: str
    axis: int
    start: int = 0
    span: int = 1
    order: tuple[int, ...] = ()

    def entries(self, units: int) -> Tensor:
        """Positions of the units' entries along the axis, (units, span) int64.

        Example:
            >>> Location("w", 0, 4, 2).entries(2).tolist()
            [[4, 5], [6, 7]]
        """
        return torch.from_numpy(self.positions(units))

    def positions(self, units: int) -> Ids:
        """The same as an array, which is quicker where only places are reckoned with."""
        each = np.array(self.order) if self.order else np.arange(self.start, self.start + units * self.span)
        return each.reshape(units, self.span)

    def last(self, units: int) -> int:
        """The last position of all."""
        return max(self.order, default=self.start + units * self.span - 1)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Location:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**data, "order": tuple(data.get("order", ()))})


def locations_of(place: tuple[str, int], rank: NDArray[Any], units: int, *, whole: bool) -> list[Location]:
    """Where the units' entries lie along one axis: as runs of equal steps if they do, entry by entry if not.

    Args:
        place: a tensor and its axis.
        rank: of every position the unit it belongs to, or −1.
        units: how many there are, each with as many positions.
        whole: give one location for all.

    Example:
        >>> locations_of(("w", 0), np.array([-1, 0, 0, 1, 1]), 2, whole=True)
        [Location(tensor='w', axis=0, start=1, span=2, order=())]
    """
    tensor, axis = place
    positions = np.flatnonzero(rank >= 0)
    if positions[-1] - positions[0] == units - 1 and bool((rank[positions] == np.arange(units)).all()):
        return [Location(tensor, axis, int(positions[0]))]  # as nearly always
    order = np.lexsort((positions, rank[positions]))
    entries = positions[order].reshape(units, -1)
    span = entries.shape[1]
    pieces: list[Location] = []
    at = 0
    while at < span:
        step = int(entries[1, at] - entries[0, at]) if units > 1 else span
        expected = entries[0, at] + np.arange(units)[:, None] * step + np.arange(max(step, 1))
        found = entries[:, at : at + max(step, 1)]
        if step <= 0 or found.shape != expected.shape or not bool((found == expected).all()):
            pieces = []
            break
        pieces.append(Location(tensor, axis, int(entries[0, at]), step))
        at += step
    if not pieces or (whole and len(pieces) > 1):
        return [Location(tensor, axis, 0, span, tuple(int(e) for e in entries.ravel()))]
    return pieces


@dataclass(frozen=True)
class Reader:
    """A linear map that reads the units: W is at `weight`, its constant c in the tensor `bias`.

    Attributes:
        weight: where W has its columns.
        bias: the tensor that takes up the constant, a bias that is made where the module has none; empty where
            a constant cannot be put exactly (behind zero padding, or without a bias): then none is used.
        sign: with which it is added; −1 for the running mean of the BatchNorm behind the map.
        block: how many entries of a unit are mixed on their own (the size of a head); 1 where all share T.
        outputs: the axis of W that runs over the outputs.
    """

    weight: Location
    bias: str
    sign: float = 1.0
    block: int = 1
    outputs: int = 0


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
        others: all else that the units own: norms, depthwise kernels, further writers.

    Example:
        >>> import coreprune as cp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> site = cp.inspect(net).sites[0]
        >>> site.name, site.kind, site.units, site.activation
        ('0', 'linear', 8, 'relu')
        >>> [reader.weight.tensor for reader in site.readers]
        ['2.weight']
    """

    name: str
    kind: str
    units: int
    activation: str
    parameters: tuple[tuple[str, float], ...]
    incoming: Location
    bias: Location
    readers: tuple[Reader, ...]
    others: tuple[Location, ...] = ()

    @property
    def phi(self) -> Activation:
        """φ as a value."""
        return activation(self.activation, **dict(self.parameters))

    @property
    def locations(self) -> tuple[Location, ...]:
        """Everything the units own: what becomes smaller when they go."""
        return (self.incoming, self.bias, *self.others, *(reader.weight for reader in self.readers))

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
            incoming=Location.from_json(data["incoming"]),
            bias=Location.from_json(data["bias"]),
            readers=tuple(Reader(**{**r, "weight": Location.from_json(r["weight"])}) for r in data["readers"]),
            others=tuple(Location.from_json(at) for at in data.get("others", ())),
        )


@dataclass(frozen=True)
class Tap:
    """Where a reader's input is in a captured graph.

    Attributes:
        graph: index of the graph.
        node: the reader's node. operand: the node that gives its input.
        axis: of that input, which runs over the entries of the units.
        entries: positions along it, (units, block, share): `share` entries have one T in common.
    """

    graph: int
    node: str
    operand: str
    axis: int
    entries: Tensor


@dataclass(frozen=True)
class Maker:
    """A map that computes the units' pre-activations.

    Attributes:
        weight: rows. bias: name of its bias, or "".
        norm: names of the BatchNorm's weight, bias, running mean and variance behind it, and its eps.
    """

    weight: Location
    bias: str = ""
    norm: tuple[str, str, str, str, float] | None = None


@dataclass(frozen=True)
class Refusal:
    """Units that stay as they are, and why.

    Example:
        >>> import coreprune as cp
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> cp.inspect(net, torch.zeros(1, 1, 4, 4)).refused
        (Refusal(name='2', reason='is an output of the network'),)
    """

    name: str
    reason: str


@dataclass(frozen=True, repr=False)
class Inspection:
    """What can shrink, and what cannot and why.

    Attributes:
        sites: in the order of the forward pass.
        refused: everything that looked like a site.
        shapes: shape of every tensor of the state dict, by name.
        features: size d of one input of the network; 0 where that is no one number.
        chain: of a stack, every hidden layer in forward order, whether it can be cut or not; None where what
            follows it is not known to be an elementwise activation. Empty for a network that is no stack.
        tail: what follows the last Linear layer of a stack and is not the identity, in words.
        graphs: of a network that is no stack, its captured forward pass, or those of its blocks.
        taps: by site and reader, where in the graphs the units can be seen as the reader gets them.
        makers: by site, what computes the units: weight, bias and the BatchNorm behind.
        aliases: other names of tensors that several modules share, by the name that the sites use.

    Example:
        >>> import coreprune as cp
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> found = cp.inspect(net, torch.zeros(1, 1, 4, 4))
        >>> [(site.name, site.kind, site.units) for site in found.sites]
        [('0', 'conv', 4)]
    """

    sites: tuple[Site, ...]
    refused: tuple[Refusal, ...]
    shapes: Mapping[str, Shape]
    features: int
    chain: tuple[Site | None, ...] = ()
    tail: str = ""
    graphs: tuple[Captured, ...] = ()
    taps: Mapping[str, tuple[tuple[Tap, ...], ...]] = field(default_factory=dict)
    makers: Mapping[str, tuple[Maker, ...]] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def distinct(self) -> Mapping[str, Shape]:
        """Shapes of all tensors, one that several modules share under its first name alone: what counts."""
        others = {name for names in self.aliases.values() for name in names}
        return {name: shape for name, shape in self.shapes.items() if name not in others}

    def __repr__(self) -> str:
        """Every site with its units and what it governs, and every refusal with its reason, as a table."""
        from coreprune.model.text import inspection_text

        return inspection_text(self)

    def governs(self, site: Site) -> int:
        """How many numbers would go if every unit of the site went."""
        return parameters_after(self.distinct, [], {}) - parameters_after(self.distinct, [site], {site.name: 0})


def shapes_after(shapes: Mapping[str, Shape], sites: Iterable[Site], kept: Mapping[str, int]) -> dict[str, list[int]]:
    """Shapes of all tensors once each named site has only `kept[site.name]` units.

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
                W = shapes.get(reader.weight.tensor, (0,))
                if reader.bias:
                    now.setdefault(reader.bias, [W[reader.outputs]])
    for site in sites:
        removed = site.units - kept.get(site.name, site.units)
        for at in site.locations:
            if at.tensor in now:
                now[at.tensor][at.axis] -= removed * at.span
    return now


def parameters_after(shapes: Mapping[str, Shape], sites: Iterable[Site], kept: Mapping[str, int]) -> int:
    """Number of entries of all tensors then: see `shapes_after`."""
    return sum(math.prod(shape) for shape in shapes_after(shapes, sites, kept).values())
