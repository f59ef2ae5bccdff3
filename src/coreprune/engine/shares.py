"""What each site's cut costs the whole network when all are made together, and widths by it.

Put α_s(ĥ − h) + h in the place of what the readers of site s get, where ĥ is what the kept units make of h: α = 0 is
the dense network and α = (1, …, 1) the cut one. Along the straight path between them the loss L of the outputs is

    L(1, …, 1) = Σ_s ∫₀¹ ∂L/∂α_s (a, …, a) da ≈ Σ_s ∂L/∂α_s (½, …, ½),

so that one backward pass shares out what is lost. The middle is exact where L is of second order, with errors that add
up or cancel, which costs of single sites do not know. L is

- where the network predicts tokens, their divergence KL(p_dense ‖ p), in nats for each;
- else the squared error of the outputs, as a share of their energy about the mean of a batch.

An error curve err(k) says what one more unit of a site is worth beside another of its own; scaled to the share that
its site had at some widths, it says so beside the units of other sites, near these widths.

Source: Aumann & Shapley 1974; integrated gradients, Sundararajan et al. 2017, arXiv:1703.01365.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from coreprune.budget import Widths
from coreprune.engine.inputs import forced, inputs
from coreprune.engine.local import Request
from coreprune.engine.masking import reconstructed, tapped
from coreprune.engine.network import Survey, decide_network, spaced
from coreprune.engine.norms import normed
from coreprune.engine.precision import reduced
from coreprune.engine.probes import predicts, token_tables
from coreprune.engine.runner import Hook, run
from coreprune.maths.layer import Coreset
from coreprune.model.capture import Arguments, Captured
from coreprune.model.site import Inspection, Tap

__all__ = ["Balance", "Loss", "balanced", "lost"]

#: tokens, or numbers of other inputs, that the loss is shared out on
TOKENS, NUMBERS = 4096, 2**20
ROUNDS = 2  # of sharing out, each by what was lost at the widths before
LEAST = 1e-3  # of the mean share: what a site is said to cost at least
NEAR = 0.5  # of its units, which a site keeps at least from one round to the next
FORBIDDEN = 1e6  # times the error of keeping nothing
_ROWS = 512  # predictions that are compared at a time


class Loss(NamedTuple):
    """What is lost: `total` = L(1, …, 1), as measured, and `shares` of the sites, which sum to about that."""

    total: float
    shares: list[float]


def lost(
    captured: Captured,
    tensors: Mapping[str, Tensor],
    sites: Sequence[Iterable[tuple[Tap, Coreset]]],
    batches: Iterable[Arguments],
    *,
    batch_statistics: bool = False,
) -> Loss:
    """What the cuts of all sites together lose, and each site's share of it, see the head of this file.

    Args:
        captured: the graph of the whole network.
        tensors: parameters and buffers, by name; not changed.
        sites: for each the taps of its readers, and what stands for its units there.
        batches: inputs of the network, at least one.
        batch_statistics: see `coreprune.engine.runner.run`.
    """
    of = {id(tap): (at, coreset) for at, pairs in enumerate(sites) for tap, coreset in pairs}
    taps = [tap for pairs in sites for tap, _ in pairs]
    middle = torch.full((len(sites),), 0.5, requires_grad=True)
    tables = set(token_tables(captured).values())
    total, count = 0.0, 0.0

    def whole(tap: Tap, value: Tensor) -> Tensor:
        return reconstructed(value, tap, of[id(tap)][1])

    def halfway(tap: Tap, value: Tensor) -> Tensor:
        return value + middle[of[id(tap)][0]].to(value) * (whole(tap, value) - value)

    def outputs(arguments: Arguments, hook: Hook | None, grad: bool) -> list[Any]:
        used = taps if hook else ()
        return run(captured, tensors, arguments, taps=used, hook=hook, batch_statistics=batch_statistics, grad=grad)

    for arguments in batches:
        dense = outputs(arguments, None, False)
        found, weight = _losses(dense, outputs(arguments, whole, False), tables)
        total += sum(one.value for one in found)
        count += weight
        found, _ = _losses(dense, outputs(arguments, halfway, True), tables)
        pulled = [one for one in found if one.output.requires_grad]
        if pulled:
            torch.autograd.backward([one.output for one in pulled], [one.gradient for one in pulled])
        del found, pulled  # which hold the graph
    gradient = torch.zeros(len(sites)) if middle.grad is None else middle.grad
    each = max(count, 1.0)
    return Loss(total / each, (gradient.double() / each).tolist())


class _Lost(NamedTuple):
    """The loss of one output z, and ∂/∂z of it."""

    output: Tensor
    value: float
    gradient: Tensor


def _losses(dense: Sequence[Any], small: Sequence[Any], tables: Collection[int]) -> tuple[list[_Lost], float]:
    """What one batch loses, and how many predictions, or batches, that sums up."""
    pairs = [
        (y, z)
        for y, z in zip(dense, small, strict=True)
        if isinstance(z, Tensor) and z.is_floating_point() and z.dim() and z.numel()
    ]
    told = next(((y, z) for y, z in pairs if predicts(z, tables)), None)
    if told is not None:
        return [_divergence(*told)], told[1].numel() / told[1].shape[-1]
    return [_error(y, z) for y, z in pairs], 1.0


def _divergence(y: Tensor, z: Tensor) -> _Lost:
    """Σ KL(p_y ‖ p_z) over the predictions of logits (…, V), whose gradient is p_z − p_y."""
    total, gradient = 0.0, torch.empty_like(z)
    for into, a, b in zip(*(v.detach().flatten(0, -2).split(_ROWS) for v in (gradient, y, z)), strict=True):
        p, q = a.float().log_softmax(-1), b.float().log_softmax(-1)
        total += float(((p - q) * p.exp()).double().sum())
        into.copy_(q.exp_().sub_(p.exp_()))
    return _Lost(z, total, gradient)


def _error(y: Tensor, z: Tensor) -> _Lost:
    """‖z − y‖² / ‖y − ȳ‖², ȳ the mean of the batch, with its gradient."""
    a, b = y.detach().double(), z.detach().double()
    energy = (a - (a.mean(0) if len(a) > 1 else 0.0)).square().sum().clamp(min=1e-30)
    return _Lost(z, float((b - a).square().sum() / energy), (2 * (b - a) / energy).to(z.dtype))


# ---------------------------------------------------------------- widths


class Balance:
    """Error curves of the sites, scaled to what each was found to cost the whole network.

    Attributes:
        curves: by site, to share a budget out by. Until something is learnt all sites lose one share under them.
    """

    def __init__(self, found: Inspection, tensors: Mapping[str, Tensor], request: Request, survey: Survey) -> None:
        """A network whose costs are not known yet.

        Args:
            found: sites with their captured graphs, of which the first is the whole network's.
            tensors: parameters and buffers, by name; not changed. request: how to cut. survey: of all sites.
        """
        self._found, self._tensors, self._survey = found, tensors, survey
        self._request = replace(request, progress=None)
        self._scales = dict.fromkeys(survey.curves, math.nan)
        self.curves: Mapping[str, Tensor] = _alike(found)

    @cached_property
    def _few(self) -> list[Arguments]:
        """Inputs that what is lost is shared out on."""
        limit = TOKENS if token_tables(self._found.graphs[0]) else NUMBERS
        return spaced(list(inputs(self._found.graphs[0], self._request.prior, self._request.seed)), limit)

    @cached_property
    def _held(self) -> Mapping[str, Tensor]:
        """The tensors, of a language model in fewer bits."""
        captured = self._found.graphs[0]
        return reduced(captured, self._tensors) if token_tables(captured) else self._tensors

    def learn(self, kept: Widths) -> float:
        """What the network loses with so many units in each site; the curves are scaled by the shares of the sites.

        Raises:
            RuntimeError: no gradient comes through what the network does.
        """
        captured = self._found.graphs[0]
        cuts = decide_network(self._found, self._tensors, kept, self._request, self._survey)
        pairs = [tapped(self._found, cut) for cut in cuts]
        own = forced(self._request.prior) or normed(captured)
        total, shares = lost(captured, self._held, pairs, self._few, batch_statistics=own)
        found = {cut.site.name: one for cut, one in zip(cuts, shares, strict=True)}
        self._scales = _scaled(self._scales, self._survey.curves, kept, found)
        scaled = {name: curve * self._scales[name] for name, curve in self._survey.curves.items()}
        self.curves = scaled | {name: _near(scaled[name], units) for name, units in kept.items()}
        return total


def balanced(
    found: Inspection,
    tensors: Mapping[str, Tensor],
    request: Request,
    survey: Survey,
    allocated: Callable[[Mapping[str, Tensor]], Widths],
) -> Widths:
    """Widths under which the network loses least, of those tried; never more than where all sites lose one share.

    The sites' curves are scaled to what each was found to cost at the widths before, and the budget is shared out anew.
    Where gradients cannot be taken it is shared out by the curves as they are.

    Args:
        found, tensors, request, survey: see `Balance`.
        allocated: units to keep within the budget, for error curves by site.
    """
    balance = Balance(found, tensors, request, survey)
    kept = allocated(balance.curves)
    if kept == allocated(survey.curves):  # nothing is free
        return kept
    tried: list[tuple[float, Widths]] = []
    while True:
        try:
            tried.append((balance.learn(kept), kept))
        except RuntimeError:
            return allocated(survey.curves)
        if len(tried) > ROUNDS:
            return min(tried, key=lambda one: one[0])[1]
        kept = allocated(balance.curves)


def _alike(found: Inspection) -> dict[str, Tensor]:
    """Curves under which all sites lose one share of their units: parameters times the square of what is gone."""
    return {
        site.name: found.governs(site) * torch.linspace(1, 0, site.units + 1, dtype=torch.float64).square()
        for site in found.sites
    }


def _near(curve: Tensor, kept: int) -> Tensor:
    """A curve that forbids to keep fewer than NEAR of what was kept: the scale was found there."""
    result = curve.clone()
    result[: math.ceil(kept * NEAR)] = FORBIDDEN * float(curve[0])
    return result


def _scaled(
    before: Mapping[str, float], curves: Mapping[str, Tensor], kept: Widths, shares: Mapping[str, float]
) -> dict[str, float]:
    """What a curve is multiplied with: its share over its error, as a geometric mean with what was found before."""
    floor = LEAST * sum(abs(share) for share in shares.values()) / max(len(shares), 1)
    result = dict(before)
    for name, share in shares.items():
        curve = curves[name]
        error = float(curve[kept[name]])
        if error > LEAST**2 * float(curve[0]) and max(share, floor) > 0:  # else nothing is learnt
            new = max(share, floor) / error
            result[name] = new if math.isnan(before[name]) else math.sqrt(new * before[name])
    known = [math.log(scale) for scale in result.values() if not math.isnan(scale)]
    usual = math.exp(sum(known) / len(known)) if known else 1.0
    return {name: usual if math.isnan(scale) else scale for name, scale in result.items()}
