"""A table of what the entries of each tensor cost in time, measured on this machine: latency as one more cost.

    seconds(widths) = base + Σ_t τ_t · entries_t(widths) / entries_t(dense)

Copies of the network with the same share of units left in every site are run in turns with the dense one, and a clock
stands at the start of every module that owns a tensor. What passes until the next module starts is that tensor's:
its product, and what follows it. τ_t is the slope of these times over the entries that are left, by least squares, and
base what does not shrink; a time is the first quartile of many runs. The table is of one machine, its threads, and
the inputs' shapes. It knows nothing of steps, as where a kernel does 16 channels in the time of 13: so the widths that
it leads to are timed too, and the slopes go towards what was won there, tensor by tensor, until they promise as much
(`fitted`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from coreprune.clock import Clock
from coreprune.errors import InvalidInputError
from coreprune.maths.layer import Coreset
from coreprune.model.capture import Arguments
from coreprune.model.site import Inspection
from coreprune.model.tensors import tensors_of
from coreprune.model.untouched import evaluating
from coreprune.plan import Cut
from coreprune.surgery.apply import install, spared_copy
from coreprune.surgery.attributes import follow
from coreprune.surgery.edits import edited

__all__ = ["arguments_of", "fitted", "measured_table", "table_of", "with_table"]

#: shares of units that copies are left with
SHARES = (0.75, 0.5, 0.25)
FEWEST, MOST, SECONDS = 5, 100, 4.0  # runs of each network, and time to spend
#: times that a table is corrected, the share of all time that it may be wrong by then, and the share of a tensor's
#: entries that must go for its time to say something
ROUNDS, CLOSE, LITTLE = 12, 0.01, 0.05


def with_table(
    model: nn.Module, found: Inspection, budget: Mapping[str, Any] | None, clock: Clock
) -> Mapping[str, Any] | None:
    """A budget, and if it is one of time the table beside it that was given or is measured now.

    Args:
        model: not changed. found: its sites. budget: as it was asked. clock: takes the time of measuring.

    Raises:
        InvalidInputError: see `table_of`; or a table without such a budget.
    """
    if budget is None or not {"latency", "table"} & set(budget):
        return budget
    if "latency" not in budget:
        raise InvalidInputError("a table of times was given, but no budget of 'latency': give latency='70%' too")
    table = budget.get("table")
    if table is None:
        with clock.stage("timing"):
            table = measured_table(model, found, arguments_of(model, found))
    return {**budget, "table": table_of(table, found)}


def arguments_of(model: nn.Module, found: Inspection) -> Arguments:
    """The call that is timed: the example's, or one input of a stack."""
    if found.graphs:
        return found.graphs[0].arguments
    like = next(model.parameters())
    return (torch.zeros(1, found.features, dtype=like.dtype, device=like.device),), {}


def fitted(
    model: nn.Module,
    found: Inspection,
    arguments: Arguments,
    table: Mapping[str, Any],
    widths: Callable[[Mapping[str, Any]], dict[str, int]],
) -> tuple[dict[str, int], dict[str, Any]]:
    """A measured table, corrected where it leads to, and the widths that it then gives.

    Args:
        model: not changed. found: its sites. arguments: of the call. table: as it was measured, which its entry
            "fresh" says. widths: that a table gives.
    """
    now, owners = {key: value for key, value in table.items() if key != "fresh"}, _owners(model, found)
    whole, dense = now["seconds"], tensors_of(model)
    tried: list[tuple[bool, float, dict[str, int], dict[str, Any]]] = []
    for _ in range(ROUNDS):
        try:
            kept = widths(now)
        except InvalidInputError:  # what was won falls short, and no cut promises enough any more
            if not tried:
                raise
            break
        small = _left(model, found, kept)
        sizes = tensors_of(small)
        gone = {name: 1 - sizes[name].numel() / dense[name].numel() for name in now["tensors"]}
        promised = sum(slope * gone[name] for name, slope in now["tensors"].items())
        ratio, saved = _compared(model, small, owners, arguments)
        short, near = promised - whole * (1 - ratio), CLOSE * whole
        tried.append((short > near, abs(short), kept, now))
        if promised <= 0 or abs(short) <= near:
            break
        now = {**now, "tensors": _corrected(now["tensors"], gone, saved, promised - short)}
    return min(tried, key=lambda one: one[:2])[2:]


def _corrected(
    slopes: Mapping[str, float], gone: Mapping[str, float], saved: Mapping[str, float], won: float
) -> dict[str, float]:
    """Slopes half way to those of the straight lines between the dense network and a small one.

    Args:
        slopes: seconds by tensor. gone: share of its entries that the small network does without.
        saved: seconds that went with them, each as measured. won: seconds in all, which the new lines together promise.
    """
    lines = {n: max(saved.get(n, 0.0), 0.0) / gone[n] if gone[n] >= LITTLE else slope for n, slope in slopes.items()}
    promised = sum(line * gone[name] for name, line in lines.items())
    factor = max(won, 0.0) / promised if promised > 0 else 0.0
    return {name: float(f"{(factor * line + slopes[name]) / 2:.6g}") for name, line in lines.items()}


def _compared(
    dense: nn.Module, small: nn.Module, owners: Mapping[str, str], arguments: Arguments
) -> tuple[float, dict[str, float]]:
    """Time of a small network over that of the dense one, in turns, and what each tensor's is shorter by, in seconds.

    The ratio is of calls without a clock inside, which weighs more where there is less to do.
    """
    plain: tuple[list[float], list[float]] = ([], [])
    parts: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    with evaluating(dense, small), torch.no_grad():
        end = time.perf_counter() + SECONDS / 2
        while len(plain[0]) < FEWEST or (time.perf_counter() < end and len(plain[0]) < MOST):
            for network, times, own in zip((dense, small), plain, parts, strict=True):
                times.append(sum(_timed(network, {}, arguments).values()))
                own.append(_timed(network, owners, arguments))
    whole, less = (_quick(times) for times in plain)
    return less / whole, {n: _typical(parts[0], n) - _typical(parts[1], n) for n in dict.fromkeys(owners.values())}


def table_of(given: Any, inspection: Inspection) -> dict[str, Any]:
    """A table that was given, checked.

    Args:
        given: a mapping with "seconds", of the dense network, and "tensors", seconds by name; or a file that holds one
            as JSON, alone or as the budget of a plan or of a result.
        inspection: of the network it is for.

    Raises:
        InvalidInputError: it is no such table, or is one of another network.
    """
    if isinstance(given, (str, Path)):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInputError(f"{given} cannot be read ({error.strerror}): check the path") from error
        except ValueError as error:
            raise InvalidInputError(
                f"{given} cannot be read as a table of times ({error}): give a JSON file"
            ) from error
    if isinstance(given, Mapping) and "recipe" in given:
        given = ((given["recipe"] or {}).get("budget") or {}).get("table")
    if not isinstance(given, Mapping) or not isinstance(given.get("tensors"), Mapping):
        raise InvalidInputError('a table of times is {"seconds": of the network, "tensors": {name: seconds}}: give one')
    tensors, whole = dict(given["tensors"]), given.get("seconds")
    for name, value in {"seconds": whole, **tensors}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise InvalidInputError(f"the table of times has {value!r} for {name!r}: give seconds, no less than 0")
    unknown = next((name for name in tensors if name not in inspection.shapes), None)
    if unknown is not None:
        raise InvalidInputError(f"the table of times names {unknown!r}, which the network does not have: measure anew")
    assert whole is not None
    if not 0 < sum(tensors.values()) <= whole * (1 + 1e-9):
        raise InvalidInputError(
            f"the tensors of the table of times take {sum(tensors.values()):.3g} s, and the network {whole:.3g} s: "
            "give more than 0 and at most as much"
        )
    return {**given, "seconds": float(whole), "tensors": {name: float(value) for name, value in tensors.items()}}


def measured_table(
    model: nn.Module, found: Inspection, arguments: Arguments, seconds: float = SECONDS
) -> dict[str, Any]:
    """Measure one.

    Args:
        model: not changed. found: its sites. arguments: of the call that is timed. seconds: to spend.
    """
    widths = [{site.name: max(1, round(share * site.units)) for site in found.sites} for share in SHARES]
    networks = [model, *(_left(model, found, kept) for kept in widths)]
    owners = _owners(model, found)
    entries = [{name: tensors_of(network)[name].numel() for name in owners.values()} for network in networks]
    runs: list[list[dict[str, float]]] = [[] for _ in networks]
    with evaluating(*networks), torch.no_grad():
        for network in networks:
            _timed(network, owners, arguments)  # the first run pays for what is set up once
        end = time.perf_counter() + seconds
        while len(runs[0]) < FEWEST or (time.perf_counter() < end and len(runs[0]) < MOST):
            for network, times in zip(networks, runs, strict=True):
                times.append(_timed(network, owners, arguments))
    slopes = {}
    for name in dict.fromkeys(owners.values()):
        left = np.array([one[name] / entries[0][name] for one in entries])
        spent = np.array([_typical(times, name) for times in runs])
        slope = float(np.polyfit(left, spent, 1)[0]) if np.ptp(left) > 0 else 0.0
        slopes[name] = float(f"{min(max(slope, 0.0), float(spent[0])):.6g}")
    whole = sum(_typical(runs[0], name) for name in {name: None for run in runs[0] for name in run})
    kinds = {str(t.device.type) for t in model.parameters()}
    return {
        "seconds": float(f"{whole:.6g}"), "tensors": slopes, "runs": len(runs[0]), "threads": torch.get_num_threads(),
        "device": ", ".join(sorted(kinds)), "fresh": True,
    }  # fmt: skip


def _typical(runs: Sequence[Mapping[str, float]], name: str) -> float:
    """The first quartile of a tensor's times: what else the machine does makes runs longer and none shorter."""
    return _quick([run.get(name, 0.0) for run in runs])


def _quick(times: Sequence[float]) -> float:
    return float(np.quantile(times, 0.25))


def _left(model: nn.Module, found: Inspection, widths: Mapping[str, int]) -> nn.Module:
    """A copy with so many units in its sites; which ones, and with what weights, takes the same time."""
    tensors, cuts = tensors_of(model), []
    for site in found.sites:
        count = widths.get(site.name, site.units)
        if count == site.units:
            continue
        kept = torch.linspace(0, site.units - 1, count).long()
        cuts.append(Cut(site, tuple(Coreset(kept, torch.ones(count)) for _ in site.readers)))
    changed = edited([edit for cut in cuts for edit in (*cut.reading(tensors), *cut.owning(tensors))], tensors)
    small = spared_copy(model, changed)
    install(small, changed, follow(model, cuts))
    return small


def _owners(model: nn.Module, found: Inspection) -> dict[str, str]:
    """Modules that own tensors of the network → the largest of theirs."""
    owners: dict[str, str] = {}
    for path, module in model.named_modules():
        own = [(t.numel(), f"{path}.{key}" if path else key) for key, t in module.named_parameters(recurse=False)]
        known = [pair for pair in own if pair[1] in found.shapes]
        if known:
            owners[path] = max(known)[1]
    return owners


def _timed(network: nn.Module, owners: Mapping[str, str], arguments: Arguments) -> dict[str, float]:
    """Seconds of one call by tensor; what passes before the first is the network's own, under no name."""
    stamps: list[tuple[str, float]] = []

    def stamp(name: str) -> Callable[..., None]:
        return lambda *_: stamps.append((name, time.perf_counter()))

    hooks = [network.get_submodule(path).register_forward_pre_hook(stamp(name)) for path, name in owners.items()]
    args, kwargs = arguments
    waits = any(tensor.is_cuda for tensor in network.parameters())
    try:
        stamps.append(("", time.perf_counter()))
        network(*args, **kwargs)
        if waits:
            torch.cuda.synchronize()
        stamps.append(("", time.perf_counter()))
    finally:
        for hook in hooks:
            hook.remove()
    spent: dict[str, float] = {}
    for (name, start), (_, end) in pairwise(stamps):
        spent[name] = spent.get(name, 0.0) + end - start
    return spent
