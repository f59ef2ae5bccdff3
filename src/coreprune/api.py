"""The verbs: inspect, plan, apply, prune, verify, save, load. Orchestration only."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.budget import Remove, allocate, check_fraction, draws_of, widths
from coreprune.engine.local import Progress, Request, curves, decide
from coreprune.engine.verify import Verification, certify
from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.maths.domain import Ball, Box
from coreprune.maths.methods import method as method_named
from coreprune.model.site import Inspection
from coreprune.model.stack import discover
from coreprune.plan import Plan
from coreprune.priors.data import Data
from coreprune.priors.gaussian import Gaussian
from coreprune.result import Pruned, load, read_claims, read_structure
from coreprune.surgery.apply import install, spared_copy
from coreprune.surgery.edits import edited

__all__ = ["apply", "inspect", "plan", "prune", "verify"]


def inspect(model: nn.Module, example_inputs: Tensor | None = None) -> Inspection:
    """What can shrink, and what cannot and why.

    Args:
        model: a stack of Linear layers and elementwise activations.
        example_inputs: one batch as the model takes it, (batch, …).

    Returns:
        The sites in forward order and the refusals.

    Raises:
        InvalidInputError, UnsupportedModelError: see `coreprune.model.stack.discover`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(site.name, site.units) for site in inspect(net).sites]
        [('0', 8)]
    """
    return discover(model, example_inputs)


def plan(
    model: nn.Module,
    example_inputs: Tensor | None = None,
    *,
    remove: Remove | None = None,
    units: Mapping[str, int] | None = None,
    budget: Mapping[str, float | str] | None = None,
    draws: Mapping[str, int] | None = None,
    method: str = "kernel",
    prior: Gaussian | Data | None = None,
    data: Iterable[Any] | None = None,
    reweight: bool = False,
    ignore: Iterable[str] = (),
    radius: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Decide which units go and what stands for them; nothing is changed.

    Args:
        model: a stack of Linear layers and elementwise activations.
        example_inputs: one batch as the model takes it, (batch, …).
        remove: fraction of all parameters to remove, in [0, 1); or a fraction of units by site.
        units: exact numbers of units to keep, by site name or glob.
        budget: ``{"params": 6e4 | "60%"}``, or the same with ``flops``, ``bytes``; or ``{"error": 0.05}``,
            the relative error of the outputs that the prior predicts.
        draws: the paper's draws with replacement, by site name or glob; the survivors are fewer. Only for "sampling".
        method: a key of `coreprune.METHODS`.
        prior: the law of the inputs; default `Gaussian()`, mean 0 and standard deviation β/√d.
        data: a loader of inputs to measure on instead, short for ``prior=Data(loader)``.
        reweight: give the units that another method chose their least-squares weights under the prior.
        ignore: sites to leave whole, by name, glob or ``re:``.
        radius: β, the largest ‖x‖ that the worst-case statements speak of; default √d for d input
            features, the norm of an input whose features are all 1.
        seed: decides every random choice.
        progress: called with (done, all, name) before each site.

    Returns:
        The plan, to be looked at, saved, and applied. A fraction or budget is shared out over the sites
        by their error curves for "kernel" and "refined", and as one fraction of units otherwise.

    Raises:
        CorepruneError: one of its kinds, with what was asked, what was found and what to do.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan(net, units={"0": 3}).kept
        {'0': 3}
    """
    ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    _check_request(remove, units, budget, draws, prior, data, seed)
    chosen = method_named(method)
    found = discover(model, example_inputs)
    if not found.sites:
        reasons = "; ".join(f"{r.name}: {r.reason}" for r in found.refused)
        raise UnsupportedModelError(f"{type(model).__name__} has no layer that can be cut ({reasons})")
    if draws is not None and method != "sampling":
        raise InvalidInputError(f"draws= was asked of method={method!r}: only 'sampling' draws, so use units=")
    if prior is not None and data is not None:
        raise InvalidInputError("both prior= and data= were given: give one of them")
    tensors = model.state_dict()
    check_finite(tensors)
    law = Data(data) if data is not None else prior if prior is not None else Gaussian()
    beta = _radius(radius, found.features)
    request = Request(chosen, law, beta, seed, reweight, {}, progress)
    asked = (remove, units, budget)
    if sum(one is not None for one in asked) + (draws is not None and asked == (None, None, None)) != 1:
        raise InvalidInputError(
            "say one of remove= (a fraction), units= (exact widths) and budget=, not several or none"
        )
    kept: dict[str, int] = {}
    if budget is not None or (isinstance(remove, numbers.Real) and float(remove) > 0 and chosen.law):
        left = budget if budget is not None else {"params": _left(remove)}
        item = next(iter(tensors.values())).element_size()
        kept = allocate(found, curves(model, found, tensors, request), left, ignore=ignore, itemsize=item)
    elif asked != (None, None, None):
        kept = widths(found, remove=remove, units=units, ignore=ignore)
    drawn = draws_of(found, draws or {}, kept, ignore)
    cuts = decide(model, found, tensors, kept, replace(request, draws=drawn))
    recipe = {
        "method": method,
        "reweight": reweight,
        "remove": dict(remove) if isinstance(remove, Mapping) else remove,
        "units": None if units is None else dict(units),
        "budget": None if budget is None else dict(budget),
        "draws": drawn or None,
        "ignore": list(ignore),
        "radius": beta,
        "radius_from": "given" if radius is not None else f"√d for d = {found.features} input features",
        "seed": seed,
        "prior": law.named(found.features, beta),
        "prior_values": law.to_json() if isinstance(law, Gaussian) else None,
        "data_used": law.data_used,
    }
    return Plan(cuts, recipe, found.shapes)


def apply(model: nn.Module, plan: Plan, *, inplace: bool = False) -> Pruned:
    """Cut a network as planned.

    Args:
        model: the network the plan was made for.
        plan: the decisions.
        inplace: change `model` itself; otherwise it is not touched.

    Returns:
        The smaller network, a plain module of the same class.

    Raises:
        CheckpointError: the plan was made for other tensors; nothing is changed.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> apply(net, plan(net, units={"0": 3})).model
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    state = model.state_dict()
    plan.check({name: tuple(tensor.shape) for name, tensor in state.items()})
    changed = edited(plan.edits(state), state)
    small = model if inplace else spared_copy(model, changed)
    before = sum(t.numel() for t in state.values()), sum(t.numel() * t.element_size() for t in state.values())
    install(small, changed)
    return Pruned(small, plan, *before)


def prune(
    model: nn.Module,
    example_inputs: Tensor | None = None,
    *,
    remove: Remove | None = None,
    units: Mapping[str, int] | None = None,
    budget: Mapping[str, float | str] | None = None,
    draws: Mapping[str, int] | None = None,
    method: str = "kernel",
    prior: Gaussian | Data | None = None,
    data: Iterable[Any] | None = None,
    reweight: bool = False,
    ignore: Iterable[str] = (),
    radius: float | None = None,
    seed: int = 0,
    inplace: bool = False,
    progress: Progress | None = None,
) -> Pruned:
    """Plan and apply in one step; the arguments are those of `plan` and `apply`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> prune(net, remove=0.5).parameters <= 0.5 * 58
        True
    """
    decided = plan(
        model,
        example_inputs,
        remove=remove,
        units=units,
        budget=budget,
        draws=draws,
        method=method,
        prior=prior,
        data=data,
        reweight=reweight,
        ignore=ignore,
        radius=radius,
        seed=seed,
        progress=progress,
    )
    return apply(model, decided, inplace=inplace)


def verify(
    model: nn.Module,
    small: Pruned | str | Path,
    *,
    prior: Gaussian | None = None,
    radius: float | None = None,
    box: tuple[float, float] | None = None,
    inputs: Tensor | None = None,
    samples: int = 10_000,
    delta: float = 0.05,
    worst: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Recompute what is guaranteed of a smaller network, from the two networks' tensors alone.

    Args:
        model: the dense network.
        small: the result of `prune`, or the directory it was saved to.
        prior: law of the inputs for the mean squares; default the one the network was cut under.
        radius: β of the ball that the worst case is taken over; default that of the cut.
        box: (lowest, highest) value of every input feature, to take it over a box instead.
        inputs: the user's own inputs to measure on, (N, …); otherwise the prior is sampled.
        samples: how many inputs to sample.
        delta: probability with which a statement may fail.
        worst: also prove worst cases, which takes longest.
        seed: of samples and searches.
        progress: called with (done, all, name) before each site.

    Returns:
        Certificates; `statements()` says each in a sentence.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> checked = verify(net, prune(net, units={"0": 8}))
        >>> checked.end_bound                                          # nothing was cut
        0.0
    """
    found = discover(model)
    if box is not None and radius is not None:
        raise InvalidInputError("both radius= and box= were given: give one of them")
    if not isinstance(small, (Pruned, str, Path)):
        raise InvalidInputError(
            f"verify was given a {type(small).__name__}: give what prune returned, or the directory it was saved to"
        )
    recipe = small.plan.recipe if isinstance(small, Pruned) else read_structure(small)["recipe"]
    if prior is None and recipe.get("prior_values"):
        prior = Gaussian.from_json(recipe["prior_values"])
    domain: Ball | Box = Ball(_radius(radius if radius is not None else recipe.get("radius"), found.features))
    if box is not None:
        if not (isinstance(box, tuple) and len(box) == 2 and all(isinstance(end, numbers.Real) for end in box)):
            raise InvalidInputError(f"box={box!r} was given: give the lowest and the highest value, such as (0, 1)")
        domain = Box(*(torch.full((found.features,), float(end)) for end in box))
    if isinstance(small, Pruned):
        module, claims = small.model, small.claims()
    else:
        module, claims = load(small, lambda: copy.deepcopy(model)), read_claims(small)
    return certify(
        model,
        module,
        found,
        claims,
        prior=prior or Gaussian(),
        domain=domain,
        inputs=inputs,
        samples=samples,
        delta=delta,
        worst=worst,
        seed=seed,
        progress=progress,
    )


def _check_request(
    remove: object, units: object, budget: object, draws: object, prior: object, data: object, seed: object
) -> None:
    """Raise InvalidInputError if an argument is of a kind that cannot be meant."""
    for name, value in (("units", units), ("budget", budget), ("draws", draws)):
        if value is not None and not (isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value)):
            raise InvalidInputError(f"{name}={value!r} was asked: give a dict with names as keys, such as {{'0': 150}}")
    if isinstance(remove, Mapping) and not (remove and all(isinstance(k, str) for k in remove)):
        raise InvalidInputError(f"remove={remove!r} was asked: give a fraction, or a dict with sites as keys")
    if prior is not None and not isinstance(prior, (Gaussian, Data)):
        raise InvalidInputError(f"prior={prior!r} was given: give a coreprune.Gaussian or a coreprune.Data")
    if data is not None and not isinstance(data, Iterable):
        raise InvalidInputError(f"data={data!r} was given: give a loader, or a list of batches")
    if not isinstance(seed, numbers.Integral):
        raise InvalidInputError(f"seed={seed!r} was given: give a whole number")


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


def _radius(radius: float | None, features: int) -> float:
    if radius is None:
        return math.sqrt(features)
    if not isinstance(radius, numbers.Real) or not (math.isfinite(radius) and radius > 0):
        raise InvalidInputError(f"radius={radius!r} was asked: give the largest norm of an input, a positive number")
    return float(radius)
