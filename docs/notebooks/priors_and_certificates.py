"""How the prior and the width decide the error, and what is proved of it. ``python priors_and_certificates.py``

The cells are in the percent format, which Jupyter (with jupytext), VS Code and Spyder open as a notebook.
"""

# %% [markdown]
# # Priors and certificates
# The LeNet-300-100 that the package ships, and the test images that come with it, to measure with.

# %%
from torch import nn

import coreprune as cp
import coreprune.demo

net = coreprune.demo.lenet()
images, labels = coreprune.demo.test_images()


def error(model: nn.Module) -> float:
    """Share of the images that are told wrongly, in %."""
    return 100 * float((model(images).argmax(1) != labels).double().mean())


print(f"dense: {error(net):.2f} %")

# %% [markdown]
# ## The spread of the inputs
# Pixels in [0, 1] spread by 1/2 at most. The further the prior is from that, the worse the choice of units.

# %%
for std in (0.1, 0.5, 2.0):
    small = cp.prune(net, units={"0": 60, "2": 20}, prior=cp.Gaussian(std=std))
    print(f"std {std}: {error(small.model):.2f} %")

# %% [markdown]
# ## Methods, at the same widths

# %%
for method in ("magnitude", "sampling", "kernel", "refined"):
    small = cp.prune(net, units={"0": 60, "2": 20}, prior=cp.Gaussian(std=0.5), method=method)
    print(f"{method}: {error(small.model):.2f} %")

# %% [markdown]
# ## What is proved, and what is measured

# %%
small = cp.prune(net, units={"0": 150, "2": 50}, prior=cp.Gaussian(std=0.5))
print(cp.verify(net, small, prior=cp.Gaussian(std=0.5), radius=10))
