"""Training many small networks of one shape side by side, on the same batches in the same order.

All networks of a fit see the same pictures, so that what differs is where they start and what they are trained for.
Their weights are stacked and run by `torch.func.vmap`, which takes a fraction of the time of one after the other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from paper.pictures import moved

__all__ = ["LOSSES", "Pupil", "Schedule", "fit", "losses_of"]

WARM = 0.02  # share of the steps in which the rate rises


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: Adam, a rate that rises for 2 % of the steps and falls to zero along a cosine.

    Attributes:
        epochs: passes over the pictures. rate: the highest learning rate. batch: pictures of a step.
        pictures: how they are changed anew in every epoch, see `paper.pictures.moved`.
    """

    epochs: int
    rate: float
    pictures: str = "as they are"
    batch: int = 256


@dataclass(frozen=True)
class Pupil:
    """A network to train. `model` is not changed; `loss` is one of LOSSES."""

    model: nn.Module
    loss: str


def _labels(out: Tensor, taught: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), y.repeat(len(out)), reduction="none").view(out.shape[:2])


def _smoothed(out: Tensor, taught: Tensor, y: Tensor) -> Tensor:
    flat = F.cross_entropy(out.flatten(0, 1), y.repeat(len(out)), reduction="none", label_smoothing=0.1)
    return flat.view(out.shape[:2])


def _softened(temperature: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """T² KL(softmax(t/T) ‖ softmax(o/T)), Hinton et al. 2015, arXiv:1503.02531, equation 1."""

    def loss(out: Tensor, taught: Tensor, y: Tensor) -> Tensor:
        target = F.log_softmax(taught / temperature, -1).expand_as(out)
        gap = F.kl_div(F.log_softmax(out / temperature, -1), target, log_target=True, reduction="none")
        return temperature**2 * gap.sum(-1)

    return loss


def _half(first: Callable[..., Tensor], second: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda out, taught, y: 0.5 * first(out, taught, y) + 0.5 * second(out, taught, y)


#: name → (outputs (M, B, C), the teacher's outputs (B, C), labels (B,)) → losses (M, B)
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "labels": _labels,
    "labels, smoothed": _smoothed,
    "distilled": _softened(4.0),
    "distilled and labels": _half(_softened(4.0), _labels),
}


def losses_of(out: Tensor, taught: Tensor | None, y: Tensor, names: Sequence[str]) -> Tensor:
    """Mean loss of each network, (M,).

    Args:
        out: (M, B, C). taught: (B, C), or None where no loss asks for it. y: (B,). names: of the losses, M.
    """
    result = out.new_zeros(len(names))
    for name in dict.fromkeys(names):
        at = torch.tensor([i for i, other in enumerate(names) if other == name])
        result = result.index_add(0, at, LOSSES[name](out[at], taught, y).mean(1))
    return result


def fit(
    pupils: Sequence[Pupil], teacher: nn.Module | None, x: Tensor, y: Tensor, how: Schedule, generator: Generator
) -> list[nn.Module]:
    """Trained copies of the networks.

    Args:
        pupils: networks of one shape. teacher: whose outputs they learn, if a loss asks for them.
        x: (N, 784) in [0, 1]. y: (N,). how: the schedule. generator: of the order and of how pictures are moved.

    Returns:
        One network for each pupil, each as if trained alone, but for rounding.
    """
    names = [pupil.loss for pupil in pupils]
    models = [copy.deepcopy(pupil.model).eval() for pupil in pupils]
    base, (stacked, buffers) = models[0], stack_module_state(models)
    assert not buffers
    weights = {name: value.detach().clone().requires_grad_() for name, value in stacked.items()}
    run = vmap(lambda own, batch: functional_call(base, own, (batch,)), in_dims=(0, None))
    steps = len(x) // how.batch * how.epochs
    adam = torch.optim.Adam(list(weights.values()), lr=how.rate, fused=True)
    pace = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _pace(step, steps))
    for _ in range(how.epochs):
        seen = moved(x, how.pictures, generator)
        taught = _outputs(teacher, seen) if teacher is not None else None
        for rows in torch.randperm(len(x), generator=generator).split(how.batch)[: len(x) // how.batch]:
            out = run(weights, seen[rows])
            adam.zero_grad()
            losses_of(out, None if taught is None else taught[rows], y[rows], names).sum().backward()
            adam.step()
            pace.step()
    for i, model in enumerate(models):
        model.load_state_dict({name: value[i].detach() for name, value in weights.items()})
    return models


def _pace(step: int, steps: int) -> float:
    """The share of the highest rate at a step."""
    return min(1.0, (step + 1) / (WARM * steps + 1)) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(2000)])
