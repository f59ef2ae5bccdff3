"""Wanda-sp: weight times activation, summed to one number for each unit of the reader's input. Calibrated.

    score_j = Σ_i |W_ij| ‖x_j‖₂,    ‖x_j‖₂² = N·E x_j²

over the N samples. Nothing is compensated. Where a convolution reads, i runs over outputs and kernel positions. The
published code cuts block after block and measures the next block in the cut network; here all moments are of the dense
network, as for every calibrated method of this table.

Sources: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, for the weights; An
et al., "Fluctuation-based Adaptive Structured Pruning", AAAI 2024, for its structured form.
"""

from __future__ import annotations

from torch import Generator, Tensor

from baselines.units import Choice, Units, selected, top

__all__ = ["scores", "wanda_sp"]


def scores(units: Units) -> Tensor:
    """Σ_i |W_ij| ‖x_j‖₂, summed over the readers, (n,)."""
    parts = [
        W.abs().sum(0) * (seen.count * seen.second.diagonal().clamp(min=0)).sqrt()
        for W, seen in zip(units.readers, units.observed(), strict=True)
    ]
    return sum(parts[1:], parts[0])


def wanda_sp(units: Units, k: int, generator: Generator | None = None) -> Choice:
    """The k units of largest score."""
    return selected(units, top(scores(units), k))
