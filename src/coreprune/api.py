"""The verbs: inspect, plan, apply, prune, verify, save, load. Orchestration only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from coreprune.budget import Remove, matching, widths
from coreprune.engine.local import Progress, decide
from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.maths.methods import method as method_named
from coreprune.model.site import Inspection
from coreprune.model.stack import discover
from coreprune.plan import Plan
from coreprune.result import Pruned
from coreprune.surgery.apply import install, spared_copy
from coreprune.surgery.edits import edited

__all__ = ["apply", "inspect", "plan", "prune"]


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
    draws: Mapping[str, int] | None = None,
    method: str = "sampling",
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
        draws: the paper's draws with replacement, by site name or glob; the survivors are fewer. Only for "sampling".
        method: a key of `coreprune.METHODS`.
        ignore: sites to leave whole, by name, glob or ``re:``.
        radius: β, the largest ‖x‖ that the guarantee speaks of; default √d for d input features, the
            norm of an input whose features are all 1.
        seed: decides every random choice.
        progress: called with (done, all, name) before each site.

    Returns:
        The plan, to be looked at, saved, and applied.

    Raises:
        CorepruneError: one of its kinds, with what was asked, what was found and what to do.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan(net, units={"0": 3}).kept
        {'0': 3}
    """
    chosen = method_named(method)
    inspection = discover(model, example_inputs)
    if not inspection.sites:
        reasons = "; ".join(f"{r.name}: {r.reason}" for r in inspection.refused)
        raise UnsupportedModelError(f"{type(model).__name__} has no layer that can be cut ({reasons})")
    if draws is not None and method != "sampling":
        raise InvalidInputError(f"draws= was asked of method={method!r}: only 'sampling' draws, so use units=")
    draws_of = {site.name: m for pattern, m in (draws or {}).items() for site in matching(inspection.sites, pattern)}
    if draws is not None and remove is None and units is None:
        kept: dict[str, int] = {}
    else:
        kept = widths(inspection, remove=remove, units=units, ignore=ignore)
    beta = _radius(radius, inspection.features)
    tensors = model.state_dict()
    check_finite(tensors)
    cuts = decide(inspection.sites, tensors, kept, chosen, radius=beta, seed=seed, draws=draws_of, progress=progress)
    recipe = {
        "method": method,
        "remove": dict(remove) if isinstance(remove, Mapping) else remove,
        "units": None if units is None else dict(units),
        "draws": draws_of or None,
        "ignore": list(ignore),
        "radius": beta,
        "radius_from": "given" if radius is not None else f"√d for d = {inspection.features} input features",
        "seed": seed,
        "prior": "none: worst case over the ball",
        "data_used": False,
    }
    return Plan(cuts, recipe, inspection.shapes)


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
    changed = edited(plan.edits(state.__getitem__), state)
    small = model if inplace else spared_copy(model, changed)
    before = sum(t.numel() for t in state.values()), sum(t.numel() * t.element_size() for t in state.values())
    install(small, changed)
    return Pruned(small, plan, *before)


def prune(
    model: nn.Module, example_inputs: Tensor | None = None, *, inplace: bool = False, **request: object
) -> Pruned:
    """Plan and apply in one step; the arguments are those of `plan`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> prune(net, remove=0.5).parameters
        23
    """
    return apply(model, plan(model, example_inputs, **request), inplace=inplace)  # type: ignore[arg-type]


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise InvalidInputError naming the first tensor that holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise InvalidInputError(
                f"{name} holds {bad} values that are NaN or infinite: nothing can be said of such a network, mend it"
            )


def _radius(radius: float | None, features: int) -> float:
    if radius is None:
        return math.sqrt(features)
    if not (math.isfinite(radius) and radius > 0):
        raise InvalidInputError(f"radius={radius} was asked: give the largest norm of an input, a positive number")
    return float(radius)
