"""Refined cuts, several sites at a time, so that what one site loses can be made up for by those behind it.

Where all that depends on a site meets again in one node behind it, as in a residual stream, sites that follow each
other descend together on the mean over these nodes e of

    mean_i w_i ‖y_e(x_i) − ŷ_e(x̂_i)‖² / median ‖y_e‖²,        w as in `coreprune.engine.descent`,

with y_e(x) what the dense network gives there, and ŷ_e what the window makes of x̂, which the network that is cut, and
turned so far, brings to it for the same input. Window follows window. No label, and no output of the network, plays a
part.

Source: reconstruction of blocks for rounding, Li et al. 2021, arXiv:2102.05426 (BRECQ); inputs of the changed network
for outputs of the dense one, Nagel et al. 2020, arXiv:2004.10568 (AdaRound), §4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, fx

from coreprune.engine.correction import as_cut
from coreprune.engine.descent import (
    POSITIONS,
    Batch,
    Left,
    descend,
    median,
    positions,
    rows_of_all,
    split,
    weighed,
    wide,
)
from coreprune.engine.kept import Kept, Turned, Work
from coreprune.engine.runner import Part, asserts, part_between
from coreprune.model.capture import Captured
from coreprune.model.tensors import narrow

__all__ = ["Together", "Window", "put", "shifted", "windows"]


class Window(NamedTuple):
    """Sites that follow each other, and what lies between them and the nodes behind each; None where nothing meets."""

    works: tuple[Work, ...]
    part: Part | None


def windows(captured: Captured, works: Sequence[Work], most: int) -> list[Window]:
    """All sites in windows, in their order.

    Args:
        captured: the graph. works: sites in the order in which their inputs are there. most: sites of a window.
    """
    return list(_windows(captured, works, most))


def _windows(captured: Captured, works: Sequence[Work], most: int) -> Iterator[Window]:
    current = Window((), None)
    for work in works:
        grown = _window(captured, (*current.works, work)) if len(current.works) < most else None
        if grown is None:
            if current.works:
                yield current
            grown = _window(captured, (work,)) or Window((work,), None)
        current = grown
        if current.part is None:
            yield current
            current = Window((), None)
    if current.works:
        yield current


def _window(captured: Captured, works: tuple[Work, ...]) -> Window | None:
    """Some sites as one window, if that holds together."""
    ends = [_behind(captured, work) for work in works]
    names = [end for end in ends if end is not None]
    if len(names) < len(works) or len(set(names)) < len(names):
        return None
    part = part_between(captured, frozenset().union(*(work.own for work in works)), names)
    return None if part is None or not part.incoming else Window(works, part)


def _behind(captured: Captured, work: Work) -> str | None:
    """The last node before the next matrix that all which depends on a site goes through, if there is one."""
    own = {name for name, state in captured.states.items() if state in work.own}
    nodes = list(captured.graph.graph.nodes)
    uses = {node: _users(node) for node in nodes if node.name in own}
    live: set[fx.Node] = set(uses)
    found: fx.Node | None = None
    for node in nodes:
        read = [a for a in node.all_input_nodes if a in live]
        if not read or asserts(node):
            continue
        if node.op == "output" or (found is not None and _matrix(captured, node)):
            break
        for a in read:
            uses[a] -= 1
        live -= {a for a in read if uses[a] <= 0}
        live.add(node)
        uses[node] = _users(node)
        if live == {node} and isinstance(node.meta.get("val"), Tensor):
            found = node
        elif found is not None:
            break
    return None if found is None else found.name


def _users(node: fx.Node) -> int:
    return sum(not asserts(user) for user in node.users)


def _matrix(captured: Captured, node: fx.Node) -> bool:
    """Whether an operator reads a parameter or a buffer of two axes or more."""
    states = [a for a in node.all_input_nodes if a.name in captured.states]
    return any(isinstance(a.meta.get("val"), Tensor) and a.meta["val"].dim() > 1 for a in states)


class Together:
    """One window: what comes into it in the cut network, and what the dense network gives behind each site.

    Attributes:
        kept: what may turn, of each site. learnt, back: inputs to descend on, and those that are held back.
    """

    def __init__(
        self,
        window: Window,
        kept: Sequence[Kept],
        tensors: Mapping[str, Tensor],
        values: Sequence[dict[str, Any]],
        wanted: Sequence[dict[str, Any]],
    ) -> None:
        """A window before it turns.

        Args:
            window: the sites. kept: what may turn, of each. tensors: of the network before this cut, by name.
            values: of what comes in, for every pass. wanted: of the dense network behind every site.
        """
        assert window.part is not None
        self.part, self.kept, self.wanted = window.part, kept, wanted
        self.fixed = {name: wide(tensors[name].detach()) for name in self.part.states}
        self.fixed |= {name: tensor for one in kept for name, tensor in one.small.items()}
        device = next(iter(tensors.values())).device.type
        self.axes = [1 if one.work.cut.site.kind == "conv" else -1 for one in kept]
        self.half = torch.autocast(device, dtype=torch.bfloat16, enabled=narrow(device) and 1 not in self.axes)
        self.learnt, self.back = split(values)
        self.names = [node.name for node in self.part.last]
        self.medians = [
            median([wide(one[name]) for one in wanted], axis) for name, axis in zip(self.names, self.axes, strict=True)
        ]
        self.at = {id(one): i for i, one in enumerate(values)}

    def result(self, generator: Generator, back: Sequence[Sequence[Batch]], epochs: int) -> list[Turned] | None:
        """Every cut and its shifts; None where the error on what was held back does not fall, or the part cannot run.

        Args:
            generator: of the order of the inputs. back: for each site, inputs of the dense network that tell its error.
            epochs: how often all inputs are gone through.
        """
        leaves = [one.leaves() for one in self.kept]
        every = {name: leaf for one in leaves for name, leaf in one.items()}
        try:
            before = self._left(every)
            known = [one.left(own, held) for one, own, held in zip(self.kept, leaves, back, strict=True)]
        except (RuntimeError, IndexError, TypeError):  # the graph holds sizes or widths, which are others now
            return None
        scale = before if before > 0 else 1.0  # Adam divides by sizes of gradients, and adds 10⁻⁸
        sample = self.wanted[self.at[id(self.learnt[0][0])]][self.names[0]]
        each = max(1, POSITIONS * len(sample) // positions(sample, self.axes[0]))

        def loss(at: int, own: Tensor) -> Tensor:
            values, rows = self.learnt[at]
            return self._loss(every, values, rows[own]) / scale

        descend(every, loss, self.learnt, each, epochs, generator)
        after = self._left(every)
        if not after < before:
            return None
        left: list[Left] = [one.left(own, held) for one, own, held in zip(self.kept, leaves, back, strict=True)]
        told = {"before": before, "after": after, "sites": len(self.kept)}
        return [
            one.turned(own, now, {"turned": told | {"alone": {"before": was.weighed, "after": now.weighed}}})
            for one, own, was, now in zip(self.kept, leaves, known, left, strict=True)
        ]

    def _loss(self, leaves: Mapping[str, Tensor], values: dict[str, Any], rows: Tensor) -> Tensor:
        """The error of some rows of one pass."""
        wanted = self.wanted[self.at[id(values)]]
        with self.half:
            given = self.part({**self.fixed, **leaves}, rows_of_all(values, rows))
        parts = [
            weighed(z.float(), wide(wanted[name][rows.to(z.device)]), axis, usual)
            for z, name, axis, usual in zip(given, self.names, self.axes, self.medians, strict=True)
        ]
        return torch.stack(parts).mean()

    @torch.no_grad()
    def _left(self, leaves: Mapping[str, Tensor]) -> float:
        """The error on what was held back."""
        count = sum(len(rows) for _, rows in self.back)
        return sum(float(self._loss(leaves, values, rows)) * len(rows) for values, rows in self.back) / max(count, 1)


def put(tensors: Mapping[str, Tensor], new: Sequence[Turned]) -> dict[str, Tensor]:
    """What the tensors of turned sites are in a network of dense shape that computes what the cut one does.

    Args:
        tensors: the dense network's, by name; not changed. new: the sites.
    """
    moved = shifted(tensors, {name: shift for one in new for name, shift in one.shifts.items()})
    return {**moved, **as_cut([cut for one in new for cut in one.cuts], {**tensors, **moved})}


def shifted(tensors: Mapping[str, Tensor], shifts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors to which something is added, in their own precision."""
    return {name: tensors[name].detach() + shift.to(tensors[name]) for name, shift in shifts.items()}
