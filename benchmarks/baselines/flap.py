"""FLAP: units whose contribution hardly moves go, and their mean goes into the bias. Calibrated.

    S_j = 1/(N−1) Σ_t (x_jt − x̄_j)² · ‖W_·j‖²₂            the fluctuation, "weighted input feature variance"
    Ŝ_j = (S_j − mean S)/std S                            within a layer, to compare layers
    c'  = c + W (x̄ of what goes)                          the bias compensation

The paper shares out one threshold on Ŝ over all layers (`allocated`), or cuts every layer alike (`flap_bias` at the width
given). The bias is exact for a linear reader. A convolution that pads reads zeros beyond the border, where the constant
is not exact; it is put into the BatchNorm behind it all the same, as without it this would not be FLAP.

Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024, arXiv:2312.11983.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from baselines.units import Choice, Units, selected, top

__all__ = ["allocated", "flap_bias", "fluctuation", "standardised"]


def fluctuation(units: Units) -> Tensor:
    """S, summed over the readers, (n,)."""
    parts = [
        seen.covariance.diagonal() * (seen.count / max(seen.count - 1, 1)) * W.square().sum(0)
        for W, seen in zip(units.readers, units.observed(), strict=True)
    ]
    return sum(parts[1:], parts[0])


def standardised(score: Tensor) -> Tensor:
    """(S − mean)/std over the units of a layer, (n,); zeros where all are alike.

    Example:
        >>> standardised(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [-1.0, 0.0, 1.0]
    """
    gap = score - score.mean()
    deviation = score.std() if score.numel() > 1 else score.new_zeros(())
    return gap / deviation if float(deviation) > 0 else torch.zeros_like(score)


def flap_bias(units: Units, k: int, generator: Generator | None = None) -> Choice:
    """The k units of largest fluctuation; the others' means become constants."""
    kept = top(fluctuation(units), k)
    gone = torch.ones(units.count, dtype=torch.bool)
    gone[kept] = False
    return selected(units, kept, offsets=[torch.where(gone, seen.mean, 0.0) for seen in units.observed()])


def allocated(
    scores: Mapping[str, Tensor], parameters: Callable[[Mapping[str, int]], int], limit: int
) -> dict[str, int]:
    """Units kept by site, when the lowest Ŝ of all sites go first until the network is small enough.

    Args:
        scores: S by site. parameters: of the network, by the units kept. limit: parameters it may have.

    Returns:
        Widths, the widest of this order that do not exceed the limit; a site keeps one unit at least.

    Example:
        >>> scores = {"a": torch.tensor([1.0, 2.0, 9.0]), "b": torch.tensor([5.0, 6.0, 7.0])}
        >>> allocated(scores, lambda kept: 10 * kept["a"] + 10 * kept["b"], 30)
        {'a': 1, 'b': 2}
    """
    names = list(scores)
    flat = torch.cat([standardised(scores[name]) for name in names])
    owner = torch.cat([torch.full((scores[name].numel(),), i) for i, name in enumerate(names)])
    order = torch.argsort(flat, stable=True).tolist()

    def kept(removed: int) -> dict[str, int]:
        left = {name: scores[name].numel() for name in names}
        for unit in order[:removed]:
            name = names[int(owner[unit])]
            left[name] = max(1, left[name] - 1)
        return left

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if parameters(kept(middle)) <= limit else (middle + 1, high)
    return kept(low)
