"""What a notebook shows of a result: a short table that takes the notebook's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from coreprune.plan import Cut, Plan
from coreprune.report.text import bytes_text, outputs_text, prior_text, rows_of, starred

__all__ = ["repr_html"]

#: lines of sites that are shown
MOST = 20
_RIGHT = 'style="text-align:right;font-variant-numeric:tabular-nums"'
_LEFT = 'style="text-align:left"'


def repr_html(plan: Plan, before: tuple[int, int], after: tuple[int, int]) -> str:
    """The sizes before and after, and a line for each group of sites that are alike.

    Args:
        plan: what was decided.
        before: parameters and bytes of the dense network. after: those of the smaller one.

    Example:
        >>> repr_html(Plan((), {"method": "kernel", "data_used": False, "prior": "p"}, {}), (10, 40), (5, 20))[11:28]
        '10 → 5 parameters'
    """
    removed = 1 - after[0] / max(before[0], 1)
    cuts = {cut.site.name: cut for cut in plan.cuts}
    groups = rows_of([cut.site for cut in plan.cuts])
    head = f"<th {_LEFT}>site</th><th {_RIGHT}>units</th><th {_RIGHT}>kept</th><th {_RIGHT}>error</th>"
    rows = [_row(group, [cuts[name] for name in group]) for group in groups[:MOST]]
    more = f"<p>and {len(groups) - MOST} more groups of sites: see summary()</p>" if len(groups) > MOST else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{more}"
    known = plan.recipe.get("outputs")
    outputs = f"; outputs: {escape(outputs_text(known))}" if known else ""
    data = "with data" if plan.recipe.get("data_used") else "without data"
    return (
        f"<p><strong>{before[0]:,} → {after[0]:,} parameters</strong> ({removed:.1%} removed), "
        f"{bytes_text(before[1])} → {bytes_text(after[1])}; method {escape(str(plan.recipe['method']))}, {data}; "
        f"prior: {escape(prior_text(plan.recipe))}{outputs}</p>" + (table if cuts else "<p>nothing was cut</p>")
    )


def _row(group: Sequence[str], cuts: Sequence[Cut]) -> str:
    """One line: a site, or sites that are alike."""
    name = escape(starred(group[0], group)) + (f" ({len(group)})" if len(group) > 1 else "")
    kept = _range(sorted(cut.kept.numel() for cut in cuts), "{:,}")
    error = _range(sorted(float(e) for cut in cuts if (e := cut.evidence.get("relative_error")) is not None), "{:.1%}")
    cells = "".join(f"<td {_RIGHT}>{cell}</td>" for cell in (f"{cuts[0].site.units:,}", kept, error or "–"))
    return f"<tr><td {_LEFT}><code>{name}</code></td>{cells}</tr>"


def _range(values: Sequence[float], form: str) -> str:
    return " to ".join(dict.fromkeys(form.format(value) for value in (*values[:1], *values[-1:])))
