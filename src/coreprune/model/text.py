"""What can shrink as plain text, and the tables and lines that all text is made of."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence

from coreprune.model.groups import alike
from coreprune.model.site import Inspection, Site

__all__ = ["activation_of", "digits", "inspection_text", "refusals", "rows_of", "scaled", "starred", "table", "wrap"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their content; the first is aligned left, the others right.

    Example:
        >>> print(table(["site", "units"], [["fc1", "300"], ["fc2", "50"]]))
        site  units
        fc1     300
        fc2      50
    """
    lines = [list(head), *[list(row) for row in rows]]
    wide = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(wide[i]) if i == 0 else cell.rjust(wide[i]) for i, cell in enumerate(line)).rstrip()
        for line in lines
    )


def wrap(text: str, width: int = 80) -> list[str]:
    """Lines of at most `width` columns, broken between words; what follows the first is indented."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += (
            textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False) if len(line) > width else [line]
        )
    return lines


def activation_of(site: Site) -> str:
    """What stands behind the units, of kinds that have one activation; empty where none is known by name."""
    known = site.kind in {"linear", "gated", "conv"} and site.activation != "identity"
    return site.activation if known else ""


def digits(number: float) -> str:
    """A number with three significant digits, without an exponent below a billion.

    Example:
        >>> digits(0.01234), digits(163.2), digits(3184.0)
        ('0.0123', '163', '3,180')
    """
    short = float(f"{number:.3g}")
    return f"{short:,.0f}" if 1000 <= abs(short) < 1e9 else f"{number:.3g}"


def scaled(number: float, units: Sequence[tuple[float, str]]) -> str:
    """A number with three significant digits in the largest of the units that leaves it 1 or more.

    Args:
        number: not negative. units: size and name of each, the largest first.

    Example:
        >>> scaled(999_700, [(1e6, " MB"), (1e3, " kB"), (1, " B")])
        '1 MB'
    """
    for size, name in units:
        if float(f"{number / size:.3g}") >= 1:
            return f"{number / size:.3g}{name}"
    size, name = units[-1]
    return f"{number / size:.3g}{name}"


def inspection_text(found: Inspection, width: int = 80) -> str:
    """Every site with its units and what it governs, and every refusal with its reason.

    Sites that are alike but for the numbers in their names share a row, and so do refusals.
    """
    total = sum(math.prod(shape) for shape in found.distinct.values())
    by_name = {site.name: site for site in found.sites}
    head = ["site", "kind", "units", "activation", "read by", "governs"]
    rows = []
    for group in rows_of(found.sites):
        first = by_name[group[0]]
        readers = list(dict.fromkeys(starred(r.weight.tensor, group) for r in first.readers))
        rows.append(
            [
                starred(first.name, group) + (f" ({len(group)})" if len(group) > 1 else ""),
                first.kind,
                f"{first.units}",
                activation_of(first) or "-",
                ", ".join(readers),
                f"{sum(found.governs(by_name[name]) for name in group) / total:.1%}",
            ]
        )
    text = table(head, rows) if rows else "no site"
    if max(len(line) for line in text.split("\n")) > width:
        lines = table([*head[:4], head[5]], [[*row[:4], row[5]] for row in rows]).split("\n")
        under = [wrap(f"  read by {row[4]}", width) for row in rows]
        text = "\n".join(
            [lines[0], *(one for line, more in zip(lines[1:], under, strict=True) for one in (line, *more))]
        )
    refused = [line for text in _refused(found) for line in wrap(text, width)]
    return "\n".join([text, *refused, f"{total:,} parameters"])


def rows_of(sites: Sequence[Site]) -> list[tuple[str, ...]]:
    """Names that share a row: three or more that are alike and have more than numbers in them."""
    groups = alike(sites)
    return [
        part
        for group in groups
        for part in ([group] if len(group) > 2 and re.search("[a-z]", group[0]) else [(name,) for name in group])
    ]


def starred(name: str, group: Sequence[str]) -> str:
    """A name of a tensor or a site as it is, or for a group with its numbers starred."""
    short = name.removesuffix(".weight")
    return unnumbered(short) if len(group) > 1 else short


def unnumbered(name: str) -> str:
    """A name with the numbers between its dots starred.

    Example:
        >>> unnumbered("layers.11.fc1")
        'layers.*.fc1'
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def refusals(refused: Iterable[tuple[str, str]]) -> list[tuple[str, int, str]]:
    """Names that are alike with one reason, how many there are, and the reason; from (name, reason)."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, reason in refused:
        groups.setdefault((unnumbered(name), reason), []).append(name)
    return [(names[0] if len(names) == 1 else form, len(names), why) for (form, why), names in groups.items()]


def _refused(found: Inspection) -> list[str]:
    """One text for each reason and form of name."""
    every = refusals((refusal.name, refusal.reason) for refusal in found.refused)
    return [f"stays whole: {name}{f' ({many})' if many > 1 else ''}: {reason}" for name, many, reason in every]
