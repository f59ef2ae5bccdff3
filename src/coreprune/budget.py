"""From what the user asks to the number of units that each site keeps."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from coreprune.errors import InvalidInputError
from coreprune.model.groups import KINDS, Protect, Uniform, agree, alike, asked, chosen, floors, left_whole, matching
from coreprune.model.site import Inspection, Site, parameters_after
from coreprune.model.size import Size

__all__ = [
    "KINDS",
    "Remove",
    "Uniform",
    "Widths",
    "alike",
    "check_fraction",
    "check_round",
    "choices_of",
    "draws_of",
    "floor_of",
    "least_said",
    "matching",
    "most_said",
    "number_of",
    "widths",
]

T = TypeVar("T")
Ints = NDArray[np.int64]
Remove = float | Mapping[str, float]
Widths = dict[str, int]  # site name → units kept
MEASURED = ("divergence", "cosine", "output_error")  # budgets that `coreprune.engine.driven` keeps


def widths(
    inspection: Inspection,
    *,
    remove: Remove | None = None,
    units: Mapping[str, int] | None = None,
    ignore: Iterable[str] = (),
    kinds: Collection[str] | None = None,
    uniform: Uniform = False,
    round_to: int | None = None,
    protect: Protect | None = None,
) -> dict[str, int]:
    """Units to keep, for every site that shrinks.

    Args:
        inspection: the sites.
        remove: fraction of all parameters to remove, in [0, 1); or, by site name or glob, the fraction
            of units. A number is shared out as one fraction of units, the same for every site.
        units: exact numbers to keep, by site name or glob; the sites not named stay whole.
        ignore: sites to leave whole.
        kinds: what kinds of sites to cut, of `KINDS`; None for all.
        uniform: give alike sites one width, or the groups of names that get one width each.
        round_to: keep multiples of this many units, the nearest; what has fewer stays whole.
        protect: see `coreprune.model.groups.floors`; only where `remove` is a number.

    Returns:
        site name → units kept.

    Raises:
        InvalidInputError: a fraction or number that cannot be had.
        UnknownNameError: a pattern that matches nothing.
    """
    if (remove is None) == (units is None):
        raise InvalidInputError("say either remove= (a fraction) or units= (exact widths), not both and not neither")
    if units is not None and round_to is not None:
        raise InvalidInputError("round_to= was asked with units=, which are exact widths: give one of them")
    if protect is not None and (units is not None or isinstance(remove, Mapping)):
        raise InvalidInputError("protect= was asked with widths of sites: give it with one fraction, or a budget")
    check_round(round_to)
    sites, groups = chosen(inspection, ignore, kinds, uniform)
    if units is not None:
        kept = _exact(inspection, sites, units)
    elif isinstance(remove, Mapping):
        kept = _fractions(inspection, sites, remove, round_to)
    else:
        assert remove is not None
        check_fraction(remove)
        return _evenly(inspection, groups, remove, round_to, floors(inspection, protect, groups))
    for group in groups:
        agree(group, kept)
    return kept


def draws_of(
    inspection: Inspection, draws: Mapping[str, int], kept: Mapping[str, int], ignore: Iterable[str] = ()
) -> dict[str, int]:
    """Draws with replacement by site, of the paper's sampling.

    Raises:
        InvalidInputError: not a whole number from 1, or a site that is also given a width.
        UnknownNameError: a pattern that matches nothing.
    """
    ignored = left_whole(inspection, ignore)
    result: dict[str, int] = {}
    for pattern, count in draws.items():
        for site in asked(inspection, pattern):
            if not _whole(count) or count < 1:
                raise InvalidInputError(f"draws={count!r} was asked of site {site.name!r}: give a whole number from 1")
            if site.name in kept:
                raise InvalidInputError(f"both units and draws were asked of site {site.name!r}: give one of them")
            if site.name not in ignored:
                result[site.name] = int(count)
    return result


def number_of(value: float | str) -> float:
    """A number, or a percentage such as "60%" as a fraction; raises ValueError or TypeError if it is none.

    Example:
        >>> number_of("60%"), number_of("0.5"), number_of(3)
        (0.6, 0.5, 3.0)
    """
    return float(value[:-1]) / 100 if isinstance(value, str) and value.endswith("%") else float(value)


def choices_of(units: int, round_to: int | None) -> Ints:
    """The widths that a site with so many units can get: multiples, and to stay whole."""
    step = round_to or 1
    return np.array([*range(step, units, step), units], dtype=np.int64)


def floor_of(group: Sequence[Site], least: Mapping[str, int]) -> int:
    """The fewest units that sites of one width keep."""
    return max((least.get(site.name, 0) for site in group), default=0)


def _choice_from(floor: int, units: int, round_to: int | None) -> int:
    """The least width of a site that is no less than a floor."""
    choices = choices_of(units, round_to)
    return int(choices[choices >= floor][0]) if floor else 0


def _rounded(kept: int, units: int, round_to: int | None) -> int:
    """The nearest multiple, from 1 of them to what fits; what is whole stays whole."""
    if kept >= units or round_to is None:
        return kept
    return units if units < round_to else min(max(1, (kept + round_to // 2) // round_to), units // round_to) * round_to


def check_round(round_to: int | None) -> None:
    """Raise InvalidInputError unless it is a whole number from 1, or not given."""
    if round_to is not None and (not _whole(round_to) or round_to < 1):
        raise InvalidInputError(f"round_to={round_to!r} was asked: give a whole number from 1")


def most_said(remove: float, few: str, most: float) -> str:
    """That more was asked to go than can, where sites keep as few units as they may."""
    return (
        f"remove={remove} was asked, but {few} left in every site removes only {most:.4f} of the parameters: ask for "
        f"at most {math.floor(most * 1000) / 1000}"
    )


def least_said(round_to: int | None, protected: Mapping[str, int]) -> str:
    """The fewest units that sites may keep, in words."""
    if protected:
        return "what is protected, and one unit elsewhere,"
    return "one unit" if round_to in {None, 1} else f"{round_to} units"


def _exact(inspection: Inspection, sites: Sequence[Site], units: Mapping[str, int]) -> dict[str, int]:
    kept: dict[str, int] = {}
    for site, count in _asked(inspection, sites, units, "units"):
        if not _whole(count) or not 1 <= count <= site.units:
            raise InvalidInputError(
                f"units={count!r} was asked of site {site.name!r}, which has {site.units}: "
                f"keep a whole number from 1 to {site.units}"
            )
        kept[site.name] = int(count)
    return kept


def _fractions(
    inspection: Inspection, sites: Sequence[Site], remove: Mapping[str, float], round_to: int | None
) -> dict[str, int]:
    kept: dict[str, int] = {}
    for site, fraction in _asked(inspection, sites, remove, "remove"):
        check_fraction(fraction)
        kept[site.name] = _rounded(max(1, site.units - round(site.units * fraction)), site.units, round_to)
    return kept


def _asked(
    inspection: Inspection, sites: Sequence[Site], wished: Mapping[str, T], said: str
) -> Iterator[tuple[Site, T]]:
    """What is asked of sites that may be cut, of globs first and of names last, so that a name has the last word."""
    names, cut = {site.name for site in inspection.sites}, {site.name for site in sites}
    for pattern, value in sorted(wished.items(), key=lambda item: item[0] in names):
        found = [site for site in asked(inspection, pattern) if site.name in cut]
        if not found:
            raise InvalidInputError(
                f"{said}= was asked of {pattern!r}, which ignore= or kinds= leaves whole: take it out of one of them"
            )
        yield from ((site, value) for site in found)


def _evenly(
    inspection: Inspection,
    groups: Sequence[Sequence[Site]],
    remove: float,
    round_to: int | None,
    protected: Mapping[str, int],
) -> dict[str, int]:
    """One fraction of units for every site: the smallest that brings the parameters down to the budget."""
    dense = parameters_after(inspection.distinct, [], {})
    target = (1 - remove) * dense
    size = Size(inspection.distinct, groups)

    least = [_choice_from(floor_of(group, protected), group[0].units, round_to) for group in groups]

    def at(fraction: float) -> list[int]:
        even = (_rounded(max(1, round(n * (1 - fraction))), n, round_to) for n in size.units.tolist())
        return [max(k, low) for k, low in zip(even, least, strict=True)]

    def left(fraction: float) -> int:
        return size(np.array(at(fraction), dtype=np.int64))

    low, high = 0.0, 0.0 if remove == 0 else 1.0
    if left(high) > target:
        most = 1 - left(high) / dense
        raise InvalidInputError(most_said(remove, least_said(round_to, protected), most))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > target else (low, middle)
    return {site.name: k for group, k in zip(groups, at(high), strict=True) for site in group}


def _whole(count: object) -> bool:
    return isinstance(count, numbers.Integral) and not isinstance(count, bool)


def check_fraction(fraction: float) -> None:
    """Raise InvalidInputError unless it is a number in [0, 1)."""
    if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real) or not 0 <= fraction < 1:
        meant = isinstance(fraction, numbers.Real) and 1 < fraction < 100
        hint = f"; {float(fraction):g} per cent are {float(fraction) / 100:g}" if meant else ""
        raise InvalidInputError(
            f"remove={fraction!r} was asked: give the fraction to remove, at least 0 and below 1{hint}"
        )
