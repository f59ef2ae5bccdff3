"""The networks that PyTorch tests its own pruning with."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn

from zoo.families import lively
from zoo.handmade import Net


def _net(name: str, shape: tuple[int, ...], note: str, *sizes: int) -> Net:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return lively(getattr(import_module("torch.testing._internal.common_pruning"), name)(*sizes))

    def inputs() -> tuple[Tensor]:
        return (torch.randn(*shape, generator=torch.Generator().manual_seed(1)),)

    made: Callable[[], nn.Module] = make
    return Net(name, made, inputs, note)


ROW, IMAGE, SEQUENCE = (4, 7), (2, 1, 16, 16), (5, 2, 6)

TABLE = (
    _net("SimpleLinear", ROW, "four sites, no biases, no activation"),
    _net("LinearBias", ROW, "four sites"),
    _net("LinearActivation", ROW, "four sites"),
    _net("LinearActivationFunctional", ROW, "five sites; the last activation is on the output"),
    _net("SimpleConv2d", IMAGE, "three sites"),
    _net("Conv2dBias", IMAGE, "four sites"),
    _net("Conv2dActivation", IMAGE, "four sites"),
    _net("Conv2dPadBias", IMAGE, "six sites, padded"),
    _net("Conv2dPool", IMAGE, "four sites; the pools pad"),
    _net("Conv2dPoolFlatten", IMAGE, "four sites; a channel of the last convolution is 4 columns of the Linear"),
    _net("Conv2dPoolFlattenFunctional", IMAGE, "four sites"),
    _net("LSTMLinearModel", SEQUENCE, "none: the LSTM's output is an output", 6, 8, 4, 2),
    _net("LSTMLayerNormLinearModel", SEQUENCE, "none: the LSTM's state is an output", 6, 8, 4, 2),
)
