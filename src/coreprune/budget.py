"""From what the user asks to the number of units that each site keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from coreprune.errors import InvalidInputError, UnknownNameError
from coreprune.model.site import Inspection, Site, parameters_after

__all__ = ["Remove", "matching", "widths"]

Remove = float | Mapping[str, float]


def matching(sites: Sequence[Site], pattern: str) -> list[Site]:
    """The sites that a name, a glob or a ``re:`` pattern means.

    Raises:
        UnknownNameError: it means none.
    """
    if pattern.startswith("re:"):
        found = [site for site in sites if re.search(pattern[3:], site.name)]
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
    _check_fraction(remove)
    return _evenly(inspection, sites, remove)


def _exact(sites: Sequence[Site], units: Mapping[str, int]) -> dict[str, int]:
    kept: dict[str, int] = {}
    for pattern, count in units.items():
        for site in matching(sites, pattern):
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= site.units:
                raise InvalidInputError(
                    f"units={count!r} was asked of site {site.name!r}, which has {site.units}: "
                    f"keep a whole number from 1 to {site.units}"
                )
            kept[site.name] = count
    return kept


def _fractions(sites: Sequence[Site], remove: Mapping[str, float]) -> dict[str, int]:
    kept: dict[str, int] = {}
    for pattern, fraction in remove.items():
        _check_fraction(fraction)
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


def _check_fraction(fraction: float) -> None:
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction < 1:
        raise InvalidInputError(f"remove={fraction!r} was asked: give the fraction to remove, at least 0 and below 1")
