"""The record of `benchmarks/language.py` as tables and figures."""

from __future__ import annotations

import math
import statistics
from typing import Any

from cases import DENSE, NETWORKS, OWN, cases
from records import read_record, results

__all__ = ["draw", "known", "markdown"]

Row = dict[str, Any]

#: times the dense perplexity, beyond which a figure only shows that it is beyond
FAR = 3.0


def known(what: str) -> list[Row]:
    """The rows of the record so far: "rows", "speed" or "study"."""
    return list(read_record("language").get(what, []))


def markdown() -> str:
    """Tables of all that is stored."""
    text: list[str] = []
    for name in NETWORKS:
        mine = [row for row in known("rows") if row["network"] == name]
        if mine:
            text += _table(name, mine)
    for row in known("speed"):
        if row["shape"] == DENSE:
            text += _speeds([one for one in known("speed") if one["network"] == row["network"]], row)
    if known("study"):
        text += _study(sorted(known("study"), key=lambda row: row["tokens"]))
    return "\n".join(text)


def _table(name: str, mine: list[Row]) -> list[str]:
    about = NETWORKS[name]
    form, what = about.form, about.figure
    whole = next((row for row in mine if row["method"] == DENSE), None)
    cuts = [f"−{fraction:.0%}" for fraction in about.fractions]
    cuts += [OWN] if any(row["cut"] == OWN for row in mine) else []
    at = sorted({row["commit"] for row in mine})
    dense = f": dense {whole['figure']:{form}}" if whole else ""
    text = [
        f"**{name}**, units of every FFN; {what}{dense}; measured on commit{'s' if len(at) > 1 else ''} {', '.join(at)}\n",
        f"| method | data used | calibration tokens | {' | '.join(cuts)} | parameters removed | seconds | compared | source or prior |",
        "|" + "---|" * (len(cuts) + 7),
    ]
    order = {(one.method, one.tokens): i for i, one in enumerate(cases(name, about))}
    groups = sorted({(row["method"], row["tokens"]) for row in mine} - {(DENSE, 0)}, key=lambda one: order.get(one, 99))
    for method, tokens in groups:
        rows = {row["cut"]: row for row in mine if (row["method"], row["tokens"]) == (method, tokens)}
        shown = [rows[cut] for cut in cuts if cut in rows]
        cells = [_spoken(rows[cut]["figures"], form) if cut in rows else "" for cut in cuts]
        removed = ", ".join(f"{row['removed']:.1%}" for row in shown)
        text.append(
            f"| {method} | {'yes' if shown[0]['data_used'] else 'no'} | {f'{tokens:,}' if tokens else ''} "
            f"| {' | '.join(cells)} | {removed} | {max(row['seconds'] for row in shown):.0f} "
            f"| {'yes' if all(row['compared'] for row in shown) else '–'} | {shown[0]['source']} |"
        )
    return [*text, ""]


def _spoken(figures: list[float], form: str) -> str:
    spread = f" ± {statistics.stdev(figures):,{form}}" if len(figures) > 1 else ""
    return f"{statistics.mean(figures):,{form}}{spread}"


def _speeds(mine: list[Row], whole: Row) -> list[str]:
    batch, length = whole["batch"]
    text = [
        f"**{whole['network']}**, tokens for each second of one thread's CPU: {batch} × {length} tokens read at once, and one "
        f"sequence written with the cache; median of {len(whole['reads'])} rounds in turns, and as a ratio to dense\n",
        "| shape | parameters | read | written |",
        "|---|---|---|---|",
    ]
    for row in mine:
        text.append(
            f"| {row['shape']} | {row['parameters']:,} | {row['read']:.0f} ({row['read'] / whole['read']:.2f}) "
            f"| {row['written']:.1f} ({row['written'] / whole['written']:.2f}) |"
        )
    return [*text, ""]


def _study(mine: list[Row]) -> list[str]:
    text = [
        "Tokens of its own text that smollm2 was cut by (−20% of every FFN's units), and the perplexity of adventure:\n",
        "| tokens | perplexity | seconds |",
        "|---|---|---|",
    ]
    text += [f"| {row['tokens']:,} | {row['figure']:.1f} | {row['seconds']:.0f} |" for row in mine]
    return [*text, ""]


# ---------------------------------------------------------------------------------------------- figures


def draw() -> None:
    """A panel for each network, a line for each method; and the study, if there is one."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "coreprune"
    names = [name for name in NETWORKS if any(row["network"] == name for row in known("rows"))]
    if names:
        figure, axes = plt.subplots(1, len(names), figsize=(7.0 * len(names), 7.5), squeeze=False)
        for axis, name in zip(axes[0], names, strict=True):
            _panel(axis, name)
        _save(figure, "language")
    if known("study"):
        figure, axis = plt.subplots(figsize=(5, 3.4))
        mine = sorted(known("study"), key=lambda row: row["tokens"])
        axis.plot([row["tokens"] for row in mine], [row["figure"] for row in mine], marker="o", color="#0b2f4e")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("tokens of its own text")
        axis.set_ylabel("perplexity of adventure,\n−20% of FFN units")
        axis.grid(alpha=0.3, lw=0.4)
        _save(figure, "language-tokens")


def _panel(axis: Any, name: str) -> None:
    """Figures of one network, the best at the first cut on top; what used data is hollow."""
    about = NETWORKS[name]
    mine = [row for row in known("rows") if row["network"] == name and row["method"] != DENSE]
    labels: dict[tuple[str, int], list[Row]] = {}
    for row in mine:
        labels.setdefault((row["method"], row["tokens"]), []).append(row)
    better = 1 if about.language else -1
    cuts = [*(f"−{fraction:.0%}" for fraction in about.fractions), OWN]
    first = {one: [row for row in labels[one] if row["cut"] == cuts[0]] or labels[one] for one in labels}
    order = sorted(labels, key=lambda one: -min(better * row["figure"] for row in first[one]))
    colours = dict(zip(cuts, ("#0b6e4f", "#b3423a", "#2f5ea8", "#8a6d1f"), strict=False))
    whole = next((row for row in known("rows") if row["network"] == name and row["method"] == DENSE), None)
    most = FAR * whole["figure"] if about.language and whole else math.inf
    for y, one in enumerate(order):
        for row in labels[one]:
            face, far = "white" if row["data_used"] else colours[row["cut"]], row["figure"] > most
            axis.plot(min(row["figure"], most), y, ">" if far else "o", ms=6, markeredgecolor=colours[row["cut"]],
                      markerfacecolor=face, clip_on=False)  # fmt: skip
    for cut in dict.fromkeys(row["cut"] for row in mine):
        axis.plot([], [], "o", color=colours[cut], label=cut if cut != OWN else f"as {cuts[0]}, own widths")
    axis.plot([], [], "o", markeredgecolor="grey", markerfacecolor="white", label="calibrated on real text")
    axis.set_yticks(range(len(order)), [f"{method}, {tokens:,}" if tokens else method for method, tokens in order])
    for text, one in zip(axis.get_yticklabels(), order, strict=True):
        text.set_fontweight("bold" if one[0].startswith("coreprune") else "normal")
        text.set_fontsize(8)
    if about.language:
        axis.set_xscale("log")
    if most < math.inf:
        axis.plot([], [], ">", color="grey", label=f"above {most:.0f}")
        axis.set_xlim(0.95 * whole["figure"], most)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
    if whole:
        axis.axvline(whole["figure"], color="grey", lw=0.8, ls="--", label=DENSE)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel(about.figure)
    axis.grid(alpha=0.3, lw=0.4)
    axis.legend(fontsize=8)


def _save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(results() / f"{name}.svg", metadata={"Date": None})
    figure.savefig(results() / f"{name}.png", dpi=130)
