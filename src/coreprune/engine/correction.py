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
from torch import Tensor, fx

from coreprune.engine.observe import normalises, run
from coreprune.model.capture import Arguments, Captured
from coreprune.model.site import Inspection, Tap
from coreprune.plan import Cut
from coreprune.surgery.edits import edited

__all__ = ["as_cut", "corrections"]

#: values per channel in all batches below which a BatchNorm's statistics say too little, and are left as they are
FEWEST = 256


def corrections(
    found: Inspection, tensors: Mapping[str, Tensor], cuts: Sequence[Cut], batches: Iterable[Arguments]
) -> dict[str, Tensor]:
    """What to add to the running statistics of the dense network's BatchNorms when these cuts are made.

    Args:
        found: what was discovered.
        tensors: the dense network's, by name.
        cuts: all that are made.
        batches: inputs of the whole network, at least one.

    Returns:
        Name of a running mean or variance → (channels,) to add; those that do not change are not named.
    """
    captured = found.graphs[0]
    norms = _norms(captured)
    if captured.path or not norms or not cuts or any(cut.coresets[0].incoming is not None for cut in cuts):
        return {}
    small = {**tensors, **as_cut(cuts, tensors)}
    before, after = ({tap.node: _Moments() for tap, *_ in norms} for _ in range(2))
    for arguments in batches:
        _observe(captured, tensors, arguments, norms, before)
        _observe(captured, small, arguments, norms, after)
    result: dict[str, Tensor] = {}
    for tap, mean, variance in norms:
        made = small[mean].double().cpu() - tensors[mean].double().cpu()  # constants that the cut itself puts there
        result |= _taken_over(before[tap.node], after[tap.node], tensors, (mean, variance), made)
    return result


def as_cut(cuts: Sequence[Cut], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Readers of a network of dense shape that computes what the cut one does: zero for every unit that went.

    Args:
        cuts: without mixed writers. tensors: the dense network's, by name; not changed.

    Returns:
        The weights of all readers, and the biases that take up constants.
    """
    small = edited([edit for cut in cuts for edit in cut.reading(tensors)], tensors)
    left: dict[tuple[str, int], Tensor] = {}
    for cut in cuts:
        for reader in cut.site.readers:
            at = reader.weight
            whole = torch.ones(tensors[at.tensor].shape[at.axis], dtype=torch.bool)
            gone = torch.ones(cut.site.units, dtype=torch.bool)
            gone[cut.kept.cpu()] = False
            left.setdefault((at.tensor, at.axis), whole)[at.entries(cut.site.units)[gone].flatten()] = False
    for (name, axis), alive in left.items():
        value = small[name]
        shape = list(value.shape)
        shape[axis] = alive.numel()
        places = alive.nonzero()[:, 0].to(value.device)
        small[name] = value.new_zeros(shape).index_copy_(axis, places, value)
    return small


class _Moments:
    """Sum, sum of squares and number of what each channel got."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(1), torch.zeros(1)

    def add(self, value: Tensor) -> None:
        """Take in (N, C, …)."""
        flat = value.flatten(2) if value.dim() > 2 else value[..., None]
        self.sum = self.sum + flat.sum(2, dtype=torch.float32).sum(0, dtype=torch.float64).cpu()
        self.squares = self.squares + flat.square().sum(2, dtype=torch.float32).sum(0, dtype=torch.float64).cpu()
        self.count += flat.shape[0] * flat.shape[2]

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """Mean and variance."""
        mean = self.sum / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0)


def _norms(captured: Captured) -> list[tuple[Tap, str, str]]:
    """A tap at the input of every BatchNorm with running statistics, and their names; none for those used twice."""
    found = []
    for node in captured.graph.graph.nodes:
        if normalises(node.target):
            mean, variance = (captured.states.get(a.name, "") if isinstance(a, fx.Node) else "" for a in node.args[3:5])
            if mean and variance:
                found.append((Tap(0, node.name, node.args[0].name, 1, torch.zeros(0, 1, 1).long()), mean, variance))
    names = [mean for _, mean, _ in found]
    return [norm for norm in found if names.count(norm[1]) == 1]


def _observe(
    captured: Captured,
    tensors: Mapping[str, Tensor],
    arguments: Arguments,
    norms: Sequence[tuple[Tap, str, str]],
    into: Mapping[str, _Moments],
) -> None:
    """One run that takes in what every BatchNorm gets."""

    def look(tap: Tap, value: Tensor) -> None:
        into[tap.node].add(value)

    taps = [tap for tap, *_ in norms]
    run(captured, tensors, arguments, taps=taps, hook=look, batch_statistics=True, complete=False)


def _taken_over(
    dense: _Moments, small: _Moments, tensors: Mapping[str, Tensor], names: tuple[str, str], made: Tensor
) -> dict[str, Tensor]:
    """The differences in units of the dense deviation, times the running one."""
    if dense.count < FEWEST:
        return {}
    (m, v), (m_cut, v_cut) = dense.both, small.both
    mean, variance = names
    running = tensors[variance].detach().double().cpu()
    moves = v > 1e-5 * m.square().clamp(min=1e-30)  # sums in float32 leave up to 1e-6 where nothing varies
    safe = torch.where(moves, v, 1.0)
    shift = torch.where(moves, (m_cut - m - made) * (running / safe).sqrt(), 0.0)
    change = torch.where(moves, running * (v_cut / safe - 1), 0.0)
    return {name: value for name, value in ((mean, shift), (variance, change)) if bool(value.any())}
