"""What a network costs: numbers, bytes, multiply-adds of one input, and the time of one batch."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["cost", "latency"]

BATCH, RUNS = 256, 60


def cost(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Parameters, bytes, multiply-adds of one input, and median milliseconds of a batch of 256.

    Args:
        model: the network. x: inputs, 256 at least.

    Example:
        >>> found = cost(nn.Linear(8, 3), torch.zeros(256, 8))
        >>> found["parameters"], found["bytes"], found["multiply_adds"]
        (27, 108, 24)
    """
    parameters = list(model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x[:1])
    return {
        "parameters": sum(one.numel() for one in parameters),
        "bytes": sum(one.numel() * one.element_size() for one in parameters),
        "multiply_adds": int(counter.get_total_flops()) // 2,
        "milliseconds": latency(model, x),
    }


def latency(model: nn.Module, x: Tensor) -> float:
    """Median milliseconds of one pass over 256 inputs."""
    batch, times = x[:BATCH], []
    with torch.inference_mode():
        for _ in range(5):
            model(batch)
        for _ in range(RUNS):
            start = time.perf_counter()
            model(batch)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
