"""BatchNorm statistics after a cut: what stands for the removed units has other moments than they had.

T is a projection, so that what a BatchNorm behind a cut gets varies less than before and its running variance is too
large. Both networks are run on the same inputs, every BatchNorm on the statistics of its own input, (m, v) in the
dense network and (m', v') in the cut one. In units of the dense deviation these differences are taken over to the
running statistics (μ, σ²):

    μ' = μ + (m' − m) σ/√v        σ'² = σ² v'/v.

A constant that the cut puts into a running mean has left the input too, and is not counted again: it is taken off m'.
Only differences between two runs on the same inputs count, so that white noise serves. The cut network is the dense
one with its units replaced (mask equivalence), all cuts at once, and nothing has to be captured anew.

Source: 01-maths §4, BatchNorm as a prior; the variance repair of Jordan et al. 2022, arXiv:2211.08403, there on data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from coreprune.engine.made import Made
from coreprune.engine.norms import Norms
from coreprune.engine.probes import by_shape
from coreprune.engine.runner import run
from coreprune.model.capture import Arguments, Captured
from coreprune.model.site import Inspection
from coreprune.plan import Cut, reading
from coreprune.surgery.edits import Take, edited

__all__ = ["as_cut", "corrections"]

#: values per channel in all batches below which a BatchNorm's statistics say too little, and are left as they are
FEWEST = 256
#: differences in units of the dense deviation, or shares of its square, that two runs in float32 can have by rounding
ROUNDING = 1e-5


def corrections(
    found: Inspection,
    tensors: Mapping[str, Tensor],
    made: Made,
    batches: Iterable[Arguments],
    dense: Norms | None = None,
) -> dict[str, Tensor]:
    """What to add to the running statistics of the dense network's BatchNorms when these cuts are made.

    Args:
        found: what was discovered.
        tensors: the dense network's, by name.
        made: the cuts, and what they make of the tensors.
        batches: inputs of the whole network, at least one.
        dense: what the dense network's BatchNorms got of these very batches, if that was seen before.

    Returns:
        Name of a running mean or variance → (channels,) to add; those that do not change are not named.
    """
    captured = found.graphs[0]
    before, after = dense or Norms(captured), Norms(captured)
    if captured.path or not after.every or not made.cuts or any(c.coresets[0].incoming is not None for c in made.cuts):
        return {}
    known = before.count(before.every[0]) > 0
    small, kept = _small(captured, tensors, made, [norm.mean for norm in after.every])
    for arguments in batches:
        for given, norms in ((tensors, before), (small, after))[known:]:
            run(captured, given, arguments, batch_statistics=True, norms=norms, complete=False)
    result: dict[str, Tensor] = {}
    for norm in after.every:
        if before.count(norm) < FEWEST:
            continue
        at, running = kept[norm.mean], tensors[norm.mean].detach().double().cpu()
        put = small[norm.mean].double().cpu() - running[at]  # constants that the cut itself puts there
        m, v = before.moments(norm)
        (m_cut, v_cut), spread = after.moments(norm), tensors[norm.variance].detach().double().cpu()
        shift, change = _taken_over((m[at], v[at]), (m_cut - put, v_cut), spread[at])
        for name, value in ((norm.mean, shift), (norm.variance, change)):
            if bool(value.any()):
                result[name] = torch.zeros_like(spread).index_copy_(0, at, value)
    return result


def _small(
    captured: Captured, tensors: Mapping[str, Tensor], made: Made, means: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The cut tensors as the dense graph can be run on them, and which channels are left of each running mean."""
    every = {name: torch.arange(len(tensors[name])) for name in means}
    if not by_shape(captured):
        dense = made.dense
        shifted = {**tensors, **{name: dense[name].to(tensors[name].dtype) for name in made.shifts}}
        return {**shifted, **as_cut(made.cuts, shifted)}, every
    takes = [edit for cut in made.cuts for edit in cut.owning(every) if isinstance(edit, Take) and edit.tensor in every]
    return {**tensors, **made.rounded}, {**every, **edited(takes, every)}


def as_cut(cuts: Sequence[Cut], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Readers of a network of dense shape that computes what the cut one does: zero for every unit that went.

    Args:
        cuts: without mixed writers. tensors: the dense network's, by name; not changed.

    Returns:
        The weights of all readers, and the biases that take up constants.
    """
    small = edited(reading(cuts, tensors), tensors)
    left: dict[tuple[str, int], Tensor] = {}
    for cut in cuts:
        for reader in cut.site.readers:
            at = reader.weight
            whole = torch.ones(tensors[at.tensor].shape[at.axis], dtype=torch.bool)
            left.setdefault((at.tensor, at.axis), whole)[cut.lost(at)] = False
    for (name, axis), alive in left.items():
        value = small[name]
        shape = list(value.shape)
        shape[axis] = alive.numel()
        places = alive.nonzero()[:, 0].to(value.device)
        small[name] = value.new_zeros(shape).index_copy_(axis, places, value)
    return small


def _taken_over(dense: tuple[Tensor, Tensor], small: tuple[Tensor, Tensor], running: Tensor) -> tuple[Tensor, Tensor]:
    """The differences of mean and variance in units of the dense deviation, times the running one; rounding is none."""
    (m, v), (m_cut, v_cut) = dense, small
    moves = v > 1e-5 * m.square().clamp(min=1e-30)
    safe = torch.where(moves, v, 1.0)
    shift, change = (m_cut - m) / safe.sqrt(), v_cut / safe - 1
    shift, change = (torch.where(moves & (value.abs() > ROUNDING), value, 0.0) for value in (shift, change))
    return shift * running.sqrt(), change * running
