"""The first two moments of what readers get in a captured forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor

from coreprune.engine.norms import Norms
from coreprune.engine.runner import run
from coreprune.maths.lowrank import LowRank
from coreprune.maths.streaming import Stream, finite
from coreprune.model.capture import Arguments, Captured, rows_of
from coreprune.model.site import Tap

__all__ = ["Moments", "Observed", "as_seen", "clipped", "moments", "samples", "spread"]


#: A reader's covariance takes in PER_FEATURE samples for each of its n features over all batches, or SAMPLES where that
#: is more: n²·max(8n, 16384) multiplications. Neighbours in an image say nearly the same, so little is lost.
PER_FEATURE, SAMPLES = 8, 16384
#: features above which products are taken in float32 (of centred samples); their sums are float64 where they are few
SMALL = 16
#: features up to which readers that see other entries of one value are observed together
BESIDE = 64
#: more than LARGE features of which fewer than one in THIN samples was seen are kept as these samples
LARGE, THIN = 1024, 16


def as_seen(value: Tensor, tap: Tap) -> Tensor:
    """The units' entries of a reader's input, (rows, units, block, share)."""
    rows = _along(value, tap.axis, tap.entries.flatten()).movedim(tap.axis, -1)
    return rows.reshape(-1, *tap.entries.shape)


def _along(value: Tensor, axis: int, entries: Tensor) -> Tensor:
    """Entries along an axis, without a copy where they follow each other."""
    first, many = int(entries[0]), entries.numel()
    if torch.equal(entries, torch.arange(first, first + many, device=entries.device)):
        return value.narrow(axis, first, many)
    return value.index_select(axis, entries.to(value.device))


def spread(total: int, limit: int) -> Tensor:
    """`limit` of `total` positions, one from each of as many equal stretches, (limit,) int64.

    Where in its stretch it lies goes by the golden ratio, so that no column of an image is met more often than another.

    Example:
        >>> spread(10, 4).tolist()
        [0, 4, 5, 9]
    """
    i = torch.arange(limit, dtype=torch.float64)
    at = (i + (i * (math.sqrt(5) - 1) / 2).frac()) * (total / limit)
    return at.long().clamp_(max=total - 1)


def samples(value: Tensor, tap: Tap, limit: int) -> Tensor:
    """At most `limit` samples of the features of one unit after the other, (N, units·block).

    Rows and positions that share a T are all samples; where there are more than `limit`, `spread` says which are taken.
    """
    entries, share = tap.entries.flatten(0, 1), tap.entries.shape[2]
    rows = value.numel() // max(value.shape[tap.axis], 1)
    if rows * share <= limit:
        return as_seen(value, tap).flatten(1, 2).transpose(1, 2).flatten(0, 1)
    chosen = spread(rows * share, limit).to(value.device)
    parts = [
        _rows_at(_along(value, tap.axis, entries[:, s]), tap.axis, chosen[chosen % share == s] // share)
        for s in range(share)
    ]
    return torch.cat(parts) if share > 1 else parts[0]


def _rows_at(value: Tensor, axis: int, at: Tensor) -> Tensor:
    """Some of a value's rows: its features, along an axis, at positions that count all other axes in order, (N, F)."""
    last = value.movedim(axis, -1)
    if last.stride(-1) == 1 or axis % value.dim() == 0:
        return last[torch.unravel_index(at, last.shape[:-1])]
    # features lie apart, as channels of images do: entry by entry of the batch, so that reading goes along memory
    inner = math.prod(last.shape[1:-1])
    each = (at % inner).split(torch.bincount(at // inner, minlength=len(value)).tolist())
    parts = [one.reshape(-1, one.shape[-1]).T.index_select(1, where) for one, where in zip(last, each, strict=True)]
    return torch.cat(parts, 1).T


@dataclass(frozen=True)
class Observed:
    """What a reader saw of its units: mean (units·block,), float64, and covariance (units·block, units·block).

    The covariance is float32 from `coreprune.maths.streaming.WIDE` features, and of low rank where samples are few. It
    is divided by `count`, the number of samples taken in. `cost` is the second moment of the network's gradients there,
    (units·block, units·block), and `typical` are the moments of clipped samples, see `clipped`, where they were asked
    for.
    """

    mean: Tensor
    covariance: Tensor | LowRank
    count: int
    cost: Tensor | None = None
    typical: Observed | None = None

    def apart(self) -> list[Observed]:
        """Each of several whose moments lie beside each other."""
        pairs = zip(self.mean.unbind(), cast("Tensor", self.covariance).unbind(), strict=True)
        return [Observed(mean, covariance, self.count) for mean, covariance in pairs]


class Moments(Stream):
    """A stream of samples. Above SMALL features products are float32, of samples less their batch's mean, and from
    `coreprune.maths.streaming.WIDE` their sums too.

    Where features are many and samples very few, the samples themselves are the least that says their covariance.
    """

    def __init__(self, features: int, *beside: int) -> None:
        """Start with nothing seen; samples have `features` entries, up to BESIDE of several beside each other."""
        super().__init__(features, *beside)
        self._most = features // THIN if features > LARGE else 0
        self._held: list[Tensor] = []

    def add(self, batch: Tensor) -> None:
        """Take in samples, (…, N, features): with m their mean and c near it, N Cov = Σ(x−c)(x−c)ᵀ − N(m−c)(m−c)ᵀ."""
        if batch.shape[-1] <= SMALL or not batch.numel():
            super().add(batch)
            return
        if not self._most:
            self._add(batch.detach().cpu())
            return
        self._held.append(batch.detach().cpu().clone())  # the code may write into the value later
        if self.count or sum(map(len, self._held)) > self._most:
            held, self._held = self._held, []
            for one in held:
                self._add(one)

    def _add(self, batch: Tensor) -> None:
        kind = torch.promote_types(batch.dtype, torch.float32)
        near = batch.mean(-2, dtype=kind)
        centred = (batch.to(kind) - near[..., None, :]).float()
        off = centred.mean(-2).double()
        self._take(centred, near.double() + off, off)

    def observed(self) -> Observed:
        """What was seen.

        Raises:
            InvalidInputError: nothing, or something not finite.
        """
        if not self._held:
            return Observed(*self.moments(), self.count)
        samples = torch.cat(self._held).double()
        mean = samples.mean(0)
        factor = (samples - mean).T / len(samples) ** 0.5
        finite(factor)
        return Observed(mean, LowRank(factor, torch.zeros_like(mean)), len(samples))


def moments(
    graphs: Sequence[Captured],
    tensors: Mapping[str, Tensor],
    readers: Sequence[tuple[Tap, ...]],
    batches: Iterable[Arguments],
    *,
    batch_statistics: bool = False,
    norms: Norms | None = None,
    every: bool = False,
    energies: Sequence[Tensor] | None = None,
) -> list[Observed]:
    """Mean and covariance of what readers see.

    Args:
        graphs: `Inspection.graphs`.
        tensors: parameters and buffers, by name.
        readers: the taps of each; a map that is called twice has two, and their samples are pooled.
        batches: inputs of the network. A block that was captured on its own (with a path) sees the
            arguments that were recorded with it, once, instead.
        batch_statistics: see `coreprune.engine.runner.run`.
        norms: of the first graph, see `coreprune.engine.runner.run`.
        every: take in every sample there is, as of text, where neighbours say different things. Otherwise each batch
            of a sequence gives as many as its share of the inputs.
        energies: ‖W_:j‖² of every entry, (units·block,), by reader, where typical moments are wanted too.

    Returns:
        One for each reader. Readers that see the same entries of the same value share theirs.

    Raises:
        InvalidInputError: a reader saw nothing, or something not finite.
    """
    assert all(readers), "a reader without a tap cannot be observed"
    inputs = [max(rows_of(batch), 1) for batch in batches] if isinstance(batches, Sequence) else []
    part = [1, max(len(inputs), 1)]  # the batch at hand, of all
    keys = [
        tuple((t.graph, t.operand, t.axis, t.entries.shape, t.entries.numpy().tobytes()) for t in r) for r in readers
    ]
    seen: dict[tuple[Any, ...], Moments] = {}
    usual: dict[tuple[Any, ...], Moments] = {}
    into: dict[int, list[tuple[Moments, Moments | None, Tensor | None]]] = {}
    taps: dict[int, dict[int, Tap]] = {}
    weights = dict(zip(reversed(keys), reversed(energies), strict=True)) if energies is not None else {}  # the first's
    for alike, reader in _beside(keys, readers, single=energies is not None):
        many = [len(alike)] if len(alike) > 1 else []
        features = math.prod(reader[0].entries.shape[:2]) // len(alike)
        seen[alike] = Moments(features, *many)
        if energies is not None:
            usual[alike] = Moments(features)
        for tap in reader:
            taps.setdefault(tap.graph, {})[id(tap)] = tap
            into.setdefault(id(tap), []).append((seen[alike], usual.get(alike), weights.get(alike[0])))

    def look(tap: Tap, value: Tensor) -> None:
        features = into[id(tap)][0][0].features
        limit = max(PER_FEATURE * features, SAMPLES) * part[0] // part[1]
        new = samples(value, tap, value.numel() if every else limit)
        for one, typical, each in into[id(tap)]:
            one.add(new if new.shape[1] == features else new.unflatten(1, (-1, features)).transpose(0, 1))
            if typical is not None and each is not None:
                typical.add(clipped(samples(value, tap, limit) if every else new, each))

    blocks = ((index, graphs[index].arguments) for index in taps if graphs[index].path)
    whole = [index for index in taps if not graphs[index].path]
    for index, arguments in chain(blocks, ((i, a) for a in (batches if whole else ()) for i in whole)):
        at = taps[index].values()
        held = None if index else norms
        if inputs and not graphs[index].path:
            part[:] = max(rows_of(arguments), 1), sum(inputs)
        run(
            graphs[index],
            tensors,
            arguments,
            taps=at,
            hook=look,
            batch_statistics=batch_statistics,
            norms=held,
            complete=False,
        )
    into.clear()
    done: dict[Any, Observed] = {}
    for alike in list(seen):  # a stream is as large as what comes of it
        typical = usual.pop(alike).observed() if alike in usual else None
        found = replace(seen.pop(alike).observed(), typical=typical)
        done |= zip(alike, [found] if len(alike) == 1 else found.apart(), strict=True)
    return [done[key] for key in keys]


def _beside(
    keys: Sequence[Any], readers: Sequence[tuple[Tap, ...]], *, single: bool
) -> Iterator[tuple[tuple[Any, ...], tuple[Tap, ...]]]:
    """Readers, each by its key once; with one tap for all those where one node has other entries of the same value."""
    groups: dict[Any, dict[Any, tuple[Tap, ...]]] = {}
    for key, reader in zip(keys, readers, strict=True):
        small = len(reader) == 1 and math.prod(reader[0].entries.shape[:2]) <= BESIDE and not single
        groups.setdefault((reader[0].node, key[0][:-1]) if small else key, {}).setdefault(key, reader)
    for group in groups.values():
        first, *others = group.values()
        if others:
            entries = torch.cat([reader[0].entries for reader in group.values()])
            first = (replace(first[0], entries=entries),)
        yield tuple(group), first


def clipped(rows: Tensor, energies: Tensor) -> Tensor:
    """Samples x, (N, n), those with more energy Σ_j ‖W_:j‖² x_j² than the median scaled down to it.

    A token that makes a massive activation is one of thousands, and weighs as one.

    Example:
        >>> clipped(torch.tensor([[1.0], [2.0], [-8.0]]), torch.ones(1)).flatten().tolist()
        [1.0, 2.0, -2.0]
    """
    energy = rows.float().square() @ energies.to(rows.device, torch.float32)
    return rows * (energy.median() / energy.clamp(min=1e-30)).sqrt().clamp(max=1)[:, None].to(rows)
