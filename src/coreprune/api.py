"""The verbs: inspect, plan, apply, prune, verify, save, load. Orchestration only."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.clock import Clock
from coreprune.engine.anew import anew, prior_again
from coreprune.engine.equivalence import require
from coreprune.engine.feasible import discovered
from coreprune.engine.inputs import Prior, check_prior, named
from coreprune.engine.local import Progress
from coreprune.engine.made import Made
from coreprune.engine.measure import measured
from coreprune.engine.outputs import Held
from coreprune.engine.verify import Verification, certify
from coreprune.errors import InvalidInputError
from coreprune.garbage import searched_less
from coreprune.io.configs import write_fields
from coreprune.maths.domain import Ball, Box
from coreprune.model.capture import Arguments, graded, rebuilt, rows_of
from coreprune.model.discover import discover
from coreprune.model.site import Inspection
from coreprune.model.tensors import check_marks, tensors_of
from coreprune.plan import Plan
from coreprune.planning import decided, measured_outputs
from coreprune.priors.data import Data
from coreprune.priors.gaussian import Gaussian
from coreprune.result import Pruned, configured, load, read_claims, read_structure
from coreprune.surgery.apply import install, size, spared_copy
from coreprune.surgery.attributes import follow
from coreprune.surgery.edits import edited
from coreprune.wish import Share, Wish, prior_of_cut, radius_of

__all__ = ["apply", "inspect", "plan", "prune", "verify"]


def inspect(model: nn.Module, example_inputs: Any = None, *, capture: str = "auto") -> Inspection:
    """What can shrink, and what cannot and why.

    Args:
        model: any network; weights may be on the meta device.
        example_inputs: one batch as the model takes it: a tensor, a tuple of arguments or a dict of keyword
            arguments. A stack of Linear layers and activations needs none.
        capture: "export" for the whole forward pass by torch.export, "blocks" for its submodules one by one, "auto" for
            the first of these, or a quicker way to the same graph, that works.

    Returns:
        The sites in forward order and the refusals.

    Raises:
        InvalidInputError: see `coreprune.model.discover.discover`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(site.name, site.units) for site in inspect(net).sites]
        [('0', 8)]
    """
    return discovered(model, example_inputs, capture)


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    remove: Share | Mapping[str, Share] | None = None,
    units: Mapping[str, int] | None = None,
    budget: Mapping[str, Any] | None = None,
    draws: Mapping[str, int] | None = None,
    method: str = "kernel",
    prior: Prior | str | None = None,
    data: Iterable[Any] | None = None,
    reweight: bool = False,
    ignore: Iterable[str] = (),
    protect: Mapping[str, float | int] | None = None,
    radius: float | None = None,
    kinds: Iterable[str] | None = None,
    uniform: bool | str = False,
    round_to: int | None = None,
    capture: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Decide which units go and what stands for them; nothing is changed.

    Args:
        model: any network.
        example_inputs: one batch as the model takes it: a tensor, a tuple of arguments or a dict of keyword
            arguments. A stack of Linear layers and activations needs none.
        remove: fraction of all parameters to remove, in [0, 1); or a fraction of units by site.
        units: exact numbers of units to keep, by site name or glob.
        budget: ``{"params": 6e4 | "60%"}``, or the same with ``flops``, ``bytes``, ``latency`` (seconds of a forward
            pass on example_inputs; ``"table"`` beside it is one that was measured before); or ``{"error": 0.05}``,
            the relative error of the outputs that the prior predicts. Or the largest cut whose outputs, measured on
            inputs that it did not see, keep ``{"divergence": 0.1}`` (nats per token), ``{"cosine": 0.98}`` or
            ``{"output_error": 0.05}``.
        draws: the paper's draws with replacement, by site name or glob; the survivors are fewer. Only for "sampling".
        method: a key of `coreprune.METHODS`.
        prior: where the moments of the units come from: a value such as `Gaussian(std=0.5)` or `Generated(8192)`, or a
            name: "noise", "matched" (images matched to the BatchNorms' statistics), "text" (a generic text),
            "generated" (text that a causal language model writes itself), "filled" (tokens that a masked language
            model fills in), "zipf" (random tokens by Zipf's law), "norm" (what norm layers say), or several names with
            + between them in equal shares. By default, "auto", what suits the network; `Gaussian()`, mean 0 and
            standard deviation β/√d, for a stack.
        data: a loader of inputs to measure on instead, short for ``prior=Data(loader)``.
        reweight: give the units that another method chose their least-squares weights under the prior.
        ignore: sites to leave whole, by name, glob or ``re:``.
        protect: sites that a fraction or budget may not cut as it likes, by the same: the largest share of their
            units that may go, such as ``{"*layers.0*": 0.1}``, or how many stay, a whole number from 1.
        radius: β, the largest ‖x‖ that the worst-case statements speak of; default √d for d input
            features, the norm of an input whose features are all 1. Only for stacks.
        kinds: of sites to cut: linear, gated, conv, residual, heads, experts, embedding; default all.
        uniform: one width for sites that are alike but for their block's number; with "config" one width for the
            sites that a field of the model's configuration speaks of, and no other site is cut, so that
            ``from_pretrained`` opens the result.
        round_to: keep multiples of this many units.
        capture: see `inspect`.
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
    wish = Wish(
        remove, units, budget, draws, method, prior, data, reweight, ignore, radius, kinds, uniform, round_to, capture,
        seed, progress, protect=protect,
    )  # fmt: skip
    with wish.clock.stage("capturing"):
        found = discovered(model, example_inputs, capture)
    decision = decided(model, found, example_inputs, wish)
    return replace(decision.plan, timing=wish.clock.timing(rest=True))


def apply(model: nn.Module, plan: Plan, example_inputs: Any = None, *, inplace: bool = False) -> Pruned:
    """Cut a network as planned.

    A network that is no stack is captured once more, and what was cut is compared in float64 with the dense
    network in which every removed unit is replaced by what stands for it.

    Args:
        model: the network the plan was made for.
        plan: the decisions.
        example_inputs: one batch to compare on; default inputs of the shapes that the plan was made with.
        inplace: change `model` itself; otherwise it is not touched.

    Returns:
        The smaller network, a plain module of the same class.

    Raises:
        CheckpointError: the plan was made for other tensors, or other weights; nothing is changed.
        UnsupportedModelError: the network's code cannot do with the new widths; nothing is changed.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> apply(net, plan(net, units={"0": 3})).model
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    tensors = tensors_of(model)
    plan.check({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    check_marks(plan.recipe.get("weights", {}), tensors, "the plan was made for")
    found, clock = None, Clock()
    if plan.recipe.get("inputs") is not None or example_inputs is not None:
        inputs = example_inputs if example_inputs is not None else rebuilt(plan.recipe["inputs"])
        with clock.stage("capturing"):
            found = discover(model, inputs, plan.recipe.get("capture", "auto"))
    with clock.stage("cutting"):
        small = _applied(model, plan, Made(plan.cuts, tensors, plan.shifts), found, inplace, clock)
    return replace(small, timing=clock.timing(rest=True))


@searched_less()
@graded
def _applied(
    model: nn.Module,
    plan: Plan,
    made: Made,
    found: Inspection | None,
    inplace: bool,
    clock: Clock,
    measure: Callable[[nn.Module], dict[str, Any] | None] | None = None,
) -> Pruned:
    """`apply` with the graphs and what the plan, which was checked, makes of the tensors at hand.

    `measure` says what the cut does to the outputs, if that is not known.
    """
    tensors = tensors_of(model)
    attributes = tuple(follow(model, plan.cuts))
    before = size(model)
    if found is None or not found.graphs:
        changed = edited(plan.edits(tensors), tensors)
        small = model if inplace else spared_copy(model, changed)
        install(small, changed, attributes)
        return Pruned(small, plan, *before, attributes)
    changed = made.rounded
    small = spared_copy(model, changed)
    install(small, changed, attributes)
    with clock.stage("checking"):
        require(model, small, found, plan, made.exact)
    outputs = measure(small) if measure and plan.cuts and "outputs" not in plan.recipe else None
    if outputs is not None:
        plan = replace(plan, recipe={**plan.recipe, "outputs": outputs})
    configuration = configured(model, small, plan)
    if inplace:
        install(model, changed, attributes)
        small = model
    write_fields(getattr(small, "config", None), configuration.updates)
    return Pruned(small, plan, *before, attributes, configuration)


def prune(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    remove: Share | Mapping[str, Share] | None = None,
    units: Mapping[str, int] | None = None,
    budget: Mapping[str, Any] | None = None,
    draws: Mapping[str, int] | None = None,
    method: str = "kernel",
    prior: Prior | str | None = None,
    data: Iterable[Any] | None = None,
    reweight: bool = False,
    ignore: Iterable[str] = (),
    protect: Mapping[str, float | int] | None = None,
    radius: float | None = None,
    kinds: Iterable[str] | None = None,
    uniform: bool | str = False,
    round_to: int | None = None,
    capture: str = "auto",
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
    wish = Wish(
        remove, units, budget, draws, method, prior, data, reweight, ignore, radius, kinds, uniform, round_to, capture,
        seed, progress, protect=protect,
    )  # fmt: skip
    clock = wish.clock
    with clock.stage("capturing"):
        found = discovered(model, example_inputs, capture)
    plan, made, law = decided(model, found, example_inputs, wish)
    with clock.stage("cutting"):
        small = _applied(
            model, plan, made, found, inplace, clock, lambda cut: measured_outputs(model, cut, found, law, wish)
        )
    return replace(small, timing=clock.timing(rest=True))


def verify(
    model: nn.Module,
    small: Pruned | str | Path,
    *,
    prior: Prior | str | None = None,
    radius: float | None = None,
    box: tuple[float, float] | None = None,
    inputs: Any = None,
    samples: int | None = None,
    delta: float = 0.05,
    worst: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Recompute what is guaranteed of a smaller network, from the two networks' tensors alone.

    Args:
        model: the dense network.
        small: the result of `prune`, or the directory it was saved to.
        prior: law of the inputs: a Gaussian for stacks, and any for other networks, see `plan`; default the one the
            network was cut under, and what suits it where that was data.
        radius: β of the ball that the worst case is taken over; default that of the cut.
        box: (lowest, highest) value of every input feature, to take it over a box instead.
        inputs: the user's own inputs to measure on, (N, …), or for a network that is no stack a loader; otherwise
            inputs of the prior are drawn that the cut did not see.
        samples: how many inputs to measure on; default 10,000 for stacks, 256 otherwise.
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
    if not isinstance(small, (Pruned, str, Path)):
        raise InvalidInputError(
            f"verify was given a {type(small).__name__}: give what prune returned, or the directory it was saved to"
        )
    recipe = small.plan.recipe if isinstance(small, Pruned) else read_structure(small)["recipe"]
    check_marks(recipe.get("weights", {}), tensors_of(model), "the smaller network was cut out of")
    if isinstance(small, Pruned):
        if small.model is model:
            raise InvalidInputError(
                "verify was given one network twice, as it was cut in place: give the dense one too"
            )
        module, claims = small.model, small.claims()
    else:
        module, claims = load(small, lambda: copy.deepcopy(model)), read_claims(small)
    if recipe.get("inputs") is not None:
        if radius is not None or box is not None:
            raise InvalidInputError(
                "radius= or box= was given, which worst cases are taken over, and those are proved of stacks of Linear "
                "layers alone: leave it out"
            )
        count = 256 if samples is None else samples
        held = _held(model, recipe, prior, inputs, count, seed, progress)
        calls = _told(held.calls, count, progress)
        return measured(model, module, calls, prior=held.said, samples=count, delta=delta,
                        data_used=inputs is not None, independent=held.independent)  # fmt: skip
    if prior is not None:
        check_prior(prior)
        prior = None if prior in ("auto", "noise") else prior
    if not (prior is None or isinstance(prior, Gaussian)):
        raise InvalidInputError(f"prior={prior!r} was asked of a stack of Linear layers: give a coreprune.Gaussian")
    found = discover(model)
    if box is not None and radius is not None:
        raise InvalidInputError("both radius= and box= were given: give one of them")
    prior = prior_of_cut(recipe, found.features) if prior is None else prior
    domain: Ball | Box = Ball(radius_of(radius if radius is not None else recipe.get("radius"), found.features))
    if box is not None:
        if not (isinstance(box, tuple) and len(box) == 2 and all(isinstance(end, numbers.Real) for end in box)):
            raise InvalidInputError(f"box={box!r} was given: give the lowest and the highest value, such as (0, 1)")
        domain = Box(*(torch.full((found.features,), float(end)) for end in box))
    return certify(
        model,
        module,
        found,
        claims,
        prior=prior or Gaussian(),
        domain=domain,
        inputs=inputs,
        samples=10_000 if samples is None else samples,
        delta=delta,
        worst=worst,
        seed=seed,
        progress=progress,
    )


def _held(
    model: nn.Module,
    recipe: Mapping[str, Any],
    prior: Prior | str | None,
    inputs: Any,
    samples: int,
    seed: int,
    progress: Progress | None,
) -> Held:
    """What to measure a network on that is no stack."""
    if inputs is not None:
        loader = Data([inputs] if isinstance(inputs, (Tensor, Mapping)) else inputs)
        return Held(loader.calls(), "the inputs given", independent=True)
    if prior is not None:
        check_prior(prior)
    graph = discover(model, rebuilt(recipe["inputs"]), recipe.get("capture", "auto")).graphs[0]
    law = prior_again(model, graph, recipe) if prior is None or prior == "auto" else named(prior)
    return anew(model, graph, law, samples, seed + int(recipe.get("seed", 0)), progress)


def _told(batches: Iterable[Arguments], samples: int, progress: Progress | None) -> Iterator[Arguments]:
    """The batches, with the inputs that are done told before each."""
    done = 0
    for args, kwargs in batches:
        if progress:
            progress(min(done, samples), samples, "inputs")
        yield args, kwargs
        done += rows_of((args, kwargs)) or 1
