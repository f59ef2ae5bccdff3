"""Neuron merging: the units of largest norm stay, and each other one is handed, scaled, to the most similar of them.

Without a BatchNorm the points are p = (row, bias); i goes to the kept j of largest cosine, if it reaches a threshold,
with T_ij = ‖p_i‖/‖p_j‖, which a ReLU passes on exactly where the two are parallel. With one, filters f_i ≈ s f_j,
s = ‖f_i‖/‖f_j‖, give

    N_i = S N_j + B,    S = s (γ_i σ_j)/(σ_i γ_j),    B = (γ_i/σ_i) [s (μ_j − σ_j β_j/γ_j) − μ_i] + β_i,

and j is the least of λ·(1 − cos) + (1 − λ)·|B/S|, the second brought to [0, 1] over the candidates; B is then left out
and T_ij = S. σ is the standard deviation, as in the paper. (The published code puts the running variance for σ, and the
kept filter's numbers for the pruned one's; its figures are those of that code.)

The paper speaks of no gates. A gated unit φ(g·x)(u·x) is passed on exactly by a ReLU where g_i ∥ g_j, in one direction,
and u_i ∥ u_j, in either: the cosine is then that of the tensors, cos(g_i, g_j)·|cos(u_i, u_j)|, and the factor the product
of both ratios, with the sign of the second.

Source: Kim et al., "Neuron Merging: Compensating for Pruned Neurons", NeurIPS 2020, arXiv:2010.13160, sections 3.2, 3.3;
settings of its appendix: threshold 0.45 for LeNet, 0.1 and λ = 0.85 with BatchNorm.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from baselines.magnitude import norms
from baselines.units import Choice, Norm, Units, selected, top

__all__ = ["decomposed", "neuron_merging"]

THRESHOLD, THRESHOLD_NORM, BALANCE = 0.45, 0.1, 0.85


def neuron_merging(units: Units, k: int, generator: Generator | None = None) -> Choice:
    """The k rows of largest L1 norm, with the paper's decomposition."""
    kept = top(norms(units, 1), k)
    return selected(units, kept, decomposed(units, kept))


def decomposed(units: Units, kept: Tensor, threshold: float | None = None, balance: float = BALANCE) -> Tensor:
    """T, (n, k), of the paper for the units that stay.

    Args:
        units: the site. kept: (k,).
        threshold: cosine that the most similar unit must reach; the published one for what lies between.
        balance: λ.
    """
    cosine, scale = _alike(units.rows if units.norm is not None else units.factors[0], kept)
    if units.gated:
        second, ratio = _alike(units.factors[1], kept)
        cosine, scale = cosine * second.abs(), scale * ratio * second.sign()
    distance = 1 - cosine
    if units.norm is not None:
        scale, gap = _through(units, kept, scale)
        distance = balance * distance + (1 - balance) * _to_unit(gap)
    limit = threshold if threshold is not None else THRESHOLD if units.norm is None else THRESHOLD_NORM
    nearest = distance.argmin(1, keepdim=True)
    similar = cosine.gather(1, nearest) >= limit
    T = torch.zeros_like(scale).scatter_(1, nearest, torch.where(similar, scale.gather(1, nearest), 0.0))
    T[kept] = torch.eye(kept.numel(), dtype=T.dtype)
    return T


def _alike(points: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and ratio of lengths of every row and every kept one, (n, k) each."""
    length = points.norm(dim=1).clamp(min=1e-300)
    unit = normalize(points, dim=1, eps=1e-300)
    return unit @ unit[kept].T, length[:, None] / length[kept]


def _through(units: Units, kept: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """S and |B/S|, (n, k) each, of every unit and every kept one."""
    norm = units.norm
    assert isinstance(norm, Norm)
    gamma, sigma = _away_from_zero(norm.gamma), norm.deviation
    mean = norm.mean - units.bias[:, 0]  # a bias of the writer only shifts what the BatchNorm subtracts
    S = s * (gamma / sigma)[:, None] / (gamma / sigma)[kept]
    inner = s * (mean - sigma * norm.beta / gamma)[kept] - mean[:, None]
    B = (gamma / sigma)[:, None] * inner + norm.beta[:, None]
    return S, (B / S).abs()


def _away_from_zero(gamma: Tensor) -> Tensor:
    return torch.where(gamma.abs() < 1e-12, torch.where(gamma < 0, -1e-12, 1e-12), gamma)


def _to_unit(gap: Tensor) -> Tensor:
    """Each row brought to [0, 1]."""
    low, high = gap.amin(1, keepdim=True), gap.amax(1, keepdim=True)
    return (gap - low) / (high - low).clamp(min=1e-300)
