"""The summary of a cut as plain text that fits 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from coreprune.model.site import Inspection
from coreprune.plan import Cut, Plan

__all__ = ["bytes_text", "inspection_text", "summary", "table"]


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
    """Per site what was kept and what is known of it, then the size before and after, then the guarantee."""
    recipe = plan.recipe
    rows = [
        [cut.site.name, f"{cut.site.units}", f"{cut.kept.numel()}", cut.site.activation, cut.evidence["domain"]]
        for cut in plan.cuts
    ]
    removed = 1 - parameters / max(dense_parameters, 1)
    lines = [
        f"method {recipe['method']}, seed {recipe['seed']}, data used: {'yes' if recipe['data_used'] else 'no'}, "
        f"prior: {recipe['prior']}",
        table(["site", "units", "kept", "activation", "inputs"], rows) if rows else "nothing was cut",
        f"parameters {dense_parameters:,} -> {parameters:,} ({removed:.1%} removed), "
        f"{bytes_text(dense_bytes)} -> {bytes_text(small_bytes)}",
        f"radius of the network's inputs: {recipe['radius']:.4g} ({recipe['radius_from']})",
    ]
    return "\n".join(lines + _guarantees(plan.cuts, str(recipe["method"])))


def _guarantees(cuts: Sequence[Cut], method: str) -> list[str]:
    lines: list[str] = []
    for cut in cuts:
        known = cut.evidence
        if method == "sampling" and "theorem_error" in known:
            lines.append(
                f"site {cut.site.name}: {known['theorem_draws']:,} draws (as many units survive) are off by at"
                f" most {known['theorem_error']:.3g}\n  at every output for every input of the ball, with probability "
                f"{1 - known['theorem_delta']:.0%} [docs/guarantee.md, 1]"
            )
    if lines:
        lines.append("these bounds hold for any network and are far from tight on trained ones: see 'verify'")
    return lines


def inspection_text(found: Inspection) -> str:
    """Every site with its units and what it governs, and every refusal with its reason."""
    total = sum(_size(shape) for shape in found.shapes.values())
    rows = [
        [
            site.name,
            site.kind,
            f"{site.units}",
            site.activation,
            ", ".join(reader.weight.tensor.removesuffix(".weight") for reader in site.readers),
            f"{found.governs(site) / total:.1%}",
        ]
        for site in found.sites
    ]
    text = table(["site", "kind", "units", "activation", "read by", "governs"], rows) if rows else "no site"
    refused = [f"stays whole: {refusal.name}: {refusal.reason}" for refusal in found.refused]
    return "\n".join([text, *refused, f"{total:,} parameters"])


def _size(shape: Sequence[int]) -> int:
    total = 1
    for axis in shape:
        total *= axis
    return total
