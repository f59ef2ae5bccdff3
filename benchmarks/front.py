"""The README's table of trained networks: coreprune beside the best of the published methods, from the records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cases import DENSE, OWN
from records import read_record

__all__ = ["table"]

Row = dict[str, Any]

#: record's name of a network → (name, what is measured, how it is written, whether less is better)
NETWORKS = {
    "resnet20": ("ResNet-20, CIFAR-10", "accuracy, %", ".1f", False),
    "resnet56": ("ResNet-56, CIFAR-10", "accuracy, %", ".1f", False),
    "vgg16-half": ("VGG-16 at half width, CIFAR-10", "accuracy, %", ".1f", False),
    "minilm": ("MiniLM-L6", "mean cosine of embeddings", ".3f", False),
    "smollm2": ("SmolLM2-135M", "perplexity of news", ".1f", True),
}
OURS, REFINED = "coreprune", ("coreprune, refined, own text too", "coreprune, refined")


def table() -> str:
    """One line for every network and cut."""
    lines = [
        "| network | units, parameters less | dense | `kernel` | `refined` | best other without data | best other with data |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (title, what, form, less) in NETWORKS.items():
        rows = _vision(name) or _language(name)
        (dense,) = (row["figure"] for row in rows if row["method"] == DENSE)
        for cut in dict.fromkeys(row["cut"] for row in rows if row["method"] == OURS):
            mine = [row for row in rows if row["cut"] == cut]
            removed = next(row["removed"] for row in mine if row["method"] == OURS)
            refined = next((method for method in REFINED if any(row["method"] == method for row in mine)), "")
            ours = [_both([row for row in mine if row["method"] == method], form) for method in (OURS, refined)]
            others = [row for row in mine if not row["method"].startswith(OURS)]
            best = [_best([row for row in others if row["data_used"] is data], form, less) for data in (False, True)]
            cells = [f"{title}: {what}", f"{cut}, −{removed:.0%}", f"{dense:{form}}", *ours, *best]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _both(rows: Sequence[Row], form: str) -> str:
    """The figure at one share for all, and at own widths."""
    return " · ".join(f"{row['figure']:{form}}" for row in sorted(rows, key=lambda row: row["own"]))


def _best(rows: Sequence[Row], form: str, less: bool) -> str:
    """The best figure with its method."""
    if not rows:
        return ""
    best = (min if less else max)(rows, key=lambda row: row["figure"])
    return f"{best['figure']:,{form}}, {best['method']}"


def _vision(name: str) -> list[Row]:
    """Rows of an image classifier."""
    own = f", {OWN}"
    return [
        row
        | {
            "method": row["method"].removesuffix(own),
            "cut": f"−{row['fraction']:.0%}",
            "own": row["method"].endswith(own),
            "removed": 1 - row["parameters"] / row["dense_parameters"] if row["parameters"] else 0.0,
        }
        for row in read_record("vision")["networks"].get(name, {}).get("rows", [])
    ]


def _language(name: str) -> list[Row]:
    """Rows of a transformer; those at own widths have as many parameters as at the first share."""
    rows = [row for row in read_record("language")["rows"] if row["network"] == name]
    first = next(row["cut"] for row in rows if row["method"] == OURS)
    return [row | {"own": row["cut"] == OWN, "cut": first if row["cut"] == OWN else row["cut"]} for row in rows]
