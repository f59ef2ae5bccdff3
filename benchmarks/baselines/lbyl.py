"""LBYL, "leave before you leave": a pruned unit is written as a linear combination of all kept ones, without data.

With a BatchNorm γ (f·x − μ)/σ + β let p̂ = (γ/σ) f and b̂ = β − γμ/σ be filter and constant with the BatchNorm folded in.
If pruned unit i becomes Σ_j s_j · unit j, the error before the activation is (p̂_i − Σ s_j p̂_j)·x + (b̂_i − Σ s_j b̂_j), and
the paper minimises over s

    (σ_i/γ_i)² ‖p̂_i − Σ_j s_j p̂_j‖²  +  λ₁ (b̂_i − Σ_j s_j b̂_j)²  +  λ₂ ‖s‖²

the residual error RE (of the filters as stored), the BatchNorm error BE, and a ridge that stands for the activation
error AE. It is least squares. Times g = (γ_i/σ_i)², and with one eigendecomposition P̂_S P̂_Sᵀ = E diag(e) Eᵀ for all i,

    A_i = E diag(e + λ₂ g) Eᵀ + λ₁ g b̂_S b̂_Sᵀ,    s = A_i⁻¹ (P̂_S p̂_i + λ₁ g b̂_i b̂_S),

the rank-one term by Sherman and Morrison. Without a BatchNorm the bias is one more entry of the point, g = 1, λ₁ = 0.
The kept units are those of largest L2 norm. A gated unit φ(g·x)(u·x) has no filter: where its gate is linear it is the
quadratic form of the tensor g ⊗ u, and the same least squares is of these tensors, of which only inner products are
needed, ⟨g, g'⟩⟨u, u'⟩. That is ours; the paper speaks of no gates.

λ₁ and λ₂ are the published ones, which the authors state for each pruning ratio (LeNet-300-100 without BatchNorm,
VGG-16 on CIFAR-10 with it); the nearest ratio is taken. The published code differs from the paper in places (an
intercept for LeNet, the running variance for σ); this is the paper's objective.

Source: Lee, Kim & Choi, "Training-Free Restoration of Pruned Neural Networks", arXiv:2502.08474 (first submitted as
"Leave Before You Leave", 2021/22), sections 3 and 4 and the tables of hyperparameters.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from baselines.magnitude import norms
from baselines.units import Choice, Units, selected, top

__all__ = ["lbyl_l2", "published", "restored"]

#: share of units removed → λ₁, λ₂
LENET = {0.5: (0.0, 0.3), 0.6: (0.0, 0.6), 0.7: (0.0, 0.3), 0.8: (0.0, 1e-6)}
VGG = {0.1: (6e-6, 1e-4), 0.2: (4e-6, 6e-3), 0.3: (1e-6, 1e-2), 0.4: (2e-6, 1e-2), 0.5: (4e-5, 2e-4)}


def published(removed: float, *, norm: bool) -> tuple[float, float]:
    """λ₁, λ₂ of the nearest published ratio, the smaller of two that are equally near.

    Example:
        >>> published(0.62, norm=False), published(0.25, norm=True)
        ((0.0, 0.6), (4e-06, 0.006))
    """
    table = VGG if norm else LENET
    return table[min(table, key=lambda ratio: round(abs(ratio - removed), 9))]


def lbyl_l2(units: Units, k: int, generator: Generator | None = None) -> Choice:
    """The k rows of largest L2 norm, the others restored by them."""
    kept = top(norms(units, 2), k)
    return selected(units, kept, restored(units, kept, *published(1 - k / units.count, norm=units.norm is not None)))


def restored(units: Units, kept: Tensor, bn_error: float, ridge: float) -> Tensor:
    """T, (n, k): row i holds s for unit i, and a 1 where it is kept.

    Args:
        units: the site. kept: (k,). bn_error: λ₁. ridge: λ₂, positive.
    """
    points = units.points
    if units.norm is None:
        products, constant = units.products(kept), points.new_zeros(units.count)
        g = points.new_ones(units.count)
    else:
        filters, constant = points[:, : units.rows.shape[1]], points[:, -1]
        products = filters @ filters[kept].T
        g = units.norm.scale.square()
    b = constant[kept]
    values, E = torch.linalg.eigh(products[kept])
    values = values.clamp(min=0) + torch.finfo(points.dtype).eps * values[-1].abs().clamp(min=1e-300)
    level = (values[:, None] + ridge * g).T  # (n, k): the spectrum of each unit's own system
    right = products + bn_error * (g * constant)[:, None] * b
    solved = ((right @ E) / level) @ E.T
    pushed = ((b @ E) / level) @ E.T
    weight = bn_error * g
    T: Tensor = solved - pushed * (weight * (solved @ b) / (1 + weight * (pushed @ b)))[:, None]
    T[kept] = torch.eye(kept.numel(), dtype=T.dtype)
    return T
