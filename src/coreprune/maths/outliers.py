"""Units that carry far more than all others: which they are, and paths that keep them before anything else.

Some units of trained transformers answer to a few tokens, such as the first of a text, with numbers that are thousands
of times those of any other unit. What follows is built on them: attention rests on the tokens where they are, and a
network without them predicts far worse. What unit j brings to its readers r is

    e_j = Σ_r E u_j² ‖W_r,:j‖² / Σ_i E u_i² ‖W_r,:i‖²,

in which E u² is taken about the mean where the reader has a constant, which holds the mean exactly. A unit is *massive*
if e_j is at least FACTOR times that of a typical one.

Source: Sun, Chen, Kolter & Liu 2024, arXiv:2402.17762, who call an activation massive whose magnitude is above 100 and
at least about 1,000 times the median of its hidden state. That is one number at one token. Here it is what a unit does
on average, and in the scale of its readers: a unit of 1,000 times the typical magnitude at one token in a thousand
has 1,000²/1,000 times the typical energy, which is FACTOR.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from coreprune.maths.reading import Reading
from coreprune.maths.select import Path

__all__ = ["FACTOR", "brought", "first_of", "massive"]

#: times what a typical unit brings, from which on a unit is massive
FACTOR = 1000.0
#: Of the units those that bring most are not typical, one in TRIMMED: the mean of the others is what a typical unit
#: brings. A median would be that of the dead units where more than half are dead, and make all that live massive.
TRIMMED = 20


def brought(readings: Sequence[Reading], units: int) -> Tensor:
    """What each unit brings to its readers, e, (n,), which sums up to the number of readers that get anything.

    Args:
        readings: at least one, of n units. units: n.

    Example:
        >>> G = torch.tensor([[3.0, 0.5], [0.5, 1.0]])
        >>> brought([Reading(torch.tensor([[1.0, 1.0]]), torch.zeros(2), G)], 2).tolist()
        [0.75, 0.25]
    """
    blocks = [reading.block for reading in readings]
    variances, squares = zip(*((reading.covariance.diagonal(), reading.squares) for reading in readings), strict=True)
    energies = (torch.cat(variances).double() * torch.cat(squares).double()).split([units * b for b in blocks])
    found = torch.stack(
        [e if b == 1 else e.reshape(units, b).sum(1) for e, b in zip(energies, blocks, strict=True)]
    ).cpu()
    return (found / found.sum(1, keepdim=True).clamp(min=1e-300)).sum(0)


def massive(energy: Tensor) -> Tensor:
    """The units that bring at least FACTOR times what a typical one brings, the largest first.

    Args:
        energy: e, not negative, (n,).

    Returns:
        Indices, int64; at most one in TRIMMED of the units, and one where there are fewer.

    Example:
        >>> massive(torch.tensor([1.0, 2000.0, 1.0, 3.0])).tolist(), massive(torch.tensor([1.0, 900.0, 1.0])).tolist()
        ([1], [])
    """
    few = -(-len(energy) // TRIMMED)
    if len(energy) <= few:
        return torch.zeros(0, dtype=torch.int64)
    known = energy.cpu().numpy()
    order = np.argsort(-known, kind="stable")
    typical, most = known[order[few:]].mean(), order[:few]
    return torch.from_numpy(most[(known[most] >= FACTOR * typical) & (typical > 0)])


def first_of(path: Path, units: int, keep: int, first: Tensor) -> Tensor:
    """The units that a path keeps at k = `keep` if some come before all others, (k,) ascending.

    Args:
        path: as far as it goes. units: n. keep: k.
        first: units that stay whatever the path says, those that matter most first; the first k if they are more.

    Example:
        >>> path = Path(torch.tensor([0, 2]), torch.tensor([2, 0, 1]), torch.zeros(3))
        >>> first_of(path, 4, 2, torch.tensor([3])).tolist()
        [2, 3]
    """
    ranked = path.order if path.added else torch.cat([path.kept, path.order.flip(0)])
    ranked = torch.cat([first, ranked, torch.arange(units, device=ranked.device)])
    seen: dict[int, None] = dict.fromkeys(ranked.tolist())
    return torch.tensor(list(seen)[:keep], dtype=torch.int64, device=ranked.device).sort().values
