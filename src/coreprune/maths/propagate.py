"""The law of hidden units, carried from layer to layer through two networks side by side.

A `Pair` is a mixture of Gaussians over the stacked vector (z, z̃): z belongs to the dense network, z̃ to
the one that is being cut, and both see the same input. Linear maps act exactly. Units φ(z) get their
exact first and second moments (`coreprune.maths.gram`) and are then taken for Gaussian again: the
*Gaussian closure*, exact at the first hidden layer and an approximation at every later one.

Used twice, by code that does not know of each other: to choose (as the prior of a later site) and to
check (the mean square difference of any two networks, from their tensors alone).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coreprune.maths.activation import Activation
from coreprune.maths.gram import Moments, correlation, cross_covariance
from coreprune.maths.hermite import TERMS, expand

__all__ = ["Component", "Law", "Pair", "difference_energy", "law_of"]


@dataclass(frozen=True)
class Component:
    """One Gaussian of a mixture.

    Attributes:
        weight: its probability.
        mean: (m,).
        covariance: (m, m); for inputs also (m,), the variances of independent features.
    """

    weight: float
    mean: Tensor
    covariance: Tensor

    def linear(self, P: Tensor, b: Tensor) -> Component:
        """The law of P z + b, in the precision of P."""
        mean, C = self.mean.to(P.dtype), self.covariance.to(P.dtype)
        return Component(self.weight, P @ mean + b, (P * C) @ P.T if C.dim() == 1 else P @ C @ P.T)


@dataclass(frozen=True)
class Pair:
    """The law of (z, z̃), dense and cut.

    Attributes:
        components: Gaussians over the stacked vector; over z alone where `split` is None.
        split: number of entries of z; None while z̃ is z itself.
        truncation: for units, the largest error of a covariance by cutting Mehler's series, relative to the
            standard deviations.
    """

    components: tuple[Component, ...]
    split: int | None = None
    truncation: float = 0.0

    def linear(self, P: Tensor, b: Tensor, P_cut: Tensor | None = None, b_cut: Tensor | None = None) -> Pair:
        """The law of (P z + b, P̃ z̃ + b̃); without P̃, and while z̃ is z, both are the same."""
        if P_cut is None or b_cut is None:
            assert self.split is None
            return Pair(tuple(c.linear(P, b) for c in self.components))
        if self.split is None:
            both, shift = torch.cat([P, P_cut]), torch.cat([b, b_cut])
        else:
            both, shift = torch.block_diag(P, P_cut), torch.cat([b, b_cut])
        return Pair(tuple(c.linear(both, shift) for c in self.components), P.shape[0])

    def units(self, phi: Activation) -> Pair:
        """The law of (φ(z), φ(z̃)), by its exact first two moments."""
        parts = [_units(phi, c) for c in self.components]
        return Pair(tuple(part for part, _ in parts), self.split, max(truncation for _, truncation in parts))

    def overall(self) -> tuple[Tensor, Tensor]:
        """Mean (m,) and covariance (m, m) of the whole mixture."""
        total = sum(c.weight for c in self.components)
        if len(self.components) == 1:
            return self.components[0].mean, self.components[0].covariance
        mean = sum((c.weight / total) * c.mean for c in self.components)
        assert isinstance(mean, Tensor)
        spread = torch.zeros_like(self.components[0].covariance)
        for c in self.components:
            spread += (c.weight / total) * (c.covariance + torch.outer(c.mean - mean, c.mean - mean))
        return mean, spread


@dataclass(frozen=True)
class Law:
    """What a method may know of the units of one site.

    Attributes:
        moments: of the units as they are, h̃, (n,) and (n, n).
        target: E h of the dense units, which are to be reproduced, (n,); None if they are the same.
        cross: X = Cov(h, h̃), (n, n); None if they are the same.
        own: Cov(h) of the dense units, (n, n); None if they are the same.
        pair: the Gaussian law of the pre-activations (a, ã), if there is one, and `phi` their activation.
    """

    moments: Moments
    target: Tensor | None = None
    cross: Tensor | None = None
    own: Tensor | None = None
    pair: Pair | None = None
    phi: Activation | None = None


def law_of(pre: Pair, phi: Activation) -> Law:
    """The law of a site's units from that of its pre-activations.

    Args:
        pre: of (a, ã); both have n entries.
        phi: φ.
    """
    units = pre.units(phi)
    mean, spread = units.overall()
    if pre.split is None:
        return Law(Moments(mean, spread, units.truncation), pair=pre, phi=phi)
    n = pre.split
    return Law(Moments(mean[n:], spread[n:, n:], units.truncation), mean[:n], spread[:n, n:], spread[:n, :n], pre, phi)


def difference_energy(outputs: Pair) -> Tensor:
    """E (y_i − ŷ_i)² for every output, (p,), from the joint law of both networks' outputs."""
    mean, spread = outputs.overall()
    p = outputs.split
    assert p is not None
    variance = spread.diagonal()[:p] + spread.diagonal()[p:] - 2 * spread[:p, p:].diagonal()
    return variance.clamp(min=0) + (mean[:p] - mean[p:]).square()


def _units(phi: Activation, pre: Component) -> tuple[Component, float]:
    std = pre.covariance.diagonal().clamp(min=0).sqrt()
    expansion = expand(phi, pre.mean, std, TERMS[pre.covariance.dtype])
    rho = correlation(pre.covariance, std, std)
    gram, truncation = cross_covariance(expansion, expansion, rho, symmetric=True)
    return Component(pre.weight, expansion.mean.to(gram.dtype), gram), truncation
