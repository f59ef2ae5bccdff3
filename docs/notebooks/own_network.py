"""A network of one's own: train it, cut it, measure it, keep it. ``python own_network.py`` takes a minute.

The cells are in the percent format, which Jupyter (with jupytext), VS Code and Spyder open as a notebook.
"""

# %% [markdown]
# # A network of one's own
# Four shapes in noise, and a small convolutional network that tells them apart.

# %%
import torch
from torch import Tensor, nn
from torch.nn import functional

import coreprune as cp

torch.manual_seed(0)


def batch(count: int) -> tuple[Tensor, Tensor]:
    """Pictures of a square, two bars or an angle, (count, 1, 16, 16), and which it is."""
    kinds, pictures = torch.randint(0, 4, (count,)), torch.zeros(count, 1, 16, 16)
    for picture, kind in zip(pictures, kinds.tolist(), strict=True):
        top, left = torch.randint(2, 9, (2,)).tolist()
        if kind == 0:
            picture[0, top : top + 5, left : left + 5] = 1
        if kind in {1, 3}:
            picture[0, top : top + 5, left] = 1
        if kind in {2, 3}:
            picture[0, top + 4, left : left + 5] = 1
    return pictures + 0.4 * torch.randn_like(pictures), kinds


def make() -> nn.Sequential:
    """The architecture."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 4),
    )  # fmt: skip


# %%
net = make()
optimiser = torch.optim.Adam(net.parameters(), 2e-3)
for _ in range(150):
    pictures, kinds = batch(64)
    optimiser.zero_grad()
    functional.cross_entropy(net(pictures), kinds).backward()
    optimiser.step()
net.eval()
pictures, kinds = batch(1000)


def accuracy(model: nn.Module) -> float:
    """Share of the test pictures that are told rightly."""
    with torch.no_grad():
        return float((model(pictures).argmax(1) == kinds).double().mean())


print(f"dense: {accuracy(net):.3f}")

# %% [markdown]
# ## Look
# One batch as the network takes it; its values do not matter.

# %%
example = torch.zeros(2, 1, 16, 16)
print(cp.inspect(net, example))

# %% [markdown]
# ## Cut
# No picture enters. The prior is matched to what the BatchNorms remember.

# %%
for share in (0.25, 0.5, 0.75):
    small = cp.prune(net, example, remove={"*": share})
    print(f"{share:.0%} of the units of every site: {small!r}, accuracy {accuracy(small.model):.3f}")

# %% [markdown]
# ## Keep

# %%
print(small)
small.save("small")
again = cp.load("small", make).eval()
assert torch.equal(again(pictures), small.model.eval()(pictures))
small.report("report.html", dense=net)
