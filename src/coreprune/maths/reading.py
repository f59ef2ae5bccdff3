"""One reader of a site: its weights W, and the moments of the units as it gets them.

    M = WᵀW,        E‖W(h − E h)‖² = tr M G

A reader without an exact place for a constant has second moments about zero for G and no mean. A convolution is read
position by position: M sums over the kernel.

Source: 01-maths §3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from coreprune.maths.beside import stacked
from coreprune.maths.gram import Moments
from coreprune.maths.kernel import goes_forward
from coreprune.maths.lowrank import LowRank
from coreprune.maths.reweight import solve
from coreprune.maths.streaming import WIDE, add_squared, mirrored, squared

__all__ = ["Reading", "beside", "inner", "root", "squares", "weighed"]

_CHUNK = 2**22  # entries of W that are converted at a time
NEARLY_ALL = 0.9  # of an energy, which is not to be subtracted from it


@dataclass(frozen=True)
class Reading:
    """How one reader sees the units.

    Attributes:
        outgoing: W, (…, n·b), in any precision: a row for every output and kernel position.
        mean: of the n·b entries; zero for a reader without a constant.
        covariance: G of the entries, (n·b, n·b); everything is computed in its precision.
        block: b, entries of a unit.
        constant: whether a constant can be put.
        about: m and Cov(h), where there is no place for a constant and G is about zero.
        cost: whether M is what errors cost the whole network, and not the reader's own WᵀW.
        known: M and the energy, where `beside` has worked them out.
    """

    outgoing: Tensor
    mean: Tensor
    covariance: Tensor | LowRank
    block: int = 1
    constant: bool = True
    cost: bool = False
    about: tuple[Tensor, Tensor | LowRank] | None = None
    known: tuple[Tensor, float] | None = None

    @cached_property
    def gram(self) -> Tensor:
        """M = WᵀW, (n·b, n·b), summed over outputs and kernel positions."""
        if self.known is not None:
            return self.known[0]
        size = self.mean.numel()
        kind = torch.promote_types(self.outgoing.dtype, torch.float32)
        total = self.mean.new_zeros(size, size)
        for piece in self.outgoing.split(max(1, _CHUNK // max(self.outgoing[:1].numel(), 1))):
            rows = piece.movedim(-1, 0).reshape(size, -1).to(kind)  # a unit's entries lie together
            if kind == total.dtype:
                add_squared(total, rows.T)
            else:
                total += squared(rows.T)
        return mirrored(total)

    @cached_property
    def narrow(self) -> bool:
        """Whether everything is had from Y = W G with less work than from M: units are many, and outputs fewer."""
        few = self.outgoing.numel() <= self.mean.numel() ** 2
        return few and self.block == 1 and goes_forward(self.mean.numel()) and isinstance(self.covariance, Tensor)

    @property
    def thin(self) -> bool:
        """Whether all that is asked of M is had without forming it."""
        return self.narrow or isinstance(self.covariance, LowRank)

    @cached_property
    def through(self) -> Tensor:
        """Y = W G, the covariance of what is read with the units, (p, n·b)."""
        return self.matrix @ self.moments.covariance

    @cached_property
    def squares(self) -> Tensor:
        """‖W_:j‖² of every entry, (n·b,): the diagonal of M, which is not formed for it where it is not needed."""
        return squares(self.outgoing).to(self.mean) if self.thin else self.gram.diagonal()

    @cached_property
    def energy(self) -> float:
        """E‖W(h − E h)‖² = tr M G = ⟨W, Y⟩."""
        G = self.covariance
        if self.known is not None:
            return self.known[1]
        if isinstance(G, LowRank):
            return G.energy(self.matrix, self.squares)
        return inner(self.matrix, self.through) if self.narrow else inner(self.gram, G)

    @cached_property
    def spread(self) -> float:
        """E‖y − E y‖², which is less than the energy where that is about zero."""
        if self.about is None:
            return self.energy
        mean, covariance = self.about
        m = mean.to(self.mean)
        constant = float((self.matrix @ m).square().sum() if self.thin else m @ self.gram @ m)
        if constant < NEARLY_ALL * self.energy:
            return self.energy - constant
        return replace(self, covariance=covariance, about=None, known=None).energy

    @cached_property
    def matrix(self) -> Tensor:
        """W, (p, n·b), in the precision of the rest."""
        return self.outgoing.reshape(-1, self.mean.numel()).to(self.mean.dtype)

    @property
    def moments(self) -> Moments:
        """Of the entries, written out."""
        G = self.covariance
        return Moments(self.mean, G.dense() if isinstance(G, LowRank) else G)


def beside(readings: Sequence[Reading]) -> list[Reading]:
    """Readers, M and energy worked out at once of those that are small and have weights of one shape."""
    alike: dict[object, list[int]] = {}
    for i, reading in enumerate(readings):
        small = reading.mean.numel() < WIDE and isinstance(reading.covariance, Tensor)
        kind = (reading.outgoing.shape, reading.outgoing.dtype, reading.mean.dtype)
        alike.setdefault(kind if small and reading.outgoing.numel() <= _CHUNK // len(readings) else i, []).append(i)
    found = list(readings)
    for group in alike.values():
        if len(group) > 1:
            mean = readings[group[0]].mean
            W = torch.stack([readings[i].outgoing for i in group]).reshape(len(group), -1, mean.numel())
            W = W.to(torch.promote_types(W.dtype, torch.float32))
            M = mirrored((W.mT @ W).to(mean.dtype))
            energies = (M * stacked([cast("Tensor", readings[i].covariance) for i in group])).sum((1, 2)).tolist()
            for i, known in zip(group, zip(M.unbind(), energies, strict=True), strict=True):
                found[i] = replace(readings[i], known=known)
    return found


def weighed(reading: Reading, M: Tensor) -> Reading:
    """The same, with AᵀA = M in the place of WᵀW: what to choose by, and not what to report.

    Where u = Wᵀg is the gradient of a linear map with few outputs, M = Wᵀ F W, F = E g gᵀ, is of their number's rank:

        F = W⁺ᵀ M W⁺,    A = R W,    RᵀR = F.

    Args:
        reading: of n·b entries. M: as `coreprune.engine.sensitivity` has it, (n·b, n·b).
    """
    M = M.to(reading.mean)
    W = reading.matrix
    if len(W) < len(M):
        inverse = solve(squared(W.T), W.T).T  # (W Wᵀ)⁻¹ W
        A = root(inverse @ M @ inverse.T) @ W
    else:
        A = root(M)
    return replace(reading, outgoing=A, cost=True, known=None)


def squares(W: Tensor) -> Tensor:
    """‖W_:j‖² of every entry, (n·b,), for W of shape (…, n·b).

    Example:
        >>> squares(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).tolist()
        [10.0, 4.0]
    """
    kind = torch.promote_types(W.dtype, torch.float32)
    total = W.new_zeros(W.shape[-1], dtype=kind)
    for piece in W.split(max(1, _CHUNK // max(W[:1].numel(), 1))):
        total += piece.to(kind).square().flatten(0, -2).sum(0)
    return total


def inner(A: Tensor, B: Tensor) -> float:
    """Tr Aᵀ B."""
    return float(torch.dot(A.flatten(), B.flatten()))


def root(M: Tensor) -> Tensor:
    """W with WᵀW = M, (n, n)."""
    level = torch.finfo(torch.float32).eps  # weights are no more precise
    scale = max(float(M.diagonal().mean()), 1e-30)
    while True:
        R = M / scale
        R.diagonal().add_(level)
        W, failed = torch.linalg.cholesky_ex(R, upper=True)
        if not failed:
            found: Tensor = W * scale**0.5
            return found
        level *= 10
