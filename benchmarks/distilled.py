"""A language model that was cut and then trained, for about two CPU hours, to agree with the dense one: no data at all.

    python benchmarks/distilled.py [--data FOLDER] [--remove SHARE] [--steps N]

SmolLM2-135M-Instruct loses the same share of the units of every FFN by the default of `coreprune.prune`, then
`coreprune.distill` trains the rest at its default rate on text that comes with the package and text that the dense
network writes itself. Nothing was tried beforehand: rate and batch are the defaults. Perplexity is of the first 8,192
tokens of news and of adventure (Brown ca*, cn*), before and after.

A run that is stopped goes on where it was. Writes distilled.json into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import shutil
import time
from typing import Any

import torch

import coreprune as cp
from cases import NETWORKS, Bench
from datasets import add_data_option
from networks import CACHE
from records import results, write_record

#: tokens that the dense network writes to be trained on, beside half as many that come with the package
OWN = 131_072
PRIOR = cp.Mixture({cp.Text(length=128): 1, cp.Generated(tokens=OWN, starts="openings"): 2})


class Clock:
    """Prints how far a run is, and adds up its CPU seconds over stops."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, done: int, total: int, name: str) -> None:
        """One step more."""
        if time.monotonic() - self.last > 60:
            self.last = time.monotonic()
            print(f"{name}: {done:,} of {total:,} after {time.process_time():.0f} s CPU", flush=True)


def cut(bench: Bench, share: float) -> cp.Pruned:
    """The network with this share of every FFN's units gone; the plan is kept."""
    place = CACHE / f"distilled-{share:g}.plan"
    if place.exists():
        return cp.apply(bench.model, cp.Plan.load(place), bench.example)
    small = cp.prune(bench.model, bench.example, kinds=["gated"], remove={"*": share}, uniform="config")
    small.plan.save(place)
    return small


def figures(bench: Bench, network: Any) -> dict[str, float]:
    """Perplexities of a network."""
    assert bench.study is not None
    return {"news": bench.measure(network), "adventure": bench.study(network)}


def main() -> None:
    """Cut, train, measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--remove", type=float, default=0.2, help="share of every FFN's units (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=340, help="of training, 8 x 128 tokens each (default: %(default)s)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = NETWORKS["smollm2"].load(args.data)
    small = cut(bench, args.remove)
    row: dict[str, Any] = {"dense": figures(bench, bench.model), "cut": figures(bench, small.model)}
    row |= {"removed": 1 - small.parameters / small.dense_parameters, "prior of the cut": small.plan.recipe["prior"]}
    print(row, flush=True)
    state, start = CACHE / f"distilled-{args.remove:g}-{args.steps}.state", time.process_time()
    better = cp.distill(small, bench.model, prior=PRIOR, steps=args.steps, keep=state, progress=Clock())
    row |= {"seconds": time.process_time() - start, "trained": figures(bench, better.model)}
    row |= {"distilled": better.plan.recipe["distilled"]}
    write_record("distilled", {"network": bench.name, **row})
    shutil.rmtree(state, ignore_errors=True)
    print((results() / "distilled.json").read_text(), flush=True)


if __name__ == "__main__":
    main()
