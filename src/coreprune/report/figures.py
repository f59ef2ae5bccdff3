"""The pictures of a report: widths before and after, the error of each site, and error curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from coreprune.report.numbers import Numbers, Row
from coreprune.report.svg import element, figure, path, rect, text

__all__ = ["curves", "joined", "widths_narrow", "widths_wide"]

WIDE, TALL, GAP = 720.0, 180.0, 8.0  # the wide picture: its width, that of the widest site, and its margin
ERRORS, FOOT = 64.0, 48.0  # heights of the panel of errors and of the labels under the sites
NARROW, MANY = 320.0, 14  # width of the narrow picture; up to so many sites each has a label
TALLEST = 520.0  # the narrow picture's bars where there are more
#: units of these kinds are no channels, so they are drawn to a scale of their own
APART = {"heads", "experts"}


@dataclass(frozen=True)
class _Bar:
    """A site, or an end of the network, as shares of the widest there is."""

    row: Row
    before: float
    after: float
    end: bool = False


def widths_wide(numbers: Numbers) -> Markup:
    """All sites side by side in forward order, and under them their errors; for screens that are wide enough."""
    bars = _bars(numbers)
    slot = min(140.0, (WIDE - 2 * GAP) / max(len(bars), 1))
    left = (WIDE - slot * len(bars)) / 2
    thick = max(1.0, min(40.0, 0.5 * slot))
    centres = [left + slot * (i + 0.5) for i in range(len(bars))]
    labelled = len(bars) <= MANY
    top = GAP + TALL + (FOOT if labelled else GAP)
    errors = [bar.row.error for bar in bars if bar.row.error is not None]
    inside = list(_flow(bars, centres, thick))
    for bar, x in zip(bars, centres, strict=True):
        inside.append(_upright(bar, x, slot, thick, labelled))
    if errors:
        inside += _errors(bars, centres, thick, top)
    height = top + (ERRORS + FOOT if errors else 0)
    return figure((WIDE, height), "Units of every site before and after", _told(numbers), inside, "wide")


def _upright(bar: _Bar, x: float, slot: float, thick: float, labelled: bool) -> Markup:
    """A site as a bar about the middle line: coloured as far as it is left."""
    middle, whole, left = GAP + TALL / 2, max(TALL * bar.before, 1.5), max(TALL * bar.after, 1.0)
    parts = [element("title", _sentence(bar))]
    kind = "end" if bar.end else "stays" if bar.row.whole else "after"
    if kind == "after":
        parts.append(rect(x - thick / 2, middle - whole / 2, thick, whole, "before"))
    parts.append(rect(x - thick / 2, middle - left / 2, thick, left, kind))
    if labelled:
        y = GAP + TALL + 15
        parts.append(text(x, y, f"{bar.row.after:,}", "count"))
        parts.append(text(x, y + 14, bar.row.name if bar.end else f"of {bar.row.before:,}", "small"))
        if not bar.end:
            parts.append(text(x, y + 28, _short(bar.row.name, max(3, int(slot / 7))), "small site"))
    return element("g", *parts)


def _flow(bars: Sequence[_Bar], centres: Sequence[float], thick: float) -> Iterator[Markup]:
    """Between neighbours of which one reads the other, what flows from one to the other."""
    middle = GAP + TALL / 2
    for (a, x), (b, z) in pairwise(zip(bars, centres, strict=True)):
        if a.end or b.end or _reads(a.row, b.row):
            p, q, u, v = x + thick / 2, z - thick / 2, TALL * a.after / 2, TALL * b.after / 2
            yield path([(p, middle - u), (q, middle - v), (q, middle + v), (p, middle + u)], "flow", closed=True)


def _reads(a: Row, b: Row) -> bool:
    """Whether the site b is made by a reader of the site a."""
    return b.writer in a.readers


def joined(numbers: Numbers) -> bool:
    """Whether any two neighbours in the picture are joined."""
    return numbers.ends is not None or any(_reads(a, b) for a, b in pairwise(numbers.sites))


def _errors(bars: Sequence[_Bar], centres: Sequence[float], thick: float, top: float) -> list[Markup]:
    """The relative errors under the sites that have them."""
    largest = max(bar.row.error or 0.0 for bar in bars) or 1.0
    base = top + FOOT - 14 + ERRORS
    inside = [
        text(GAP, top + 12, f"error of each site, the largest {largest:.1%}", "note"),
        path([(GAP, base), (WIDE - GAP, base)], "axis"),
    ]
    for bar, x in zip(bars, centres, strict=True):
        if bar.row.error is not None:
            high = max(ERRORS * bar.row.error / largest, 0.5)
            title = element("title", f"{bar.row.name}: error {bar.row.error:.1%}")
            inside.append(rect(x - thick / 2, base - high, thick, high, "error", title))
    return inside


def widths_narrow(numbers: Numbers) -> Markup:
    """All sites one below the other, each with its numbers, or alike ones under one heading; for small screens."""
    bars = [bar for bar in _bars(numbers) if not bar.end]
    few = len(bars) <= MANY
    runs: dict[str, list[_Bar]] = {}
    for bar in bars:
        runs.setdefault(bar.row.name if few else bar.row.group, []).append(bar)
    thin = 9.0 if few else max(2.0, min(6.0, TALLEST / len(bars)))
    inside, y = [], 0.0
    for name, run in runs.items():
        counts = list(dict.fromkeys(_counts(bar.row) for bar in run))
        inside.append(text(0, y + 13, _short(name if len(run) == 1 else f"{name} ({len(run)})", 30), "name"))
        inside.append(text(NARROW, y + 13, counts[0] if len(counts) == 1 else "", "right"))
        y += 19
        for bar in run:
            title = element("title", _sentence(bar))
            if not bar.row.whole:
                inside.append(rect(0, y, max(NARROW * bar.before, 2), thin, "before"))
            inside.append(rect(0, y, max(NARROW * bar.after, 1), thin, "stays" if bar.row.whole else "after", title))
            y += thin + 1
        y += 8
    return figure((NARROW, max(y, 1)), "Units of every site before and after", _told(numbers), inside, "narrow")


def curves(rows: Sequence[Row], *, alone: bool = False) -> Markup:
    """Error over units kept, of one site or of several that are alike, with what was chosen.

    Args:
        rows: of the sites. alone: whether their errors, too, are of each site on its own: then the dots lie at them,
            which differ from the line where the method does other than the closed form.
    """
    wide, tall, left, foot = 220.0, 132.0, 40.0, 20.0
    units = max(row.before for row in rows)
    largest = max((error for row in rows for _, error in row.curve), default=0.0) or 1.0

    def at(k: float, error: float) -> tuple[float, float]:
        return left + (wide - left - 8) * k / units, 8 + (tall - foot - 8) * (1 - error / largest)

    inside = [
        path([at(0, largest), at(0, 0), at(units, 0)], "axis"),
        text(left - 4, 15, f"{largest:.0%}", "right"),
        text(left - 4, tall - foot, "0", "right"),
        text(left, tall - 5, "0", "tick"),
        text(wide - 8, tall - 5, f"{units:,}", "right"),
    ]
    inside += [path([at(k, error) for k, error in row.curve], "line") for row in rows]
    for row in rows:
        error = min(row.curve, key=lambda point: abs(point[0] - row.after))[1]
        if alone and row.error is not None:
            error = row.error
        x, y = at(row.after, min(error, largest))
        words = element("title", f"{row.name}: {row.after:,} units, error {error:.1%}")
        inside.append(element("circle", words, cx=x, cy=y, r=3.5, class_="chosen"))
    ranges = ", ".join(dict.fromkeys(f"{row.after:,} of {row.before:,}" for row in rows))
    told = f"Error falls from {largest:.0%} at the fewest units to its end at {units:,}; kept: {ranges}."
    return figure((wide, tall), f"Error over units kept, {rows[0].group}", told, inside, "curve")


def _bars(numbers: Numbers) -> list[_Bar]:
    """The sites in forward order between the ends of a stack, to a common scale."""
    ends = numbers.ends or ()
    widest = dict.fromkeys((False, True), 1)
    for row in numbers.sites:
        widest[row.kind in APART] = max(widest[row.kind in APART], row.before)
    widest[False] = max(widest[False], *ends, 1)

    def bar(row: Row) -> _Bar:
        scale = 0.6 / widest[True] if row.kind in APART else 1 / widest[False]
        return _Bar(row, row.before * scale, row.after * scale)

    bars = [bar(row) for row in numbers.sites]
    for n, name, place in zip(ends, ("inputs", "outputs"), (0, len(bars) + 1), strict=False):
        row = Row(name, "", "", name, n, n, whole=name)
        bars.insert(place, _Bar(row, n / widest[False], n / widest[False], end=True))
    return bars


def _counts(row: Row) -> str:
    return f"{row.before:,}" if row.whole else f"{row.before:,} → {row.after:,}"


def _sentence(bar: _Bar) -> str:
    if bar.end:
        return f"{bar.row.after:,} {bar.row.name}"
    if bar.row.whole:
        return f"{bar.row.name}: {bar.row.before:,} units, whole"
    return f"{bar.row.name}: {bar.row.before:,} → {bar.row.after:,} units"


def _told(numbers: Numbers) -> str:
    """The picture in words, alike sites together."""
    groups: dict[tuple[str, int], list[int]] = {}
    for row in numbers.sites:
        groups.setdefault((row.group, row.before), []).append(row.after)
    parts = []
    for (group, before), after in groups.items():
        kept = " to ".join(dict.fromkeys(f"{k:,}" for k in (min(after), max(after))))
        parts.append(f"{group}: {kept} of {before:,}" + (f" in each of {len(after)} sites" if len(after) > 1 else ""))
    more = len(parts) - 24
    return "; ".join(parts[:24]) + (f"; and {more} more, see the table" if more > 0 else "")


def _short(name: str, width: int) -> str:
    """A name that fits, its end kept."""
    return name if len(name) <= width else "…" + name[1 - width :]
