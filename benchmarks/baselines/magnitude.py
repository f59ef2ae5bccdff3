"""Weights alone, and nothing is compensated: norms of the writer's rows, of rows and readers, or a draw.

Sources: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (the L1 norm of filters); the product of what
writes and what reads a unit is the group magnitude of Fang et al., "DepGraph", CVPR 2023, for one site.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from baselines.units import Choice, Units, selected, top

__all__ = ["largest_l1", "largest_l2", "largest_product", "norms", "uniform"]


def norms(units: Units, order: int) -> Tensor:
    """‖(row j, b_j)‖ of the writer as it is stored, BatchNorm left out as in the papers, (n,)."""
    result: Tensor = torch.linalg.vector_norm(torch.cat([units.rows, units.bias], 1), order, dim=1)
    return result


def largest_l1(units: Units, k: int, generator: Generator | None = None) -> Choice:
    """The k rows of largest L1 norm."""
    return selected(units, top(norms(units, 1), k))


def largest_l2(units: Units, k: int, generator: Generator | None = None) -> Choice:
    """The k rows of largest L2 norm."""
    return selected(units, top(norms(units, 2), k))


def largest_product(units: Units, k: int, generator: Generator | None = None) -> Choice:
    """The k largest ‖p_j‖·‖W_·j‖, with the BatchNorm folded into p_j: free of how a unit's scale is split."""
    return selected(units, top(units.points.norm(dim=1) * units.columns.norm(dim=1), k))


def uniform(units: Units, k: int, generator: Generator) -> Choice:
    """K units drawn evenly without replacement."""
    return selected(units, torch.randperm(units.count, generator=generator)[:k].sort().values)
