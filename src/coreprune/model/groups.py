"""Sites by name, by kind, and in groups that get one width."""

from __future__ import annotations

import math
import numbers
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from coreprune.errors import InvalidInputError, UnknownNameError, UnsupportedModelError
from coreprune.model.site import Inspection, Site

__all__ = ["KINDS", "Protect", "Uniform", "agree", "alike", "asked", "chosen", "floors", "left_whole",
           "matching", "means"]  # fmt: skip

Uniform = bool | Sequence[Collection[str]]
Protect = Mapping[str, float | int]
Groups = Sequence[Sequence[Site]]

#: what a site can be a site of
KINDS = ("linear", "gated", "conv", "residual", "heads", "experts", "embedding")


def matching(sites: Sequence[Site], pattern: str) -> list[Site]:
    """The sites that a name, a glob or a ``re:`` pattern means.

    Raises:
        UnknownNameError: it means none.
    """
    found = [site for site in sites if means(pattern, site.name)]
    if not found:
        names = [site.name for site in sites]
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        raise UnknownNameError(f"no site matches {pattern!r}; the sites are: {', '.join(names[:20]) or 'none'}{more}")
    return found


def asked(inspection: Inspection, pattern: str) -> list[Site]:
    """`matching`, of the sites of a network.

    Raises:
        UnknownNameError: it means none. UnsupportedModelError: it means none but what is refused, with the reason.
    """
    if not any(means(pattern, site.name) for site in inspection.sites):
        for one in inspection.refused:
            if means(pattern, one.name):
                raise UnsupportedModelError(f"{one.name} cannot be cut: {one.reason}")
    return matching(inspection.sites, pattern)


def left_whole(inspection: Inspection, patterns: Iterable[str]) -> set[str]:
    """Names of the sites that patterns mean; one may mean what is refused alone, which stays whole as it is."""
    names: set[str] = set()
    for pattern in patterns:
        if not any(means(pattern, one.name) for one in inspection.refused):
            names |= {site.name for site in matching(inspection.sites, pattern)}
        else:
            names |= {site.name for site in inspection.sites if means(pattern, site.name)}
    return names


def means(pattern: str, name: str) -> bool:
    """Whether a name, a glob or a ``re:`` pattern means a site of this name."""
    if not pattern.startswith("re:"):
        return name == pattern or fnmatchcase(name, pattern)
    try:
        return re.search(pattern[3:], name) is not None
    except re.error as error:
        raise InvalidInputError(f"{pattern!r} is not a regular expression ({error}): mend it, or use a glob") from error


def alike(sites: Iterable[Site]) -> list[tuple[str, ...]]:
    """Sites whose names are equal up to block numbers, with equal kinds and numbers of units: one width for all blocks.

    Returns:
        the names of each group; every site is in one, perhaps alone.
    """
    groups: dict[tuple[str, str, int], list[str]] = {}
    for site in sites:
        groups.setdefault((_pattern(site.name), site.kind, site.units), []).append(site.name)
    return [tuple(names) for names in groups.values()]


def chosen(
    inspection: Inspection, ignore: Iterable[str], kinds: Collection[str] | None, uniform: Uniform
) -> tuple[list[Site], list[list[Site]]]:
    """The sites that may be cut, and the same in groups that get one width each."""
    ignored = left_whole(inspection, ignore)
    wanted = _kinds(inspection.sites, kinds)
    sites = {site.name: site for site in inspection.sites if site.name not in ignored and site.kind in wanted}
    wished = alike(inspection.sites) if uniform is True else uniform or ()
    names, known = Counter(name for group in wished for name in group), {site.name for site in inspection.sites}
    for name, times in names.items():
        if name not in known:
            raise UnknownNameError(f"{name!r} is in a group of uniform= and not a site: group sites by their names")
        if times > 1:
            raise InvalidInputError(f"site {name!r} is in two groups of uniform=: put it into one")
    groups = [_group(list(group), sites) for group in wished]
    groups += [[site] for name, site in sites.items() if name not in names]
    order = {name: i for i, name in enumerate(sites)}
    return list(sites.values()), sorted((g for g in groups if g), key=lambda group: order[group[0].name])


def floors(inspection: Inspection, protect: Protect | None, groups: Groups | None = None) -> dict[str, int]:
    """The fewest units that protected sites keep, by name; names have the last word over globs.

    Args:
        inspection: the sites. groups: of those that may be cut; None for all.
        protect: by name, glob or ``re:``, the largest share of units that may go, a fraction in [0, 1), or the fewest
            units that stay, a whole number from 1.

    Raises:
        InvalidInputError: neither of the two, or more units than a site has, or of sites that stay whole anyway.
        UnknownNameError: a pattern that matches nothing.
    """
    names = {site.name for site in inspection.sites}
    left = names if groups is None else {site.name for group in groups for site in group}
    least: dict[str, int] = {}
    for pattern, most in sorted((protect or {}).items(), key=lambda item: item[0] in names):
        number = float(most) if isinstance(most, numbers.Real) and not isinstance(most, bool) else -1.0
        whole = number >= 1 and number.is_integer()
        if not whole and not 0 <= number < 1:
            raise InvalidInputError(
                f"protect={most!r} was asked of {pattern!r}: give the share that may go, at least 0 and below 1, or "
                "how many units stay, a whole number from 1"
            )
        meant = list(asked(inspection, pattern))
        if not any(site.name in left for site in meant):
            raise InvalidInputError(
                f"protect={most!r} was asked of {pattern!r}, which ignore= or kinds= leave whole: leave one of them out"
            )
        for site in meant:
            if whole and number > site.units:
                raise InvalidInputError(
                    f"protect={most!r} was asked of site {site.name!r}, which has {site.units}: give at most so many"
                )
            least[site.name] = int(number) if whole else site.units - math.floor(site.units * number + 1e-9)
    return least


def _group(names: Sequence[str], sites: Mapping[str, Site]) -> list[Site]:
    """The sites of a group, all of them or none, and of one width."""
    inside = [sites[name] for name in names if name in sites]
    whole = [name for name in names if name not in sites]
    if inside and whole:
        raise InvalidInputError(
            f"{whole[0]!r} is left whole, and {inside[0].name!r} gets the same width: "
            f"leave {_pattern(whole[0])!r} whole, or ask for uniform=False"
        )
    if len({site.units for site in inside}) > 1:
        found = ", ".join(f"{site.name!r} {site.units}" for site in inside[:3])
        raise InvalidInputError(f"one width was asked of sites with different ones ({found}): group them by width")
    return inside


def _kinds(sites: Sequence[Site], kinds: Collection[str] | None) -> set[str]:
    present = sorted({site.kind for site in sites})
    wanted = set(present) if kinds is None else {kinds} if isinstance(kinds, str) else set(kinds)
    unknown = sorted(wanted - set(KINDS) - set(present))
    if unknown:
        raise UnknownNameError(f"{unknown[0]!r} is not a kind of site: the kinds are {', '.join(KINDS)}")
    if not wanted & set(present):
        raise InvalidInputError(
            f"no site is of kind {', '.join(sorted(wanted)) or 'none'}: "
            f"there are sites of kind {', '.join(present) or 'none'}"
        )
    return wanted


def _pattern(name: str) -> str:
    """A site's name without block numbers."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def agree(group: Sequence[Site], kept: Mapping[str, int]) -> None:
    """Raise InvalidInputError unless all sites of a group were given the same width, or none any."""
    asked = {kept.get(site.name, site.units): site.name for site in reversed(group)}
    if len(asked) > 1:
        (a, first), (b, second) = list(asked.items())[:2]
        raise InvalidInputError(
            f"{first!r} and {second!r} get one width, and would keep {a} and {b} units: "
            f"ask for all with {_pattern(first)!r}, or for uniform=False"
        )
