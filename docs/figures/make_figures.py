"""Make the figures of the documentation: ``python docs/figures/make_figures.py`` (needs the extra "bench").

coreset.svg: for the LeNet-300-100 that the package ships, under the prior x ~ N(0, 0.5²): the error
curve err(k) of both sites, and the correlations of the 300 units of the first one. Prints the points of the
curves that the documentation quotes.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

from coreprune import METHODS, Gaussian, inspect
from coreprune.demo import lenet
from coreprune.engine.local import Request, curves, layer_at
from coreprune.priors.gaussian import Propagation

mpl.use("svg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
PRIOR = Gaussian(std=0.5)
STYLE = {"font.size": 10, "svg.hashsalt": "coreprune", "axes.spines.top": False, "axes.spines.right": False}


def correlations() -> Tensor:
    """Correlations of the first site's units under the prior, (300, 300), sorted by the leading eigenvector."""
    model = lenet()
    found = inspect(model)
    radius = math.sqrt(found.features)
    layer = layer_at(found.sites[0], model.state_dict(), radius)
    G = Propagation(PRIOR.inputs(found.features, radius)).law(layer, layer).moments.covariance
    scale = G.diagonal().clamp(min=1e-300).rsqrt()
    R = G * scale[:, None] * scale
    order = torch.linalg.eigh(R).eigenvectors[:, -1].argsort()
    return R[order][:, order]


def main() -> None:
    """Write coreset.svg beside this file."""
    model = lenet()
    found = inspect(model)
    request = Request(METHODS["kernel"], PRIOR, math.sqrt(found.features), 0)
    errors = curves(model, found, model.state_dict(), request)
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for (name, error), colour in zip(errors.items(), ("#1f4e79", "#c55a11"), strict=True):
            n = error.numel() - 1
            label = f"site {name}, n = {n}"
            free = int((error < 1e-9).nonzero()[0])
            text = f"site {name}: √err(n/2) = {float(error[n // 2].sqrt()):.3f}, err(k) < 1e-9 from k = {free} of {n}\n"
            sys.stdout.write(text)
            left.semilogy(torch.arange(n) / n, error[:n].clamp(min=1e-9).sqrt(), color=colour, label=label)
        left.set(xlabel="units kept, k / n", ylabel="√err(k): relative error of what reads the site", ylim=(1e-3, 1.2))
        left.legend(frameon=False)
        left.grid(visible=True, alpha=0.3)
        drawn = right.imshow(correlations(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        right.set(title="correlations of the 300 units of site 0", xticks=[], yticks=[])
        figure.colorbar(drawn, ax=right, shrink=0.9)
        figure.savefig(HERE / "coreset.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
