"""From what the user asks to a plan: the road for each sort of network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from coreprune.allocation import allocate
from coreprune.budget import Widths, draws_of, number_of
from coreprune.engine.correction import corrections
from coreprune.engine.driven import Trial, asked_of, driven, to_measure
from coreprune.engine.imposed import imposed
from coreprune.engine.inputs import Prior, forced, inputs, prior_of, settled
from coreprune.engine.latency import arguments_of, fitted, with_table
from coreprune.engine.local import Request, curves, decide
from coreprune.engine.made import Made
from coreprune.engine.network import Survey, decide_network, surveyed
from coreprune.engine.norms import Norms
from coreprune.engine.outputs import at_hand, compared, held_out
from coreprune.engine.probes import token_tables
from coreprune.engine.shares import Balance, balanced
from coreprune.engine.turning import follows, turned
from coreprune.errors import InvalidInputError
from coreprune.garbage import searched_less
from coreprune.maths.methods import method as method_named
from coreprune.model.capture import described, graded
from coreprune.model.discover import discover
from coreprune.model.site import Inspection
from coreprune.model.tensors import marks_of, tensors_of
from coreprune.model.untouched import drawing, sparing
from coreprune.plan import Cut, Plan
from coreprune.priors.data import Data
from coreprune.priors.filled import MaskFilled
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.generated import Generated, writes
from coreprune.priors.matched import Matched
from coreprune.priors.normlayer import NormLayer
from coreprune.priors.text import Text
from coreprune.report.evidence import kept_of_curve
from coreprune.report.recipe import versions, written
from coreprune.wish import (
    Wish,
    check,
    check_asked,
    check_finite,
    check_fits,
    check_sites,
    fractions_of,
    radius_of,
    shared_out,
    widths_asked,
)

__all__ = ["Decision", "decided", "measured_outputs"]


TIGHTER = 8  # times that a budget of error is made smaller, until the joint error keeps it


class Decision(NamedTuple):
    """A plan, what it makes of the tensors, and the prior that it was made under."""

    plan: Plan
    made: Made
    prior: Prior


@sparing
@searched_less()
@graded
def decided(model: nn.Module, found: Inspection, example_inputs: Any, wish: Wish) -> Decision:
    """The plan for a model whose sites are known, what it makes of the tensors, and the prior that it was made under.

    Args:
        model: not changed. found: its sites. example_inputs: what they were found with. wish: what is asked.
    """
    kinds = None if wish.kinds is None else _words("kinds", wish.kinds)
    wish = replace(wish, remove=fractions_of(wish.remove), ignore=_words("ignore", wish.ignore), kinds=kinds)
    check(wish)
    with drawing(wish.seed, model.parameters()):
        return _decided(model, found, example_inputs, wish)


def _decided(model: nn.Module, found: Inspection, example_inputs: Any, wish: Wish) -> Decision:
    """The same of a wish that was checked."""
    method = method_named(wish.method)
    check_sites(model, found)
    check_fits(found, wish)
    tensors = tensors_of(model)
    shares = shared_out(model, found, wish)
    check_asked(model, found, wish, shares)
    check_finite(model.state_dict())
    budget = with_table(model, found, wish.budget, wish.clock)
    wish = replace(wish, budget=budget, timed=arguments_of(model, found))
    if budget is not None and "table" in budget and not budget["table"].get("fresh"):  # and is not to be corrected
        check_asked(model, found, wish, shares, timed=True)
    prior, reason = wish.law(model, found)
    law, seen = _observed(model, found, prior, wish)
    radius = radius_of(wish.radius, found.features)
    costs = _by_costs(model, seen, wish, prior)
    usual = _balances(seen, wish, prior) and bool(token_tables(seen.graphs[0]))
    corrected = bool(found.graphs) and (method.law or wish.reweight)
    norms = Norms(seen.graphs[0]) if corrected and forced(law) else None
    request = Request(method, law, radius, wish.seed, wish.reweight, {}, wish.progress, costs, usual, norms, wish.clock)
    with wish.clock.stage("selecting"):
        kept, errors, survey, measured, cuts, nearer = _widths(model, seen, tensors, wish, request, prior, shares)
    drawn = draws_of(found, wish.draws or {}, kept, wish.ignore)
    if found.graphs and drawn:
        raise InvalidInputError("draws= was asked of a network that is no stack: use units= or remove=")
    with wish.clock.stage("selecting"):
        if found.graphs:
            cuts = decide_network(seen, tensors, kept, request, survey)
        elif cuts is None or drawn:
            cuts = decide(model, found, tensors, kept, replace(request, draws=drawn))
        cuts = tuple(_with_curve(cut, errors) for cut in cuts)

    def whole(cuts: tuple[Cut, ...], shifts: Mapping[str, Tensor]) -> Made:
        made = Made(cuts, tensors, shifts)
        if not corrected:
            return made
        with wish.clock.stage("correcting"):
            return made.shifted(corrections(seen, tensors, made, inputs(seen.graphs[0], law, wish.seed), request.norms))

    made: Made | None = None
    if method.turns and found.graphs:
        with wish.clock.stage("turning"):
            given, ahead = list(inputs(seen.graphs[0], law, wish.seed)), follows(cuts, noise=isinstance(law, Gaussian))
            new = turned(
                seen, tensors, cuts, given, seed=wish.seed, shifts=whole(cuts, {}).shifts if ahead else {},
                following=ahead, batch_statistics=forced(law) and not ahead, progress=wish.progress,
            )  # fmt: skip
        made = Made(new.cuts, tensors, new.shifts) if ahead else whole(*new)
        if nearer is not None:
            outputs = nearer(made)
            made, measured = (None, measured) if outputs is None else (made, {"outputs": outputs})
    made = made or whole(cuts, {})
    recipe = _recipe(found, example_inputs, wish, law, drawn) | dict(measured)
    recipe |= {} if reason is None else {"prior_reason": reason}
    own = dict.fromkeys(at.tensor for cut in made.cuts for at in cut.site.locations if at.tensor in tensors)
    recipe["weights"] = marks_of(tensors, own)
    return Decision(Plan(made.cuts, recipe, found.shapes, made.shifts), made, prior)


@sparing
@graded
def measured_outputs(
    model: nn.Module, small: nn.Module, found: Inspection, prior: Prior, wish: Wish
) -> dict[str, Any] | None:
    """What the cut does to the outputs, as plain data; None where that is not measured at the cost of a pass.

    Args:
        model: before. small: after. found: what was captured. prior: that the cut was made under. wish: what was asked.
    """
    if not at_hand(prior, found.graphs[0]):
        return None
    with wish.clock.stage("measuring"):
        tables = set(token_tables(found.graphs[0]).values())
        try:
            held = held_out(prior, model, found.graphs[0], wish.seed, wish.progress)
            outputs = None if held is None else compared(model, small, held.calls, tables)
        except InvalidInputError:  # nobody asked for it, and the cut itself was checked
            return None
    return None if held is None or outputs is None or not outputs.finite else held.facts(outputs)


def _observed(model: nn.Module, found: Inspection, prior: Prior, wish: Wish) -> tuple[Gaussian | Data, Inspection]:
    """The prior as noise or a loader, and the network as it was captured on inputs of that shape."""
    if not found.graphs:
        if not isinstance(prior, (Gaussian, Data)):
            raise InvalidInputError(
                f"prior={wish.prior!r} was asked of a stack of Linear layers: give a coreprune.Gaussian or data="
            )
        return prior, found
    with wish.clock.stage(_drawing(prior)):
        law, example = settled(prior, model, found.graphs[0], wish.seed, wish.progress)
        if isinstance(prior, Generated):
            wish.clock.wrote(prior.sampled(model, wish.seed))
    if isinstance(prior, NormLayer):
        return law, replace(found, graphs=tuple(imposed(graph, wish.seed) for graph in found.graphs))
    if example is None:
        return law, found
    with wish.clock.stage("capturing"):
        seen = discover(model, example, wish.capture)
    names = {site.name for site in found.sites}
    seen = replace(seen, sites=tuple(site for site in seen.sites if site.name in names))
    missing = names - {site.name for site in seen.sites}
    if missing:
        raise InvalidInputError(
            f"{min(missing)} can be cut as example_inputs show it, and not on inputs of the prior's shape: give "
            "example_inputs of that shape, or prior='noise'"
        )
    return law, seen


def _drawing(prior: Prior) -> str:
    """What settling a prior is, as a stage."""
    words = {Generated: "writing text", MaskFilled: "filling masks", Text: "reading text", Matched: "matching images"}
    return words.get(type(prior), "drawing inputs")


def _with_curve(cut: Cut, errors: Mapping[str, Tensor]) -> Cut:
    """The cut with some of its site's error curve in its evidence, if there is one."""
    if cut.site.name not in errors:
        return cut
    curve = kept_of_curve(errors[cut.site.name], cut.kept.numel())
    return replace(cut, evidence={**cut.evidence, "curve": curve})


def _words(name: str, value: Iterable[str]) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if words is None or not all(isinstance(word, str) for word in words):
        raise InvalidInputError(f"{name}={value!r} was asked: give a name, or a list of names")
    return words


class _Kept(NamedTuple):
    """What is kept, and why.

    Attributes:
        widths: units to keep, by site. curves: error curves, where a budget is shared out by them. survey: what they
            were observed from. measured: part of the recipe, if the budget is driven by what is measured. cuts: of a
            stack, if the budget took them.
    """

    widths: Widths
    curves: Mapping[str, Tensor] = {}
    survey: Survey | None = None
    measured: Mapping[str, Any] = {}
    cuts: tuple[Cut, ...] | None = None
    nearer: Callable[[Made], dict[str, Any] | None] | None = None


def _widths(
    model: nn.Module,
    found: Inspection,
    tensors: Mapping[str, Tensor],
    wish: Wish,
    request: Request,
    prior: Prior,
    shares: Mapping[str, Any],
) -> _Kept:
    """Units to keep, by site, with what was found on the way."""
    if wish.budget is None and not wish.by_error:
        return _Kept(widths_asked(found, wish, shares))
    left = wish.most_left
    asked = asked_of(wish.budget)
    if asked is not None and found.graphs:
        with wish.clock.stage("measuring"):
            held = to_measure(model, found.graphs[0], prior, wish.seed, asked[0], wish.progress)
    survey = surveyed(found, tensors, request) if found.graphs else None
    errors = curves(model, found, tensors, request) if survey is None else survey.curves
    if survey is not None and "error" in left:  # which is a share of spreads
        errors = {name: curve * survey.above[name] for name, curve in errors.items()}
    if asked is not None and survey is not None:
        law, corrected = request.prior, method_named(wish.method).law or wish.reweight
        batches = (lambda: inputs(found.graphs[0], law, wish.seed)) if corrected else None
        trial = Trial(model, found, tensors, replace(request, progress=None), survey, batches)
        balance = Balance(found, tensors, request, survey) if _balances(found, wish, prior) else None
        best = driven(
            trial, held, lambda share, by: allocate(found, by, {"params": f"{100 * share!r}%"}, **shares),
            asked, wish.clock, errors, balance, wish.progress,
        )  # fmt: skip
        return _Kept(
            best.kept, errors, survey, {"outputs": best.outputs}, nearer=lambda made: best.nearer(trial.of(made))
        )
    itemsize = next(iter(tensors.values())).element_size()

    def shared(by: Mapping[str, Tensor]) -> Widths:
        return allocate(found, by, left, itemsize=itemsize, remove=wish.remove, **shares)

    if left.get("table", {}).get("fresh"):
        with wish.clock.stage("timing"):
            kept, table = fitted(
                model, found, wish.timed, left["table"],
                lambda table: allocate(found, errors, {**left, "table": table}, **shares),
            )  # fmt: skip
        return _Kept(kept, errors, survey, {"budget": {**left, "table": table}})
    if survey is None and "error" in left:
        kept, cuts = _jointly(left["error"], lambda e: allocate(found, errors, {"error": e}, **shares),
                              lambda kept: decide(model, found, tensors, kept, request))  # fmt: skip
        return _Kept(kept, errors, cuts=cuts)
    if survey is None or not _balances(found, wish, prior):
        return _Kept(shared(errors), errors, survey)
    return _Kept(balanced(found, tensors, request, survey, shared), errors, survey)


def _jointly(
    asked: float | str, shared: Callable[[float | str], Widths], cut: Callable[[Widths], tuple[Cut, ...]]
) -> tuple[Widths, tuple[Cut, ...]]:
    """Widths of a stack, and its cuts, under which the predicted error of all cuts together is as small as was asked.

    Sites' errors are shared out as if they added up as squares. Where they help each other the share is made smaller.
    """
    target = asked
    for _ in range(TIGHTER):
        kept = shared(target)
        cuts = cut(kept)
        joint = next((c.evidence["relative_error"] for c in reversed(cuts) if "relative_error" in c.evidence), 0.0)
        if joint <= number_of(asked):
            break
        target = number_of(target) * 0.99 * number_of(asked) / joint
    return kept, cuts


def _pulls(found: Inspection, wish: Wish, prior: Prior) -> bool:
    """Whether gradients of the whole network can be had, and the method heeds what they say."""
    if not found.graphs or found.graphs[0].path or isinstance(prior, NormLayer):  # none comes through a drawn norm
        return False
    return method_named(wish.method).law


def _by_costs(model: nn.Module, found: Inspection, wish: Wish, prior: Prior) -> bool:
    """Whether units are chosen by what they cost the whole network.

    A gradient says that, and is taken where a network reads tokens and writes none: for language models choosing by
    the readers alone was found to be as good, and takes half the time.
    """
    if not _pulls(found, wish, prior) or writes(model):
        return False
    return bool(token_tables(found.graphs[0])) and not (wish.budget is not None and "error" in wish.budget)


def _balances(found: Inspection, wish: Wish, prior: Prior) -> bool:
    """Whether a budget is shared out by what the sites are found to cost the whole network, all cut together.

    Not where alike sites get one width: that leaves few choices, and took as long as all the rest.
    """
    if not _pulls(found, wish, prior) or wish.uniform is not False:
        return False
    return wish.by_error or (wish.budget is not None and "error" not in wish.budget)


def _recipe(
    found: Inspection, example_inputs: Any, wish: Wish, law: Gaussian | Data, drawn: Mapping[str, int]
) -> dict[str, Any]:
    """Enough to make the plan again, as plain data."""
    radius = radius_of(wish.radius, found.features)
    return {
        "method": wish.method,
        "reweight": wish.reweight,
        "remove": dict(wish.remove) if isinstance(wish.remove, Mapping) else wish.remove,
        "units": None if wish.units is None else dict(wish.units),
        "budget": None if wish.budget is None else dict(wish.budget),
        "draws": dict(drawn) or None,
        "ignore": list(wish.ignore),
        "protect": None if wish.protect is None else dict(wish.protect),
        "kinds": None if wish.kinds is None else list(wish.kinds),
        "uniform": wish.uniform,
        "round_to": wish.round_to,
        "radius": None if found.graphs else radius,
        "radius_from": _radius_from(wish.radius, found),
        "seed": wish.seed,
        "prior": prior_of(law, found.graphs[0]) if found.graphs else law.named(found.features, radius),
        "prior_values": law.to_json() if isinstance(law, Gaussian) else None,
        "prior_asked": written(wish.prior),
        "data_used": law.data_used,
        "capture": wish.capture,
        "inputs": described(example_inputs) if found.graphs else None,
        "sites": [[site.name, site.kind, site.units, site.activation] for site in found.sites],
        "refused": [[refusal.name, refusal.reason] for refusal in found.refused],
        "versions": versions(),
    }


def _radius_from(radius: float | None, found: Inspection) -> str:
    if found.graphs:
        return "no worst case is stated"
    return "given" if radius is not None else f"√d for d = {found.features} input features"
