"""The largest cut whose outputs, measured, stay as near to the dense network's as was asked.

What is lost grows about as a power of the share of parameters that is gone, loss ≈ c·gone^p: two trials say c and p,
and a few more find the limit, always between one that kept it and one that did not.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from coreprune.budget import MEASURED, Widths, number_of
from coreprune.clock import Clock
from coreprune.engine.correction import corrections
from coreprune.engine.local import Request
from coreprune.engine.network import Survey, decide_network
from coreprune.engine.outputs import MEASURES, Held, Outputs, compared
from coreprune.engine.probes import token_tables
from coreprune.errors import InvalidInputError
from coreprune.model.capture import Arguments
from coreprune.model.site import Inspection
from coreprune.plan import Made
from coreprune.surgery.apply import install, spared_copy
from coreprune.surgery.attributes import follow

__all__ = ["Trial", "asked_of", "between", "driven", "largest"]

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
    except ValueError as error:
        raise InvalidInputError(f"{kind}={given!r} is not a number: write one such as 0.1") from error
    if isinstance(given, bool) or not isinstance(given, (str, numbers.Real)) or not 0 < limit < float("inf"):
        raise InvalidInputError(f"{kind}={given!r} was asked: give a positive number")
    if MEASURES[kind][1] and limit >= 1:
        raise InvalidInputError(f"{kind}={given!r} was asked: give a number below 1, such as 0.98")
    return kind, limit


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
        changed = made.rounded
        small = spared_copy(self.model, changed)
        install(small, changed, follow(self.model, cuts))
        return small


def driven(
    trial: Trial, held: Held, widths: Callable[[float], Widths], asked: tuple[str, float], clock: Clock
) -> tuple[Widths, dict[str, Any]]:
    """The widths of the largest cut that keeps what is asked, and what was measured of it.

    Args:
        trial: cuts copies. held: inputs to measure on. widths: see `largest`. asked: measure and limit.
        clock: takes the time of measuring.
    """
    known: dict[tuple[tuple[str, int], ...], Outputs | None] = {}

    def measure(kept: Widths) -> Outputs | None:
        key = tuple(sorted(kept.items()))
        if key not in known:
            small = trial.at(kept)
            with clock.stage("measuring"):
                known[key] = compared(trial.model, small, held.calls, trial.tables)
        return known[key]

    kept = largest(widths, measure, *asked)
    outputs = measure(kept)
    assert outputs is not None
    return kept, held.facts(outputs) | {"asked": {asked[0]: asked[1]}, "tried": len(known)}


def largest(
    widths: Callable[[float], Widths], measure: Callable[[Widths], Outputs | None], kind: str, limit: float
) -> Widths:
    """Widths of the smallest network found that keeps the limit.

    Args:
        widths: of a share of the dense parameters that is left; raises InvalidInputError where that is too little.
        measure: of widths. kind: a key of `MEASURES`. limit: of it.

    Returns:
        Units to keep, by site; all of them where even the least cut that was tried is too much.

    Raises:
        InvalidInputError: the outputs have no such figure, or are not finite.
    """
    upward = MEASURES[kind][1]
    allowed = 1 - limit if upward else limit
    within, beyond, best, gone = (0.0, 0.0), (1.0, math.inf), widths(1.0), FIRST
    for _ in range(STEPS):
        try:
            kept = widths(1 - gone)
        except InvalidInputError:  # less than one unit in every site
            beyond = gone, math.inf
        else:
            value = figure(measure(kept), kind)
            loss = 1 - value if upward else value
            if loss > allowed:
                beyond = gone, loss
            else:
                within, best = (gone, loss), kept
                if loss >= NEAR * allowed:
                    break
        if beyond[0] - within[0] <= CLOSE:
            break
        gone = between(within, beyond, allowed * (1 + NEAR) / 2)
    return best


def between(within: tuple[float, float], beyond: tuple[float, float], loss: float) -> float:
    """Where a loss is to be expected between two trials, (share that is gone, loss) each, by loss = c·gone^p.

    Example:
        >>> round(between((0.1, 0.01), (0.5, 0.25), 0.04), 6), round(between((0.0, 0.0), (0.5, 0.25), 0.04), 6)
        (0.2, 0.2)
    """
    (a, x), (b, y) = within, beyond
    known = [(share, value) for share, value in (within, beyond) if share > 0 and 0 < value < math.inf]
    guess = (a + b) / 2
    if len(known) == 2 and y > x:
        power = max(math.log(y / x) / math.log(b / a), 0.1)
        guess = a * (loss / x) ** (1 / power)
    elif known and not (b < 1 and math.isinf(y)):  # where fewer units cannot be had the loss says nothing
        share, value = known[0]
        guess = share * (loss / value) ** (1 / POWER)
    edge = (b - a) / 16
    return min(max(guess, a + edge), b - edge)


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
