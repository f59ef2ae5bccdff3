"""What a baseline may see of a site, and what it may answer: plain tensors, so that nothing else can differ.

n units have n rows in what writes them and n columns in each of what reads them:

    y_r = W_r φ(N(P x + b))

N is a BatchNorm or nothing. A convolution's filter is a row, and its kernel positions are outputs of the reader. A gated
unit (SwiGLU) has the rows of gate and up side by side, and a bias of each. The answer says which units stay, what each
reader makes of them, h ≈ T h_S + t, and for methods that merge before φ what becomes of the writer itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coreprune.errors import InvalidInputError

__all__ = ["Choice", "Merge", "Norm", "Seen", "Units", "pooled", "selected", "top"]


@dataclass(frozen=True)
class Norm:
    """A BatchNorm in evaluation mode: γ (a − μ)/σ + β, with σ = √(variance + ε), (n,) each."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor
    eps: float = 1e-5

    @property
    def deviation(self) -> Tensor:
        """σ, (n,)."""
        return (self.variance + self.eps).sqrt()

    @property
    def scale(self) -> Tensor:
        """γ/σ, (n,)."""
        return self.gamma / self.deviation

    def __call__(self, a: Tensor) -> Tensor:
        """The BatchNorm of pre-activations (…, n)."""
        return (a - self.mean) * self.scale + self.beta


@dataclass(frozen=True)
class Seen:
    """First two moments of the units on real inputs: mean (n,), covariance (n, n) divided by `count`, the samples."""

    mean: Tensor
    covariance: Tensor
    count: int

    @property
    def second(self) -> Tensor:
        """E h hᵀ, (n, n)."""
        return self.covariance + torch.outer(self.mean, self.mean)


def pooled(parts: Sequence[Seen]) -> Seen:
    """The moments of all samples together.

    Example:
        >>> one, two = Seen(torch.zeros(1), torch.ones(1, 1), 3), Seen(torch.full((1,), 4.0), torch.ones(1, 1), 1)
        >>> both = pooled([one, two])
        >>> both.mean.tolist(), both.covariance.tolist(), both.count
        ([1.0], [[4.0]], 4)
    """
    count = sum(one.count for one in parts)
    mean: Tensor = torch.stack([one.mean * (one.count / count) for one in parts]).sum(0)
    covariance = torch.zeros_like(parts[0].covariance)
    for one in parts:
        covariance += (one.covariance + torch.outer(one.mean - mean, one.mean - mean)) * (one.count / count)
    return Seen(mean, covariance, count)


@dataclass(frozen=True)
class Units:
    """A site's tensors, in float64.

    Attributes:
        rows: P, (n, d). bias: b, (n, m), a column for each of the m writers.
        readers: W_r, (p_r, n) each; kernel positions and flattened pixels count as outputs.
        norm: the BatchNorm between writer and activation.
        seen: moments as each reader gets the units; empty without data.
        gated: a unit is φ(gate row · x) times (up row · x), and has both rows side by side.
    """

    rows: Tensor
    bias: Tensor
    readers: tuple[Tensor, ...]
    norm: Norm | None = None
    seen: tuple[Seen, ...] = ()
    gated: bool = False

    @property
    def count(self) -> int:
        """N."""
        return self.rows.shape[0]

    @property
    def points(self) -> Tensor:
        """Row and bias of every unit, the BatchNorm folded in: (γ/σ)·P_j and (γ/σ)·(b_j − μ) + β, (n, d + m)."""
        if self.norm is None:
            return torch.cat([self.rows, self.bias], 1)
        return torch.cat([self.rows * self.norm.scale[:, None], self.norm(self.bias.T).T], 1)

    @property
    def columns(self) -> Tensor:
        """What is read of every unit, all readers' columns one below the other, (n, Σ p_r)."""
        return torch.cat(self.readers).T

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The points; of gated units those of the gate and those of the other row, with the bias of each."""
        if not self.gated:
            return (self.points,)
        half = self.rows.shape[1] // 2
        return tuple(torch.cat([self.rows[:, i * half : (i + 1) * half], self.bias[:, i : i + 1]], 1) for i in range(2))

    def products(self, kept: Tensor) -> Tensor:
        """⟨p_i, p_j⟩ for every unit i and every kept j, (n, k); of gated units those of the tensors g ⊗ u.

        With a linear gate a unit is the quadratic form of g ⊗ u, and ⟨g ⊗ u, g' ⊗ u'⟩ = ⟨g, g'⟩⟨u, u'⟩.
        """
        parts = [points @ points[kept].T for points in self.factors]
        return parts[0] if len(parts) == 1 else parts[0] * parts[1]

    def observed(self) -> tuple[Seen, ...]:
        """The moments at the readers.

        Raises:
            InvalidInputError: there are none.
        """
        if len(self.seen) != len(self.readers):
            raise InvalidInputError(
                f"a calibrated method was asked of a site with {len(self.readers)} readers, but moments of "
                f"{len(self.seen)} were given: measure them first"
            )
        return self.seen


@dataclass(frozen=True)
class Merge:
    """What becomes of the writer where units are merged before the activation.

    Attributes:
        rows: R, (n, k): new row and bias s are Σ_i R_is · row and bias i.
        norm: the new units' BatchNorm, where there was one.
    """

    rows: Tensor
    norm: Norm | None = None


@dataclass(frozen=True)
class Choice:
    """A baseline's answer for one site.

    Attributes:
        kept: the units that stay, or whose places the merged ones take, (k,) ascending.
        mixes: T for each reader, (n, k), or (k,) of factors where every unit stands for itself alone.
        offsets: t for each reader, (n,), or None.
        merge: how the writer's rows are merged; None where the kept units stay as they are.
    """

    kept: Tensor
    mixes: tuple[Tensor, ...]
    offsets: tuple[Tensor | None, ...]
    merge: Merge | None = None


def selected(
    units: Units,
    kept: Tensor,
    mixes: Tensor | Sequence[Tensor] | None = None,
    offsets: Sequence[Tensor | None] | None = None,
    merge: Merge | None = None,
) -> Choice:
    """An answer; one T is meant for all readers, and without T the kept units stay as they are.

    Example:
        >>> one = Units(torch.eye(3), torch.zeros(3, 1), (torch.ones(2, 3),))
        >>> selected(one, torch.tensor([0, 2])).mixes[0].tolist()
        [1.0, 1.0]
    """
    if mixes is None:
        mixes = units.rows.new_ones(kept.numel())
    if isinstance(mixes, Tensor):
        mixes = [mixes] * len(units.readers)
    return Choice(kept, tuple(mixes), tuple(offsets) if offsets is not None else (None,) * len(units.readers), merge)


def top(score: Tensor, k: int) -> Tensor:
    """The k units of largest score, ascending; of equal ones the first.

    Example:
        >>> top(torch.tensor([1.0, 3.0, 2.0, 3.0]), 2).tolist()
        [1, 3]
    """
    return torch.argsort(score, descending=True, stable=True)[:k].sort().values
