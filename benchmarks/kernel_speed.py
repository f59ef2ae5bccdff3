"""Speed and memory of one kernel coreset, as ratios to the raw operations it cannot avoid.

    python benchmarks/kernel_speed.py [--large] [--profile]

One layer of n units, d inputs and p outputs in float32, 25 % and 75 % removed, from P, b, W to
the smaller P', b', W', c'. Against it, in the same run: one n×d×n product, one n×n Cholesky
factorisation, one p×n×k product. Peak memory is the resident set above that of the inputs, in n×n
matrices. Also LeNet-300-100 to 100-35 as a whole, after import. Writes kernel_speed.json.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import time
from typing import Any

import torch

import coreprune as cp
from coreprune.demo import lenet
from coreprune.maths.activation import activation
from coreprune.maths.gram import gaussian_moments
from coreprune.maths.kernel import kernel
from coreprune.maths.layer import Layer
from coreprune.maths.propagate import Law
from records import write_record

SIZES = ((1024, 256, 256), (2048, 512, 512), (4096, 1024, 1024))
LARGE = (11008, 4096, 4096)


def resident() -> int:
    """Largest resident set of this process so far, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def inputs(n: int, d: int, p: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """P, b, W with a spectrum that decays, as in trained layers."""
    generator = torch.Generator().manual_seed(0)
    shape = 1 / torch.arange(1, d + 1, dtype=torch.float32).sqrt()
    P = torch.randn(n, d, generator=generator) * shape
    return P, 0.1 * torch.randn(n, generator=generator), torch.randn(p, n, generator=generator) / n**0.5


def cut(P: torch.Tensor, b: torch.Tensor, W: torch.Tensor, keep: int) -> dict[str, float]:
    """The whole of a kernel cut under x ~ N(0, I), and the seconds of its parts."""
    phi = activation("relu")
    marks = [time.perf_counter()]
    covariance = P @ P.T
    marks.append(time.perf_counter())
    law = Law(gaussian_moments(phi, b, covariance))
    del covariance
    marks.append(time.perf_counter())
    coreset = kernel(Layer(P, b, W, phi, 1.0, law), keep)
    marks.append(time.perf_counter())
    S = coreset.indices
    assert coreset.outgoing(W).shape == (W.shape[0], P[S].shape[0])
    assert coreset.constant(W).shape == (W.shape[0],)
    marks.append(time.perf_counter())
    names = ("covariance of the pre-activations", "Mehler sum", "selection and T", "new readers")
    return {name: after - before for name, before, after in zip(names, marks, marks[1:], strict=False)}


def raw(P: torch.Tensor, W: torch.Tensor, keep: int) -> dict[str, float]:
    """Seconds of the three operations by themselves."""
    n = P.shape[0]
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    G = P @ P.T
    seconds["product n×d×n"] = time.perf_counter() - start
    G.diagonal().add_(G.diagonal().max())
    start = time.perf_counter()
    torch.linalg.cholesky(G)
    seconds["Cholesky n×n"] = time.perf_counter() - start
    T = G[:, :keep].contiguous()
    start = time.perf_counter()
    W @ T
    seconds["product p×n×k"] = time.perf_counter() - start
    assert T.shape == (n, keep)
    return seconds


def one(n: int, d: int, p: int, removed: float, profile: bool) -> dict[str, Any]:
    """Time and memory of one cut, and of the raw operations around it."""
    P, b, W = inputs(n, d, p)
    keep = n - int(n * removed)
    cut(*inputs(256, 64, 64), 128)  # lazily loaded code is not timed
    base = resident()
    before = raw(P[:64], W[:, :64], 32)
    start = time.perf_counter()
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    parts = cut(P, b, W, keep)
    profiler.disable()
    seconds = time.perf_counter() - start
    peak = (resident() - base) / (4 * n * n)
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(14)
    rounds = [raw(P, W, keep) for _ in range(2)]
    least = {name: min(r[name] for r in rounds) for name in before}
    total = sum(least.values())
    return {
        "n": n,
        "d": d,
        "p": p,
        "removed": removed,
        "seconds": seconds,
        "parts": parts,
        "raw_seconds": least,
        "ratio": seconds / total,
        "peak_matrices": peak,
    }


def whole_lenet() -> dict[str, float]:
    """LeNet-300-100 to 100-35 through the public interface."""
    model = lenet()
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        cp.prune(model, units={"0": 100, "2": 35}, prior=cp.Gaussian(std=0.5))
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "median": sorted(seconds)[3]}


def main() -> None:
    """Each size in a process of its own, so that peaks of memory do not mix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help=f"also {LARGE}, which takes minutes")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        n, d, p, removed = args.one.split(",")
        print(json.dumps(one(int(n), int(d), int(p), float(removed), args.profile)))
        return
    rows = []
    for size in (*SIZES, LARGE) if args.large else SIZES:
        for removed in (0.25, 0.75):
            command = [sys.executable, __file__, "--one", ",".join(map(str, (*size, removed)))]
            done = subprocess.run(
                [*command, *(["--profile"] if args.profile else [])],
                check=True,
                capture_output=True,
                text=True,
                env=dict(os.environ),
            )
            *report, line = done.stdout.strip().splitlines()
            print("\n".join(report), end="\n" if report else "")
            rows.append(json.loads(line))
            row = rows[-1]
            parts = ", ".join(f"{name} {s:.2f} s" for name, s in row["raw_seconds"].items())
            shares = ", ".join(f"{name} {s / row['seconds']:.0%}" for name, s in row["parts"].items())
            print(
                f"n={row['n']} d={row['d']} p={row['p']}, {removed:.0%} removed: {row['seconds']:.2f} s, "
                f"{row['ratio']:.2f} times the raw operations ({parts}), peak {row['peak_matrices']:.2f} n×n matrices\n  {shares}",
                flush=True,
            )
    whole = whole_lenet()
    print(f"LeNet-300-100 to 100-35: {whole['first']:.3f} s the first time, {whole['median']:.3f} s after that")
    write_record("kernel_speed", {"rows": rows, "lenet": whole})


if __name__ == "__main__":
    main()
