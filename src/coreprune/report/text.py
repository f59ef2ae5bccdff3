"""The summary of a cut as plain text that fits 80 columns."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence

from coreprune.model.groups import alike
from coreprune.model.site import Inspection, Site
from coreprune.plan import Plan

__all__ = ["bytes_text", "inspection_text", "rows_of", "starred", "summary", "table", "wrap"]


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


def bytes_text(count: int) -> str:
    """Bytes in the unit that suits them.

    Example:
        >>> bytes_text(1_066_440)
        '1.07 MB'
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def summary(plan: Plan, dense_parameters: int, dense_bytes: int, parameters: int, small_bytes: int) -> str:
    """Per site what was kept and what is known of it, the size before and after, and what is guaranteed."""
    recipe = plan.recipe
    rows = [
        [
            cut.site.name,
            f"{cut.site.units}",
            f"{cut.kept.numel()}",
            cut.site.activation,
            f"{cut.evidence['relative_error']:.1%}" if "relative_error" in cut.evidence else "-",
            f"{cut.evidence['chebyshev_error']:.3g}" if "chebyshev_error" in cut.evidence else "-",
        ]
        for cut in plan.cuts
    ]
    head = ["site", "units", "kept", "activation", "error", "95 % within"][: 5 if recipe["radius"] is None else 6]
    removed = 1 - parameters / max(dense_parameters, 1)
    used = "yes" if recipe["data_used"] else "no"
    weights = "least-squares weights, " if recipe.get("reweight") else ""
    lines = [
        f"method {recipe['method']}, {weights}seed {recipe['seed']}, data used: {used}",
        f"prior: {recipe['prior']}",
        table(head, [row[: len(head)] for row in rows]) if rows else "nothing was cut",
        f"parameters {dense_parameters:,} -> {parameters:,} ({removed:.1%} removed), "
        f"{bytes_text(dense_bytes)} -> {bytes_text(small_bytes)}",
        *(
            []
            if recipe["radius"] is None
            else [f"largest norm of an input: {recipe['radius']:.4g} ({recipe['radius_from']})"]
        ),
        *_notes(plan),
    ]
    return "\n".join(line for text in lines for line in wrap(text))


def wrap(text: str, width: int = 80) -> list[str]:
    """Lines of at most `width` columns, broken between words; what follows the first is indented."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += (
            textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False) if len(line) > width else [line]
        )
    return lines


def _notes(plan: Plan) -> list[str]:
    """What the columns mean, and the paper's bound where its method was used."""
    if not plan.cuts:
        return []
    if plan.recipe.get("radius") is None:
        return [
            "error: root mean square error of what the site's readers get, this site alone being cut, as a share of "
            "its spread, on the inputs of the prior; 'coreprune verify' measures what all cuts together do."
        ]
    lines = [
        "error: predicted root mean square error of what the site's readers get, all cuts up to it included, as a "
        "share of its own spread, for inputs of the prior; exact at the first site, behind it under the Gaussian "
        "closure. 95 % within: no single output is off by more in over 5 % of such inputs (Chebyshev). "
        "'coreprune verify' recomputes both and adds the worst case."
    ]
    bounds = [cut for cut in plan.cuts if "theorem_error" in cut.evidence]
    for cut in bounds:
        known = cut.evidence
        lines.append(
            f"site {cut.site.name}: {known['theorem_draws']:,} draws with replacement (draws=, of which as many units "
            f"survive on average) are off by at most {known['theorem_error']:.3g} at every output, for every input of "
            f"the {known['domain']}, with probability {1 - known['theorem_delta']:.0%} [docs/guarantee.md, 1]"
        )
    if bounds:
        lines.append("That bound holds for any network, and is far from tight on trained ones.")
    return lines


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
                first.activation if first.kind in {"linear", "gated", "conv"} else "-",
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
    refused = [line for text in _refusals(found) for line in wrap(text, width)]
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
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", short) if len(group) > 1 else short


def _refusals(found: Inspection) -> list[str]:
    """One text for each reason and form of name."""
    groups: dict[tuple[str, str], list[str]] = {}
    for refusal in found.refused:
        starred = re.sub(r"(?<![^.])\d+(?![^.])", "*", refusal.name)
        groups.setdefault((starred, refusal.reason), []).append(refusal.name)
    return [
        f"stays whole: {starred} ({len(names)}): {reason}" if len(names) > 1 else f"stays whole: {names[0]}: {reason}"
        for (starred, reason), names in groups.items()
    ]
