"""How tight the certificates are: LeNet-300-100's first layer cut to 150 and 100 units, worst case and mean square.

    python benchmarks/certificates.py [--seeds 3] [--data FOLDER]

For each training seed: the proved bound over the ball of radius 9.8 (the mean norm of MNIST images is
about 9.2), the error found by attack there, their ratio, also with the cut network stored as bfloat16; and
the errors on 10,000 test images, which are used to measure and for nothing else. Then the predicted
end-to-end error of both layers cut against the measured one. Writes certificates.json and certificates.md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch

import coreprune as cp
from datasets import add_data_option, images
from lenet import PRIOR, trained
from records import results, write_record

RADIUS = 9.8


def first_layer(model: torch.nn.Module, seed: int, keep: int, kind: torch.dtype, x: torch.Tensor) -> dict[str, Any]:
    """Certificate of the first site alone, and what real images do."""
    small = cp.prune(model, units={"0": keep}, prior=PRIOR, radius=RADIUS)
    small = replace(small, model=small.model.to(kind))
    start = time.perf_counter()
    site = cp.verify(model, small, prior=PRIOR, radius=RADIUS).sites[0]
    seconds = time.perf_counter() - start
    inside = x * (RADIUS / x.norm(dim=1, keepdim=True)).clamp(max=1)
    with torch.no_grad():
        gap = (model[:3](inside).double() - small.model[:3](inside.to(kind)).double()).abs()
    return {
        "seed": seed,
        "kept": keep,
        "dtype": str(kind).removeprefix("torch."),
        "upper": site.upper,
        "lower": site.lower,
        "ratio": site.ratio,
        "seconds": seconds,
        "largest_on_images": float(gap.max()),
        "rms_on_images": float(gap.square().mean().sqrt()),
        "rms_under_prior": site.relative_error * site.spread,
    }


def end_to_end(model: torch.nn.Module, seed: int, method: str, x: torch.Tensor) -> dict[str, Any]:
    """Predicted relative error of the outputs, on samples of the prior and on images."""
    small = cp.prune(model, units={"0": 150, "2": 50}, method=method, prior=PRIOR)
    sampled = cp.verify(model, small, worst=False)
    real = cp.verify(model, small, worst=False, inputs=x)
    return {
        "seed": seed,
        "method": method,
        "predicted": sampled.end_predicted,
        "on_prior": sampled.end_measured,
        "on_images": real.end_measured,
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    x, _ = images("mnist", "t10k", args.data)
    rows, ends = [], []
    for seed in range(args.seeds):
        model = trained("mnist", seed, args.data)
        for keep in (150, 100):
            for kind in (torch.float32, torch.bfloat16) if seed == 0 else (torch.float32,):
                rows.append(first_layer(model, seed, keep, kind, x))
                print(rows[-1], flush=True)
        ends += [end_to_end(model, seed, method, x) for method in ("kernel", "refined", "sampling", "magnitude")]
    write_record("certificates", {"radius": RADIUS, "first_layer": rows, "end_to_end": ends})
    text = [
        "| seed | kept | stored as | proved | found | ratio | largest on images | rms on images | s |",
        "|" + "---|" * 9,
    ]
    text += [
        f"| {r['seed']} | {r['kept']} | {r['dtype']} | {r['upper']:.1f} | {r['lower']:.1f} | {r['ratio']:.2f} "
        f"| {r['largest_on_images']:.2f} | {r['rms_on_images']:.2f} | {r['seconds']:.0f} |"
        for r in rows
    ]
    text += ["", "| seed | method | predicted | on the prior | on images |", "|---|---|---|---|---|"]
    text += [
        f"| {e['seed']} | {e['method']} | {e['predicted']:.1%} | {e['on_prior']:.1%} | {e['on_images']:.1%} |"
        for e in ends
    ]
    (results() / "certificates.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
