"""A rule against the only thing that counts: what it says can be cut, can be cut, and nothing else changes."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from coreprune.api import prune
from coreprune.errors import CorepruneError
from coreprune.model.capture import arguments, first_line, leaves_of
from coreprune.model.discover import discover
from coreprune.model.rules import RULES
from coreprune.model.site import Inspection
from coreprune.model.tensors import tensors_of
from coreprune.plan import Plan
from coreprune.testing.common import Checker, Conformance

__all__ = ["check_rule", "operators_of"]

TOLERANCE = 1e-9  # of the largest output, in float64

T = TypeVar("T")


def check_rule(
    operator: str | Sequence[str],
    module: nn.Module,
    example_inputs: Any,
    *,
    seeds: Sequence[int] = (0, 1),
    seconds: float = 120.0,
) -> Conformance:
    """Cut a small module that uses an operator, and compare with the dense module whose removed units are replaced.

    In float64. For every site that the rules find, half of the units, drawn evenly, are taken out, by the same road as
    in `coreprune.prune`, which includes its own check. Then the dense module gets a factor for every kept unit and 0
    for every other one, written into its readers' weights by plain indexing: both must be the same function. After the
    sites one by one, all are cut together.

    Args:
        operator: its name in `RULES`, such as "aten.glu", or several.
        module: uses the operator between a map that makes units and one that reads them; not changed.
        example_inputs: one batch, as `coreprune.inspect` takes it.
        seeds: of the units that stay.
        seconds: that finding the sites may take.

    Returns:
        What was checked; `refused` has the reason for everything that stays whole. A rule may refuse.

    Raises:
        ConformanceError: no such rule, a module without the operator, a rule that raises or does not end, or a
            cut that is not what it should be.
        CorepruneError: the example does not fit the module.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 6), nn.GLU(), nn.Linear(3, 2))
        >>> print(check_rule("aten.glu", net, torch.randn(2, 3)))
        rule aten.glu: found 0 (3 units); cut alone, equal to the dense module with units replaced
        stays whole: 2: is an output of the network
    """
    names = (operator,) if isinstance(operator, str) else tuple(operator)
    checker = Checker(f"rule {', '.join(names)}")
    for name in names:
        checker.require(name in RULES, f"there is no rule for {name}", "enter one with @rule before checking")
    wide, inputs = copy.deepcopy(module).double().eval(), _wide(example_inputs)
    before = {name: tensor.clone() for name, tensor in tensors_of(wide).items()}
    found = _discovered(checker, wide, inputs, seconds)
    used = operators_of(found)
    missing = [name for name in names if name not in used]
    checker.require(
        not missing,
        f"the module's graph has no {', '.join(missing)}, only {', '.join(sorted(used))}",
        "give one that has",
    )
    unchanged = all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(wide).items())
    checker.require(unchanged, "finding the sites changed the module", "let the rule read shapes and labels alone")
    refused = tuple(f"{one.name}: {one.reason}" for one in found.refused)
    if not found.sites:
        checker.require(
            refused, "the module has no map that makes units", "give one where a Linear or a convolution makes them"
        )
        checker.passed("refuses with a reason")
        return checker.result(refused)
    checker.passed("found " + ", ".join(f"{site.name} ({site.units} units)" for site in found.sites))
    widths = {site.name: -(-site.units // 2) for site in found.sites}
    matters = [_compared(checker, wide, inputs, {name: k}, seed) for name, k in widths.items() for seed in seeds]
    checker.passed("cut alone, equal to the dense module with units replaced")
    checker.require(
        any(matters), "no unit that was taken out matters to the output", "give a module whose units are read"
    )
    if len(widths) > 1:
        _compared(checker, wide, inputs, widths, seeds[0])
        checker.passed("cut together, too")
    return checker.result(refused)


def operators_of(found: Inspection) -> set[str]:
    """Names of all operators of the captured graphs, as `RULES` has them."""
    bodies = [
        body for captured in found.graphs for body in captured.graph.modules() if isinstance(body, fx.GraphModule)
    ]
    nodes = [node for body in bodies for node in body.graph.nodes if node.op == "call_function"]
    return {str(node.target).rpartition(".")[0] for node in nodes if str(node.target).count(".") > 1}


def _wide(inputs: Any) -> Any:
    def double(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return pytree.tree_map(double, inputs)


def _discovered(checker: Checker, module: nn.Module, inputs: Any, seconds: float) -> Inspection:
    """The sites, or the error if a rule raises or does not end."""
    try:
        return _within(checker, seconds, lambda: discover(module, inputs, "export"))
    except (CorepruneError, AssertionError):
        raise
    except Exception as error:
        return checker.fail(
            f"finding the sites raised {type(error).__name__} ({first_line(error)})",
            "let the rule freeze what it cannot follow",
        )


def _within(checker: Checker, seconds: float, work: Callable[[], T]) -> T:
    """What the work returns, if it ends in time; else the thread is left behind and the check fails."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    checker.require(not thread.is_alive(), f"finding the sites did not end in {seconds:g} s", "let the rule end")
    if errors:
        raise errors[0]
    return results[0]


def _compared(checker: Checker, module: nn.Module, inputs: Any, widths: dict[str, int], seed: int) -> bool:
    """One cut against the dense module with units replaced. Returns whether the units that went mattered."""
    what = f"with {' and '.join(f'{k} units of {name}' for name, k in widths.items())}"
    try:
        small = prune(module, inputs, units=widths, method="uniform", prior="noise", seed=seed, capture="export")
    except CorepruneError as error:
        checker.fail(f"{what} the cut fails ({error})", "couple or freeze the labels that it forgets")
    with torch.no_grad():
        whole, dense, cut = (_run(one, inputs) for one in (module, _replaced(module, small.plan), small.model))
    gap = _distance(dense, cut)
    checker.require(
        gap <= TOLERANCE,
        f"{what} the outputs are off by {gap:.1e} of the largest",
        "couple or freeze the labels that the rule forgets",
    )
    return _distance(whole, dense) > TOLERANCE


def _run(module: nn.Module, inputs: Any) -> list[Tensor]:
    """Floating outputs on a copy of the inputs."""
    args, kwargs = arguments(pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, inputs))
    leaves = leaves_of(copy.deepcopy(module)(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _replaced(module: nn.Module, plan: Plan) -> nn.Module:
    """The dense module whose readers give every kept unit its factor and every other one 0."""
    result = copy.deepcopy(module)
    tensors = tensors_of(result)
    for cut in plan.cuts:
        for reader, coreset in zip(cut.site.readers, cut.coresets, strict=True):
            assert isinstance(coreset.mix, Tensor), "the method draws units and mixes none"
            assert coreset.mix.dim() == 1, "the method draws units and mixes none"
            weight, entries = tensors[reader.weight.tensor], reader.weight.entries(cut.site.units)
            factor = weight.new_ones(weight.shape[reader.weight.axis])
            for unit in range(cut.site.units):
                factor[entries[unit]] = 0.0
            for place, unit in enumerate(coreset.indices.tolist()):
                factor[entries[unit]] = float(coreset.mix[place])
            shape = [1] * weight.dim()
            shape[reader.weight.axis] = -1
            weight.data.mul_(factor.reshape(shape))
    return result


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Max |a − b| / max |a| over all outputs; inf where shapes differ or something is not finite."""
    if [a.shape for a in one] != [b.shape for b in other]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.numel()]
    if not all(bool(a.isfinite().all() and b.isfinite().all()) for a, b in pairs):
        return float("inf")
    return max((float((a - b).abs().max()) / (float(a.abs().max()) or 1.0) for a, b in pairs), default=0.0)
