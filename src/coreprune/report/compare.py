"""Two results side by side: sizes, widths, errors and priors, as data and as a table of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coreprune.report.cost import Change, Cost
from coreprune.report.numbers import Numbers, Row
from coreprune.report.recipe import reported_on, versions
from coreprune.report.speed import speed_text
from coreprune.report.text import bytes_text, table, wrap

__all__ = ["Comparison", "Pair", "compare", "comparison_text", "dense_numbers"]


@dataclass(frozen=True)
class Pair:
    """One site in both.

    Attributes:
        name, kind: of the site. group: what it is called with those that are alike.
        before: units of the dense network.
        kept: in A and in B, None in one that has no such site. error: in A and in B, None where there is none.
    """

    name: str
    kind: str
    group: str
    before: int
    kept: tuple[int | None, int | None]
    error: tuple[float | None, float | None]


@dataclass(frozen=True)
class Comparison:
    """A and B.

    Attributes:
        names, methods, priors, parameters, tensor_bytes, file_bytes, multiply_adds: of A and of B.
        sites: all that shrank in either.
        note: why they may not be compared site by site, or what the errors leave out; else empty.
        cost: what was measured by running both, A as before and B as after; None if they were not run.
    """

    names: tuple[str, str]
    methods: tuple[str, str]
    priors: tuple[str, str]
    parameters: tuple[int | None, int | None]
    tensor_bytes: tuple[int | None, int | None]
    file_bytes: tuple[int | None, int | None]
    multiply_adds: tuple[int | None, int | None]
    sites: tuple[Pair, ...]
    note: str = ""
    cost: Cost | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        plain: dict[str, Any] = {"kind": "comparison", "version": 1, **asdict(self)}
        if self.cost is not None and self.cost.generation is not None:
            plain["cost"]["generation"] |= self.cost.generation.to_json()
        return plain


def dense_numbers(name: str, parameters: int, tensor_bytes: int, file_bytes: int) -> Numbers:
    """The numbers of a network that was not cut."""
    same = Change()
    return Numbers(
        name=name, method="dense", prior="", data_used=False, radius=None, radius_from="",
        parameters=Change(parameters, parameters), tensor_bytes=Change(tensor_bytes, tensor_bytes),
        file_bytes=Change(file_bytes, file_bytes), multiply_adds=same, cost=None, ends=None, sites=(), refused=None,
        statements=(), checked=None, recipe={}, commands=(), python="", load="", made_with={},
        reported_with=versions(), reported_on=reported_on(),
    )  # fmt: skip


def compare(a: Numbers, b: Numbers) -> Comparison:
    """Put two results side by side, or a dense network and a result."""
    first, second = ({row.name: row for row in one.cut} for one in (a, b))
    other = a.parameters.before != b.parameters.before
    pairs = [_pair(name, first.get(name), second.get(name), not other) for name in _merged(a.cut, b.cut)]
    note = ""
    if other:
        note = (
            f"A comes of a network of {a.parameters.before:,} parameters and B of one of {b.parameters.before:,}: "
            "sites of one name need not be the same"
        )
    if any(one.recipe.get("distilled") for one in (a, b)):
        note += ("; " if note else "") + (
            "errors are those of the cut and say nothing of the training afterwards: 'coreprune verify' measures both"
        )
    return Comparison(
        names=(a.name, b.name),
        methods=(_method(a), _method(b)),
        priors=(a.prior, b.prior),
        parameters=(a.parameters.after, b.parameters.after),
        tensor_bytes=(a.tensor_bytes.after, b.tensor_bytes.after),
        file_bytes=(a.file_bytes.after, b.file_bytes.after),
        multiply_adds=_adds(a, b),
        sites=tuple(pairs),
        note=note,
    )


def _method(one: Numbers) -> str:
    """The method, and the training afterwards if there was one."""
    trained = one.recipe.get("distilled")
    return one.method + (f", then trained {trained['steps']:,} steps" if trained else "")


def _merged(first: Sequence[Row], second: Sequence[Row]) -> list[str]:
    """All names, in the order of both as far as they go together.

    Example:
        >>> row = lambda name: Row(name, "linear", "relu", name, 8, 4)
        >>> _merged([row("a"), row("c")], [row("a"), row("b"), row("d")])
        ['a', 'b', 'd', 'c']
    """
    order = list(first)
    for i, row in enumerate(second):
        names = [one.name for one in order]
        if row.name in names:
            continue
        later = {one.name for one in second[i:]}
        following = (n for n, one in enumerate(order) if one.name in later or one.place > row.place)
        order.insert(names.index(second[i - 1].name) + 1 if i else next(following, len(order)), row)
    return [row.name for row in order]


def _adds(a: Numbers, b: Numbers) -> tuple[int | None, int | None]:
    """Multiply-adds after; a dense network's are what the other one was cut from."""
    of_a = b.multiply_adds.before if not a.sites else a.multiply_adds.after
    of_b = a.multiply_adds.before if not b.sites else b.multiply_adds.after
    return of_a, of_b


def _pair(name: str, a: Row | None, b: Row | None, same: bool) -> Pair:
    """One site; where it was not cut it stayed whole, if both come of the same network."""
    row = a or b
    assert row is not None
    whole = row.before if same else None
    kept = (whole if a is None else a.after, whole if b is None else b.after)
    errors = (None if a is None else a.error, None if b is None else b.error)
    return Pair(name, row.kind, row.group, row.before, kept, errors)


def comparison_text(found: Comparison, width: int = 80) -> str:
    """The comparison as text; sites that are alike share a line."""
    lines = [f"{letter}: {name} ({method})" for letter, name, method in zip("AB", found.names, found.methods)]  # noqa: B905
    if found.note:
        lines.append(found.note)
    sizes: Iterable[tuple[str, tuple[int | None, int | None], Any]] = (
        ("parameters", found.parameters, "{:,}".format),
        ("bytes of tensors", found.tensor_bytes, bytes_text),
        ("weights on disk", found.file_bytes, bytes_text),
        ("multiply-adds", found.multiply_adds, "{:,}".format),
    )
    rows = [
        [what, *("-" if value is None else shown(value) for value in pair), _ratio(pair)]
        for what, pair, shown in sizes
        if pair != (None, None)
    ]
    lines.append("\n" + table(["", "A", "B", "B / A"], rows))
    if found.cost is not None:
        lines.append("\n" + speed_text(found.cost, ("A", "B")))
    if found.sites:
        lines.append("\n" + _sites(found, width))
    if found.priors[0] == found.priors[1]:
        lines.append(f"\nprior of both: {found.priors[0]}")
    else:
        lines.append("")
        lines += [f"prior of {letter}: {prior}" for letter, prior in zip("AB", found.priors) if prior]  # noqa: B905
        if all(found.priors) and found.sites:
            lines.append("The errors of A and of B are each under its own prior: they are not to be compared.")
    return "\n".join(line for text in lines for line in wrap(text, width))


def _sites(found: Comparison, width: int) -> str:
    """One line for each group of sites."""
    groups: dict[tuple[str, str, int], list[Pair]] = {}
    for pair in found.sites:
        groups.setdefault((pair.group, pair.kind, pair.before), []).append(pair)
    rows = []
    for (group, _, before), pairs in groups.items():
        name = f"{group} ({len(pairs)})" if len(pairs) > 1 else group
        cells = [_range([pair.kept[side] for pair in pairs], "{:,}") for side in (0, 1)]
        cells += [_range([pair.error[side] for pair in pairs], "{:.1%}") for side in (0, 1)]
        rows.append([name, f"{before:,}", *cells])
    head = ["site", "units", "A keeps", "B keeps", "A error", "B error"]
    rest = max(len(line) for line in table(head, [["", *row[1:]] for row in rows]).split("\n")) - len("site")
    room = max(width - rest, 8)
    return table(head, [[_short(row[0], room), *row[1:]] for row in rows])


def _range(values: Iterable[float | None], form: str) -> str:
    known = sorted(value for value in values if value is not None)
    return "-".join(dict.fromkeys(form.format(value) for value in known[:1] + known[-1:])) or "-"


def _ratio(pair: tuple[int | None, int | None]) -> str:
    a, b = pair
    return f"{b / a:.3f}" if a and b is not None else "-"


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else "…" + name[1 - width :]
