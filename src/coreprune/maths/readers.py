"""One selection for several readers.

Units are read by maps r = 1 … R, each at a place of its own with moments of its own: h_r has covariance G_r, and
y_r = W_r h_r + c_r. One set S of units stays for all of them; each reader gets its own replacement T_r, and

    Σ_r tr M_r (G_r − G_r[:,S] G_r[S,S]⁻¹ G_r[S,:]) / tr M_r G_r,        M_r = W_rᵀ W_r,

each error relative to the energy of its own output, is what S should make small. Where it is known what an error
at each reader costs the whole network, `weighed` puts that in the place of M_r, and the sum is of costs. With one
reader the greedy of `coreprune.maths.select` does that. With several it runs on the pooled problem G = mean of G_r,
each scaled to unit average variance, M = Σ_r M_r scaled alike: the same objective but for a common T. The replacements
are each reader's own, hence never worse than what the selection saw.

A reader without an exact place for a constant has second moments about zero for G_r and no mean; its
replacement goes through the origin. A convolution is read position by position: M_r sums over the kernel.

Source: 01-maths §3; 02-architecture, decision 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor

from coreprune.maths import lowrank
from coreprune.maths.activation import activation
from coreprune.maths.beside import columns_at, in_parts, others, rows_at, stacked
from coreprune.maths.blocks import backward_blocks
from coreprune.maths.gram import Moments
from coreprune.maths.kernel import backwards, backwards_beside, completed, goes_forward, replaced, select, varying
from coreprune.maths.layer import Coreset, Layer, Thin, changed
from coreprune.maths.lowrank import LowRank
from coreprune.maths.products import product
from coreprune.maths.propagate import Law
from coreprune.maths.reading import Reading, inner, root
from coreprune.maths.reweight import RIDGE, solve
from coreprune.maths.select import Path

__all__ = [
    "choose",
    "choose_beside",
    "errors",
    "kept_of",
    "pooled_energy",
    "replace_for",
    "spread",
]

#: entries of a reader up to which several are worked on together
TOGETHER = 256


def pooled_energy(readings: Sequence[Reading]) -> float:
    """The error of keeping nothing, in the problem that the selection sees."""
    if len({reading.block for reading in readings}) > 1:
        readings = [_by_unit(reading, reading.mean.numel() // reading.block) for reading in readings]
    if _thin(readings):
        _, G, W, squares = _pooled_thin(readings)
        return max(G.energy(W, squares), 1e-30)
    return max(inner(*_pooled(readings)), 1e-30)


def spread(coreset: Coreset, block: int) -> Coreset:
    """A coreset of units for a reader of b entries each: every entry is combined as its unit is."""
    if block == 1 or coreset.mix.dim() == 1 or isinstance(coreset.mix, Thin):
        return coreset
    return replace(coreset, mix=torch.kron(coreset.mix, torch.eye(block, dtype=coreset.mix.dtype)))


def choose(readings: Sequence[Reading], units: int, keep: int | None = None) -> Path:
    """The greedy path to `keep` units.

    Args:
        readings: at least one.
        units: n. keep: k; without it the path goes on as long as there is a choice, through every k.
    """
    blocks = {reading.block for reading in readings}
    if len(blocks) > 1:
        readings = [_by_unit(reading, units) for reading in readings]
    if _thin(readings):
        return _few(*_pooled_thin(readings), keep)
    if len(readings) == 1 and readings[0].narrow:
        return _narrow_path(readings[0], keep)
    moments, M = _problem(readings)
    if blocks != {1} and len(blocks) == 1:
        return backward_blocks(moments.covariance, M, units, 1 if keep is None else keep)
    if not goes_forward(units):
        path = backwards(moments, M, 1 if keep is None else keep)
    else:
        path = _forward(root(M), moments, keep)
    return completed(path, moments, inner(moments.covariance, M))


def choose_beside(many: Sequence[Sequence[Reading]], units: int, keep: int) -> list[Path]:
    """`choose` for several sites, of small ones beside each other.

    Args:
        many: the readers of each. units: n of each. keep: k of each.
    """
    if goes_forward(units) or any(reading.block > 1 or reading.thin for readings in many for reading in readings):
        return [choose(readings, units, keep) for readings in many]
    moments, Ms = zip(*map(_problem, many), strict=True)
    paths = zip(backwards_beside(moments, Ms, keep), moments, Ms, strict=True)
    return [completed(path, own, inner(own.covariance, M)) for path, own, M in paths]


def _problem(readings: Sequence[Reading]) -> tuple[Moments, Tensor]:
    """Moments and M of the pooled problem, in which the means of several readers have no meaning."""
    G, M = _pooled(readings)
    mean = readings[0].mean
    return Moments(mean if len(readings) == 1 else torch.zeros_like(mean), G), M


def _narrow_path(reading: Reading, keep: int | None) -> Path:
    """`choose` for one reader with fewer outputs than units, for which M is not formed."""
    moments = reading.moments
    return completed(_forward(reading.matrix, moments, keep, reading.through), moments, reading.energy)


def _forward(W: Tensor, moments: Moments, keep: int | None, through: Tensor | None = None) -> Path:
    """The path that adds units, to k of them or as long as there is a choice."""
    if keep is None:
        keep = max(int(varying(moments).sum()) - 1, 1)
    G = moments.covariance
    none = G.new_zeros(len(G))
    return select(Layer(G[:, :0], none, W, activation("identity"), 1.0, Law(moments)), keep, through)


def _few(mean: Tensor, G: LowRank, W: Tensor, squares: Tensor, keep: int | None) -> Path:
    """`choose` where samples are few, without the units that do not vary."""
    variance = G.diagonal()
    live = variance > torch.finfo(variance.dtype).eps * mean.square()
    if keep is None:
        keep = max(int(live.sum()) - 1, 1)
    if int(live.sum()) <= keep:
        order = torch.cat([live.nonzero()[:, 0], (~live).nonzero()[:, 0]])
        gains = variance.new_zeros(order.numel())
        gains[max(int(live.sum()), 1) - 1] = G.energy(W, squares)
        return Path(order[:keep].sort().values, order, gains)
    ridge = RIDGE[variance.dtype] * variance * live
    return lowrank.forward(G.scaled(live.to(variance)), W, keep, ridge=ridge, squares=squares)


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


def replace_for(
    readings: Sequence[Reading], kept: Tensor | Sequence[Tensor], path: Path | None = None
) -> list[Coreset]:
    """The optimal replacement for each reader, given the units that stay.

    Args:
        readings: of n units with b entries each.
        kept: S, (k,), of all readers, or of each its own, all of one size.
        path: that led to S for one reader alone; what it left behind is used.

    Returns:
        Indices S with T, (n·b, k·b), and t, (n·b,), or no t where there is no place for it.
    """
    each = [kept] * len(readings) if isinstance(kept, Tensor) else kept
    found: list[Coreset] = []
    for part in _alike(readings):
        own = each[len(found) : len(found) + len(part)]
        b, G = part[0].block, part[0].covariance
        if isinstance(G, LowRank) and b == 1:
            found.append(_with_constant(part[0], own[0], lowrank.replacement(G, own[0])))
        elif path is not None and b == 1:
            found.append(_with_constant(part[0], own[0], replaced(Law(part[0].moments), path).mix))
        else:
            entries, m = _entries(own, b), stacked([reading.mean for reading in part])
            mixes = _optimal(part, entries)
            offsets = _gaps(m, mixes, entries)
            found += [
                Coreset(S, mix, offset if reading.constant else None)
                for reading, S, mix, offset in zip(part, own, mixes, offsets, strict=True)
            ]
    return found


def _gaps(m: Tensor, T: Tensor, entries: Tensor) -> Tensor:
    """What T leaves of the means, m − T m_S of each, (R, n·b)."""
    return m - (T @ rows_at(m[:, :, None], entries))[:, :, 0]


def _with_constant(reading: Reading, kept: Tensor, mix: Tensor | Thin) -> Coreset:
    """T with t = m − T m_S, for units of one entry."""
    m = reading.mean
    return Coreset(kept, mix, m - mix @ m[kept] if reading.constant else None)


def _optimal(readings: Sequence[Reading], entries: Tensor) -> Tensor:
    """T of readers that are alike, (R, n·b, k·b), for the entries of the kept units."""
    G = stacked([reading.moments.covariance for reading in readings])
    X, gone = columns_at(G, entries), others(entries, G.shape[1])
    T, each = torch.zeros_like(X), slice(None) if gone.dim() == 1 else torch.arange(len(X))[:, None]
    T[each, gone] = solve(rows_at(X, entries), rows_at(X, gone))
    T[each, entries, torch.arange(X.shape[2])] = 1  # a kept unit is its own best replacement, exactly
    return T


def errors(readings: Sequence[Reading], coresets: Sequence[Coreset]) -> list[float]:
    """E‖y − ŷ‖² = tr M Cov(e) + gᵀ M g of each, e = h − T h_S, g = m − T m_S − t, for any T and t on S of one size.

    e is zero for units that stand for themselves. Of the others, with X their covariance with S,

        tr M Cov(e) = tr M G − ⟨M T, 2X − T G_SS⟩.
    """
    found: list[float] = []
    for part in _alike(readings):
        mixed = coresets[len(found) : len(found) + len(part)]
        G, entries = part[0].covariance, _entries([coreset.indices for coreset in mixed], part[0].block)
        if isinstance(G, LowRank):
            found.append(_thin_error(part[0], mixed[0], entries))
            continue
        if part[0].narrow:
            found.append(_narrow_error(part[0], mixed[0], entries))
            continue
        m = stacked([reading.mean for reading in part])
        T = stacked([_written_out(coreset, reading) for coreset, reading in zip(mixed, part, strict=True)])
        gap = _gaps(m, T, entries)
        if any(one.offset is not None for one in mixed):
            gap -= stacked([m[0] * 0 if one.offset is None else one.offset.to(m.dtype) for one in mixed])
        G, M = (stacked(list(each)) for each in zip(*((r.covariance, r.gram) for r in part), strict=True))
        outside = ((M @ gap[:, :, None])[:, :, 0] * gap).sum(1)
        at = changed(T, entries)
        T, M, own = rows_at(T, at), columns_at(rows_at(M, at), at), rows_at(G, at)
        X, own = columns_at(own, entries), columns_at(own, at)
        inside = columns_at(rows_at(G, entries), entries)
        explained = _inners(_times(M, T), 2 * X - _times(T, inside))
        found += ((_inners(M, own) - explained).clamp(min=0) + outside).tolist()
    return found


def _thin_error(reading: Reading, coreset: Coreset, entries: Tensor) -> float:
    """The same where samples are few."""
    G, W = cast(LowRank, reading.covariance), reading.matrix
    thin = isinstance(coreset.mix, Thin) and reading.block == 1
    T = cast(Thin, coreset.mix).to(reading.mean.dtype) if thin else _written_out(coreset, reading)
    return lowrank.residual(G, W, entries, T, reading.squares) + _error_of_mean(reading, coreset, T, entries)


def _narrow_error(reading: Reading, coreset: Coreset, entries: Tensor) -> float:
    """The same where outputs are few, out of Y = W G.

    With V the columns of W at what changes, and Z those at what stays as it is, V X = Y_S − Z G_ZS.
    """
    G, W, Y = cast(Tensor, reading.covariance), reading.matrix, reading.through
    T = _written_out(coreset, reading)
    at = changed(T, entries)
    inside = G[entries][:, entries]
    stays = torch.isin(entries, at, invert=True)  # of the kept ones
    V, Z = W[:, at], W[:, entries[stays]]
    VX = Y[:, entries] - Z @ inside[stays]
    own = inner(V, Y[:, at]) - inner(Z, VX[:, stays])
    VT = V @ T[at]
    explained = inner(VT, 2 * VX - VT @ inside)
    return max(own - explained, 0.0) + _error_of_mean(reading, coreset, T, entries)


def _error_of_mean(reading: Reading, coreset: Coreset, T: Tensor | Thin, entries: Tensor) -> float:
    """‖W g‖², g = m − T m_S − t."""
    m = reading.mean
    gap = m - T @ m[entries]
    if coreset.offset is not None:
        gap = gap - coreset.offset.to(m.dtype)
    return float((reading.matrix @ gap).square().sum())


def _written_out(coreset: Coreset, reading: Reading) -> Tensor:
    """T, (n·b, k·b)."""
    T = coreset.mix.to(reading.mean.dtype)
    if isinstance(T, Thin):
        return T.dense()
    if T.dim() == 1:
        each, entries = T.repeat_interleave(reading.block), _entries([coreset.indices], reading.block)
        T = each.new_zeros(reading.mean.numel(), entries.numel())
        T[entries, torch.arange(entries.numel())] = each
    return T


def _entries(kept: Sequence[Tensor], block: int) -> Tensor:
    """The entries of the units that each reader keeps, (R, k·b), or of all, (k·b,), where these are the same."""
    same = all(one is kept[0] for one in kept)
    units = kept[0] if same else torch.stack(list(kept))
    return units if block == 1 else (units[..., None] * block + torch.arange(block)).flatten(-2)


def _alike(readings: Sequence[Reading]) -> Iterator[Sequence[Reading]]:
    """Readers that follow each other and can be worked on together: small ones of one block, size and precision."""

    def kind(at: int) -> Any:
        one = readings[at]
        many = isinstance(one.covariance, LowRank) or one.mean.numel() > TOGETHER
        return (at if many else -1, one.block, one.mean.shape, one.mean.dtype)

    for _, part in groupby(range(len(readings)), kind):
        alike = [readings[at] for at in part]
        yield from in_parts(alike, alike[0].mean.numel())


def _thin(readings: Sequence[Reading]) -> bool:
    """Whether all covariances are of low rank, and units are one entry each."""
    return all(isinstance(reading.covariance, LowRank) and reading.block == 1 for reading in readings)


def _shares(readings: Sequence[Reading]) -> list[tuple[float, float]]:
    """By what each reader's covariance and M are divided in the pooled problem."""
    if len(readings) == 1:
        return [(1.0, 1.0)]
    variances = torch.stack([reading.covariance.diagonal() for reading in readings])
    scales = variances.mean(1).clamp(min=1e-30).tolist()
    totals = [1.0 if reading.cost else max(reading.energy, 1e-30) for reading in readings]
    return [(s * len(readings), e / s) for s, e in zip(scales, totals, strict=True)]


def _pooled(readings: Sequence[Reading]) -> tuple[Tensor, Tensor]:
    """G and M of the pooled problem."""
    if len(readings) == 1:
        return readings[0].moments.covariance, readings[0].gram
    G, M = (torch.zeros_like(readings[0].gram) for _ in range(2))
    for reading, (scale, share) in zip(readings, _shares(readings), strict=True):
        G.add_(reading.moments.covariance, alpha=1 / scale)
        M.add_(reading.gram, alpha=1 / share)
    return G, M


def _pooled_thin(readings: Sequence[Reading]) -> tuple[Tensor, LowRank, Tensor, Tensor]:
    """The mean, G and W of the pooled problem, and ‖W_j‖² of its columns."""
    if len(readings) == 1:
        G = readings[0].covariance
        return readings[0].mean, cast(LowRank, G), readings[0].matrix, readings[0].squares
    factors, rests, weights, squares = [], [], [], []
    for reading, (scale, share) in zip(readings, _shares(readings), strict=True):
        one = cast(LowRank, reading.covariance)
        factors.append(one.factor / scale**0.5)
        rests.append(one.rest / scale)
        weights.append(reading.matrix / share**0.5)
        squares.append(reading.squares / share)
    G = LowRank(torch.cat(factors, 1), torch.stack(rests).sum(0))
    return torch.zeros_like(readings[0].mean), G, torch.cat(weights), torch.stack(squares).sum(0)


def _times(A: Tensor, B: Tensor) -> Tensor:
    """A B of each, (R, …, …)."""
    return product(A[0], B[0].T.contiguous())[None] if len(A) == 1 else A @ B


def _inners(A: Tensor, B: Tensor) -> Tensor:
    """Tr Aᵀ B of each, (R,), for A and B of shape (R, …)."""
    return (A.flatten(1) * B.flatten(1)).sum(1)


def _by_unit(reading: Reading, units: int) -> Reading:
    """One number for each unit: T is taken to be the same for all its entries."""
    b, G = reading.block, reading.moments.covariance
    spread = G.reshape(units, b, units, b).diagonal(dim1=1, dim2=3).sum(-1)
    W = reading.outgoing.unflatten(-1, (units, b)).movedim(-1, 0)
    return Reading(W, reading.mean.reshape(units, b).mean(1), spread, 1, reading.constant)
