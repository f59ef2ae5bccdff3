"""Hermite coefficients of a unit with a Gaussian pre-activation: one expansion for every activation.

For a = μ + s z, z ~ N(0, 1), and the orthonormal polynomials he_k = He_k / √k!,

    φ(μ + s z) = Σ_k c_k he_k(z),        c_k = E φ(μ + s z) he_k(z).

Piecewise polynomials have closed forms; everything else is integrated by Gauss–Legendre panels
whose ends lie on the knots of φ and around its bend, never by quadrature across a kink.

Source: 01-maths §3 (Mehler); Abramowitz & Stegun 22.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreprune.maths.activation import Activation, Spline

__all__ = ["TERMS", "Expansion", "derivative", "expand", "second_moments"]

#: K, the number of Mehler terms kept beside the mean, by the precision of the covariance
TERMS = {torch.float64: 24, torch.float32: 12}

_REACH = 12.0  # |z| beyond which √pdf · he_k is below 1e-15 for every k ≤ TERMS
_NODES = 16
_BLOCK = 256  # units worked on at a time, so that they stay in the processor's cache
_ROUNDING = 1e-13  # differences of moments below this share are rounding
_BEND = (-32.0, -16.0, -8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True)
class Expansion:
    """Hermite expansion of n units.

    Attributes:
        coefficients: c, (n, K + 1); column 0 is the mean E h.
        tail: τ, (n,): τ² = Var h − Σ_{1 ≤ k ≤ K} c_k², what the first K terms leave out.
    """

    coefficients: Tensor
    tail: Tensor

    @property
    def mean(self) -> Tensor:
        """E h, (n,)."""
        return self.coefficients[:, 0]

    @property
    def variance(self) -> Tensor:
        """Var h, (n,), exact."""
        return self.coefficients[:, 1:].square().sum(1) + self.tail.square()


def expand(phi: Activation, mean: Tensor, std: Tensor, terms: int = 24) -> Expansion:
    """Coefficients and tails of φ(μ + s z) for n units at once.

    Args:
        phi: φ.
        mean: μ, (n,). std: s ≥ 0, (n,).
        terms: K.

    Returns:
        The expansion, in float64.

    Example:
        >>> from coreprune.maths.activation import activation
        >>> relu = expand(activation("relu"), torch.zeros(1), torch.ones(1))
        >>> round(float(relu.mean[0]) * math.sqrt(2 * math.pi), 12)       # E (z)₊ = 1/√(2π)
        1.0
    """
    mean, std = mean.double(), std.double()
    if phi.spline is not None:
        c = _spline_coefficients(phi.spline, mean, std, terms)
    else:
        c = _quadrature_coefficients(phi, mean, std, terms)
    variance = _variance(phi, mean, std, c[:, 0])
    rest = variance - c[:, 1:].square().sum(1)
    constant = variance <= (_ROUNDING * c[:, 0]).square()
    seen = (rest > _ROUNDING * variance) & ~constant
    tail = torch.where(seen, torch.where(seen, rest, 1.0).sqrt(), 0.0)
    return Expansion(torch.cat([c[:, :1], c[:, 1:].masked_fill(constant[:, None], 0.0)], 1), tail)


def derivative(c: Tensor, std: Tensor) -> Tensor:
    """Coefficients of φ': √(k + 1) c_{k+1} / s, (n, K), for c of shape (n, K + 1)."""
    k = torch.arange(1, c.shape[1], dtype=c.dtype, device=c.device)
    inverse = torch.where(std > 0, 1 / std.clamp(min=1e-300), 0.0)
    return c[:, 1:] * k.sqrt() * inverse[:, None]


def second_moments(phi: Activation, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E φ², E φ² z and E φ² z² for a = μ + s z, (n,) each."""
    blocks = []
    for rows in torch.arange(mean.numel(), device=mean.device).split(_BLOCK):
        z, weight = _panels(phi, mean[rows], std[rows])
        weight *= phi(mean[rows, None] + std[rows, None] * z).square_()
        blocks.append(torch.stack([weight.sum(1), (weight * z).sum(1), (weight * z.square()).sum(1)]))
    zeroth, first, second = torch.cat(blocks, 1)
    return zeroth, first, second


def _variance(phi: Activation, mean: Tensor, std: Tensor, centre: Tensor) -> Tensor:
    """E (φ(μ + s z) − centre)², (n,), by the same panels."""
    blocks = []
    for rows in torch.arange(mean.numel(), device=mean.device).split(_BLOCK):
        z, weight = _panels(phi, mean[rows], std[rows])
        h = phi(mean[rows, None] + std[rows, None] * z)
        blocks.append(((h - centre[rows, None]).square() * weight).sum(1))
    return torch.cat(blocks)


def _spline_coefficients(spline: Spline, mean: Tensor, std: Tensor, terms: int) -> Tensor:
    """Closed form. With g = t − μ, z_t = g/s, Q = P(z > z_t) and pdf taken at z_t,

        1(a ≥ t):      c_0 = Q,                              c_k = pdf · he_{k−1} / √k
        (a − t)₊:      c_0 = s pdf − g Q,                    c_k = s · (coefficient k − 1 of the step) / √k
        (a − t)₊² / 2: c_0 = ((s² + g²) Q − g s pdf) / 2,    c_k = s · (coefficient k − 1 of the ramp) / √k

    since a derivative in z lowers the degree of he_k by one and divides by √k.
    """
    root = torch.arange(1, terms + 1, dtype=mean.dtype, device=mean.device).sqrt()
    s = std[:, None]
    line = [spline.constant + spline.slope * mean, spline.slope * std]
    c = torch.cat([torch.stack(line, 1), mean.new_zeros(mean.numel(), terms - 1)], 1)
    for t, j0, j1, j2 in spline.jumps:
        g = (t - mean)[:, None]
        z = _standardised(t, mean, std)
        Q = 0.5 * torch.erfc(z / math.sqrt(2))[:, None]
        h = _hermite_functions(z, terms)
        pdf = h[:, :1]
        step = torch.cat([Q, h[:, :-1] / root], 1)
        ramp = torch.cat([s * pdf - g * Q, s * step[:, :-1] / root], 1)
        bowl = torch.cat([((s.square() + g.square()) * Q - g * s * pdf) / 2, s * ramp[:, :-1] / root], 1)
        c = c + j0 * step + j1 * ramp + j2 * bowl
    return c


def _quadrature_coefficients(phi: Activation, mean: Tensor, std: Tensor, terms: int) -> Tensor:
    blocks = []
    for rows in torch.arange(mean.numel(), device=mean.device).split(_BLOCK):
        z, weight = _panels(phi, mean[rows], std[rows])
        now, before = phi(mean[rows, None] + std[rows, None] * z) * weight, torch.zeros_like(z)
        columns = []
        for k in range(terms + 1):  # he_{k+1} = (z he_k − √k he_{k−1}) / √(k+1)
            columns.append(now.sum(1))
            before, now = now, (z * now).sub_(before, alpha=math.sqrt(k)).div_(math.sqrt(k + 1))
        blocks.append(torch.stack(columns, 1))
    return torch.cat(blocks)


def _hermite_functions(z: Tensor, terms: int) -> Tensor:
    """Pdf · he_0 … pdf · he_K at z, (n, K + 1)."""
    columns = [torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)]
    columns.append(z * columns[0])
    for k in range(1, terms):
        columns.append((z * columns[k] - math.sqrt(k) * columns[k - 1]) / math.sqrt(k + 1))
    return torch.stack(columns[: terms + 1], 1)


@cache
def _legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights of Gauss–Legendre quadrature on [−1, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return nodes, weights


def _panels(phi: Activation, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes z and weights (pdf included), (n, nodes): Gauss–Legendre between the points where φ bends or breaks.

    The nodes count as constants for derivatives with respect to μ and s.
    """
    mean, std = mean.detach(), std.detach()
    even = torch.linspace(-_REACH, _REACH, 9, dtype=mean.dtype, device=mean.device)
    bend = () if phi.spline is not None else tuple(phi.scale * b for b in _BEND)
    own = [_standardised(t, mean, std).clamp(-_REACH, _REACH) for t in sorted({*phi.knots, *bend})]
    ends = torch.stack([*even.expand(mean.numel(), -1).unbind(1), *own], 1).sort(1).values
    nodes, weights = (torch.from_numpy(array).to(mean) for array in _legendre())
    half, middle = (ends[:, 1:] - ends[:, :-1]) / 2, (ends[:, 1:] + ends[:, :-1]) / 2
    z = (middle[..., None] + half[..., None] * nodes).flatten(1)
    pdf = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return z, (half[..., None] * weights).flatten(1) * pdf


def _standardised(t: float, mean: Tensor, std: Tensor) -> Tensor:
    """z_t = (t − μ)/s, held to |z| ≤ 40; for s = 0 the side of t on which μ lies (t itself counts as above)."""
    gap = t - mean
    z = torch.where(std > 0, gap / torch.where(std > 0, std, 1.0), torch.where(gap > 0, 40.0, -40.0))
    return z.clamp(-40.0, 40.0)
