"""Widths under a budget: one price for all that the network may cost, and each site's error curve against it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coreprune.budget import MEASURED, Widths, check_round, choices_of, floor_of, least_said, most_said, number_of
from coreprune.errors import InvalidInputError
from coreprune.maths.hull import Curve
from coreprune.model.groups import Protect, Uniform, chosen, floors
from coreprune.model.positions import positions
from coreprune.model.site import Inspection, Site
from coreprune.model.size import Size

__all__ = ["allocate", "check_budget"]

Ints = NDArray[np.int64]
TICK = 1e-15  # of a second: in whole ticks costs are counted like entries


def allocate(inspection: Inspection, curves: Mapping[str, Tensor], budget: Mapping[str, Any], **asked: Any) -> Widths:
    """Units to keep so that the summed error of all sites is least for what the network may cost.

    One Lagrangian over the error curves: each site keeps argmin_k err(k) + λ·cost·k, with the cost of a
    unit taken at the widths of its neighbours, and λ is found by bisection. Sites that get one width
    have one curve, the sum of theirs.

    Args:
        inspection: the sites.
        curves: err(k), k = 0 … n, by site, each a share of the variance of the site's own readers.
        budget: what may be left, and what else is asked: see `_task`.

    Raises:
        InvalidInputError: a budget that is not known or cannot be met.
    """
    task = _task(inspection, budget, **asked)
    by = [_curve(group, curves, choices) for group, choices in zip(task.groups, task.choices, strict=True)]
    size, dense = task.size, task.size(task.size.units)

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
        if task.by_error:
            return math.sqrt(sum(curve.at(k) for curve, k in zip(by, kept.tolist(), strict=True))) <= task.limit
        return size(kept) * task.scale <= task.limit

    low, high = -40.0, 40.0  # log prices; the network shrinks as the price rises
    for _ in range(60):
        middle = (low + high) / 2
        fits = within(at(middle))
        low, high = (middle, high) if fits == task.by_error else (low, middle)
    kept = at(low) if task.by_error else _fill(at(high), by, size, task.limit / task.scale)
    return {site.name: k for group, k in zip(task.groups, kept.tolist(), strict=True) for site in group}


def check_budget(inspection: Inspection, budget: Mapping[str, Any], *, timed: bool = False, **asked: Any) -> None:
    """Raise what `allocate` would, before a curve is known, and what things cost in time only if that is `timed`."""
    kind, value = _only(budget)
    if kind == "latency" and not timed:
        _limit(kind, value, 1.0)
    if kind in MEASURED or (kind == "latency" and not timed):
        budget = {"params": "100%"}
    _task(inspection, budget, **asked)


@dataclass(frozen=True)
class _Task:
    """What is asked, in numbers.

    Attributes:
        groups: sites of one width each. choices: the widths that each can get, ascending.
        size: what the budget counts, as a function of the widths. scale: of one of that in the budget's unit.
        limit: in that unit, without what no cut makes less; of the error itself where that is asked.
        by_error: whether the budget speaks of the error.
    """

    groups: list[list[Site]]
    choices: list[Ints]
    size: Size
    scale: float
    limit: float
    by_error: bool


def _task(
    inspection: Inspection,
    budget: Mapping[str, Any],
    *,
    ignore: Iterable[str] = (),
    itemsize: int = 4,
    kinds: Collection[str] | None = None,
    uniform: Uniform = False,
    round_to: int | None = None,
    protect: Protect | None = None,
    remove: float | None = None,
) -> _Task:
    """The task that `allocate` has.

    Args:
        inspection: the sites.
        budget: one of ``params``, ``flops`` (per input), ``bytes``: the most that may be left, as a number
            or as "60%" of the dense network's; or ``error``: the largest √(Σ err), the relative root
            mean square error if the sites' errors add up; or ``latency``, in seconds, with a ``table`` of what the
            entries of tensors cost, see `coreprune.engine.latency`.
        ignore: sites to leave whole; this and what is not named here as in `coreprune.budget.widths`.
        itemsize: bytes per entry.
        remove: the fraction of parameters that was asked for, if that is what the budget came from.

    Raises:
        InvalidInputError: there is no answer to it.
    """
    kind, asked = _only(budget)
    scales = {"params": 1, "flops": 2, "bytes": itemsize, "error": 1, "latency": TICK}
    if kind not in scales:
        raise InvalidInputError(f"a budget of {kind!r} is not known: give one of {', '.join([*scales, *MEASURED])}")
    scale = scales[kind]
    check_round(round_to)
    _, groups = chosen(inspection, ignore, kinds, uniform)
    least_of = floors(inspection, protect, groups)
    size = _cost(kind, inspection, groups, budget)
    dense = size(size.units)
    whole = budget["table"]["seconds"] if kind == "latency" else dense * scale
    fixed = whole - dense * scale  # what no cut makes less
    limit = _limit(kind, asked, whole) - fixed
    every = [(choices_of(group[0].units, round_to), floor_of(group, least_of)) for group in groups]
    choices = [widths[widths >= floor] for widths, floor in every]
    least = np.array([widths[0] for widths in choices], dtype=np.int64)
    if kind == "error" or size(least) * scale <= limit:
        return _Task(groups, choices, size, scale, limit, kind == "error")
    left, few = (size(least) * scale + fixed) / whole, least_said(round_to, least_of)
    said = f"{kind}={asked!r}" if remove is None else f"remove={remove!r}"
    if all(len(widths) == 1 for widths in choices):
        why = f"has more units than {few}" if not least_of else "may lose any under protect= and round_to="
        why = why if choices else "is left by ignore= and kinds="
        raise InvalidInputError(f"{said} was asked, but no site {why}: nothing can go")
    if remove is not None:
        raise InvalidInputError(most_said(remove, few, 1 - left))
    raise InvalidInputError(
        f"too little was left ({said}): {few} left in every site still costs "
        f"{left:.2%} of the dense network: ask to leave '{math.ceil(left * 1000) / 10:g}%' or more"
        + (f" (remove={math.floor((1 - left) * 1000) / 1000} at most)" if kind == "params" else "")
    )


def _curve(group: Sequence[Site], curves: Mapping[str, Tensor], choices: Ints) -> Curve:
    """The summed error of sites that get one width."""
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


def _limit(kind: str, asked: float | str, dense: float) -> float:
    """The most that may be left, in the unit of `dense`."""
    try:
        if isinstance(asked, bool):
            raise TypeError("a truth value")
        relative = kind != "error" and isinstance(asked, str) and asked.endswith("%")
        limit = number_of(asked) * (dense if relative else 1)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{kind}={asked!r} is not a number or a percentage: write 60000 or '60%'") from error
    if not limit > 0:
        raise InvalidInputError(f"{kind}={asked!r} was asked: give a positive budget")
    return limit
