"""LeNet-300-100 on Fashion-MNIST as the authors of neuron merging and LBYL trained theirs, to check their methods on it.

Pixels in [−1, 1], SGD with rate 0.1, momentum 0.9 and weight decay 5·10⁻⁴, batches of 128: the settings of their published
code. Shortened from 200 epochs to 40, with the rate divided by ten at one half and at three quarters. Weight decay is what
makes small norms mean little: networks trained without it lose far more to every method that looks at norms.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from coreprune.demo import architecture
from datasets import images

__all__ = ["scaled", "trained_by_sgd"]

EPOCHS, BATCH, RATE, MOMENTUM, DECAY = 40, 128, 0.1, 0.9, 5e-4
_CACHE = Path(__file__).parents[1] / "cache"


def scaled(x: Tensor) -> Tensor:
    """Pixels of [0, 1] in [−1, 1]."""
    return 2 * x - 1


def trained_by_sgd(seed: int, data: Path) -> nn.Module:
    """A trained network from the cache, or trained now; `seed` decides initialisation and order."""
    file = _CACHE / f"fashion-mnist-sgd-{seed}.safetensors"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        x, y = images("fashion-mnist", "train", data)
        save_file(_train(scaled(x), y, seed).state_dict(), file)
    model = architecture()
    model.load_state_dict(load_file(file))
    return model.eval()


def _train(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture()
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [EPOCHS // 2, EPOCHS * 3 // 4], 0.1)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x), generator=order).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
        schedule.step()
    return model
