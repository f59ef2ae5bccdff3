"""One selection for several readers.

Units are read by maps r = 1 … R, each at a place of its own with moments of its own: h_r has covariance G_r, and
y_r = W_r h_r + c_r. One set S of units stays for all of them; each reader gets its own replacement T_r, and

    Σ_r tr M_r (G_r − G_r[:,S] G_r[S,S]⁻¹ G_r[S,:]) / tr M_r G_r,        M_r = W_rᵀ W_r,

each error relative to the energy of its own output, is what S should make small. With one reader the greedy
of `coreprune.maths.select` does that. With several it runs on the pooled problem G = mean of G_r, each scaled
to unit average variance, M = Σ_r M_r scaled alike: the same objective but for a common T. The replacements are
each reader's own, hence never worse than what the selection saw.

A reader without an exact place for a constant has second moments about zero for G_r and no mean; its
replacement goes through the origin. A convolution is read position by position: M_r sums over the kernel.

Source: 01-maths §3; 02-architecture, decision 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coreprune.maths.activation import activation
from coreprune.maths.blocks import backward_blocks
from coreprune.maths.gram import Moments
from coreprune.maths.kernel import completed, replaced, select
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.propagate import Law
from coreprune.maths.reweight import replacement
from coreprune.maths.select import Path

__all__ = ["Reading", "choose", "energy", "error", "kept_of", "pooled_energy", "replace_for", "spread"]


@dataclass(frozen=True)
class Reading:
    """How one reader sees the units.

    Attributes:
        gram: M = WᵀW, (n·b, n·b), summed over outputs and kernel positions.
        moments: of the n·b entries; the mean is zero for a reader without a constant.
        block: b, entries of a unit.
        constant: whether a constant can be put.
    """

    gram: Tensor
    moments: Moments
    block: int = 1
    constant: bool = True


def energy(reading: Reading) -> float:
    """E‖W(h − E h)‖² = tr M G."""
    return float((reading.gram * reading.moments.covariance).sum())


def pooled_energy(readings: Sequence[Reading]) -> float:
    """The error of keeping nothing, in the problem that the selection sees."""
    if len({reading.block for reading in readings}) > 1:
        readings = [_by_unit(reading, reading.gram.shape[0] // reading.block) for reading in readings]
    G, M = _pooled(readings)
    return max(float((G * M).sum()), 1e-30)


def spread(coreset: Coreset, block: int) -> Coreset:
    """A coreset of units for a reader of b entries each: every entry is combined as its unit is."""
    if block == 1 or coreset.mix.dim() == 1:
        return coreset
    return replace(coreset, mix=torch.kron(coreset.mix, torch.eye(block, dtype=coreset.mix.dtype)))


def choose(readings: Sequence[Reading], units: int, keep: int) -> Path:
    """The greedy path to `keep` units.

    Args:
        readings: at least one.
        units: n. keep: k.
    """
    blocks = {reading.block for reading in readings}
    if len(blocks) > 1:
        readings = [_by_unit(reading, units) for reading in readings]
    G, M = _pooled(readings)
    if blocks != {1} and len(blocks) == 1:
        return backward_blocks(G, M, units, keep)
    none = G.new_zeros(units)
    mean = readings[0].moments.mean if len(readings) == 1 else none
    law = Law(Moments(mean, G))
    path = select(Layer(G[:, :0], none, _root(M), activation("identity"), 1.0, law), keep)
    return completed(path, law.moments, float((G * M).sum()))


def kept_of(path: Path, units: int, keep: int) -> Tensor:
    """The units that a path which goes further keeps at k = `keep`, (k,) ascending."""
    if path.added:
        head = path.order[:keep]
        if head.numel() < keep:  # fewer explain everything: fill up by index
            rest = torch.ones(units, dtype=torch.bool)
            rest[head] = False
            head = torch.cat([head, rest.nonzero()[: keep - head.numel(), 0]])
        return head.sort().values
    gone = torch.zeros(units, dtype=torch.bool)
    gone[path.order[: units - keep]] = True
    left = (~gone).nonzero()[:, 0]
    return left if left.numel() == keep else left[:keep]


def replace_for(reading: Reading, kept: Tensor, path: Path | None = None) -> Coreset:
    """The optimal replacement for one reader, given the units that stay.

    Args:
        reading: of n units with b entries each. kept: S, (k,).
        path: that led to S for this reader alone; what it left behind is used.

    Returns:
        Indices S with T, (n·b, k·b), and t, (n·b,), or no t where there is no place for it.
    """
    if path is not None and reading.block == 1:
        best = replaced(Law(reading.moments), path)
        return best if reading.constant else replace(best, offset=None)
    entries = (kept[:, None] * reading.block + torch.arange(reading.block)).flatten()
    best = replacement(Law(reading.moments), Coreset(entries, torch.ones(entries.numel())))
    return Coreset(kept, best.mix, best.offset if reading.constant else None)


def error(reading: Reading, coreset: Coreset) -> float:
    """E‖y − ŷ‖² = tr M (G − X Tᵀ − T Xᵀ + T G_SS Tᵀ) + gᵀ M g, g = m − T m_S − t, for any T and t.

    The trace is tr M G − ⟨M T, 2X − T G_SS⟩.
    """
    b, G, m = reading.block, reading.moments.covariance, reading.moments.mean
    entries = (coreset.indices[:, None] * b + torch.arange(b)).flatten()
    T = coreset.mix.to(G.dtype)
    if T.dim() == 1:
        T = G.new_zeros(G.shape[0], entries.numel())
        T[entries, torch.arange(entries.numel())] = coreset.mix.to(G.dtype).repeat_interleave(b)
    X = G[:, entries]
    explained = float(((reading.gram @ T) * (2 * X - T @ X[entries])).sum())
    gap = m - T @ m[entries]
    if coreset.offset is not None:
        gap = gap - coreset.offset.to(G.dtype)
    return max(energy(reading) - explained, 0.0) + float(gap @ reading.gram @ gap)


def _pooled(readings: Sequence[Reading]) -> tuple[Tensor, Tensor]:
    """G and M of the pooled problem."""
    if len(readings) == 1:
        return readings[0].moments.covariance, readings[0].gram
    covariance, gram = None, None
    for reading in readings:
        G = reading.moments.covariance
        scale = max(float(G.diagonal().mean()), 1e-30)
        share = scale / max(energy(reading), 1e-30)
        covariance = G / scale if covariance is None else covariance + G / scale
        gram = reading.gram * share if gram is None else gram + reading.gram * share
    assert covariance is not None
    assert gram is not None
    return covariance / len(readings), gram


def _by_unit(reading: Reading, units: int) -> Reading:
    """One number for each unit: T is taken to be the same for all its entries."""
    b = reading.block
    parts = [A.reshape(units, b, units, b).diagonal(dim1=1, dim2=3).sum(-1)
             for A in (reading.gram, reading.moments.covariance)]  # fmt: skip
    return Reading(parts[0], Moments(reading.moments.mean.reshape(units, b).mean(1), parts[1]), 1, reading.constant)


def _root(M: Tensor) -> Tensor:
    """W with WᵀW = M, (n, n)."""
    level = torch.finfo(M.dtype).eps
    scale = max(float(M.diagonal().mean()), 1e-30)
    while True:
        R = M / scale
        R.diagonal().add_(level)
        W, failed = torch.linalg.cholesky_ex(R, upper=True)
        if not failed:
            root: Tensor = W * scale**0.5
            return root
        level *= 10
