"""One hidden layer, and what may stand for it: the two values that all of the mathematics speaks about."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coreprune.maths.activation import Activation
from coreprune.maths.beside import others, rows_at
from coreprune.maths.propagate import Law

__all__ = ["Coreset", "Layer", "Thin", "changed", "fixed"]


@dataclass(frozen=True)
class Layer:
    """A hidden layer of n units between d inputs and p outputs, on the ball ‖x‖ ≤ β:

        y = W φ(P x + b) + c

    The constant c of the readers plays no part in any choice and is left out. Several readers are
    stacked in W, so that a unit is always one row of P, one entry of b and one column of W.

    Attributes:
        incoming: P, (n, d).
        bias: b, (n,).
        outgoing: W, (p, n).
        activation: φ.
        radius: β, in the units of the layer's input.
        law: what is known of the units' distribution, for the methods that ask for it.

    Example:
        >>> from coreprune.maths.activation import activation
        >>> layer = Layer(torch.eye(3), torch.zeros(3), torch.ones(2, 3), activation("relu"), radius=1.0)
        >>> layer.units, layer.query_radius == 2**0.5
        (3, True)
    """

    incoming: Tensor
    bias: Tensor
    outgoing: Tensor
    activation: Activation
    radius: float
    law: Law | None = None

    @property
    def units(self) -> int:
        """N."""
        return self.incoming.shape[0]

    @property
    def norms(self) -> Tensor:
        """‖p_j‖ of the points p_j = (row j of P, b_j) in R^{d+1}, (n,)."""
        return torch.sqrt(self.incoming.square().sum(1) + self.bias.square())

    @property
    def query_radius(self) -> float:
        """R = √(1 + β²), the norm of a query (x, 1) at the edge of the ball."""
        return math.sqrt(1.0 + self.radius**2)

    def intervals(self) -> tuple[Tensor, Tensor]:
        """Ends of the exact range b_j ∓ β‖P_j‖ of every pre-activation over the ball, (n,) each."""
        reach = self.radius * self.incoming.norm(dim=1)
        return self.bias - reach, self.bias + reach

    def dead(self) -> Tensor:
        """Units that are exactly 0 on the whole ball (for ReLU: b_j ≤ −β‖P_j‖), (n,) bool."""
        return self.activation.supremum(*self.intervals()) == 0

    def hidden(self, x: Tensor) -> Tensor:
        """φ(P x + b), (batch, n), for x of shape (batch, d)."""
        return self.activation(x @ self.incoming.T + self.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """W φ(P x + b), (batch, p)."""
        return self.hidden(x) @ self.outgoing.T


@dataclass(frozen=True)
class Thin:
    """T of which a kept unit stands for itself and the rows of all others are U K, of low rank: never written out.

    Attributes:
        gone: the units that are not kept, (n − k,) int64, ascending.
        left: U, (n − k, r).
        right: K, (r, k).

    Example:
        >>> T = Thin(torch.tensor([1]), torch.tensor([[2.0]]), torch.tensor([[3.0, 4.0]]))
        >>> T.dense().tolist()
        [[1.0, 0.0], [6.0, 8.0], [0.0, 1.0]]
        >>> (T @ torch.tensor([1.0, 1.0])).tolist()
        [1.0, 14.0, 1.0]
    """

    gone: Tensor
    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        return self.left.shape[0] + self.right.shape[1], self.right.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of both factors."""
        return self.left.dtype

    @property
    def kept(self) -> Tensor:
        """The units that are kept, (k,) bool over (n,)."""
        return torch.ones(self.shape[0], dtype=torch.bool, device=self.gone.device).index_fill_(0, self.gone, False)

    def dim(self) -> int:
        """2, as a matrix has."""
        return 2

    def to(self, *args: Any) -> Thin:
        """In another precision, or on another device."""
        return Thin(self.gone.to(self.left.to(*args).device), self.left.to(*args), self.right.to(*args))

    def dense(self) -> Tensor:
        """T written out, (n, k)."""
        return self @ torch.eye(self.shape[1], dtype=self.dtype, device=self.left.device)

    def __matmul__(self, x: Tensor) -> Tensor:
        """T x, (…, n, m), for x of shape (…, k, m), or of shape (k,)."""
        if x.dim() == 1:
            return (self @ x[:, None])[:, 0]
        result = x.new_empty(*x.shape[:-2], self.shape[0], x.shape[-1])
        result[..., self.gone, :] = self.left @ (self.right @ x)
        result[..., self.kept, :] = x
        return result


@dataclass(frozen=True)
class Coreset:
    """k units that stand for n: unit j is replaced by Σ_s T_js · unit s + t_j.

        W' = W T        c' = c + W t

    Attributes:
        indices: S, the kept units, (k,) int64, ascending.
        mix: T, (n, k), which may be thin; or (k,) where a kept unit stands for itself alone and T is diagonal on S.
        offset: t, (n,); None where it is zero.
        incoming: Q, (n, k): the kept units' pre-activations are combinations Qᵀ a of the old ones;
            None where they are those of S. Then `indices` only names the units they started from.
        shift: what is added to the kept units' biases then, (k,).

    Example:
        >>> half = Coreset(torch.tensor([0, 2]), torch.tensor([2.0, 1.0]))
        >>> half.outgoing(torch.ones(1, 3))
        tensor([[2., 1.]])
    """

    indices: Tensor
    mix: Tensor | Thin
    offset: Tensor | None = None
    incoming: Tensor | None = None
    shift: Tensor | None = None

    @property
    def units(self) -> int:
        """K."""
        return self.indices.numel()

    def matrix(self, n: int) -> Tensor:
        """T written out, (n, k)."""
        if isinstance(self.mix, Thin):
            return self.mix.dense()
        if self.mix.dim() == 2:
            return self.mix
        full = self.mix.new_zeros(n, self.units)
        full[self.indices, torch.arange(self.units, device=full.device)] = self.mix
        return full

    def outgoing(self, weight: Tensor) -> Tensor:
        """W' = W T, (p, k), for W of shape (p, n)."""
        if isinstance(self.mix, Thin):
            return weight[:, self.indices] + (weight[:, self.mix.gone] @ self.mix.left) @ self.mix.right
        return weight @ self.mix if self.mix.dim() == 2 else weight[:, self.indices] * self.mix

    def constant(self, weight: Tensor) -> Tensor:
        """C' − c = W t, (p,)."""
        return weight.new_zeros(weight.shape[0]) if self.offset is None else weight @ self.offset

    def apply(self, layer: Layer, x: Tensor) -> Tensor:
        """ŷ − c = W' φ(P' x + b') + W t, (batch, p): what the cut layer computes on x of shape (batch, d)."""
        a = x @ layer.incoming.T + layer.bias
        a = a[:, self.indices] if self.incoming is None else a @ self.incoming
        kept = layer.activation(a if self.shift is None else a + self.shift)
        return kept @ self.outgoing(layer.outgoing).T + self.constant(layer.outgoing)


def fixed(T: Tensor, kept: Tensor) -> bool:
    """Whether each kept unit stands for itself, in all T of (…, n, k), which have kept units of their own, (…, k)."""
    rows = rows_at(T, kept)
    return torch.equal(rows, torch.eye(T.shape[-1], dtype=T.dtype, device=T.device).expand_as(rows))


def changed(T: Tensor, kept: Tensor) -> Tensor:
    """Units that do not stand for themselves: rows of T other than those of the identity at the kept units.

    Args:
        T: one or several, (…, n, k). kept: S of all, (k,), where a unit counts that changes in one T at least; or of
            each its own, (…, k), where all count, unless every kept unit of every T stands for itself.

    Returns:
        Indices, (m,), or of each, (…, m).
    """
    rows = rows_at(T, kept)
    differs = rows != torch.eye(kept.shape[-1], dtype=T.dtype, device=T.device)
    if not bool(differs.any()):
        return others(kept, T.shape[-2])
    if kept.dim() > 1:
        return torch.arange(T.shape[-2]).expand(len(kept), -1)
    changes = torch.ones(T.shape[-2], dtype=torch.bool, device=T.device)
    changes[kept] = differs.any(-1).reshape(-1, len(kept)).any(0)
    return changes.nonzero()[:, 0]
