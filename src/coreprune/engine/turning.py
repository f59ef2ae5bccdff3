"""Refined cuts of captured networks: what is kept of a site turns to where it stands for the whole of it best.

`network.decide_network` keeps units as they are and replaces the others by the closed form. Here the rows that make
the kept units, and the columns that read them, descend from there over inputs of the prior: towards what the dense
network gives behind convolutions that no other cut reaches (`follows`), and in networks that read tokens behind several
sites (`coreprune.engine.together`); elsewhere, and where that does not hold together, every site on its own
(`coreprune.engine.alone`). One input in `descent.HELD` is never descended on. Sites whose error on these does not fall
stay as the closed form left them.

Source: maths/refine.py does this in closed form for layers in a row. Layer by layer on samples and without labels,
there for rounding: Nagel et al. 2020, arXiv:2004.10568 (AdaRound). The optimiser is Adam, Kingma & Ba 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coreprune.engine.alone import Alone
from coreprune.engine.correction import as_cut
from coreprune.engine.descent import Batch, rows_of_all, split
from coreprune.engine.kept import Kept, Turned, Work, works
from coreprune.engine.local import Progress, generator_for
from coreprune.engine.precision import reduced
from coreprune.engine.probes import token_tables
from coreprune.engine.runner import Steps
from coreprune.engine.together import Together, Window, put, shifted, windows
from coreprune.errors import InvalidInputError
from coreprune.model.capture import Arguments, rows_of
from coreprune.model.site import Inspection
from coreprune.plan import Cut

__all__ = ["Turned", "follows", "turned"]

FEWEST = 20  # inputs below which nothing is descended on
#: sites of a window where tokens are read, and how often all inputs are gone through there, and elsewhere
TOGETHER, EPOCHS, EPOCHS_OF_FEW = 5, 3, 24


def follows(cuts: Sequence[Cut], *, noise: bool) -> bool:
    """Whether convolutions turn on what the cut network brings to them, with BatchNorms as they are in use.

    Not on noise, which running statistics do not fit, and not where cuts share a tensor, as in a chain of convolutions:
    what one makes of it the other would not know.
    """
    tensors = [name for cut in cuts for name in {at.tensor for at in cut.site.locations} if name]
    return not noise and len(set(tensors)) == len(tensors)


def turned(
    found: Inspection,
    tensors: Mapping[str, Tensor],
    cuts: Sequence[Cut],
    batches: Sequence[Arguments],
    *,
    seed: int = 0,
    shifts: Mapping[str, Tensor] | None = None,
    following: bool = False,
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
        shifts: what is added to the dense network's tensors before these cuts, by name.
        following: see `follows`.
        batch_statistics: see `coreprune.engine.runner.run`.
        progress: called with (sites done, all, name).

    Returns:
        The cuts, and all that is then added.

    Raises:
        InvalidInputError: no site allows it.
    """
    able = works(found, tensors, cuts)
    if cuts and (not able or sum(map(rows_of, batches)) < FEWEST):
        raise InvalidInputError(
            "method='refined' was asked, and there is nothing to turn: it needs sites of Linear layers or convolutions "
            f"that are used once, and a prior of {FEWEST} inputs or more: use method='kernel'"
        )
    added = dict(shifts or {})
    start = {**tensors, **shifted(tensors, added)}
    run = _Run(found, tensors, start, cuts, able, batches, seed, following, batch_statistics)
    done: dict[str, Cut] = {}
    count = 0
    for window in run.windows:
        if progress:
            progress(count, len(able), window.works[0].cut.site.name)
        for new in run.turned(window):
            done |= {cut.site.name: cut for cut in new.cuts}
            added |= new.shifts
        count += len(window.works)
    if progress:
        progress(len(able), len(able), "")
    return Turned(tuple(done.get(cut.site.name, cut) for cut in cuts), added)


class _Run:
    """All windows one after the other, with the dense network's pass beside that of the cut one."""

    def __init__(
        self,
        found: Inspection,
        tensors: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
        cuts: Sequence[Cut],
        able: Sequence[Work],
        batches: Sequence[Arguments],
        seed: int,
        following: bool,
        batch_statistics: bool,
    ) -> None:
        captured = found.graphs[0]
        self.found, self.tensors, self.start, self.seed = found, tensors, start, seed
        self.text = bool(token_tables(captured))
        self.windows = self._windows(able, following)
        names = [one for window in self.windows for one in self._seen(window)]
        held = reduced(captured, tensors) if self.text else tensors
        self.dense = Steps(captured, held, batches, names, batch_statistics=batch_statistics)
        self.cut: Steps | None = None
        wanted = [window.part.incoming for window in self.windows if window.part is not None]
        if wanted:
            held = {**start, **as_cut(cuts, start)}
            held = reduced(captured, held) if self.text else held
            self.cut = Steps(captured, held, batches, wanted, batch_statistics=batch_statistics)

    def _windows(self, able: Sequence[Work], following: bool) -> list[Window]:
        """What turns at a time."""
        if self.text:
            return windows(self.found.graphs[0], able, TOGETHER)
        result = []
        for work in able:
            together = following and work.cut.site.kind == "conv"
            result += windows(self.found.graphs[0], [work], 1) if together else [Window((work,), None)]
        return result

    @staticmethod
    def _seen(window: Window) -> list[tuple[str, ...]]:
        """Nodes of the dense network whose values are asked for, in this order."""
        own = [work.part.incoming for work in window.works]
        return own if window.part is None else [*own, tuple(node.name for node in window.part.last)]

    def turned(self, window: Window) -> list[Turned]:
        """The sites of a window that were turned."""
        kept = [Kept(self.found, self.tensors, work, self.start) for work in window.works]
        if window.part is None:
            values = self.dense.values(window.works[0].part.incoming)
            new = Alone(kept[0], values).result(generator_for(self.seed, window.works[0].cut.site.name))
            return [] if new is None else [new]
        assert self.cut is not None
        back = [_held(self.dense.values(work.part.incoming)) for work in window.works]
        wanted = self.dense.values([node.name for node in window.part.last])
        together = Together(window, kept, self.start, self.cut.values(window.part.incoming), wanted)
        epochs = EPOCHS if self.text else EPOCHS_OF_FEW
        found = together.result(generator_for(self.seed, window.works[0].cut.site.name), back, epochs) or []
        self.cut.put(put(self.tensors, found))
        return found


def _held(values: Sequence[dict[str, Any]]) -> list[Batch]:
    """Those rows alone that are held back, so that no more has to be kept of a pass."""
    return [(rows_of_all(one, rows), torch.arange(len(rows))) for one, rows in split(values)[1]]
