"""Figures of the paper's experiments, from their records, in the look of the other benchmarks."""

from __future__ import annotations

import statistics
from typing import Any

from paper.choice import TRAININGS
from paper.starts import STARTS
from paper.store import Row
from paper.tables import AIM, CUT_ONLY, load
from records import results

__all__ = ["draw_curve", "draw_edges", "draw_recovery"]

COLOURS = {
    "refined": "#0b6e99",
    "kernel": "#4aa3c7",
    "kernel, real data": "#2e7d5b",
    "sampling": "#7a1f5c",
    "uniform": "#8a8a8a",
    "magnitude": "#c77d0a",
    "from scratch": "#222222",
    "edges, 16 pictures": "#e3a6b4",
    "edges, 64 pictures": "#c8566f",
    "edges, 256 pictures": "#8c1c34",
}


def _plotting() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "coreprune"
    return plt


def _save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(results() / f"{name}.svg", metadata={"Date": None})
    figure.savefig(results() / f"{name}.png", dpi=130)


def _log_errors(axis: Any, ticks: tuple[float, ...]) -> None:
    axis.set_yscale("log")
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3, which="both", lw=0.4)


def draw_recovery() -> None:
    """One group for every training, one colour for every start, a dot for every seed, a bar for their mean."""
    plt, rows = _plotting(), load("recovery")["rows"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.8), width_ratios=(1, 3.2))
    dense = [row["error"] for row in rows if row["key"]["start"] == "dense" and row["key"]["training"] == CUT_ONLY]
    for axis, trainings in ((left, (CUT_ONLY,)), (right, tuple(TRAININGS))):
        axis.axhspan(min(dense), max(dense), color="#0b2f4e", alpha=0.12, lw=0, label="dense network, all seeds")
        axis.axhline(AIM, color="#0b2f4e", ls="--", lw=1, label=f"{AIM} %")
        for group, training in enumerate(trainings):
            _dots(axis, group, [row for row in rows if row["key"]["training"] == training], labelled=group == 0)
        axis.set_xticks(range(len(trainings)), ["after cutting" if one == CUT_ONLY else one for one in trainings])
    _log_errors(left, (2, 3, 5, 10, 20, 50))
    left.set_ylabel("MNIST test error, %")
    right.set_xlabel("after training")
    right.grid(alpha=0.3, lw=0.4)
    right.legend(fontsize=8, loc="upper right")
    _save(figure, "paper-recovery")


def _dots(axis: Any, group: int, rows: list[Row], *, labelled: bool) -> None:
    for place, start in enumerate(STARTS):
        found = [row["error"] for row in rows if row["key"]["start"] == start]
        if found:
            x, colour = group + 0.11 * (place - (len(STARTS) - 1) / 2), COLOURS[start]
            label = start if labelled else None
            axis.plot([x] * len(found), found, "o", color=colour, markersize=4, alpha=0.6, label=label)
            axis.plot([x - 0.045, x + 0.045], [statistics.mean(found)] * 2, "-", color=colour, lw=2)


def draw_curve() -> None:
    """Error over the share removed: dashed before training, solid after."""
    plt, rows = _plotting(), load("curve")["rows"]
    figure, axis = plt.subplots(figsize=(8, 4.8))
    for method in dict.fromkeys(row["key"]["method"] for row in rows):
        for training, line in ((CUT_ONLY, "--"), ("after", "-")):
            mine = [row for row in rows if row["key"]["method"] == method
                    and (row["key"]["training"] == CUT_ONLY) == (training == CUT_ONLY)]  # fmt: skip
            by = {share: [r["error"] for r in mine if r["key"]["removed"] == share]
                  for share in sorted({r["key"]["removed"] for r in mine})}  # fmt: skip
            if not by:
                continue
            x = [100 * share for share in by]
            label = method if training == "after" else None
            mean = [statistics.mean(errors) for errors in by.values()]
            axis.plot(x, mean, line, marker="o", markersize=3.5, color=COLOURS[method], label=label)
            low, high = [min(e) for e in by.values()], [max(e) for e in by.values()]
            axis.fill_between(x, low, high, color=COLOURS[method], alpha=0.1, lw=0)
    axis.plot([], [], "--", color="#555555", label="after cutting, no data")
    axis.plot([], [], "-", color="#555555", label="after training")
    axis.set_xlabel("parameters removed, %")
    axis.set_ylabel("MNIST test error, %")
    _log_errors(axis, (1, 1.5, 2, 3, 5, 10, 20, 50, 90))
    axis.legend(fontsize=8, ncol=2)
    _save(figure, "paper-curve")


def draw_edges() -> None:
    """Error over bytes: edges dashed, neurons solid."""
    plt, rows = _plotting(), load("edges")["rows"]
    figure, axis = plt.subplots(figsize=(8, 4.8))
    for method in dict.fromkeys(row["key"]["method"] for row in rows):
        mine = [row for row in rows if row["key"]["method"] == method]
        shares = sorted({row["key"]["removed"] for row in mine})
        at = [[row for row in mine if row["key"]["removed"] == share] for share in shares]
        x = [statistics.mean([row["bytes"] for row in some]) / 1000 for some in at]
        errors = [[row["error"] for row in some] for some in at]
        line = "--" if method.startswith("edges") else "-"
        axis.plot(
            x, [statistics.mean(e) for e in errors], line, marker="o", markersize=4, color=COLOURS[method], label=method
        )
        axis.fill_between(x, [min(e) for e in errors], [max(e) for e in errors], color=COLOURS[method], alpha=0.1, lw=0)
    axis.set_xscale("log")
    axis.set_xticks((100, 200, 500, 1000), ["100", "200", "500", "1000"])
    axis.set_xlabel("kB (sparse weights: 4 bytes for a value, 2 for its column)")
    axis.set_ylabel("MNIST test error, no training afterwards, %")
    _log_errors(axis, (2, 3, 5, 10, 20, 50, 90))
    axis.legend(fontsize=8)
    _save(figure, "paper-edges")
