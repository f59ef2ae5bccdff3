"""Mask equivalence: the cut network against the dense one whose removed units are replaced by what stands for them.

A plan says: unit j becomes Σ_s T_js · unit s + t_j for this reader. In the dense network that is done to the
reader's input, on the captured graph, and nothing is cut. In the small network nothing is replaced, and tensors
are cut. In exact arithmetic both are the same function of the input. They are compared in float64, before anything
is rounded to the stored precision: what is left is a few units in the last place, or a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from coreprune.engine.double import Double, wide
from coreprune.engine.masking import reconstructed, tapped
from coreprune.engine.probes import crops, fits, keeps_precision, misfit, synthesise
from coreprune.engine.runner import run
from coreprune.errors import CorepruneError, UnsupportedModelError
from coreprune.maths.layer import Coreset
from coreprune.model.capture import Arguments, Captured, capture, first_line
from coreprune.model.groups import alike
from coreprune.model.site import Inspection, Tap
from coreprune.model.tensors import tensors_of
from coreprune.model.untouched import drawing, evaluating, holding, sparing, untouched
from coreprune.plan import Plan
from coreprune.surgery.apply import install, spared_copy
from coreprune.surgery.attributes import follow
from coreprune.surgery.edits import edited

__all__ = ["check", "require"]

SEED = 20190704
TOLERANCE = 1e-9
#: entries of all tensors up to which they are widened at once
FEW = 2**24


@sparing
def require(
    dense_model: nn.Module,
    small_model: nn.Module,
    found: Inspection,
    plan: Plan,
    tensors64: Mapping[str, Tensor],
    tolerance: float = TOLERANCE,
) -> float:
    """`check`, and raise UnsupportedModelError where the difference is more than `tolerance`, naming the sites.

    Returns:
        the difference.
    """
    try:
        difference = check(dense_model, small_model, found, plan, tensors64)
    except UnsupportedModelError as error:
        names, advice = _advice(dense_model, found, plan, tolerance)
        raise UnsupportedModelError(f"{error}{advice}", ignore=names) from error
    if not difference <= tolerance:
        names, advice = _advice(dense_model, found, plan, tolerance)
        raise UnsupportedModelError(
            f"the cut network and the dense network with its removed units replaced differ by {difference:.1e} of "
            f"the largest output, where {tolerance:.0e} is rounding: "
            f"the cut is not what the plan says; nothing was changed{advice}",
            ignore=names,
        )
    return difference


def check(
    dense_model: nn.Module,
    small_model: nn.Module,
    found: Inspection,
    plan: Plan,
    tensors64: Mapping[str, Tensor],
) -> float:
    """How far the cut network is from the dense one with its removed units replaced, in float64.

    Each captured graph is compared first on the least of its inputs: noise, random indices, one batch entry and
    smaller images where the graph allows it, and the live small module against the dense graph, after that module
    has given outputs of the right shapes for the example's own. Where that differs, or raises, it may be
    that the code cannot do with such inputs, or that it makes constants in the precision of its activations. So
    the example's own batch (and indices, after an exception) decides then, and a capture of the small module.

    Args:
        dense_model: not changed, whatever mode it is in.
        small_model: the cut module. While it runs, its tensors are replaced by `tensors64`; afterwards it is as it was.
        found: what was discovered in the dense model: graphs and taps.
        plan: the cuts, one coreset for each reader.
        tensors64: name → what the cut made of a tensor, in float64, unrounded. Those that are not named stay.

    Returns:
        max |a − b| / max |a| of the output where it is largest. Indices and masks among the outputs are left out.

    Raises:
        UnsupportedModelError: the small module does not run, or its outputs have other shapes.
    """
    coresets = _coresets(found, plan)
    dense = plan.shifted(tensors_of(dense_model))
    worst = 0.0
    with evaluating(dense_model, small_model), torch.no_grad(), _plain_attention():
        for index, captured in enumerate(found.graphs):
            pairs = [(tap, coreset) for tap, coreset in coresets if tap.graph == index]
            worst = max(worst, _difference(dense, small_model, captured, pairs, tensors64))
    return worst


def _difference(
    dense: Mapping[str, Tensor],
    small_model: nn.Module,
    captured: Captured,
    pairs: Sequence[tuple[Tap, Coreset]],
    tensors64: Mapping[str, Tensor],
) -> float:
    """The comparison of one graph: see `check`."""

    def masked(arguments: Arguments, double: Double | None) -> list[Any]:
        taps, hook = [tap for tap, _ in pairs], _hook(pairs, double)
        with drawing(SEED, dense.values()), double or nullcontext():
            return run(captured, dense, arguments, taps=taps, hook=hook, widened=double is None)

    module = small_model.get_submodule(captured.path)
    one = 1 if not captured.path and fits(captured, 1) else None
    rest = {name: tensor for name, tensor in tensors_of(small_model).items() if name not in tensors64}
    few = sum(tensor.numel() for tensor in dense.values()) <= FEW
    by_itself = few and not captured.path and keeps_precision(captured)

    def compared(arguments: Arguments) -> tuple[float, bool]:
        if by_itself:  # given numbers of double precision the code computes in it, unless it asks for another
            with suppress(Exception):
                outputs = masked(_copied(arguments), None)
                with _replaced(small_model, {**{name: wide(tensor) for name, tensor in rest.items()}, **tensors64}):
                    difference = _distance(outputs, _live(module, arguments, None))
                if difference <= TOLERANCE:
                    return difference, all(_finite(value) for value in outputs)
        outputs = masked(_copied(arguments), Double())
        with _replaced(small_model, tensors64):
            return _distance(outputs, _live(module, arguments, Double())), all(_finite(value) for value in outputs)

    smaller = list(crops(captured))
    if smaller and misfit(module, captured) is None:
        for less in smaller:
            with suppress(Exception):  # the code cannot do with smaller images: then with those it was given
                difference, finite = compared(_arguments(less, one, dense))
                if finite and difference <= TOLERANCE:
                    return difference
                break
    try:
        difference, _ = compared(_arguments(captured, one, dense))
        if difference <= TOLERANCE:
            return difference
        failure: Exception | None = None
    except Exception as error:  # a module raises whatever its code raises
        failure = error
    own = _arguments(captured, None, dense, integers=failure is None)
    try:
        again = capture(module, own, path=captured.path)
        with _replaced(small_model, tensors64), drawing(SEED, dense.values()), Double():
            small = run(again, tensors_of(small_model), _copied(own))
    except Exception as error:
        if failure is None:
            return difference
        reason = first_line(failure if isinstance(error, CorepruneError) else error)
        raise UnsupportedModelError(f"the cut network does not run: {reason}; nothing was changed") from failure
    return _distance(masked(_copied(own), Double()), small)


# ---------------------------------------------------------------- whose fault it is


def _advice(model: nn.Module, found: Inspection, plan: Plan, tolerance: float) -> tuple[list[str], str]:
    """What to leave whole, by name and in words; nothing where the cuts, carried out once more, are right."""
    groups = alike(cut.site for cut in plan.cuts)

    def fails(part: Sequence[tuple[str, ...]]) -> bool:
        names = {name for group in part for name in group}
        return _fails(model, found, replace(plan, cuts=tuple(c for c in plan.cuts if c.site.name in names)), tolerance)

    try:
        if not groups or not fails(groups):
            return [], ""
        names = [name for group in _culprits(fails, groups) for name in group]
    except Exception:  # advice must not hide what it is about
        return [], ""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    those = f"{names[0]} is" if len(names) == 1 else f"{', '.join(names[:8])}{more} are"
    fixed = any(cut.site.kind == "heads" and cut.site.name in names for cut in plan.cuts)
    why = " (or, if the code fixes the number of heads, write view(batch, length, -1, size of a head) there)"
    return names, f"; it works if {those} left whole: pass ignore={names}{why if fixed else ''}"


def _culprits(fails: Callable[[Any], bool], groups: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The smallest parts that fail on their own, of groups that fail together, by halving."""
    if len(groups) == 1:
        return groups
    halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    return [group for half in halves if fails(half) for group in _culprits(fails, half)] or groups


def _fails(model: nn.Module, found: Inspection, plan: Plan, tolerance: float) -> bool:
    """Whether the cuts of a plan, carried out on a copy, go wrong."""
    tensors = tensors_of(model)
    exact = edited(plan.to(torch.float64).edits(tensors), tensors, dtype=torch.float64)
    like = next(iter(tensors.values()))
    small = spared_copy(model, exact)
    install(small, {k: t.to(tensors.get(k, like).dtype) for k, t in exact.items()}, follow(model, plan.cuts))
    try:
        return not check(model, small, found, plan, exact) <= tolerance
    except UnsupportedModelError:
        return True


# ---------------------------------------------------------------- the dense side


def _coresets(found: Inspection, plan: Plan) -> list[tuple[Tap, Coreset]]:
    """What stands for the units at every tap."""
    assert found.graphs, "a stack has no captured graph to compare on"
    pairs = []
    for cut in plan.cuts:
        if any(coreset.incoming is not None for coreset in cut.coresets):
            raise UnsupportedModelError(
                f"the units of {cut.site.name!r} are mixed before their activation, which cannot be compared with "
                "the dense network: use a method that keeps units"
            )
        pairs += tapped(found, cut)
    return pairs


def _hook(pairs: Sequence[tuple[Tap, Coreset]], double: Double | None) -> Callable[[Tap, Tensor], Tensor]:
    of = {id(tap): coreset for tap, coreset in pairs}
    made: list[Tensor] = []  # the last one, which the next tap of its operand gets

    def hook(tap: Tap, value: Tensor) -> Tensor:
        own = any(value is one for one in made)
        with double.paused() if double else nullcontext():  # what it does is of double precision by itself
            made[:] = [reconstructed(wide(value), tap, of[id(tap)], own=own)]
        return made[0]

    return hook


# ---------------------------------------------------------------- the small side


@contextmanager
def _replaced(model: nn.Module, tensors64: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other tensors in its place, and with copies of its buffers, for as long as the context lasts."""
    own = tensors_of(model)
    new = {id(buffer): buffer.clone() for buffer in model.buffers()}
    new |= {id(own[name]): value.to(own[name].device) for name, value in tensors64.items() if name in own}
    with holding(model, new), untouched(model):
        for module in model.modules():
            if isinstance(module, nn.RNNBase):  # it asks for parameters of the type of its input
                vars(module)["_flat_weights"] = [wide(weight) for weight in module._flat_weights]
        yield


def _live(module: nn.Module, arguments: Arguments, double: Double | None) -> list[Any]:
    args, kwargs = _copied(arguments)
    with drawing(SEED, module.parameters()), double or nullcontext():
        return pytree.tree_leaves(module(*args, **kwargs))


# ---------------------------------------------------------------- both


def _arguments(
    captured: Captured, batch: int | None, tensors: Mapping[str, Tensor], integers: bool = True
) -> Arguments:
    """Inputs to compare on: a block's own if they have values, noise for a whole network."""
    device = next((tensors[name].device for name in captured.states.values()), torch.device("cpu"))
    leaves = pytree.tree_leaves(captured.arguments)
    if captured.path and not any(isinstance(a, Tensor) and a.is_meta for a in leaves):
        chosen = captured.arguments
    else:
        chosen = next(synthesise(captured, 1, SEED, batch=batch))
    if not integers:
        drawn, spec = pytree.tree_flatten(chosen)
        pairs = zip(drawn, leaves, strict=True)
        given = [b if isinstance(b, Tensor) and not _floating(a) and not b.is_meta else a for a, b in pairs]
        chosen = pytree.tree_unflatten(given, spec)
    result: Arguments = pytree.tree_map(lambda a: a.to(device) if isinstance(a, Tensor) else a, chosen)
    return result


def _finite(value: Any) -> bool:
    return not _floating(value) or (value.numel() > 0 and bool(value.isfinite().all()))


def _copied(arguments: Arguments) -> Arguments:
    """In double precision, and a copy, since code may write into its inputs."""
    result: Arguments = pytree.tree_map(lambda a: wide(a.detach().clone()) if isinstance(a, Tensor) else a, arguments)
    return result


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _distance(dense: Sequence[Any], small: Sequence[Any]) -> float:
    """The largest max |a − b| / max |a| of the floating outputs; inf where one is NaN or infinite alone."""
    pairs = [[value for value in values if _floating(value)] for values in (dense, small)]
    shapes = [[tuple(value.shape) for value in values] for values in pairs]
    if shapes[0] != shapes[1]:
        raise UnsupportedModelError(
            f"the cut network's outputs have shapes {shapes[1]} where the dense one's have {shapes[0]}; "
            "nothing was changed"
        )
    worst = 0.0
    for a, b in zip(*pairs, strict=True):
        if not a.numel():
            continue
        same = (a == b) | (a.isnan() & b.isnan())
        if not bool((a.isfinite() & b.isfinite() | same).all()):
            return float("inf")
        gap = float((a - b).abs().masked_fill(same, 0.0).max())
        size = float(a.abs().masked_fill(~a.isfinite(), 0.0).max())
        worst = max(worst, gap / (size or 1.0))
    return worst


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention layers take the path that a capture takes."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
