"""The dense networks of these experiments: those of benchmarks/lenet.py, and two that never saw the pictures held out."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coreprune.demo import architecture
from paper.training import Pupil, Schedule, fit
from train_lenet import train

__all__ = ["ON", "trained_on", "without_held_out"]

CACHE = Path(__file__).parents[1] / "cache"
ON = (20, 2e-3)  # epochs and rate of training dense networks on


def without_held_out(seed: int, x: Tensor, y: Tensor) -> nn.Module:
    """LeNet-300-100 trained on the pictures given only, from the cache or now; schedules are chosen with it.

    Args:
        seed: of initialisation and order. x, y: 55,000 of the training pictures.
    """
    file = CACHE / f"mnist-without-held-out-{seed}.safetensors"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        save_file(train(x, y, seed=seed).state_dict(), file)
    model = architecture()
    model.load_state_dict(load_file(file))
    return model.eval()


def trained_on(dense: nn.Module, pictures: str, seed: int, x: Tensor, y: Tensor, name: str) -> nn.Module:
    """The dense network after further epochs on labels, from the cache or now.

    Args:
        dense: not changed. pictures: how they are moved. seed: of the order. x, y: pictures. name: of its file.
    """
    file = CACHE / f"mnist-{name}-{pictures.replace(' ', '-')}-{ON[0]}-{ON[1]}-{seed}.safetensors"
    if not file.exists():
        generator = torch.Generator().manual_seed(seed)
        (found,) = fit([Pupil(dense, "labels")], None, x, y, Schedule(*ON, pictures), generator)
        save_file(found.state_dict(), file)
    model = architecture()
    model.load_state_dict(load_file(file))
    return model.eval()
