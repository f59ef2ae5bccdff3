"""PCA slicing in the coordinates of units: the part of SliceGPT that a hidden width allows. Calibrated.

SliceGPT rotates the *residual stream* of a network with RMSNorm by the principal axes Q of its second moments, which
changes nothing as RMSNorm commutes with Q, and deletes the last rows and columns. That cuts another width, adds a d×d
matrix to every block, and has no counterpart inside an FFN or before a ReLU: φ commutes with no rotation, so principal
components of the hidden units cannot be computed by fewer units. Reproduced here is its PCA, of H = E h hᵀ with the
published damping, applied to the width that all other methods of the table cut, at equal removed parameters. The k
principal axes V are not stored but read off k of the units themselves:

    h ≈ V z,  z = (V_S)⁻¹ h_S      ⇒      T = V V_S⁻¹,    S by pivoted QR of Vᵀ

so the kept units stay as they are, T is the identity on them, and the reconstruction is exact for every h in the span of
V. It is *not* SliceGPT's figure for a model, which is `baselines.slicegpt`; the difference is the price of staying in unit
coordinates.

Sources: Ashkboos et al., "SliceGPT", ICLR 2024, arXiv:2401.15024 (PCA, damping 0.01); Drmač & Gugercin, "A new selection
operator for the discrete empirical interpolation method", SIAM J. Sci. Comput. 2016 (S by pivoted QR).
"""

from __future__ import annotations

import torch
from scipy.linalg import qr
from torch import Generator, Tensor

from baselines.units import Choice, Units, selected

__all__ = ["pca_slicing", "principal"]

#: share of the mean eigenvalue that SliceGPT adds to the diagonal
DAMPING = 0.01


def principal(second: Tensor, k: int, damping: float = DAMPING) -> Tensor:
    """The k leading eigenvectors of H + damping·mean(diag H)·I, (n, k), largest first.

    Example:
        >>> principal(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2).abs().tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    H = second + damping * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype)
    vectors: Tensor = torch.linalg.eigh(H).eigenvectors.flip(1)
    return vectors[:, :k]


def pca_slicing(units: Units, k: int, generator: Generator | None = None) -> Choice:
    """K units that span the k principal axes best, and the axes read off them.

    With several readers S is chosen on the mean of their second moments, each of unit trace; T is each reader's own.
    """
    moments = [seen.second for seen in units.observed()]
    pooled = torch.stack([H / H.diagonal().sum().clamp(min=1e-300) for H in moments]).mean(0)
    V = principal(pooled, k)
    pivots = qr(V.T.numpy(), mode="r", pivoting=True)[1][:k]
    kept = torch.from_numpy(pivots.astype("int64")).sort().values
    if len(moments) == 1:
        return selected(units, kept, torch.linalg.solve(V[kept].T, V.T).T)
    mixes = []
    for H in moments:
        V = principal(H, k)
        mixes.append(torch.linalg.lstsq(V[kept].T, V.T).solution.T)
    return selected(units, kept, mixes)
