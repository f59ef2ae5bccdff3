"""Run the parts in order: `PYTHONPATH=benchmarks python -m paper [--only PART …] [--seeds 5] [--data FOLDER]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from datasets import add_data_option
from paper import figures
from paper.ancestor import compare
from paper.choice import choose
from paper.cifar10 import cut_cifar10
from paper.curve import draw_curve
from paper.lenet5 import cut_lenet5
from paper.recovery import recover
from paper.vgg import cut_vgg

#: name → part; a new one is one row
PARTS: dict[str, Callable[[argparse.Namespace], object]] = {
    "choice": lambda args: choose(args.data),
    "recovery": lambda args: recover(choose(args.data), args.seeds, args.data),
    "edges": lambda args: compare(args.seeds, args.data),
    "curve": lambda args: draw_curve(choose(args.data), args.seeds, args.data),
    "lenet5": lambda args: cut_lenet5(min(args.seeds, 3), args.data),
    "cifar10": lambda args: cut_cifar10(args.data),
    "vgg": lambda args: cut_vgg(args.data),
}
#: part → its figure
FIGURES = {"recovery": figures.draw_recovery, "edges": figures.draw_edges, "curve": figures.draw_curve}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="paper", description=__doc__)
    add_data_option(parser)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for part in args.only:
        PARTS[part](args)
        if part in FIGURES:
            FIGURES[part]()


if __name__ == "__main__":
    main()
