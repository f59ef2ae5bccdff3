"""A trained LeNet-300-100 and the MNIST test images, for the first command and for examples.

The network was trained by ``benchmarks/train_lenet.py``. MNIST is by Y. LeCun and C. Cortes, CC BY-SA 3.0;
only the test images are shipped, and only to measure: nothing in coreprune looks at them to decide.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from coreprune.errors import CheckpointError
from coreprune.io.checkpoint import read_tensors

__all__ = ["architecture", "lenet", "read_idx", "test_images"]

_DATA = Path(__file__).parent / "data"


def architecture() -> nn.Sequential:
    """An untrained LeNet-300-100: 784 pixels, 300 and 100 ReLU units, 10 classes.

    Example:
        >>> sum(parameter.numel() for parameter in architecture().parameters())
        266610
    """
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def lenet() -> nn.Sequential:
    """The trained LeNet-300-100 that the package ships; its inputs are pixels / 255, flattened.

    Example:
        >>> images, labels = test_images()
        >>> wrong = (lenet()(images).argmax(1) != labels).double().mean()
        >>> bool(wrong <= 0.0216)                       # the paper's dense network
        True
    """
    model = architecture()
    model.load_state_dict(read_tensors(_DATA / "lenet-300-100.safetensors"))
    return model


def test_images() -> tuple[Tensor, Tensor]:
    """The 10,000 MNIST test images as (10000, 784) in [0, 1], and their labels (10000,).

    Example:
        >>> images, labels = test_images()
        >>> images.shape, labels.shape
        (torch.Size([10000, 784]), torch.Size([10000]))
    """
    images = read_idx(_DATA / "t10k-images-idx3-ubyte.gz")
    return images.flatten(1).float() / 255, read_idx(_DATA / "t10k-labels-idx1-ubyte.gz").long()


def read_idx(path: str | Path) -> Tensor:
    """A gzipped IDX file of bytes as a uint8 tensor of its own shape.

    Raises:
        CheckpointError: not such a file.
    """
    try:
        with gzip.open(path) as stream:
            raw = stream.read()
    except (OSError, EOFError) as error:
        raise CheckpointError(f"cannot read {path} ({error}): it must be a gzipped IDX file") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise CheckpointError(f"{path} is not an IDX file of bytes: check the path")
    rank = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    body = raw[4 + 4 * rank :]
    if len(shape) != rank or len(body) != math.prod(shape) or not body:
        raise CheckpointError(f"{path} holds {len(body)} bytes and says {shape}: it is cut short, copy it again")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape)
