"""LeNet-300-100: every method, five training seeds, MNIST and Fashion-MNIST, without data and without fine-tuning.

    python benchmarks/lenet.py [--seeds 5] [--data FOLDER]

The networks are trained by train_lenet.py (cached in benchmarks/cache/). The prior is
x ~ N(0, 0.25 I) throughout: pixels lie in [0, 1], so their standard deviation is at most 1/2. Settings
of the methods were chosen on MNIST and are the same on Fashion-MNIST. `real data` is the kernel
method with moments of 10,000 training images, as the reference that data would give.
Writes lenet.json, lenet.md, lenet.svg and lenet.png into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import coreprune as cp
from coreprune.demo import architecture
from datasets import add_data_option, images
from records import results, write_record
from train_lenet import error, train

WIDTHS = {
    "mnist": ((150, 50), (100, 35), (60, 20), (30, 100)),
    "fashion-mnist": ((150, 50), (90, 30)),
}
PRIOR = cp.Gaussian(std=0.5)

#: label → (arguments of prune, whether it uses the training images)
METHODS: dict[str, tuple[dict[str, Any], bool]] = {
    "refined": ({"method": "refined", "prior": PRIOR}, False),
    "kernel": ({"method": "kernel", "prior": PRIOR}, False),
    "kernel, radii 1/2, 1, 2": ({"method": "kernel", "prior": cp.Gaussian(std=0.5, scales=(0.5, 1.0, 2.0))}, False),
    "kernel, std 1": ({"method": "kernel", "prior": cp.Gaussian(std=1.0)}, False),
    "sampling": ({"method": "sampling"}, False),
    "sampling, reweighted": ({"method": "sampling", "prior": PRIOR, "reweight": True}, False),
    "uniform": ({"method": "uniform"}, False),
    "magnitude": ({"method": "magnitude"}, False),
    "magnitude, reweighted": ({"method": "magnitude", "prior": PRIOR, "reweight": True}, False),
    "sensitivity": ({"method": "sensitivity"}, False),
    "folding": ({"method": "folding"}, False),
    "folding, reweighted": ({"method": "folding", "prior": PRIOR, "reweight": True}, False),
    "neuron merging": ({"method": "merging"}, False),
    "real data, kernel": ({"method": "kernel"}, True),
}
CURVE = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95)


def trained(name: str, seed: int, data: Path) -> nn.Module:
    """A trained network from the cache, or trained now."""
    file = Path(__file__).parent / "cache" / f"{name}-{seed}.safetensors"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        save_file(train(*images(name, "train", data), seed=seed).state_dict(), file)
    model = architecture()
    model.load_state_dict(load_file(file))
    return model


def table(name: str, networks: list[nn.Module], x: Tensor, y: Tensor, loader: list[Tensor]) -> list[dict[str, Any]]:
    """Test errors of every method at every width, over the training seeds."""
    rows = [_row(name, "dense", (300, 100), [error(model, x, y) for model in networks], [0.0], False)]
    for label, (arguments, used) in METHODS.items():
        for widths in WIDTHS[name]:
            errors, seconds = [], []
            for seed, model in enumerate(networks):
                start = time.perf_counter()
                asked = arguments | ({"data": loader} if used else {})
                small = cp.prune(model, units={"0": widths[0], "2": widths[1]}, seed=seed, **asked)
                seconds.append(time.perf_counter() - start)
                errors.append(error(small.model, x, y))
            rows.append(_row(name, label, widths, errors, seconds, used))
            print(f"{name} {label} {widths}: {rows[-1]['mean']:.2f} ± {rows[-1]['std']:.2f} %", flush=True)
    return rows


def _row(
    name: str, label: str, widths: tuple[int, int], errors: list[float], seconds: list[float], used: bool
) -> dict[str, Any]:
    return {
        "set": name,
        "method": label,
        "widths": f"{widths[0]}-{widths[1]}",
        "mean": statistics.mean(errors),
        "std": statistics.stdev(errors) if len(errors) > 1 else 0.0,
        "errors": errors,
        "seconds": statistics.median(seconds),
        "data_used": used,
    }


def budgets(networks: list[nn.Module], x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """Error against the fraction of parameters removed: error curves against one fraction for every layer."""
    rows: list[dict[str, Any]] = []
    makers: dict[str, Callable[[nn.Module, float], cp.Pruned]] = {
        "kernel, widths by error curves": lambda m, f: cp.prune(m, remove=f, prior=PRIOR),
        "kernel, one fraction for all layers": lambda m, f: cp.prune(m, units=_even(m, f), prior=PRIOR),
        "refined, widths by error curves": lambda m, f: cp.prune(m, remove=f, prior=PRIOR, method="refined"),
        "sampling (the paper's)": lambda m, f: cp.prune(m, remove=f, method="sampling"),
        "magnitude": lambda m, f: cp.prune(m, remove=f, method="magnitude"),
    }
    for label, make in makers.items():
        for fraction in CURVE:
            cut = [make(model, fraction) for model in networks]
            errors = [error(small.model, x, y) for small in cut]
            removed = statistics.mean(1 - small.parameters / small.dense_parameters for small in cut)
            rows.append(
                {
                    "label": label,
                    "asked": fraction,
                    "removed": removed,
                    "mean": statistics.mean(errors),
                    "errors": errors,
                }
            )
        print(label, [f"{row['mean']:.2f}" for row in rows if row["label"] == label], flush=True)
    return rows


def _even(model: nn.Module, fraction: float) -> dict[str, int]:
    """The widths that a fraction of parameters means if every layer gives the same fraction of units."""
    return cp.plan(model, remove=fraction, method="uniform").kept or {"0": 300, "2": 100}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The tables as Markdown, one for each data set."""
    text = []
    for name, widths in WIDTHS.items():
        mine = [row for row in rows if row["set"] == name]
        dense = mine[0]
        heads = [f"{a}-{b}" for a, b in widths]
        text.append(f"**{name}**, dense {dense['mean']:.2f} ± {dense['std']:.2f} % ({len(dense['errors'])} seeds)\n")
        text.append("| method | data used | " + " | ".join(heads) + " | seconds |")
        text.append("|---|---|" + "---|" * (len(heads) + 1))
        for label in METHODS:
            cells = {row["widths"]: row for row in mine if row["method"] == label}
            values = [f"{cells[head]['mean']:.2f} ± {cells[head]['std']:.2f}" for head in heads]
            used = "yes" if cells[heads[0]]["data_used"] else "no"
            seconds = f"{max(cell['seconds'] for cell in cells.values()):.2f}"
            text.append(f"| {label} | {used} | " + " | ".join(values) + f" | {seconds} |")
        text.append("")
    return "\n".join(text)


def draw(rows: list[dict[str, Any]]) -> None:
    """Error against parameters removed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "coreprune"
    figure, axis = plt.subplots(figsize=(7, 4.4))
    styles = ["#0b6e99 o-", "#0b6e99 o:", "#7a1f5c s-", "#c77d0a ^-", "#8a8a8a v-"]
    for label, style in zip(dict.fromkeys(row["label"] for row in rows), styles, strict=True):
        colour, line = style.split()
        mine = [row for row in rows if row["label"] == label]
        x = [100 * row["removed"] for row in mine]
        axis.plot(x, [row["mean"] for row in mine], line, color=colour, markersize=4, label=label)
        low, high = [min(row["errors"]) for row in mine], [max(row["errors"]) for row in mine]
        axis.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    axis.set_yscale("log")
    axis.set_yticks([2, 5, 10, 20, 50, 90], ["2", "5", "10", "20", "50", "90"])
    axis.set_xlabel("parameters removed, %")
    axis.set_ylabel("MNIST test error, %")
    axis.grid(alpha=0.3, which="both", lw=0.4)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(results() / "lenet.svg", metadata={"Date": None})
    figure.savefig(results() / "lenet.png", dpi=130)


def main() -> None:
    """Train or load, measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    curve: list[dict[str, Any]] = []
    for name in WIDTHS:
        networks = [trained(name, seed, args.data) for seed in range(args.seeds)]
        loader = list(images(name, "train", args.data)[0][:10_000].split(1000))
        x, y = images(name, "t10k", args.data)
        rows += table(name, networks, x, y, loader)
        if name == "mnist":
            curve = budgets(networks, x, y)
    write_record("lenet", {"prior": PRIOR.named(784, 28.0), "rows": rows, "curve": curve})
    (results() / "lenet.md").write_text(markdown(rows))
    draw(curve)
    print(markdown(rows))


if __name__ == "__main__":
    main()
