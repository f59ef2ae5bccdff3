"""Run the parts in order: `PYTHONPATH=benchmarks python -m paper [--only PART …] [--seeds 5] [--data FOLDER]`."""

from __future__ import annotations

import argparse

import torch

from datasets import add_data_option
from paper.choice import choose

#: name → part; a new one is one row
PARTS = {"choice": lambda args: choose(args.data)}


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


if __name__ == "__main__":
    main()
