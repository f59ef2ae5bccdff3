"""What the user asks, as a value, and the checks of it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.allocation import check_budget
from coreprune.budget import Widths, check_fraction, number_of, widths
from coreprune.clock import Clock
from coreprune.engine.driven import asked_of
from coreprune.engine.inputs import Prior, check_prior, named
from coreprune.engine.local import Progress
from coreprune.engine.picking import picked
from coreprune.engine.probes import predicting
from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.io.configs import governed
from coreprune.maths.methods import method as method_named
from coreprune.model.capture import Arguments
from coreprune.model.groups import asked as asked_sites
from coreprune.model.site import Inspection
from coreprune.model.tensors import tensors_of
from coreprune.priors.data import Data
from coreprune.priors.gaussian import Gaussian

__all__ = ["Share", "Wish", "check", "check_asked", "check_finite", "check_fits", "check_sites", "fractions_of",
           "prior_of_cut", "radius_of", "shared_out", "widths_asked"]  # fmt: skip

MOST_SEED = 2**62  # the generators take 64 bits, and further seeds are made of one by adding

#: a fraction, or a percentage such as "50%"
Share = float | str


@dataclass(frozen=True)
class Wish:
    """The arguments of `coreprune.plan`, which explains them."""

    remove: Any  # Share, or one by site; numbers alone once `fractions_of` has seen them
    units: Mapping[str, int] | None
    budget: Mapping[str, Any] | None
    draws: Mapping[str, int] | None
    method: str
    prior: Prior | str | None
    data: Iterable[Any] | None
    reweight: bool
    ignore: Iterable[str]
    radius: float | None
    kinds: Iterable[str] | None
    uniform: bool | str
    round_to: int | None
    capture: str
    seed: int
    progress: Progress | None
    clock: Clock = field(default_factory=Clock)
    protect: Mapping[str, float | int] | None = None
    timed: Arguments = ((), {})

    def law(self, model: nn.Module, found: Inspection) -> tuple[Prior, str | None]:
        """Where the law of the units comes from: what is asked for, or what suits the network, and then why."""
        if self.data is not None:
            return Data(self.data), None
        if self.prior is not None and self.prior != "auto":
            return named(self.prior), None
        if not found.graphs:
            return Gaussian(), "layers in a row have moments in closed form under it"
        if not (method_named(self.method).law or self.reweight):
            return Gaussian(), f"method {self.method} looks at the weights alone, and the prior only says its error"
        return picked(model, found.graphs[0])

    @property
    def by_error(self) -> bool:
        """Whether a fraction of all parameters is shared out by the sites' error curves."""
        return isinstance(self.remove, numbers.Real) and float(self.remove) > 0 and method_named(self.method).law

    @property
    def most_left(self) -> Mapping[str, Any]:
        """The budget, or a fraction of parameters to remove as the share that may be left."""
        if self.budget is not None:
            return self.budget
        assert isinstance(self.remove, numbers.Real)
        check_fraction(float(self.remove))
        return {"params": f"{100 * (1 - Decimal(repr(float(self.remove)))):f}%"}


def check(wish: Wish) -> None:
    """Raise InvalidInputError if an argument is of a kind that cannot be meant."""
    for name, value in (
        ("units", wish.units),
        ("budget", wish.budget),
        ("draws", wish.draws),
        ("protect", wish.protect),
    ):
        if value is not None and not (isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value)):
            raise InvalidInputError(f"{name}={value!r} was asked: give a dict with names as keys, such as {{'0': 150}}")
    if isinstance(wish.remove, Mapping) and not (wish.remove and all(isinstance(k, str) for k in wish.remove)):
        raise InvalidInputError(f"remove={wish.remove!r} was asked: give a fraction, or a dict with sites as keys")
    if wish.prior is not None:
        check_prior(wish.prior)
    if wish.data is not None and not isinstance(wish.data, Iterable):
        raise InvalidInputError(f"data={wish.data!r} was given: give a loader, or a list of batches")
    if not isinstance(wish.uniform, bool) and wish.uniform != "config":
        raise InvalidInputError(f"uniform={wish.uniform!r} was asked: give True, False or 'config'")
    whole = isinstance(wish.seed, numbers.Integral) and not isinstance(wish.seed, bool)
    if not whole or not abs(int(wish.seed)) < MOST_SEED:
        raise InvalidInputError(f"seed={wish.seed!r} was given: give a whole number between -2**62 and 2**62")
    if wish.draws is not None and wish.method != "sampling":
        raise InvalidInputError(f"draws= was asked of method={wish.method!r}: only 'sampling' draws, so use units=")
    if wish.prior is not None and wish.data is not None:
        raise InvalidInputError("both prior= and data= were given: give one of them")
    asked = (wish.remove, wish.units, wish.budget)
    if sum(one is not None for one in asked) + (wish.draws is not None and asked == (None, None, None)) != 1:
        raise InvalidInputError(
            "say one of remove= (a fraction), units= (exact widths) and budget=, not several or none"
        )


def check_sites(model: nn.Module, found: Inspection) -> None:
    """Raise UnsupportedModelError where nothing can be cut, with the reasons."""
    if not found.sites:
        reasons = list(dict.fromkeys(f"{r.name}: {r.reason}" for r in found.refused))
        more = f"; and {len(reasons) - 8} more" if len(reasons) > 8 else ""
        raise UnsupportedModelError(
            f"{type(model).__name__} has no layer that can be cut ({'; '.join(reasons[:8])}{more})"
            + (
                ""
                if found.graphs
                else ": without example_inputs only Linear layers and activations in a row are followed; "
                "pass one batch as the model takes it, on the command line its shape (--input)"
            )
        )


def check_fits(found: Inspection, wish: Wish) -> None:
    """Raise InvalidInputError where what is asked is of stacks, or of captured networks, and this is the other sort."""
    method = method_named(wish.method)
    if wish.radius is not None and found.graphs and (method.law or method.turns):
        raise InvalidInputError(
            f"radius={wish.radius!r} was asked of a network that is no stack of Linear layers: no worst case is proved "
            f"of it, and method={wish.method!r} has no use for a radius: leave it out"
        )
    if method.merges and found.graphs:
        raise InvalidInputError(
            f"method={wish.method!r} merges units before their activation, which only a stack of Linear layers allows: "
            "use method='kernel'"
        )
    asked = asked_of(wish.budget)
    if asked is not None and not found.graphs:
        raise InvalidInputError(
            f"a budget of {asked[0]!r} was asked of a stack of Linear layers: ask for error=0.05, or another "
            "share, which is predicted there in closed form"
        )
    if asked is not None and asked[0] == "divergence" and not predicting(found.graphs[0]):
        raise InvalidInputError(
            "a budget of 'divergence' was asked, but the network predicts no tokens: ask for 'cosine' or 'output_error'"
        )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise InvalidInputError naming the first tensor that holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise InvalidInputError(f"{name} is on the meta device and holds no values: load the weights first")
        if not tensor.is_floating_point() or math.isfinite(tensor.sum()):  # a quick pass; sums may run over
            continue
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise InvalidInputError(
                f"{name} holds NaN or infinite numbers ({bad}): nothing can be said of such a network, mend it"
            )


def fractions_of(remove: Share | Mapping[str, Share] | None) -> Any:
    """A fraction to remove, or several by site, with percentages such as "50%" as numbers.

    Example:
        >>> fractions_of("50%"), fractions_of({"0": "12.5%"}), fractions_of(None)
        (0.5, {'0': 0.125}, None)
    """
    if isinstance(remove, Mapping):
        return {name: fractions_of(value) for name, value in remove.items()}
    if isinstance(remove, str) and remove.endswith("%"):
        with suppress(ValueError):  # what is no share is refused where it is used
            return number_of(remove) if 0 <= number_of(remove) < 1 else remove
    return remove


def radius_of(radius: float | None, features: int) -> float:
    """β as it was asked, or √d.

    Raises:
        InvalidInputError: not a positive number.
    """
    if radius is None:
        return math.sqrt(max(features, 1))
    if not isinstance(radius, numbers.Real) or not (math.isfinite(radius) and radius > 0):
        raise InvalidInputError(f"radius={radius!r} was asked: give the largest norm of an input, a positive number")
    return float(radius)


def prior_of_cut(recipe: Mapping[str, Any], features: int) -> Gaussian | None:
    """The prior that a stack was cut under, with the deviation that it had at the radius of the cut."""
    if not recipe.get("prior_values"):
        return None
    prior = Gaussian.from_json(recipe["prior_values"])
    if prior.std is not None or recipe.get("radius") is None:
        return prior
    return replace(prior, std=float(recipe["radius"]) / math.sqrt(features))


def shared_out(model: nn.Module, found: Inspection, wish: Wish) -> dict[str, Any]:
    """The arguments that `coreprune.budget.widths` and `coreprune.allocation.allocate` have in common."""
    shares: dict[str, Any] = {
        name: getattr(wish, name) for name in ("ignore", "kinds", "uniform", "round_to", "protect")
    }
    return shares | (_configured(model, found, wish) if wish.uniform == "config" else {})


def check_asked(
    model: nn.Module, found: Inspection, wish: Wish, shares: Mapping[str, Any], *, timed: bool = False
) -> None:
    """Raise what sharing out would, where that can be known before anything is observed.

    Args:
        model: the network. found: its sites. wish: what is asked. shares: see `shared_out`.
        timed: whether its budget has a table of times that was checked.

    Raises:
        InvalidInputError: widths or a budget that cannot be had. UnknownNameError: a pattern that matches nothing.
        UnsupportedModelError: a width that the model's configuration has no field for.
    """
    if wish.budget is None and not wish.by_error:
        widths_asked(found, wish, shares)
    else:
        itemsize = next(iter(tensors_of(model).values())).element_size()
        check_budget(found, wish.most_left, itemsize=itemsize, remove=wish.remove, timed=timed, **shares)


def widths_asked(found: Inspection, wish: Wish, shares: Mapping[str, Any]) -> Widths:
    """Units to keep, by site, where they follow from what is asked; none where draws alone are asked for."""
    if wish.remove is None and wish.units is None:
        return {}
    return widths(found, remove=wish.remove, units=wish.units, **shares)


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
        wished = {site.name for site in asked_sites(found, pattern)}
        if not wished & named:
            raise UnsupportedModelError(
                f"{min(wished)} was asked for, and {type(config).__name__} has no field for its width: cut with "
                "uniform=False, and load the result with coreprune.load"
            )
    return {"uniform": groups, "ignore": (*wish.ignore, *whole)}
