"""From what the user asks to a plan: the request as a value, its checks, and the road for each sort of network."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.budget import Remove, allocate, check_fraction, draws_of, widths
from coreprune.engine.local import Progress, Request, curves, decide
from coreprune.engine.network import decide_network, network_curves, prior_of
from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.io.configs import governed
from coreprune.maths.methods import method as method_named
from coreprune.model.capture import described
from coreprune.model.site import Inspection
from coreprune.model.tensors import tensors_of
from coreprune.plan import Cut, Plan
from coreprune.priors.data import Data
from coreprune.priors.gaussian import Gaussian

__all__ = ["Wish", "check_finite", "decided", "radius_of"]


@dataclass(frozen=True)
class Wish:
    """The arguments of `coreprune.plan`, which explains them."""

    remove: Remove | None
    units: Mapping[str, int] | None
    budget: Mapping[str, float | str] | None
    draws: Mapping[str, int] | None
    method: str
    prior: Gaussian | Data | None
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

    @property
    def law(self) -> Gaussian | Data:
        """Where the law of the units comes from."""
        if self.data is not None:
            return Data(self.data)
        return self.prior if self.prior is not None else Gaussian()


def decided(model: nn.Module, found: Inspection, example_inputs: Any, wish: Wish) -> Plan:
    """The plan for a model whose sites are known.

    Args:
        model: not changed. found: its sites. example_inputs: what they were found with. wish: what is asked.
    """
    wish = replace(wish, ignore=_words(wish.ignore), kinds=None if wish.kinds is None else _words(wish.kinds))
    _check(wish)
    method = method_named(wish.method)
    _check_sites(model, found)
    tensors = tensors_of(model)
    check_finite(model.state_dict())
    law, radius = wish.law, radius_of(wish.radius, found.features)
    request = Request(method, law, radius, wish.seed, wish.reweight, {}, wish.progress)
    kept = _widths(model, found, tensors, wish, request)
    drawn = draws_of(found, wish.draws or {}, kept, wish.ignore)
    cuts: tuple[Cut, ...]
    if not found.graphs:
        cuts = decide(model, found, tensors, kept, replace(request, draws=drawn))
    elif drawn:
        raise InvalidInputError("draws= was asked of a network that is no stack: use units= or remove=")
    else:
        cuts = decide_network(found, tensors, kept, request)
    return Plan(cuts, _recipe(found, example_inputs, wish, radius, drawn), found.shapes)


def _words(value: Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _widths(
    model: nn.Module, found: Inspection, tensors: Mapping[str, Tensor], wish: Wish, request: Request
) -> dict[str, int]:
    """Units to keep, by site."""
    shares: dict[str, Any] = {name: getattr(wish, name) for name in ("ignore", "kinds", "uniform", "round_to")}
    if wish.uniform == "config":
        shares |= _configured(model, found, wish)
    by_error = isinstance(wish.remove, numbers.Real) and float(wish.remove) > 0 and request.method.law
    if wish.budget is None and not by_error:
        if wish.remove is None and wish.units is None:
            return {}
        return widths(found, remove=wish.remove, units=wish.units, **shares)
    left = wish.budget if wish.budget is not None else {"params": _left(wish.remove)}
    errors = network_curves(found, tensors, request) if found.graphs else curves(model, found, tensors, request)
    return allocate(found, errors, left, itemsize=next(iter(tensors.values())).element_size(), **shares)


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
    groups = list(governed(type(model), config, found.shapes, sites).values())
    named = {name for group in groups for name in group}
    if not named:
        raise UnsupportedModelError(
            f"{type(config).__name__} has no field for any width that can be cut: cut with uniform=True or False, and "
            "load the result with coreprune.load"
        )
    whole = [site.name for site in found.sites if site.name not in named]
    return {"uniform": groups, "ignore": (*wish.ignore, *whole)}


def _recipe(
    found: Inspection, example_inputs: Any, wish: Wish, radius: float, drawn: Mapping[str, int]
) -> dict[str, Any]:
    """Enough to make the plan again, as plain data."""
    law = wish.law
    return {
        "method": wish.method,
        "reweight": wish.reweight,
        "remove": dict(wish.remove) if isinstance(wish.remove, Mapping) else wish.remove,
        "units": None if wish.units is None else dict(wish.units),
        "budget": None if wish.budget is None else dict(wish.budget),
        "draws": dict(drawn) or None,
        "ignore": list(wish.ignore),
        "kinds": None if wish.kinds is None else list(wish.kinds),
        "uniform": wish.uniform,
        "round_to": wish.round_to,
        "radius": None if found.graphs else radius,
        "radius_from": _radius_from(wish.radius, found),
        "seed": wish.seed,
        "prior": prior_of(law) if found.graphs else law.named(found.features, radius),
        "prior_values": law.to_json() if isinstance(law, Gaussian) else None,
        "data_used": law.data_used,
        "capture": wish.capture,
        "inputs": described(example_inputs) if found.graphs else None,
    }


def _check_sites(model: nn.Module, found: Inspection) -> None:
    if not found.sites:
        reasons = list(dict.fromkeys(f"{r.name}: {r.reason}" for r in found.refused))
        more = f"; and {len(reasons) - 8} more" if len(reasons) > 8 else ""
        raise UnsupportedModelError(
            f"{type(model).__name__} has no layer that can be cut ({'; '.join(reasons[:8])}{more})"
        )


def _radius_from(radius: float | None, found: Inspection) -> str:
    if found.graphs:
        return "no worst case is stated"
    return "given" if radius is not None else f"√d for d = {found.features} input features"


def _check(wish: Wish) -> None:
    """Raise InvalidInputError if an argument is of a kind that cannot be meant."""
    for name, value in (("units", wish.units), ("budget", wish.budget), ("draws", wish.draws)):
        if value is not None and not (isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value)):
            raise InvalidInputError(f"{name}={value!r} was asked: give a dict with names as keys, such as {{'0': 150}}")
    if isinstance(wish.remove, Mapping) and not (wish.remove and all(isinstance(k, str) for k in wish.remove)):
        raise InvalidInputError(f"remove={wish.remove!r} was asked: give a fraction, or a dict with sites as keys")
    if wish.prior is not None and not isinstance(wish.prior, (Gaussian, Data)):
        raise InvalidInputError(f"prior={wish.prior!r} was given: give a coreprune.Gaussian or a coreprune.Data")
    if wish.data is not None and not isinstance(wish.data, Iterable):
        raise InvalidInputError(f"data={wish.data!r} was given: give a loader, or a list of batches")
    if wish.uniform not in {True, False, "config"}:
        raise InvalidInputError(f"uniform={wish.uniform!r} was asked: give True, False or 'config'")
    if not isinstance(wish.seed, numbers.Integral):
        raise InvalidInputError(f"seed={wish.seed!r} was given: give a whole number")
    if wish.draws is not None and wish.method != "sampling":
        raise InvalidInputError(f"draws= was asked of method={wish.method!r}: only 'sampling' draws, so use units=")
    if wish.prior is not None and wish.data is not None:
        raise InvalidInputError("both prior= and data= were given: give one of them")
    asked = (wish.remove, wish.units, wish.budget)
    if sum(one is not None for one in asked) + (wish.draws is not None and asked == (None, None, None)) != 1:
        raise InvalidInputError(
            "say one of remove= (a fraction), units= (exact widths) and budget=, not several or none"
        )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise InvalidInputError naming the first tensor that holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise InvalidInputError(f"{name} is on the meta device and holds no values: load the weights first")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise InvalidInputError(
                f"{name} holds {bad} values that are NaN or infinite: nothing can be said of such a network, mend it"
            )


def _left(remove: Remove | None) -> str:
    """A fraction of parameters to remove as the share that may be left."""
    assert isinstance(remove, numbers.Real)
    check_fraction(float(remove))
    return f"{100 * (1 - float(remove))!r}%"


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
