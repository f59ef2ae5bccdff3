"""Published baselines against coreprune on image classifiers: same model, same units removed, same test pictures.

    python benchmarks/vision.py [--data FOLDER] [--only NETWORK …] [--pictures N]

- ResNet-20 and ResNet-56 (the first convolution of every block) and VGG-16 at half width (every convolution) on CIFAR-10,
  25 and 50 % of the units of every site.
- LeNet-300-100 on Fashion-MNIST, 50 to 80 % of both layers, mean of five networks: trained as in train_lenet.py, and as
  the authors of neuron merging and of LBYL trained theirs (lenet-300-100-sgd), beside the figures that they published.

Nothing is fine-tuned. How often refined cuts of convolutions go through their inputs was chosen with ResNet-20 on
training pictures; the other networks had no part in it. The baselines are those of `benchmarks/baselines`, our code from
the published formulas. All are carried out by coreprune's surgery, and those that keep units as they are have passed its
float64 comparison. Rows with data have 512 training pictures; for baselines they are run through the dense network once, for all of them
together, which their seconds leave out. "Own widths" are shared out by the method itself at no more parameters than all
others have. Draws are repeated with three seeds. Writes vision.json, vision.md, vision.svg and vision.png into
benchmarks/results/, anew after every network; with --pictures it is a short look at N test pictures, and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import coreprune as cp
from baselines import METHODS, Baseline
from baselines.cutting import Carried, carried_out, chosen, see, units_of
from baselines.flap import allocated, fluctuation
from baselines.lenet_sgd import scaled, trained_by_sgd
from baselines.units import Seen
from cifar import load, pictures, standardised
from coreprune.budget import widths as widths_for
from coreprune.model.site import Inspection, parameters_after
from coreprune.model.tensors import tensors_of
from datasets import add_data_option, images
from lenet import trained
from records import read_record, results, write_record

Row = dict[str, Any]

DATA_PICTURES, SEEDS = 512, (0, 1, 2)
OURS, OURS_WIDTHS, OURS_DATA = "coreprune", "coreprune, own widths", "coreprune, real data"
REFINED, REFINED_WIDTHS = "coreprune, refined", "coreprune, refined, own widths"
SHARED_OUT = (OURS_WIDTHS, REFINED_WIDTHS)
FLAP_WIDTHS = "FLAP, own widths"

#: accuracies in per cent on Fashion-MNIST that the authors state for their networks: by share of units removed
PUBLISHED_DENSE = 89.80
PUBLISHED: dict[str, tuple[str, dict[float, float]]] = {
    "largest L1 norms": ("Kim et al. 2020", {0.5: 88.40, 0.6: 85.17, 0.7: 71.26, 0.8: 66.76}),
    "neuron merging": ("Kim et al. 2020", {0.5: 88.69, 0.6: 86.92, 0.7: 82.75, 0.8: 80.02}),
    "largest L2 norms": ("Lee et al. 2025", {0.5: 87.86, 0.6: 83.03, 0.7: 71.21, 0.8: 63.90}),
    "LBYL": ("Lee et al. 2025", {0.5: 88.83, 0.6: 87.75, 0.7: 83.92, 0.8: 78.05}),
}


@dataclass(frozen=True)
class Task:
    """One network, or several trained alike, and how it is judged.

    Attributes:
        models: the networks. example: their input.
        kinds: of sites to cut; None for all. scope: the same in words.
        fractions: shares of units to remove.
        loader: batches of training pictures. x, y: test pictures and labels.
        ours: further arguments of `coreprune.prune` without data.
    """

    models: tuple[nn.Module, ...]
    example: Tensor | None
    kinds: tuple[str, ...] | None
    scope: str
    fractions: tuple[float, ...]
    loader: list[Tensor]
    x: Tensor
    y: Tensor
    ours: Mapping[str, Any]

    def accuracy(self, network: nn.Module) -> float:
        """In per cent."""
        with torch.inference_mode():
            parts = zip(self.x.split(100), self.y.split(100), strict=True)
            right = sum(int((network(a).argmax(1) == b).sum()) for a, b in parts)
        return 100 * right / len(self.y)


def cifar(name: str, kinds: tuple[str, ...] | None, scope: str) -> Callable[[Path], Task]:
    """A CIFAR-10 network of `benchmarks/networks/`."""

    def make(data: Path) -> Task:
        x, y = pictures("test", data)
        train = pictures("train", data)[0]
        loader = list(standardised(train[:: len(train) // DATA_PICTURES][:DATA_PICTURES]).split(64))
        x = standardised(x).contiguous(memory_format=torch.channels_last)  # which is faster
        return Task((load(name),), torch.zeros(2, 3, 32, 32), kinds, scope, (0.25, 0.5), loader, x, y, {})

    return make


def fashion(
    make: Callable[[int, Path], nn.Module], scaled: Callable[[Tensor], Tensor], std: float
) -> Callable[[Path], Task]:
    """Five LeNet-300-100 on Fashion-MNIST; coreprune's prior has the largest standard deviation that pixels can have."""

    def task(data: Path) -> Task:
        models = tuple(make(seed, data) for seed in range(5))
        train = images("fashion-mnist", "train", data)[0]
        loader = list(scaled(train[:: len(train) // DATA_PICTURES][:DATA_PICTURES]).split(64))
        x, y = images("fashion-mnist", "t10k", data)
        ours = {"prior": cp.Gaussian(std=std)}
        return Task(models, None, None, "both layers", (0.5, 0.6, 0.7, 0.8), loader, scaled(x), y, ours)

    return task


#: name → what makes the task; a new network is one row
TASKS: dict[str, Callable[[Path], Task]] = {
    "resnet20": cifar("resnet20", ("conv",), "first convolution of every block"),
    "resnet56": cifar("resnet56", ("conv",), "first convolution of every block"),
    "vgg16-half": cifar("vgg16-half", None, "every convolution"),
    "lenet-300-100": fashion(lambda seed, data: trained("fashion-mnist", seed, data).eval(), lambda x: x, 0.5),
    "lenet-300-100-sgd": fashion(trained_by_sgd, scaled, 1.0),
}


# ---------------------------------------------------------------------------------------------- one network, one row


@dataclass(frozen=True)
class Subject:
    """One of a task's networks with its sites, and the moments of its units on the training pictures."""

    model: nn.Module
    found: Inspection
    seen: Mapping[str, tuple[Seen, ...]]

    @classmethod
    def of(cls, model: nn.Module, task: Task) -> Subject:
        """Inspect and observe a network."""
        found = cp.inspect(model, task.example)
        wanted = [site for site in found.sites if task.kinds is None or site.kind in task.kinds]
        return cls(model, found, see(model, found, wanted, task.loader))

    def widths(self, task: Task, fraction: float) -> dict[str, int]:
        """Units to keep when every site in question loses the same share."""
        return widths_for(self.found, remove={"*": fraction}, kinds=task.kinds)

    def parameters(self, kept: Mapping[str, int]) -> int:
        """Numbers of the network with these widths."""
        return parameters_after(self.found.shapes, self.found.sites, kept)

    def by_flap(self, kept: Mapping[str, int]) -> dict[str, int]:
        """FLAP's own widths at no more parameters than these."""
        tensors = tensors_of(self.model)
        sites = [site for site in self.found.sites if site.name in kept]
        scores = {site.name: fluctuation(units_of(site, self.found, tensors, self.seen[site.name])) for site in sites}
        return allocated(scores, self.parameters, self.parameters(kept))

    def cut(self, label: str, method: Baseline, kept: Mapping[str, int], example: Any, seed: int) -> Carried:
        """By a baseline."""
        seen = self.seen if method.data else {}
        choices = chosen(method.choose, self.found, tensors_of(self.model), kept, seen=seen, seed=seed)
        recipe = {"method": label, "data_used": method.data, "prior": method.source}
        return carried_out(self.model, self.found, choices, example, recipe)


def rows_of(name: str, task: Task) -> list[Row]:
    """All methods at all fractions."""
    subjects = [Subject.of(model, task) for model in task.models]
    dense = [task.accuracy(subject.model) for subject in subjects]
    rows: list[Row] = [_row(name, task, 0.0, "dense", "", False, dense, [], [0.0])]
    for fraction in task.fractions:
        for label, method in METHODS.items():
            rows.append(_baseline(name, task, subjects, fraction, label, method))
        flap = replace(METHODS["FLAP"], source="An et al. 2024, arXiv:2312.11983, one threshold for all layers")
        rows.append(_baseline(name, task, subjects, fraction, FLAP_WIDTHS, flap))
        for label in (OURS, OURS_WIDTHS, REFINED, REFINED_WIDTHS, OURS_DATA):
            rows.append(_ours(name, task, subjects, fraction, label))
    return rows


def _baseline(name: str, task: Task, subjects: Sequence[Subject], fraction: float, label: str, method: Baseline) -> Row:
    figures, cuts, seconds = [], [], []
    for i, subject in enumerate(subjects):
        kept = subject.widths(task, fraction)
        if label == FLAP_WIDTHS:
            kept = subject.by_flap(kept)
        draws = SEEDS if method.random and len(subjects) == 1 else (i,)
        for seed in draws:
            start = time.perf_counter()
            carried = subject.cut(label, method, kept, task.example, seed)
            seconds.append(time.perf_counter() - start)
            cuts.append(carried)
            figures.append(task.accuracy(carried.small.model))
    return _row(name, task, fraction, label, method.source, method.data, figures, cuts, seconds)


def _ours(name: str, task: Task, subjects: Sequence[Subject], fraction: float, label: str) -> Row:
    figures, cuts, seconds = [], [], []
    arguments = {"data": task.loader} if label == OURS_DATA else dict(task.ours)
    arguments |= {"method": "refined"} if label.startswith(REFINED) else {}
    for i, subject in enumerate(subjects):
        kept = subject.widths(task, fraction)
        asked: dict[str, Any] = {"units": kept}
        if label in SHARED_OUT:
            asked = {"budget": {"params": subject.parameters(kept)}, "kinds": task.kinds}
        start = time.perf_counter()
        small = cp.prune(subject.model, task.example, seed=i, **asked, **arguments)
        seconds.append(time.perf_counter() - start)
        cuts.append(Carried(small, bool(subject.found.graphs)))
        figures.append(task.accuracy(small.model))
    prior = cuts[0].small.plan.recipe["prior"]
    return _row(name, task, fraction, label, prior, label == OURS_DATA, figures, cuts, seconds)


def _row(
    name: str,
    task: Task,
    fraction: float,
    label: str,
    source: str,
    data: bool,
    figures: list[float],
    cuts: list[Carried],
    seconds: list[float],
) -> Row:
    row: Row = {
        "network": name,
        "cut": task.scope,
        "fraction": fraction,
        "method": label,
        "source": source,
        "data_used": data,
        "parameters": cuts[0].small.parameters if cuts else None,
        "dense_parameters": cuts[0].small.dense_parameters if cuts else None,
        "compared": bool(cuts) and all(one.compared for one in cuts),
        "seconds": statistics.median(seconds),
        "figure": statistics.mean(figures),
        "figures": figures,
    }
    print(f"{name}, {fraction:.0%}, {label}: {row['figure']:.2f} ({row['seconds']:.1f} s)", flush=True)
    return row


# ---------------------------------------------------------------------------------------------- the record


def markdown(networks: Mapping[str, dict[str, Any]]) -> str:
    """One table for each network, methods by rows and fractions by columns."""
    text = []
    for name, body in networks.items():
        rows = body["rows"]
        fractions = sorted({row["fraction"] for row in rows} - {0.0})
        text.append(f"**{name}**, {body['scope']}; accuracy on {body['pictures']:,} test pictures, %: "
                    f"dense {rows[0]['figure']:.2f}\n")  # fmt: skip
        text.append("| method | data used | " + " | ".join(f"−{f:.0%}" for f in fractions) + " | parameters removed |"
                    " compared | seconds | source or prior |")  # fmt: skip
        text.append("|" + "---|" * (len(fractions) + 6))
        for label in dict.fromkeys(row["method"] for row in rows[1:]):
            mine = {row["fraction"]: row for row in rows if row["method"] == label}
            values = [_spoken(mine[f]["figures"]) for f in fractions]
            removed = ", ".join(f"{1 - mine[f]['parameters'] / mine[f]['dense_parameters']:.1%}" for f in fractions)
            first = mine[fractions[0]]
            text.append(
                f"| {label} | {'yes' if first['data_used'] else 'no'} | {' | '.join(values)} | {removed} "
                f"| {'yes' if first['compared'] else '–'} | {max(row['seconds'] for row in mine.values()):.1f} "
                f"| {first['source']} |"
            )
        text.append("")
        if published := body.get("published"):
            text += _beside(rows, published, fractions)
    return "\n".join(text)


def _spoken(figures: list[float]) -> str:
    spread = f" ± {statistics.stdev(figures):.2f}" if len(figures) > 1 else ""
    return f"{statistics.mean(figures):.2f}{spread}"


def _beside(rows: list[Row], published: Mapping[str, Any], fractions: list[float]) -> list[str]:
    """Ours of their method, beside theirs, both as what is lost against the dense network."""
    text = ["Points lost against the dense network, in this run / as published for the authors' own network "
            f"(dense {rows[0]['figure']:.2f} / {published['dense']:.2f}):\n"]  # fmt: skip
    text.append("| method | " + " | ".join(f"−{f:.0%}" for f in fractions) + " | published by |")
    text.append("|" + "---|" * (len(fractions) + 2))
    for label, (source, values) in published["figures"].items():
        mine = {row["fraction"]: rows[0]["figure"] - row["figure"] for row in rows if row["method"] == label}
        theirs = {float(f): published["dense"] - value for f, value in values.items()}
        cells = [f"{mine[f]:.1f} / {theirs[f]:.1f}" for f in fractions]
        text.append(f"| {label} | {' | '.join(cells)} | {source} |")
    text.append("\nTheir networks are not at hand; this one has their recipe, and not their weights. It loses more under every method, plain norms "
                "too, in which little can be done wrongly: compare methods with each other, not with what is published.")  # fmt: skip
    return [*text, ""]


def draw(networks: Mapping[str, dict[str, Any]]) -> None:
    """Accuracy over the share of units removed, a panel for each network."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "coreprune"
    figure, axes = plt.subplots(1, len(networks), figsize=(4.2 * len(networks) + 2.4, 4.4), squeeze=False)
    labels = list(dict.fromkeys(r["method"] for body in networks.values() for r in body["rows"] if r["fraction"]))
    theirs = [label for label in labels if not label.startswith(OURS)]
    colours = dict(zip(theirs, plt.get_cmap("tab20")(range(len(theirs))), strict=True))
    for axis, (name, body) in zip(axes[0], networks.items(), strict=True):
        dense = body["rows"][0]["figure"]
        for label in labels:
            mine = [row for row in body["rows"] if row["method"] == label]
            own = label.startswith(OURS)
            axis.plot(
                [0.0, *(100 * row["fraction"] for row in mine)],
                [dense, *(row["figure"] for row in mine)],
                ":" if label in SHARED_OUT else "--" if mine and mine[0]["data_used"] else "-",
                marker="o" if own else ".",
                color="#b3261e" if label.startswith(REFINED) else "#0b2f4e" if own else colours[label],
                lw=2.2 if own else 1.1,
                label=label,
            )
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("units removed, %")
        axis.grid(alpha=0.3, lw=0.4)
    axes[0][0].set_ylabel("accuracy, % (dashed: calibrated on real data)")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="center right", fontsize=8)
    figure.tight_layout(rect=(0, 0, 1 - 2.2 / figure.get_figwidth(), 1))
    figure.savefig(results() / "vision.svg", metadata={"Date": None})
    figure.savefig(results() / "vision.png", dpi=130)


def measured(name: str, task: Task) -> dict[str, Any]:
    """The part of the record on one network."""
    start = time.perf_counter()
    body: dict[str, Any] = {"scope": task.scope, "pictures": len(task.y), "rows": rows_of(name, task)}
    if name.startswith("lenet-300-100"):
        figures = {
            label: (source, {str(f): v for f, v in values.items()}) for label, (source, values) in PUBLISHED.items()
        }
        body["published"] = {"dense": PUBLISHED_DENSE, "figures": figures}
    return body | {"wall_seconds": time.perf_counter() - start}


def shortened(task: Task, count: int) -> Task:
    """The same with `count` test pictures, evenly from all."""
    at = torch.arange(count) * len(task.y) // count
    return replace(task, x=task.x[at], y=task.y[at])


def main() -> None:
    """Measure network by network, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--only", nargs="+", choices=TASKS, help="these networks; others stay in the record")
    parser.add_argument("--pictures", type=int, help="a short look at so many test pictures, which writes nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only or TASKS:
        task = TASKS[name](args.data)
        if args.pictures is not None and args.pictures < len(task.y):
            print(markdown({name: measured(name, shortened(task, args.pictures))}), flush=True)
        else:
            write({name: measured(name, task)})


def write(new: Mapping[str, dict[str, Any]]) -> None:
    """Put networks into the record; the others stay in it as they are."""
    known = {**read_record("vision").get("networks", {}), **new}
    networks = {name: known[name] for name in TASKS if name in known}
    write_record("vision", {"networks": networks})
    text = markdown(networks)
    (results() / "vision.md").write_text(text)
    draw(networks)
    print(text, flush=True)


if __name__ == "__main__":
    main()
