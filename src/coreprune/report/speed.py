"""What was timed of both networks as lines: for the page, a notebook and a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from coreprune.report.cost import Cost
from coreprune.report.text import scaled, table, wrap
from coreprune.report.turns import Latency

__all__ = ["Line", "clear", "lines", "measured_on", "seconds_text", "speed_html", "speed_text", "unsteady"]

#: how far apart, as a share of the median, the middle half of the runs may lie before it is said
STEADY = 0.2


@dataclass(frozen=True)
class Line:
    """One thing that was timed.

    Attributes:
        what: it is. before, after: in words, with their unit.
        spread_before, spread: of the middle half of the runs, before and after.
        faster: how many times. clear: whether the middle halves of the runs lie apart.
        why: it could not be measured; empty if it could.
    """

    what: str
    before: str = ""
    after: str = ""
    spread_before: str = ""
    spread: str = ""
    faster: float | None = None
    clear: bool = True
    why: str = ""


def seconds_text(time: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> seconds_text(0.0123), seconds_text(2.5)
        ('12.3 ms', '2.5 s')
    """
    return scaled(time, [(1.0, " s"), (1e-3, " ms"), (1e-6, " µs")])


def lines(cost: Cost) -> list[Line]:
    """All that was timed."""
    found = [_line("a forward pass", cost.latency, seconds_text)]
    for one in cost.runtimes:
        what = f"the same, {one.said}"
        found.append(_line(what, one.latency, seconds_text) if one.latency else Line(what, why=one.why))
    if cost.generation is not None:
        g = cost.generation
        found.append(_line("reading, tokens/s", g.reading, lambda time: _rate(g.prompt / time)))
        found.append(_line("writing, tokens/s", g.writing, lambda time: _rate(g.tokens / time)))
    return found


def measured_on(cost: Cost) -> str:
    """What was run, how often and where, in sentences."""
    t = cost.latency
    threads = f"{t.threads} thread{'' if t.threads == 1 else 's'} on {t.device}, {cost.dtype}"
    words = f"A forward pass is one on {cost.inputs}, the median of {t.runs} runs of each network in turns; {threads}."
    if cost.generation is not None:
        g = cost.generation
        words += (
            f" Reading is a prompt of {g.prompt} tokens at once, and writing {g.tokens} tokens after it, one by one "
            "with a cache of keys and values, the likeliest each time; both of one sequence, medians of "
            f"{g.reading.runs} and {g.writing.runs} runs in turns."
        )
    return words + unsteady(cost)


def unsteady(cost: Cost) -> str:
    """A sentence that says so, where the times are those of a machine that is busy; empty where they are not."""
    apart = _apart(cost)
    if apart <= STEADY:
        return ""
    return (
        f" The middle half of the runs lay up to {apart:.0%} apart, as on a machine that is busy: measure again when "
        "it rests."
    )


def _apart(cost: Cost) -> float:
    """The widest middle half of all that was timed, as a share of its median."""
    timed = [cost.latency, *(one.latency for one in cost.runtimes if one.latency)]
    if cost.generation is not None:
        timed += [cost.generation.reading, cost.generation.writing]
    return max(
        (high - low) / max(middle, 1e-12)
        for one in timed
        for (low, high), middle in ((one.before_quartiles, one.before), (one.after_quartiles, one.after))
    )


def speed_text(cost: Cost, names: tuple[str, str] = ("dense", "small")) -> str:
    """The lines as a table of 80 columns.

    Args:
        cost: what was measured. names: of the two networks.
    """
    done = [line for line in lines(cost) if not line.why]
    rows = [[line.what, line.before, line.after, f"{line.faster:.2f}", line.spread] for line in done]
    parts = [table(["", *names, "times as fast", f"half of {names[1]}"], rows), measured_on(cost)]
    parts += [f"{line.what}: not measured, {line.why}" for line in lines(cost) if line.why]
    return "\n".join(one for part in parts for one in wrap(part))


def speed_html(cost: Cost) -> str:
    """The lines for a notebook."""
    right = 'style="text-align:right;font-variant-numeric:tabular-nums"'
    head = "".join(f"<th {right}>{word}</th>" for word in ("dense", "small", "times as fast"))
    body = "".join(
        f'<tr><td style="text-align:left">{escape(line.what)}</td>'
        + (
            f'<td colspan="3">not measured: {escape(line.why)}</td>'
            if line.why
            else "".join(f"<td {right}>{escape(cell)}</td>" for cell in (line.before, line.after, f"{line.faster:.2f}"))
        )
        + "</tr>"
        for line in lines(cost)
    )
    table_ = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"{table_}<p>{escape(measured_on(cost))}</p>"


def clear(time: Latency) -> bool:
    """Whether the middle halves of the runs of both networks lie apart, so that one is faster than the other.

    Example:
        >>> clear(Latency(2.0, 1.0, (1.8, 2.2), (0.9, 1.9), 9, 1, "cpu"))
        False
    """
    (low, high), (least, most) = time.before_quartiles, time.after_quartiles
    return most < low or high < least


def _line(what: str, time: Latency, shown: Callable[[float], str]) -> Line:
    def spread(quartiles: tuple[float, float]) -> str:
        first, last = sorted(quartiles, reverse="tokens" in what)
        return f"{shown(first)} to {shown(last)}"

    halves = spread(time.before_quartiles), spread(time.after_quartiles)
    return Line(what, shown(time.before), shown(time.after), *halves, time.speedup, clear(time))


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"
