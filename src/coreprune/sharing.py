"""How what is asked is shared out over the sites: what can be checked of it before anything is observed."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from torch import nn

from coreprune.allocation import check_budget
from coreprune.budget import Widths, check_fraction, widths
from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.io.configs import governed
from coreprune.maths.methods import method as method_named
from coreprune.model.groups import asked
from coreprune.model.site import Inspection
from coreprune.model.tensors import tensors_of
from coreprune.wish import Wish

__all__ = ["by_error", "check_asked", "most_left", "shared_out", "widths_asked"]


def shared_out(model: nn.Module, found: Inspection, wish: Wish) -> dict[str, Any]:
    """The arguments that `coreprune.budget.widths` and `coreprune.allocation.allocate` have in common."""
    shares: dict[str, Any] = {
        name: getattr(wish, name) for name in ("ignore", "kinds", "uniform", "round_to", "protect")
    }
    return shares | (_configured(model, found, wish) if wish.uniform == "config" else {})


def check_asked(model: nn.Module, found: Inspection, wish: Wish, *, timed: bool = False) -> None:
    """Raise what sharing out would, where that can be known before anything is observed.

    Args:
        model: the network. found: its sites. wish: what is asked.
        timed: whether its budget has a table of times that was checked.

    Raises:
        InvalidInputError: widths or a budget that cannot be had. UnknownNameError: a pattern that matches nothing.
        UnsupportedModelError: a width that the model's configuration has no field for.
    """
    shares = shared_out(model, found, wish)
    if wish.budget is None and not by_error(wish):
        widths_asked(found, wish, shares)
    else:
        itemsize = next(iter(tensors_of(model).values())).element_size()
        check_budget(found, most_left(wish), itemsize=itemsize, remove=wish.remove, timed=timed, **shares)


def widths_asked(found: Inspection, wish: Wish, shares: Mapping[str, Any]) -> Widths:
    """Units to keep, by site, where they follow from what is asked; none where draws alone are asked for."""
    if wish.remove is None and wish.units is None:
        return {}
    return widths(found, remove=wish.remove, units=wish.units, **shares)


def by_error(wish: Wish) -> bool:
    """Whether a fraction of all parameters is shared out by the sites' error curves."""
    return isinstance(wish.remove, numbers.Real) and float(wish.remove) > 0 and method_named(wish.method).law


def most_left(wish: Wish) -> Mapping[str, Any]:
    """The budget, or a fraction of parameters to remove as the share that may be left."""
    if wish.budget is not None:
        return wish.budget
    assert isinstance(wish.remove, numbers.Real)
    check_fraction(float(wish.remove))
    return {"params": f"{100 * (1 - Decimal(repr(float(wish.remove)))):f}%"}


def _configured(model: nn.Module, found: Inspection, wish: Wish) -> dict[str, Any]:
    """Groups of sites that one field of the model's configuration speaks of; what has no field stays whole."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        raise InvalidInputError(
            f"uniform='config' was asked, but {type(model).__name__} has no configuration: give uniform=True or False"
        )
    allowed = set(wish.kinds or [site.kind for site in found.sites])
    sites = {
        site.name: (site.units, tuple((at.tensor, at.axis) for at in site.locations if at.tensor))
        for site in found.sites
        if site.kind in allowed
    }
    if not sites:
        return {"uniform": False}  # which says what is missing
    groups = list(governed(type(model), config, found.shapes, sites).values())
    named = {name for group in groups for name in group}
    if not named:
        raise UnsupportedModelError(
            f"{type(config).__name__} has no field for any width that can be cut: cut with uniform=True or False, and "
            "load the result with coreprune.load"
        )
    whole = [site.name for site in found.sites if site.name not in named]
    for pattern in [*(wish.units or ()), *(wish.remove if isinstance(wish.remove, Mapping) else ())]:
        wished = {site.name for site in asked(found, pattern)}
        if not wished & named:
            raise UnsupportedModelError(
                f"{min(wished)} was asked for, and {type(config).__name__} has no field for its width: cut with "
                "uniform=False, and load the result with coreprune.load"
            )
    return {"uniform": groups, "ignore": (*wish.ignore, *whole)}
