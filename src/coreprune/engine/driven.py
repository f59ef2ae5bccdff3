"""The largest cut whose outputs, measured, stay as near to the dense network's as was asked.

What is lost grows about as a power of the share of parameters that is gone, loss ≈ c·gone^p: two trials say c and p,
and a few more find the limit, always between one that kept it and one that did not.

The first trials also say what each site costs the network (`coreprune.engine.shares`), so that later ones share the
same budget out better.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from coreprune.budget import MEASURED, Widths, number_of
from coreprune.clock import Clock
from coreprune.engine.correction import corrections
from coreprune.engine.inputs import Prior
from coreprune.engine.local import Progress, Request
from coreprune.engine.made import Made
from coreprune.engine.network import Survey, decide_network
from coreprune.engine.outputs import MEASURES, Held, Outputs, compared, held_out
from coreprune.engine.probes import token_tables
from coreprune.engine.shares import ROUNDS, Balance
from coreprune.errors import InvalidInputError
from coreprune.model.capture import Arguments, Captured
from coreprune.model.site import Inspection
from coreprune.surgery.apply import install, spared_copy
from coreprune.surgery.attributes import follow

__all__ = ["Driven", "Trial", "Tried", "asked_of", "between", "driven", "largest", "to_measure"]

STEPS = 10  # trials at most
FIRST, POWER = 0.25, 2.0  # the share of parameters that goes first, and p where one trial is all that is known
#: it is enough to know the share to 0.4 % of the dense network, or to lose NEAR of what may be lost
CLOSE, NEAR = 2.0**-8, 0.95


def asked_of(budget: Mapping[str, Any] | None) -> tuple[str, float] | None:
    """The measure that a budget asks for and its limit; None where it asks for none.

    Raises:
        InvalidInputError: a limit that cannot be meant.

    Example:
        >>> asked_of({"cosine": 0.98}), asked_of({"output_error": "5%"}), asked_of({"params": "60%"})
        (('cosine', 0.98), ('output_error', 0.05), None)
    """
    kind = next((kind for kind in budget or () if kind in MEASURES), None)
    if budget is None or kind is None:
        return None
    if len(budget) != 1:
        raise InvalidInputError(f"the budget {dict(budget)} has {len(budget)} entries: give {kind} alone")
    given = budget[kind]
    try:
        limit = number_of(given)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{kind}={given!r} is not a number: write one such as 0.1") from error
    if isinstance(given, bool) or not isinstance(given, (str, numbers.Real)) or not 0 < limit < float("inf"):
        raise InvalidInputError(f"{kind}={given!r} was asked: give a positive number")
    if MEASURES[kind][1] and limit >= 1:
        raise InvalidInputError(f"{kind}={given!r} was asked: give a number below 1, such as 0.98")
    return kind, limit


class Tried(NamedTuple):
    """A trial: the share of the dense parameters that is gone, and what is lost."""

    gone: float
    loss: float

    @property
    def telling(self) -> bool:
        """Whether it says how the loss grows."""
        return self.gone > 0 and 0 < self.loss < math.inf

    def power(self, other: Tried) -> float:
        """The p of loss = c·gone^p through both; 0 where they are at one place."""
        if self.gone == other.gone:
            return 0.0
        return math.log(self.loss / other.loss) / math.log(self.gone / other.gone)


class Trial:
    """Cuts a copy of a network at widths that are tried, and measures it; what was observed once serves for all."""

    def __init__(
        self, model: nn.Module, found: Inspection, tensors: Mapping[str, Tensor], request: Request, survey: Survey,
        batches: Callable[[], Iterable[Arguments]] | None,
    ) -> None:  # fmt: skip
        """A network with what was observed of it.

        Args:
            model: not changed. found: its sites. tensors: its tensors. request: how to cut. survey: of all sites.
            batches: inputs that BatchNorm statistics are corrected on; None where they are not.
        """
        self.model, self._found, self._tensors = model, found, tensors
        self._request, self._survey, self._batches = request, survey, batches
        self.tables = set(token_tables(found.graphs[0]).values())

    def at(self, kept: Mapping[str, int]) -> nn.Module:
        """The network with so many units in each site."""
        cuts = decide_network(self._found, self._tensors, kept, self._request, self._survey)
        made = Made(cuts, self._tensors)
        if self._batches is not None:
            made = made.shifted(corrections(self._found, self._tensors, made, self._batches(), self._request.norms))
        return self.of(made)

    def of(self, made: Made) -> nn.Module:
        """The network that some cuts make."""
        small = spared_copy(self.model, made.rounded)
        install(small, made.rounded, follow(self.model, made.cuts))
        return small


def to_measure(
    model: nn.Module, captured: Captured, prior: Prior, seed: int, kind: str, progress: Progress | None
) -> Held:
    """Inputs that a budget of this kind is measured on.

    Raises:
        InvalidInputError: none can be had.
    """
    held = held_out(prior, model, captured, seed, progress)
    if held is None:
        raise InvalidInputError(
            f"a budget of {kind!r} was asked, but there are no inputs to measure on: give "
            + ("capture='export'" if captured.path else "a loader that can be read again")
        )
    return held


@dataclass(frozen=True)
class Driven:
    """What trials found.

    Attributes:
        kept: units, by site, of the largest cut that keeps what is asked. outputs: what was measured of it.
        nearer: what is measured of another network, on the same inputs; None where it is farther from the dense one.
    """

    kept: Widths
    outputs: dict[str, Any]
    nearer: Callable[[nn.Module], dict[str, Any] | None]


def driven(
    trial: Trial,
    held: Held,
    allocated: Callable[[float, Mapping[str, Tensor]], Widths],
    asked: tuple[str, float],
    clock: Clock,
    curves: Mapping[str, Tensor],
    balance: Balance | None = None,
    progress: Progress | None = None,
) -> Driven:
    """The largest cut that keeps what is asked.

    Args:
        trial: cuts copies. held: inputs to measure on. asked: measure and limit. clock: takes the time of measuring.
        allocated: units to keep, by site, for a share of the dense parameters that is left and the sites' error curves.
        curves: of the sites. balance: scales them to what each site is found to cost the network; None leaves them.
        progress: of trials, most of which may not be needed.
    """
    known: dict[tuple[tuple[str, int], ...], Outputs | None] = {}
    by = curves if balance is None else balance.curves

    def measure(kept: Widths) -> Outputs | None:
        key = tuple(sorted(kept.items()))
        if key not in known:
            if progress:
                progress(len(known), STEPS, f"trial of {sum(kept.values()):,} units")
            known[key] = outputs_of(trial.at(kept))
        return known[key]

    def outputs_of(small: nn.Module) -> Outputs | None:
        with clock.stage("measuring"):
            return compared(trial.model, small, held.calls, trial.tables)

    def facts(outputs: Outputs | None) -> dict[str, Any]:
        assert outputs is not None
        return held.facts(outputs) | {"asked": {asked[0]: asked[1]}, "tried": len(known)}

    def learn(kept: Widths) -> None:
        nonlocal by
        assert balance is not None
        with clock.stage("sharing out"):
            try:
                balance.learn(kept)
                by = balance.curves
            except RuntimeError:  # no gradient comes through what the network does
                by = curves

    kept = largest(lambda share: allocated(share, by), measure, *asked, learn=learn if balance is not None else None)
    best = measure(kept)
    if progress:
        progress(STEPS, STEPS, "")

    def nearer(small: nn.Module) -> dict[str, Any] | None:
        found = outputs_of(small)
        return None if loss_of(found, asked[0]) > loss_of(best, asked[0]) else facts(found)

    return Driven(kept, facts(best), nearer)


def largest(
    widths: Callable[[float], Widths],
    measure: Callable[[Widths], Outputs | None],
    kind: str,
    limit: float,
    learn: Callable[[Widths], None] | None = None,
) -> Widths:
    """Widths of the smallest network found that keeps the limit.

    Args:
        widths: of a share of the dense parameters that is left; raises InvalidInputError where that is too little.
        measure: of widths. kind: a key of `MEASURES`. limit: of it.
        learn: makes better of what `widths` does from the widths that were tried first; None has nothing to learn.

    Returns:
        Units to keep, by site; all of them where even the least cut that was tried is too much.

    Raises:
        InvalidInputError: the outputs have no such figure, or are not finite.
    """
    allowed = 1 - limit if MEASURES[kind][1] else limit
    within, beyond, best, gone = Tried(0.0, 0.0), Tried(1.0, math.inf), widths(1.0), FIRST
    before: list[Tried] = []
    for step in range(STEPS):
        try:
            kept = widths(1 - gone)
        except InvalidInputError:  # less than one unit in every site
            beyond = Tried(gone, math.inf)
        else:
            now = Tried(gone, loss_of(measure(kept), kind))
            before.append(now)
            if now.loss > allowed:
                beyond = now
            else:
                within, best = now, kept
            if learn is not None and step < ROUNDS:
                learn(kept)
                beyond = beyond if math.isinf(beyond.loss) else Tried(1.0, math.inf)  # what was beyond may keep it now
            elif within is now and now.loss >= NEAR * allowed:
                break
        if beyond.gone - within.gone <= CLOSE:
            break
        gone = between(within, beyond, allowed * (1 + NEAR) / 2, before)
    return best


def between(within: Tried, beyond: Tried, loss: float, before: Sequence[Tried] = ()) -> float:
    """The share at which a loss is to be expected, between two trials, by loss = c·gone^p.

    Args:
        within: the largest share that lost less. beyond: the smallest that lost more. loss: that is looked for.
        before: all trials, of which others say p where only one of the two says something.

    Example:
        >>> one, other = Tried(0.1, 0.01), Tried(0.5, 0.25)
        >>> round(between(one, other, 0.04), 6), round(between(Tried(0.0, 0.0), other, 0.04), 6)
        (0.2, 0.2)
        >>> round(between(Tried(0.0, 0.0), Tried(0.25, 0.5), 0.2, [Tried(0.5, 1.0), Tried(0.25, 0.5)]), 6)
        0.1
    """
    a, b = within.gone, beyond.gone
    guess, known = (a + b) / 2, [one for one in (within, beyond, *before[::-1]) if one.telling]
    if known and not (b < 1 and math.isinf(beyond.loss)):  # where fewer units cannot be had the loss says nothing
        near = min(known[:2], key=lambda one: abs(math.log(one.loss / loss)))
        power = next((power for one in known if (power := near.power(one)) > 0), POWER)
        guess = near.gone * (loss / near.loss) ** (1 / max(power, 0.1))
    edge = (b - a) / 16
    return min(max(guess, a + edge), b - edge)


def loss_of(found: Outputs | None, kind: str) -> float:
    """What one of the figures says is lost; it is 0 for the same outputs."""
    value = figure(found, kind)
    return 1 - value if MEASURES[kind][1] else value


def figure(found: Outputs | None, kind: str) -> float:
    """One of the figures.

    Raises:
        InvalidInputError: there is none.
    """
    value: Any = None if found is None else getattr(found, kind)
    if value is None:
        others = [] if found is None else [name for name in MEASURED if getattr(found, name) is not None]
        more = f": ask for {' or '.join(map(repr, others))}" if others else ""
        raise InvalidInputError(f"a budget of {kind!r} was asked, but the outputs of the network have none{more}")
    result = float(value)
    if math.isnan(result):
        raise InvalidInputError(f"the {kind} of the outputs is not finite on these inputs: give another prior")
    return result
