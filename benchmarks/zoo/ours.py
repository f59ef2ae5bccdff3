"""coreprune on torchvision's classification networks, or timm's: half of the units of every site, without data.

    python benchmarks/zoo/ours.py [MODEL …] [--timm] [--limit 120] [--missing]

`prune` raises unless the smaller network equals the original with its removed units replaced as planned: a row whose
status is "ok" has passed that check too; its time is in the seconds. Writes zoo-coreprune.json, or zoo-coreprune-timm.json.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import measure
from torch import Tensor, nn

import coreprune as cp
from coreprune.errors import UnsupportedModelError

RATIO = 0.5


def cut(model: nn.Module, x: Tensor) -> nn.Module:
    """Prune a copy; what a module's own code fixes, as a number of heads, is left whole, as the error then advises."""
    try:
        return cp.prune(model, x, remove={"*": RATIO}).model
    except UnsupportedModelError as error:
        if not error.ignore:
            raise
        return cp.prune(model, x, remove={"*": RATIO}, ignore=error.ignore).model


def describe(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """How many sites there are, and how often each reason for a refusal was given."""
    found = cp.inspect(model, x)
    return {
        "sites": len(found.sites),
        "refused": dict(Counter(refusal.reason for refusal in found.refused).most_common()),
    }


if __name__ == "__main__":
    measure.main("coreprune", "coreprune", __file__, cut, describe)
