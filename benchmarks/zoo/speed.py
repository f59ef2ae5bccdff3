"""Speed and memory of coreprune against Torch-Pruning, in one run, taking turns.

    python benchmarks/zoo/speed.py [--repeats 3] [--only coreprune]

Each call in a fresh process as in measure.py, the two tools alternating so that a change of the machine's load
meets both. Writes zoo-speed.json: per network and tool every repeat, the least and the median.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import measure

MODELS = ("resnet50", "vgg16", "densenet121")
TOOLS = {"coreprune": "ours.py", "torch-pruning": "rival.py"}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The least and the median of the repeats, and all of them."""
    return {"min": min(values), "median": median(values), "all": list(values)}


def main() -> None:
    """Every network, every repeat, both tools."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of each call (default: %(default)s)")
    parser.add_argument("--only", choices=sorted(TOOLS), help="one tool alone, without writing a record")
    args = parser.parse_args()
    tools = [args.only] if args.only else list(TOOLS)
    rows = []
    for name in MODELS:
        taken: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
        for turn in range(args.repeats):
            for tool in tools if turn % 2 == 0 else reversed(tools):
                row = measure.run(Path(__file__).with_name(TOOLS[tool]), name)
                if row["status"] != "ok":
                    raise SystemExit(f"{tool} on {name}: {measure.line(row)}")
                taken[tool].append(row)
        row = {"model": name}
        for tool, repeats in taken.items():
            seconds, extra = (spread([repeat[key] for repeat in repeats]) for key in ("seconds", "extra_mb"))
            row[tool] = {
                "seconds": seconds,
                "extra_mb": extra,
                "removed": 1 - repeats[0]["parameters_after"] / repeats[0]["parameters"],
                "load": max(repeat["load"] for repeat in repeats),
            }
            print(
                f"{name}, {tool}: {seconds['min']:.2f} s (median {seconds['median']:.2f}), "
                f"{extra['min']:.0f} MB extra (median {extra['median']:.0f}), load {row[tool]['load']}",
                flush=True,
            )
        rows.append(row)
    if not args.only:
        measure.save(
            "zoo-speed",
            ["torch-pruning", "torchvision"],
            {"repeats": args.repeats, "threads": measure.THREADS, "rows": rows},
        )


if __name__ == "__main__":
    main()
