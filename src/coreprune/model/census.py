"""From labels to sites: classes of coupled labels are units, units that live in the same places are a site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from coreprune.maths.activation import Activation, activation
from coreprune.model.activations import of_aten
from coreprune.model.axes import Ids, Value
from coreprune.model.capture import Captured
from coreprune.model.site import Location, Maker, Reader, Refusal, Site, Tap, locations_of
from coreprune.model.walk import Read, Walk, norm_behind, shape_of, trace

__all__ = ["Found", "find"]

Place = tuple[str, int]  # a tensor and one of its axes


@dataclass
class Found:
    """Sites of captured graphs, with what belongs to them: see `Inspection`."""

    sites: list[Site] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    taps: dict[str, tuple[tuple[Tap, ...], ...]] = field(default_factory=dict)
    makers: dict[str, tuple[Maker, ...]] = field(default_factory=dict)

    def refuse(self, site: Site, reason: str) -> None:
        """Take a site away."""
        self.sites.remove(site)
        self.taps.pop(site.name)
        self.makers.pop(site.name)
        self.refused.append(Refusal(site.name, reason))


def find(captures: Sequence[Captured], shapes: Mapping[str, tuple[int, ...]], saved: Iterable[str]) -> Found:
    """All sites of captured forward passes.

    Args:
        captures: of the network, or of its blocks.
        shapes: of every parameter and buffer, by name.
        saved: names in the state dict; what is not saved cannot be cut.
    """
    walk = Walk()
    made: dict[Place, tuple[Maker, fx.Node]] = {}
    computed: list[Refusal] = []
    for number, captured in enumerate(captures):
        walk.graph, walk.values = number, {}
        given: dict[str, Any] = {}
        for node in captured.graph.graph.nodes:
            if node.op == "placeholder":
                state, shape = captured.states.get(node.name), shape_of(node)
                given[node.name] = _fixed(shape) if state is None else walk.parameter(state, shapes[state])
        output = trace(captured.graph.graph, walk, given)
        what = f"leaves the block {captured.path}" if captured.path else "is an output of the network"
        walk.freeze(pytree.tree_leaves(output), what)
        for node in captured.graph.graph.nodes:
            _enter(walk, node, made, computed)
    saved = set(saved)
    for name, axes in walk.axes.items():
        if name not in saved:
            for ids in axes:
                walk.labels.freeze(ids, "lives in a buffer that is not saved")
    result = _Census(walk, made).found()
    result.refused += computed
    return result


def _fixed(shape: object) -> Value | None:
    return Value(shape) if isinstance(shape, tuple) else None


def _enter(walk: Walk, node: fx.Node, made: dict[Place, tuple[Maker, fx.Node]], computed: list[Refusal]) -> None:
    """Write down a map that makes units; refuse one whose weight is computed."""
    if node.op != "call_function":
        return
    at = _weight_of(node)
    if at is None:
        return
    operand, axis, bias = at
    source = _source(walk, node.args[operand])
    if source is not None:
        place = _row_place(walk, walk.values[cast("fx.Node", node.args[operand]).name], axis)
        if place is not None:
            made.setdefault(place, (_maker(walk, node, place, bias), node))
    elif source is None and _is_map(node):
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        where = str(stack[-1][0]) if stack else node.name
        computed.append(
            Refusal(where, "its weight is computed (a parametrisation, an adapter): merge or remove it first")
        )


def _row_place(walk: Walk, value: Value, axis: int) -> Place | None:
    """The parameter and its axis that run along an axis of a value that is a view of it."""
    source, block = str(value.source), value.at(axis)
    for a, ids in enumerate(walk.axes[source]):
        if ids.size == 1 if block is None else bool(np.isin(block.ids.flat[0], ids)):
            return source, a
    return None


def _is_map(node: fx.Node) -> bool:
    return str(node.target).startswith(("aten.linear", "aten.conv"))


def _weight_of(node: fx.Node) -> tuple[int, int, int | None] | None:
    """Of a map that makes units: the argument that is its weight, the axis of outputs, the argument of the bias."""
    name = str(node.target)
    if name.startswith("aten.conv"):
        if next((a for a in node.args[6:7] if isinstance(a, int)), 1) > 1:
            return None  # a group convolution reads and writes the same units
        return 1, 1 if name.startswith("aten.conv_transpose") else 0, 2
    if name.startswith("aten.linear."):
        return 1, 0, 2
    if name.startswith("aten.addmm"):
        return 2, 1, 0
    if name.startswith("aten.embedding."):
        return 0, 1, None
    return None


def _source(walk: Walk, node: object) -> str | None:
    value = walk.values.get(node.name) if isinstance(node, fx.Node) else None
    return value.source if isinstance(value, Value) else None


def _maker(walk: Walk, node: fx.Node, place: Place, at: int | None) -> Maker:
    """Weight, bias and BatchNorm of a map."""
    bias = _source(walk, node.args[at]) if at is not None and len(node.args) > at else None
    norm = None
    convolved = str(node.target).startswith("aten.conv")
    after = len(shape_of(cast("fx.Node", node.args[1]))) - 2 if convolved else 0  # axes behind the channels
    behind = norm_behind(node, len(shape_of(node)) - 1 - after)
    if behind is not None:
        names = [_source(walk, argument) for argument in behind.args[1:5]]
        if all(names):
            gamma, beta, mean, variance = (str(name) for name in names)
            norm = (gamma, beta, mean, variance, float(behind.args[7]))  # type: ignore[arg-type]
    return Maker(Location(*place), bias or "", norm)


class _Census:
    """Who lives where."""

    def __init__(self, walk: Walk, made: dict[Place, tuple[Maker, fx.Node]]) -> None:
        self.walk, self.made = walk, made
        self.of, self.frozen = walk.labels.classes()
        self.count = int(self.of.max()) + 1 if self.of.size else 0
        places = [
            (int(ids[0]), (name, a)) for name, axes in walk.axes.items() for a, ids in enumerate(axes) if ids.size
        ]
        self.places = [place for _, place in sorted(places)]
        self.starts = np.array([start for start, _ in sorted(places)], dtype=np.int64)
        equal: dict[bytes, Ids] = {}  # as the four vectors of a BatchNorm are: what is found of one holds of all
        self.at = {
            (name, a): equal.setdefault(of.tobytes(), of)
            for name, axes in walk.axes.items()
            for a, of in enumerate(self.of[ids] for ids in axes)
        }
        self.read: dict[Place, list[Read]] = {}
        for read in walk.reads:
            self.read.setdefault(self._place(int(read.weight[0])), []).append(read)
        self.homes: dict[int, list[Place]] = {}
        self.free = np.zeros(self.count, dtype=bool)
        self.attended = self._marked(walk.attended)
        self.gated = self._marked(walk.gated)
        self.experts = {read.source for read in walk.reads if read.what == "experts"}

    def _marked(self, parts: Sequence[Ids]) -> Ids:
        marked = np.zeros(self.count, dtype=bool)
        for ids in parts:
            marked[self.of[ids.ravel()]] = True
        return marked

    def _place(self, label: int) -> Place:
        """The tensor and axis that a label of a parameter lies on."""
        return self.places[int(np.searchsorted(self.starts, label, side="right")) - 1]

    def _labels(self, place: Place) -> Ids:
        return self.walk.axes[place[0]][place[1]]

    def _roles(self, place: Place) -> Ids:
        """Which entries of an axis are read."""
        labels = self._labels(place)
        role = np.zeros(labels.size, dtype=bool)
        for read in self.read.get(place, ()):
            role[read.weight - labels[0]] = True
        return role

    def found(self) -> Found:
        """Sites and refusals, in the order of the parameters."""
        result = Found()
        groups = self._groups()
        forward = {place: i for i, place in enumerate(self.made)}
        groups.sort(
            key=lambda g: min((forward[p] for p in self.homes[int(g[0])] if p in forward), default=len(forward))
        )
        used: set[str] = set()
        for classes in groups:
            site, taps, makers = self._site(classes, used)
            used.add(site.name)
            if classes.size < 2:
                result.refused.append(Refusal(site.name, "all its entries hang together, so there is one unit only"))
                continue
            result.sites.append(site)
            result.taps[site.name], result.makers[site.name] = taps, makers
        result.refused += self._refusals()
        return result

    def _groups(self) -> list[Ids]:
        """Classes that live in the same places, as often, in the same role; only those that may go and are read."""
        random = np.random.Generator(np.random.PCG64(0))
        signature = np.zeros(self.count, dtype=np.uint64)
        reads, owns = np.zeros(self.count, dtype=bool), np.zeros(self.count, dtype=bool)
        every, is_read = random.integers(1, 2**63, (len(self.places), 2), dtype=np.uint64), np.zeros_like(reads)
        for place, keys in zip(self.places, every, strict=True):
            classes, role = self.at[place], self._roles(place)
            np.add.at(signature, classes, np.where(role, keys[1], keys[0]))
            reads[classes[role]] = True
            owns[classes[~role]] = True
            if role.any():
                written = classes if place in self.made else classes[~role]
                is_read[classes[role]] = True
                both = np.unique(written[is_read[written]])
                is_read[classes[role]] = False
                for one in both.tolist():
                    self.frozen.setdefault(one, f"is both written and read along axis {place[1]} of {place[0]}")
        held = np.zeros(self.count, dtype=bool)
        held[list(self.frozen)] = True
        self.free = reads & owns & ~held
        chosen = np.flatnonzero(self.free)
        if not chosen.size:
            return []
        _, inverse = np.unique(signature[chosen], return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        groups = [chosen[part] for part in np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1)]
        first = np.full(self.count, -1, dtype=np.int64)
        for i, group in enumerate(groups):
            first[group] = i
        held_by: dict[int, list[int]] = {}
        for place in self.places:
            at = self.at[place]
            for i in held_by.get(id(at)) or held_by.setdefault(id(at), np.unique(first[at]).tolist()):
                if i >= 0:
                    self.homes.setdefault(int(groups[i][0]), []).append(place)
        return groups

    def _site(self, classes: Ids, used: set[str]) -> tuple[Site, tuple[tuple[Tap, ...], ...], tuple[Maker, ...]]:
        rank = np.full(self.count, -1, dtype=np.int64)
        rank[classes] = np.arange(classes.size)
        homes = self.homes[int(classes[0])]
        reading = {p for p in homes if p in self.read and self._roles(p)[rank[self.at[p]] >= 0].all()}
        own = [p for p in homes if p not in reading]
        making = set(own)
        makers = [p for p in self.made if p in making]
        first = makers[0] if makers else own[0]
        seen = rank[self.at[first]]  # number the units as they stand there
        positions = np.full(classes.size, seen.size)
        np.minimum.at(positions, seen[seen >= 0], np.flatnonzero(seen >= 0))
        rank[classes[np.argsort(positions, kind="stable")]] = np.arange(classes.size)
        located = dict(self._located(own, rank, classes.size))
        bias = self.made[first][0].bias if makers else ""
        incoming, *rest = located.pop(first)
        at_bias, *more = located.pop((bias, 0), [Location("", 0)])
        others = (*rest, *more, *(at for many in located.values() for at in many))
        readers = [self._reader(p, rank, classes.size) for p in homes if p in reading]
        phi = _phi_behind(self.made[first][1]) if makers else activation("identity")
        site = Site(
            self._name(first[0], used),
            self._kind(classes, makers, first),
            classes.size,
            phi.name,
            phi.parameters,
            incoming,
            at_bias,
            tuple(reader for reader, _ in readers),
            others,
        )
        made = []
        for place in makers:
            at = locations_of(place, rank[self.at[place]], classes.size, whole=True)[0]
            made.append(Maker(at, self.made[place][0].bias, self.made[place][0].norm))
        return site, tuple(taps for _, taps in readers), tuple(made)

    def _located(self, places: Sequence[Place], rank: Ids, units: int) -> Iterator[tuple[Place, list[Location]]]:
        """Where the units lie in each place."""
        known: dict[int, list[Location]] = {}
        for place in places:
            at = self.at[place]
            if id(at) not in known:
                known[id(at)] = locations_of(place, rank[at], units, whole=False)
            yield place, [Location(*place, one.start, one.span, one.order) for one in known[id(at)]]

    def _reader(self, place: Place, rank: Ids, units: int) -> tuple[Reader, tuple[Tap, ...]]:
        labels = self._labels(place)
        at = locations_of(place, rank[self.at[place]], units, whole=True)[0]
        entries = at.positions(units)
        reads = self.read[place]
        if len(reads) > 1:
            reads = [r for r in reads if np.isin(r.weight - labels[0], entries[0]).any()]
        block, seen = 1, []
        for read in reads:
            where = np.full(labels.size, -1, dtype=np.int64)
            where[read.weight - labels[0]] = np.arange(read.weight.size)
            seen.append(where[entries])
            ids = read.ids[seen[-1][0]]
            block = max(block, np.unique(ids).size if ids.size > 1 else 1)
        if at.span % block:  # some of its entries are equal, and some are not
            block = at.span
        taps = tuple(
            Tap(read.graph, read.node, read.operand, read.axis, torch.from_numpy(s.reshape(units, block, -1)))
            for read, s in zip(reads, seen, strict=True)
        )
        biases = {read.bias for read in reads}
        bias = biases.pop() if len(biases) == 1 else None
        if bias is not None and not self._alone(bias, reads):
            bias = None
        outputs = reads[0].outputs
        out = self._place(int(outputs[0]))[1] if outputs.size else int(at.axis == 0)
        name, sign = bias or ("", 1.0)
        return Reader(at, name, sign, block, out), taps

    def _alone(self, bias: tuple[str, float], reads: Sequence[Read]) -> bool:
        """Whether what takes up a constant serves these reads and nothing else."""
        name, sign = bias
        uses = self.walk.uses.get(name, set())
        if sign < 0:  # the norm behind the one read
            return len(reads) == 1 and len(uses) == 1
        return uses <= {(read.graph, read.node) for read in reads}

    def _kind(self, classes: Ids, makers: Sequence[Place], first: Place) -> str:
        """A word for what the units are."""
        one = int(classes[0])
        sizes = self.walk.axes[first[0]]
        if self.attended[one]:
            return "heads"
        if first[0] in self.experts:
            return "experts"
        spatial = any(len(self.walk.axes[p[0]]) > 2 for p in makers)
        own = np.zeros(self.count, dtype=bool)
        own[classes] = True
        twice = int(own[self.at[first]].sum()) > classes.size
        if self.gated[one] and not spatial and (len(makers) == 2 or (len(makers) == 1 and twice)):
            return "gated"
        if len(makers) > 1 and not (self.gated[one] and len(makers) == 2):
            return "residual"
        if makers and str(self.made[first][1].target).startswith("aten.embedding"):
            return "embedding"
        if any(str(self.made[p][1].target).startswith("aten.conv") for p in makers):
            return "conv"
        return "experts" if not makers and len(sizes) == 3 else "linear"

    def _name(self, tensor: str, used: set[str]) -> str:
        base = tensor.removesuffix(".weight") if tensor.endswith(".weight") else tensor
        name, i = base, 1
        while name in used:
            i += 1
            name = f"{base}[{i}]"
        return name

    def _refusals(self) -> list[Refusal]:
        """Every map whose outputs stay, and why."""
        result: dict[str, Refusal] = {}
        for place in self.made:
            of = self.at[place]
            stay = [one for one in dict.fromkeys(of.tolist()) if not self.free[one]]
            if stay:
                reason = next((self.frozen[one] for one in stay if one in self.frozen), "nothing reads its units")
                name = self._name(place[0], set())
                result.setdefault(name, Refusal(name, reason))
        return list(result.values())


def _phi_behind(node: fx.Node) -> Activation:
    """The elementwise activation right behind a map, or behind its BatchNorm; the identity if none is known."""
    for _ in range(3):
        users = [user for user in node.users if user.op == "call_function"]
        if len(users) != 1:
            break
        node = users[0]
        phi = of_aten(node)
        if phi is not None:
            return phi
        if not str(node.target).startswith("aten.batch_norm"):
            break
    return activation("identity")
