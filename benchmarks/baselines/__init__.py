"""Published ways to remove units, written anew from their formulas, all behind one signature.

A baseline is a function (units, k, generator) → choice of one site's tensors alone (`baselines.units`), free of what the
network is; `baselines.cutting` takes a choice to the network by coreprune's own surgery, so that nothing else differs.
`baselines.slicegpt` narrows the residual stream instead, and is a function of the whole network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator

from baselines.flap import flap_bias
from baselines.folding import fold, fold_ar
from baselines.grail import grail_greedy, grail_wanda
from baselines.lbyl import lbyl_l2
from baselines.magnitude import largest_l1, largest_l2, largest_product, uniform
from baselines.merging import neuron_merging
from baselines.slicing import pca_slicing
from baselines.units import Choice, Units
from baselines.wanda import wanda_sp

__all__ = ["METHODS", "Baseline"]


@dataclass(frozen=True)
class Baseline:
    """A named method.

    Attributes:
        choose: (units, k, generator) → choice.
        source: where its formulas are from.
        data: whether it needs moments of real inputs. random: whether it needs the generator.
    """

    choose: Callable[[Units, int, Generator], Choice]
    source: str
    data: bool = False
    random: bool = False


#: label → method; a new one is one function and one row
METHODS: dict[str, Baseline] = {
    "uniform": Baseline(uniform, "a draw", random=True),
    "largest L1 norms": Baseline(largest_l1, "Li et al. 2017"),
    "largest L2 norms": Baseline(largest_l2, "Li et al. 2017"),
    "largest norm products": Baseline(largest_product, "writer × reader, BatchNorm folded"),
    "folding": Baseline(fold, "Wang et al. 2025, without repair", random=True),
    "folding, Fold-AR": Baseline(fold_ar, "Wang et al. 2025, arXiv:2502.10216", random=True),
    "neuron merging": Baseline(neuron_merging, "Kim et al. 2020, arXiv:2010.13160"),
    "LBYL": Baseline(lbyl_l2, "Lee et al. 2025, arXiv:2502.08474"),
    "Wanda-sp": Baseline(wanda_sp, "Sun et al. 2024; An et al. 2024", data=True),
    "FLAP": Baseline(flap_bias, "An et al. 2024, arXiv:2312.11983, one fraction for all layers", data=True),
    "PCA slicing": Baseline(pca_slicing, "SliceGPT's PCA in unit coordinates, arXiv:2401.15024", data=True),
    "GRAIL, Wanda": Baseline(grail_wanda, "Tang et al. 2026, arXiv:2602.23795", data=True),
    "GRAIL, greedy": Baseline(grail_greedy, "the same refit of the best greedy selection", data=True),
}
