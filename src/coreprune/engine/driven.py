"""The largest cut whose outputs, measured, stay as near to the dense network's as was asked, by bisection."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

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

__all__ = ["Trial", "Widths", "asked_of", "driven", "largest"]

Widths = dict[str, int]

#: halvings of the share of parameters that is left, which is then known to 0.4 % of the dense network
STEPS = 8


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
        percent = isinstance(given, str) and given.endswith("%")
        limit = float(str(given)[:-1]) / 100 if percent else float(given)
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
    low, high, best = 0.0, 1.0, widths(1.0)
    for _ in range(STEPS):
        middle = (low + high) / 2
        try:
            kept = widths(middle)
        except InvalidInputError:  # less than one unit in every site
            low = middle
            continue
        value = figure(measure(kept), kind)
        if value >= limit if MEASURES[kind][1] else value <= limit:
            high, best = middle, kept
        else:
            low = middle
    return best


def figure(found: Outputs | None, kind: str) -> float:
    """One of the figures.

    Raises:
        InvalidInputError: there is none.
    """
    value: Any = None if found is None else getattr(found, kind)
    if value is None:
        more = ": ask for 'cosine' or 'output_error'" if kind == "divergence" and found is not None else ""
        raise InvalidInputError(f"a budget of {kind!r} was asked, but the outputs of the network have none{more}")
    result = float(value)
    if math.isnan(result):
        raise InvalidInputError(f"the {kind} of the outputs is not finite on these inputs: give another prior")
    return result
