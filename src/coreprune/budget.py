"""From what the user asks to the number of units that each site keeps."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor

from coreprune.errors import InvalidInputError, UnknownNameError
from coreprune.model.site import Inspection, Shape, Site, parameters_after

__all__ = ["Remove", "allocate", "check_fraction", "draws_of", "matching", "widths"]

T = TypeVar("T")
Remove = float | Mapping[str, float]


def matching(sites: Sequence[Site], pattern: str) -> list[Site]:
    """The sites that a name, a glob or a ``re:`` pattern means.

    Raises:
        UnknownNameError: it means none.
    """
    if pattern.startswith("re:"):
        try:
            found = [site for site in sites if re.search(pattern[3:], site.name)]
        except re.error as error:
            raise InvalidInputError(
                f"{pattern!r} is not a regular expression ({error}): mend it, or use a glob"
            ) from error
    else:
        found = [site for site in sites if fnmatchcase(site.name, pattern)]
    if not found:
        names = ", ".join(site.name for site in sites) or "none"
        raise UnknownNameError(f"no site matches {pattern!r}; the sites are: {names}")
    return found


def widths(
    inspection: Inspection,
    *,
    remove: Remove | None = None,
    units: Mapping[str, int] | None = None,
    ignore: Iterable[str] = (),
) -> dict[str, int]:
    """Units to keep, for every site that shrinks.

    Args:
        inspection: the sites.
        remove: fraction of all parameters to remove, in [0, 1); or, by site name or glob, the fraction
            of units. A number is shared out as one fraction of units, the same for every site.
        units: exact numbers to keep, by site name or glob; the sites not named stay whole.
        ignore: sites to leave whole.

    Returns:
        site name → units kept.

    Raises:
        InvalidInputError: a fraction or number that cannot be had.
        UnknownNameError: a pattern that matches nothing.
    """
    if (remove is None) == (units is None):
        raise InvalidInputError("say either remove= (a fraction) or units= (exact widths), not both and not neither")
    ignored = {site.name for pattern in ignore for site in matching(inspection.sites, pattern)}
    sites = [site for site in inspection.sites if site.name not in ignored]
    if units is not None:
        return _exact(sites, units)
    if isinstance(remove, Mapping):
        return _fractions(sites, remove)
    assert remove is not None
    check_fraction(remove)
    return _evenly(inspection, sites, remove)


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
    budget: Mapping[str, float | str],
    *,
    ignore: Iterable[str] = (),
    itemsize: int = 4,
) -> dict[str, int]:
    """Units to keep so that the summed error of all sites is least for what the network may cost.

    One Lagrangian over the error curves: each site keeps argmin_k err(k) + λ·cost·k, with the cost of a
    unit taken at the widths of its neighbours, and λ is found by bisection.

    Args:
        inspection: the sites.
        curves: err(k), k = 0 … n, by site, each a share of the variance of the site's own readers.
        budget: one of ``params``, ``flops`` (per input), ``bytes``: the most that may be left, as a number
            or as "60%" of the dense network's; or ``error``: the largest √(Σ err), the relative root
            mean square error if the sites' errors add up.
        ignore: sites to leave whole.
        itemsize: bytes per entry.

    Raises:
        InvalidInputError: a budget that is not known or cannot be met.
    """
    if len(budget) != 1:
        raise InvalidInputError(
            f"the budget {dict(budget)} has {len(budget)} entries: give one of params, flops, bytes, error"
        )
    ((kind, asked),) = budget.items()
    ignored = {site.name for pattern in ignore for site in matching(inspection.sites, pattern)}
    sites = [site for site in inspection.sites if site.name not in ignored]
    weights = _cost_shapes(inspection, kind)
    dense = parameters_after(weights, [], {})
    scale = {"params": 1, "bytes": itemsize, "flops": 2, "error": 1}[kind]
    limit = _limit(kind, asked, dense * scale)

    def at(log_price: float) -> dict[str, int]:
        kept = {site.name: site.units for site in sites}
        for _ in range(6):  # the cost of a unit depends on its neighbours' widths
            now = parameters_after(weights, sites, kept)
            each = {
                site.name: now - parameters_after(weights, sites, kept | {site.name: kept[site.name] - 1})
                for site in sites
            }
            new = {
                site.name: _cheapest(curves[site.name], math.exp(log_price) * each[site.name] / dense) for site in sites
            }
            if new == kept:
                break
            kept = new
        return kept

    def within(kept: Mapping[str, int]) -> bool:
        if kind == "error":
            return math.sqrt(sum(float(curves[name][k]) for name, k in kept.items())) <= limit
        return parameters_after(weights, sites, kept) * scale <= limit

    low, high = -40.0, 40.0  # log prices; the network shrinks as the price rises
    if kind != "error" and not within({site.name: 1 for site in sites}):
        least = parameters_after(weights, sites, {site.name: 1 for site in sites}) / dense
        raise InvalidInputError(
            f"too little was left ({kind}={asked!r}): one unit left in every site still costs {least:.2%} of the dense "
            f"network: ask to remove at most {math.floor((1 - least) * 1000) / 1000}"
        )
    for _ in range(60):
        middle = (low + high) / 2
        fits = within(at(middle))
        low, high = (middle, high) if fits == (kind == "error") else (low, middle)
    return at(low) if kind == "error" else _fill(at(high), sites, curves, within)


def _fill(
    kept: dict[str, int],
    sites: Sequence[Site],
    curves: Mapping[str, Tensor],
    within: Callable[[Mapping[str, int]], bool],
) -> dict[str, int]:
    """Spend what the Lagrangian leaves over (it sees only the convex hull of the curves): the best step that fits."""
    step = max(1, max(site.units for site in sites) // 16)
    while step:
        gains = [
            (float(curves[site.name][k] - curves[site.name][k + step]), site.name)
            for site in sites
            if (k := kept[site.name]) + step <= site.units and within(kept | {site.name: k + step})
        ]
        if gains and max(gains)[0] > 0:
            best = max(gains)[1]
            kept = kept | {best: kept[best] + step}
        else:
            step //= 2
    return kept


def _cheapest(curve: Tensor, price: float) -> int:
    """argmin_{1 ≤ k ≤ n} err(k) + price·k."""
    units = torch.arange(1, curve.numel(), dtype=curve.dtype)
    return 1 + int((curve[1:] + price * units).argmin())


def _cost_shapes(inspection: Inspection, kind: str) -> dict[str, Shape]:
    """The tensors that a budget counts: all of them, or for multiply-adds the matrices."""
    if kind not in {"params", "flops", "bytes", "error"}:
        raise InvalidInputError(f"a budget of {kind!r} is not known: give one of params, flops, bytes, error")
    return {name: shape for name, shape in inspection.shapes.items() if kind != "flops" or len(shape) >= 2}


def _limit(kind: str, asked: float | str, dense: float) -> float:
    try:
        if isinstance(asked, str) and asked.endswith("%"):
            limit = float(asked[:-1]) / 100 * (1 if kind == "error" else dense)
        else:
            limit = float(asked)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{kind}={asked!r} is not a number or a percentage: write 60000 or '60%'") from error
    if not limit > 0:
        raise InvalidInputError(f"{kind}={asked!r} was asked: give a positive budget")
    return limit


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


def _fractions(sites: Sequence[Site], remove: Mapping[str, float]) -> dict[str, int]:
    kept: dict[str, int] = {}
    for pattern, fraction in _exact_last(sites, remove):
        check_fraction(fraction)
        for site in matching(sites, pattern):
            kept[site.name] = max(1, site.units - round(site.units * fraction))
    return kept


def _evenly(inspection: Inspection, sites: Sequence[Site], remove: float) -> dict[str, int]:
    """One fraction of units for every site: the smallest that brings the parameters down to the budget."""
    dense = parameters_after(inspection.shapes, [], {})
    target = (1 - remove) * dense

    def at(fraction: float) -> dict[str, int]:
        return {site.name: max(1, round(site.units * (1 - fraction))) for site in sites}

    def size(fraction: float) -> int:
        return parameters_after(inspection.shapes, sites, at(fraction))

    if remove == 0:
        return at(0.0)
    if size(1.0) > target:
        most = 1 - size(1.0) / dense
        raise InvalidInputError(
            f"remove={remove} was asked, but one unit left in every site removes only {most:.4f} of the parameters: "
            f"ask for at most {int(most * 1000) / 1000}"
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) > target else (low, middle)
    return at(high)


def _exact_last(sites: Sequence[Site], asked: Mapping[str, T]) -> list[tuple[str, T]]:
    """What is asked of globs first and of names last, so that a name has the last word."""
    names = {site.name for site in sites}
    return sorted(asked.items(), key=lambda item: item[0] in names)


def _whole(count: object) -> bool:
    return isinstance(count, numbers.Integral) and not isinstance(count, bool)


def check_fraction(fraction: float) -> None:
    """Raise InvalidInputError unless it is a number in [0, 1)."""
    if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real) or not 0 <= fraction < 1:
        raise InvalidInputError(f"remove={fraction!r} was asked: give the fraction to remove, at least 0 and below 1")
