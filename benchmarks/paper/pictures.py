"""MNIST for these experiments: a part of the training pictures held out to choose on, and small movements of pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from datasets import images

__all__ = ["HELD_OUT", "Pictures", "held_out", "mnist", "moved"]

HELD_OUT, SPLIT_SEED = 5_000, 1907


@dataclass(frozen=True)
class Pictures:
    """Pictures to learn from, and others to measure on: x (N, 784) in [0, 1] and y (N,)."""

    x: Tensor
    y: Tensor
    x_measure: Tensor
    y_measure: Tensor


def mnist(data: Path) -> Pictures:
    """All 60,000 training pictures, and the 10,000 test pictures to measure on."""
    return Pictures(*images("mnist", "train", data), *images("mnist", "t10k", data))


def held_out(data: Path) -> Pictures:
    """55,000 of the training pictures, and the other 5,000 to choose on; the test pictures are not read."""
    x, y = images("mnist", "train", data)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SPLIT_SEED))
    away, learn = order[:HELD_OUT], order[HELD_OUT:]
    return Pictures(x[learn], y[learn], x[away], y[away])


def moved(x: Tensor, how: str, generator: Generator) -> Tensor:
    """The pictures as an epoch sees them, (N, 784).

    Args:
        x: (N, 784), 28 × 28. generator: of the movements.
        how: "as they are"; "shifted": by −1, 0 or 1 pixels in either direction; "turned": turned by up to 10°,
            stretched and sheared by up to 10 %, shifted by up to 2 pixels, each drawn evenly.

    Example:
        >>> x = torch.eye(784)[14 * 28 + 14][None]
        >>> at = moved(x, "shifted", torch.Generator().manual_seed(0)).argmax().item()
        >>> abs(at // 28 - 14) <= 1 and abs(at % 28 - 14) <= 1
        True
    """
    if how == "as they are":
        return x
    pictures = x.view(-1, 28, 28)
    if how == "shifted":
        return _shifted(pictures, 1, generator).view(len(x), -1)
    if how == "turned":
        matrices = _affine(len(x), generator)
        parts = [_resampled(a, b) for a, b in zip(pictures.split(5000), matrices.split(5000), strict=True)]
        return torch.cat(parts).view(len(x), -1)
    raise ValueError(f"no movement {how!r}")


def _shifted(pictures: Tensor, reach: int, generator: Generator) -> Tensor:
    side = 2 * reach + 1
    padded = F.pad(pictures, (reach,) * 4)
    way = torch.randint(0, side**2, (len(pictures),), generator=generator)
    result = torch.empty_like(pictures)
    for one in range(side**2):
        down, right = divmod(one, side)
        rows = (way == one).nonzero()[:, 0]
        result[rows] = padded[rows, down : down + 28, right : right + 28]
    return result


def _affine(count: int, generator: Generator) -> Tensor:
    """Matrices of `affine_grid`, (N, 2, 3)."""

    def drawn(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator) - 1

    angle, scale, shear = math.radians(10) * drawn(count), 1 + 0.1 * drawn(count, 2), 0.1 * drawn(count)
    shift = drawn(count, 2) * 2 / 14  # the picture spans [−1, 1], a pixel is 1/14
    cos, sin = angle.cos(), angle.sin()
    first = torch.stack([cos * scale[:, 0], shear - sin * scale[:, 1], shift[:, 0]], 1)
    second = torch.stack([sin * scale[:, 0], cos * scale[:, 1], shift[:, 1]], 1)
    return torch.stack([first, second], 1)


def _resampled(pictures: Tensor, matrices: Tensor) -> Tensor:
    grid = F.affine_grid(matrices, [len(pictures), 1, 28, 28], align_corners=False)
    return F.grid_sample(pictures[:, None], grid, align_corners=False)[:, 0]
