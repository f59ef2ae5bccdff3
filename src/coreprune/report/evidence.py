"""What a plan keeps of an error curve, which has as many points as a site has units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["kept_of_curve"]

POINTS = 33


def kept_of_curve(errors: Tensor, kept: int) -> dict[str, Any]:
    """Some points of an error curve, evenly spread over the widths, with both ends and what was chosen.

    Args:
        errors: err(k), k = 0 … n, (n + 1,), a share of the energy. kept: the width that was chosen.

    Returns:
        ``units`` and ``errors``, the relative root mean square error √err(k) of each.

    Example:
        >>> kept_of_curve(torch.tensor([1.0, 0.25, 0.04, 0.0]), 2)
        {'units': [0, 1, 2, 3], 'errors': [1.0, 0.5, 0.2, 0.0]}
    """
    last = len(errors) - 1
    units = sorted({*torch.linspace(0, last, min(POINTS, last + 1)).round().long().tolist(), kept})
    shares = errors.detach().double().cpu().clamp(min=0)[units].sqrt()
    return {"units": units, "errors": [float(f"{share:.4g}") for share in shares.tolist()]}
