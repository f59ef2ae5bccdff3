"""Time of two calls in turns, so that what else the machine does falls on both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["FEWEST", "Latency", "timed"]

FEWEST, MOST = 5, 200  # runs of each network


@dataclass(frozen=True)
class Latency:
    """Time of a call, in seconds.

    Attributes:
        before, after: medians. before_quartiles, after_quartiles: first and third.
        runs: of each network, in turns. threads: of torch. device: type of device.
    """

    before: float
    after: float
    before_quartiles: tuple[float, float]
    after_quartiles: tuple[float, float]
    runs: int
    threads: int
    device: str

    @property
    def speedup(self) -> float:
        """Before / after."""
        return self.before / self.after


def timed(
    before: Callable[[], Any],
    after: Callable[[], Any],
    device: torch.device,
    seconds: float,
    fewest: int = FEWEST,
    prepare: Callable[[], Any] | None = None,
) -> Latency:
    """Time both.

    Args:
        before: a call of the dense network. after: one of the small network.
        device: that they run on, and that is waited for. seconds: to spend.
        fewest: runs of each, however long they take; they are 200 at most.
        prepare: is done before each run, and takes no time.
    """
    times: tuple[list[float], list[float]] = ([], [])
    calls = (before, after)
    for call in (*calls, *calls):  # the first calls pay for what is set up once
        if prepare:
            prepare()
        call()
    end = time.perf_counter() + seconds
    while len(times[0]) < fewest or (time.perf_counter() < end and len(times[0]) < MOST):
        for call, taken in zip(calls, times, strict=True):
            if prepare:
                prepare()
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            taken.append(time.perf_counter() - start)
    (a, x, b), (c, y, d) = (statistics.quantiles(taken, n=4, method="inclusive") for taken in times)
    return Latency(x, y, (a, b), (c, d), len(times[0]), torch.get_num_threads(), device.type)


def _wait(device: torch.device) -> None:
    """For the device to have done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
