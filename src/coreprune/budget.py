"""From what the user asks to the number of units that each site keeps."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.hull import Curve
from coreprune.model.groups import KINDS, Protect, Uniform, agree, alike, chosen, floors, matching
from coreprune.model.positions import positions
from coreprune.model.site import Inspection, Site, parameters_after
from coreprune.model.size import Size

__all__ = [
    "KINDS",
    "Remove",
    "Uniform",
    "Widths",
    "alike",
    "allocate",
    "check_fraction",
    "draws_of",
    "matching",
    "number_of",
    "widths",
]

T = TypeVar("T")
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Remove = float | Mapping[str, float]
Widths = dict[str, int]  # site name → units kept
MEASURED = ("divergence", "cosine", "output_error")  # budgets that `coreprune.engine.driven` keeps
TICK = 1e-15  # of a second: in whole ticks costs are counted like entries


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
    _check_round(round_to)
    sites, groups = chosen(inspection, ignore, kinds, uniform)
    if units is not None:
        kept = _exact(sites, units)
    elif isinstance(remove, Mapping):
        kept = _fractions(sites, remove, round_to)
    else:
        assert remove is not None
        check_fraction(remove)
        return _evenly(inspection, groups, remove, round_to, floors(inspection.sites, protect))
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
    ignored = {site.name for pattern in ignore for site in matching(inspection.sites, pattern)}
    result: dict[str, int] = {}
    for pattern, count in draws.items():
        for site in matching(inspection.sites, pattern):
            if not _whole(count) or count < 1:
                raise InvalidInputError(f"draws={count!r} was asked of site {site.name!r}: give a whole number from 1")
            if site.name in kept:
                raise InvalidInputError(f"both units and draws were asked of site {site.name!r}: give one of them")
            if site.name not in ignored:
                result[site.name] = int(count)
    return result


def allocate(
    inspection: Inspection,
    curves: Mapping[str, Tensor],
    budget: Mapping[str, Any],
    *,
    ignore: Iterable[str] = (),
    itemsize: int = 4,
    kinds: Collection[str] | None = None,
    uniform: Uniform = False,
    round_to: int | None = None,
    protect: Protect | None = None,
) -> dict[str, int]:
    """Units to keep so that the summed error of all sites is least for what the network may cost.

    One Lagrangian over the error curves: each site keeps argmin_k err(k) + λ·cost·k, with the cost of a
    unit taken at the widths of its neighbours, and λ is found by bisection. Sites that get one width
    have one curve, the sum of theirs.

    Args:
        inspection: the sites.
        curves: err(k), k = 0 … n, by site, each a share of the variance of the site's own readers.
        budget: one of ``params``, ``flops`` (per input), ``bytes``: the most that may be left, as a number
            or as "60%" of the dense network's; or ``error``: the largest √(Σ err), the relative root
            mean square error if the sites' errors add up; or ``latency``, in seconds, with a ``table`` of what the
            entries of tensors cost, see `coreprune.engine.latency`.
        itemsize: bytes per entry.
        ignore: sites to leave whole; this and the rest as in `widths`.

    Raises:
        InvalidInputError: a budget that is not known or cannot be met.
    """
    kind, asked = _only(budget)
    scales = {"params": 1, "flops": 2, "bytes": itemsize, "error": 1, "latency": TICK}
    if kind not in scales:
        known = ", ".join([*scales, *MEASURED])
        raise InvalidInputError(f"a budget of {kind!r} is not known: give one of {known}")
    scale = scales[kind]
    _check_round(round_to)
    _, groups = chosen(inspection, ignore, kinds, uniform)
    least_of = floors(inspection.sites, protect)
    size = _cost(kind, inspection, groups, budget)
    dense = size(size.units)
    whole = budget["table"]["seconds"] if kind == "latency" else dense * scale
    fixed = whole - dense * scale  # what no cut makes less
    limit = _limit(kind, asked, whole) - fixed
    by = [_curve(group, curves, round_to, _floor(group, least_of)) for group in groups]

    def at(log_price: float) -> Ints:
        kept = size.units
        for _ in range(6):  # the cost of a unit depends on its neighbours' widths
            each = -size.moved(kept, -1)
            prices = math.exp(log_price) * each / dense
            new = np.array([curve.cheapest(p) for curve, p in zip(by, prices, strict=True)], dtype=np.int64)
            if (new == kept).all():
                break
            kept = new
        return kept

    def within(kept: Ints) -> bool:
        if kind == "error":
            return math.sqrt(sum(curve.at(k) for curve, k in zip(by, kept.tolist(), strict=True))) <= limit
        return size(kept) * scale <= limit

    low, high = -40.0, 40.0  # log prices; the network shrinks as the price rises
    least = np.array([curve.choices[0] for curve in by], dtype=np.int64)
    if kind != "error" and not within(least) and all(len(curve.choices) == 1 for curve in by):
        why = "is left by ignore= and kinds=" if not by else f"has more units than {_units(round_to, least_of)}"
        raise InvalidInputError(f"{kind}={asked!r} was asked, but no site {why}: nothing can go")
    if kind != "error" and not within(least):
        left = (size(least) * scale + fixed) / whole
        raise InvalidInputError(
            f"too little was left ({kind}={asked!r}): {_units(round_to, least_of)} left in every site still costs "
            f"{left:.2%} of the dense network: ask to leave '{math.ceil(left * 1000) / 10:g}%' or more"
            + (f" (remove={math.floor((1 - left) * 1000) / 1000} at most)" if kind == "params" else "")
        )
    for _ in range(60):
        middle = (low + high) / 2
        fits = within(at(middle))
        low, high = (middle, high) if fits == (kind == "error") else (low, middle)
    kept = at(low) if kind == "error" else _fill(at(high), by, size, limit / scale)
    return {site.name: k for group, k in zip(groups, kept.tolist(), strict=True) for site in group}


def _floor(group: Sequence[Site], least: Mapping[str, int]) -> int:
    """The fewest units that sites of one width keep."""
    return max((least.get(site.name, 0) for site in group), default=0)


def _curve(group: Sequence[Site], curves: Mapping[str, Tensor], round_to: int | None, floor: int) -> Curve:
    """The summed error of sites that get one width."""
    choices = _choices(group[0].units, round_to)
    choices = choices[choices >= floor]
    total: NDArray[np.float64] = sum(curves[site.name].double() for site in group).numpy()  # type: ignore[union-attr]
    return Curve.of(choices, total[choices])


def _fill(kept: Ints, by: Sequence[Curve], size: Size, limit: float) -> Ints:
    """Spend what the Lagrangian leaves over (it sees only the convex hull of the curves): the best step that fits."""
    at = [curve.index(k) for curve, k in zip(by, kept, strict=True)]
    ends = [len(curve.choices) - 1 for curve in by]
    step = max(1, (max(ends, default=0) + 1) // 16)
    while step:
        wider = np.array(
            [curve.choices[min(i + step, end)] for curve, i, end in zip(by, at, ends, strict=True)], dtype=np.int64
        )
        fits = size(kept) + size.moved(kept, wider - kept) <= limit
        gains = [
            (float(curve.errors[i] - curve.errors[i + step]), g)
            for g, (curve, i, end) in enumerate(zip(by, at, ends, strict=True))
            if i + step <= end and fits[g]
        ]
        gain, best = max(gains, default=(-1.0, 0))
        if gain >= 0:  # units that cost nothing stay too: no more goes than was asked
            at[best] += step
            kept = np.where(np.arange(len(kept)) == best, wider, kept)
        else:
            step //= 2
    return kept


def _only(budget: Mapping[str, Any]) -> tuple[str, Any]:
    """The one thing that a budget speaks of."""
    entries = [(kind, asked) for kind, asked in budget.items() if kind != "table"]
    if len(entries) != 1:
        raise InvalidInputError(
            f"the budget {dict(budget)} has {len(budget)} entries: give one of params, flops, bytes, error, "
            "latency, divergence, cosine, output_error"
        )
    return entries[0]


def _cost(kind: str, inspection: Inspection, groups: Sequence[Sequence[Site]], budget: Mapping[str, Any]) -> Size:
    """What a budget counts, as a function of the widths."""
    if kind == "flops":
        return _operations(inspection, groups)
    if kind != "latency":
        return Size(inspection.distinct, groups)
    shapes = {name: inspection.shapes[name] for name in budget["table"]["tensors"]}
    ticks = {name: round(budget["table"]["tensors"][name] / math.prod(shape) / TICK) for name, shape in shapes.items()}
    return Size(shapes, groups, biases=False, times=ticks)


def _operations(inspection: Inspection, groups: Sequence[Sequence[Site]]) -> Size:
    """Multiply-adds of one input: entries of every matrix, as often as it is applied."""
    if not inspection.graphs:
        return Size({name: shape for name, shape in inspection.shapes.items() if len(shape) >= 2}, groups, biases=False)
    times = {name: round(count) for name, count in positions(inspection.graphs).items()}
    applied = {name: shape for name, shape in inspection.shapes.items() if times.get(name)}
    return Size(applied, groups, biases=False, times=times)


def number_of(value: float | str) -> float:
    """A number, or a percentage such as "60%" as a fraction; raises ValueError or TypeError if it is none.

    Example:
        >>> number_of("60%"), number_of("0.5"), number_of(3)
        (0.6, 0.5, 3.0)
    """
    return float(value[:-1]) / 100 if isinstance(value, str) and value.endswith("%") else float(value)


def _limit(kind: str, asked: float | str, dense: float) -> float:
    try:
        relative = kind != "error" and isinstance(asked, str) and asked.endswith("%")
        limit = number_of(asked) * (dense if relative else 1)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{kind}={asked!r} is not a number or a percentage: write 60000 or '60%'") from error
    if not limit > 0:
        raise InvalidInputError(f"{kind}={asked!r} was asked: give a positive budget")
    return limit


def _choices(units: int, round_to: int | None) -> Ints:
    """The widths that a site with so many units can get: multiples, and to stay whole."""
    step = round_to or 1
    return np.array([*range(step, units, step), units], dtype=np.int64)


def _choice_from(floor: int, units: int, round_to: int | None) -> int:
    """The least width of a site that is no less than a floor."""
    choices = _choices(units, round_to)
    return int(choices[choices >= floor][0]) if floor else 0


def _rounded(kept: int, units: int, round_to: int | None) -> int:
    """The nearest multiple, from 1 of them to what fits; what is whole stays whole."""
    if kept >= units or round_to is None:
        return kept
    return units if units < round_to else min(max(1, (kept + round_to // 2) // round_to), units // round_to) * round_to


def _check_round(round_to: int | None) -> None:
    if round_to is not None and (not _whole(round_to) or round_to < 1):
        raise InvalidInputError(f"round_to={round_to!r} was asked: give a whole number from 1")


def _units(round_to: int | None, protected: Mapping[str, int]) -> str:
    if protected:
        return "what is protected, and one unit elsewhere,"
    return "one unit" if round_to in {None, 1} else f"{round_to} units"


def _exact(sites: Sequence[Site], units: Mapping[str, int]) -> dict[str, int]:
    kept: dict[str, int] = {}
    for pattern, count in _exact_last(sites, units):
        for site in matching(sites, pattern):
            if not _whole(count) or not 1 <= count <= site.units:
                raise InvalidInputError(
                    f"units={count!r} was asked of site {site.name!r}, which has {site.units}: "
                    f"keep a whole number from 1 to {site.units}"
                )
            kept[site.name] = int(count)
    return kept


def _fractions(sites: Sequence[Site], remove: Mapping[str, float], round_to: int | None) -> dict[str, int]:
    kept: dict[str, int] = {}
    for pattern, fraction in _exact_last(sites, remove):
        check_fraction(fraction)
        for site in matching(sites, pattern):
            kept[site.name] = _rounded(max(1, site.units - round(site.units * fraction)), site.units, round_to)
    return kept


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

    least = [_choice_from(_floor(group, protected), group[0].units, round_to) for group in groups]

    def at(fraction: float) -> list[int]:
        even = (_rounded(max(1, round(n * (1 - fraction))), n, round_to) for n in size.units.tolist())
        return [max(k, low) for k, low in zip(even, least, strict=True)]

    def left(fraction: float) -> int:
        return size(np.array(at(fraction), dtype=np.int64))

    low, high = 0.0, 0.0 if remove == 0 else 1.0
    if left(high) > target:
        most = 1 - left(high) / dense
        raise InvalidInputError(
            f"remove={remove} was asked, but {_units(round_to, protected)} left in every site removes only {most:.4f} "
            f"of the parameters: ask for at most {int(most * 1000) / 1000}"
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > target else (low, middle)
    return {site.name: k for group, k in zip(groups, at(high), strict=True) for site in group}


def _exact_last(sites: Sequence[Site], asked: Mapping[str, T]) -> list[tuple[str, T]]:
    """What is asked of globs first and of names last, so that a name has the last word."""
    names = {site.name for site in sites}
    return sorted(asked.items(), key=lambda item: item[0] in names)


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
