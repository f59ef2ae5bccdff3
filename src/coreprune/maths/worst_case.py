"""Worst case of a cut hidden layer against the dense one over a whole ball or box: proved above, found below.

For *any* coreset, from tensors alone. The difference of the two layers is itself one hidden layer, so what the two
have in common cancels before anything is bounded:

    r(x) = W φ(Px + b) + c − W'φ(P'x + b') − c'  =  V φ(Px + b) + v₀ + Σ_s W'_s (φ(P_s x + b_s) − φ(P'_s x + b'_s))
    V = W − W'·(scatter to S),   v₀ = c − c'

The last sum is 0 when kept rows are unchanged; when they were only rounded (bfloat16, …) it is bounded by
|W'_s| L (sup|(P_s − P'_s)x| + |b_s − b'_s|); rows changed by more than that enter r as units of their own.

Both networks are the real functions of their *stored* weights; rounding inside a later run in low precision is not
covered. The bounds themselves allow for all rounding of their own float64 arithmetic (`coreprune.maths.relax`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.domain import Domain, OneLayer
from coreprune.maths.relax import cells, certify, certify_linear, descend, gamma, secant

__all__ = ["Residual", "WorstCase", "lower_bound", "residual", "upper_bound", "worst_case"]

SAME_ROW = 1 / 64  # relative change of a kept row up to which it counts as a rounded copy of the dense one
STATE = 2**22  # numbers in one working array


@dataclass(frozen=True)
class Residual:
    """r = common + before − after: what the dense layer computes and the cut one does not.

    Attributes:
        common: V φ(Px + b) + v₀, without the units whose column of V is 0.
        before: W'_s φ(P_s x + b_s) for kept units whose row was rounded (no constant).
        after: W'_s φ(P'_s x + b'_s) for the same units.
    """

    common: OneLayer
    before: OneLayer
    after: OneLayer

    def __call__(self, x: Tensor) -> Tensor:
        """R for a batch of inputs: (N, d) → (N, p)."""
        return self.common(x) + (self.before(x) - self.after(x))

    def enclosure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Proved (low, high) of the real r(x), rounding included; two (N, p)."""
        parts = [layer.enclosure(x) for layer in (self.common, self.before, self.after)]
        (low, high), (low_b, high_b), (low_a, high_a) = parts
        blur = gamma(8) * sum(torch.maximum(part[0].abs(), part[1].abs()) for part in parts)
        return low + low_b - high_a - blur, high + high_b - low_a + blur

    def drift(self, domain: Domain) -> Tensor:
        """Σ_s |W'_is| L (sup|(P_s − P'_s)x| + |b_s − b'_s|) ≥ sup |before − after|; (p,)."""
        if not len(self.before.bias):
            return torch.zeros_like(self.common.constant)
        shift = domain.support(self.before.incoming - self.after.incoming)
        shift = shift + (self.before.bias - self.after.bias).abs()
        total = self.before.outgoing.abs() @ shift * self.before.activation.lipschitz
        return total * (1 + gamma(2 * len(shift) + 16))


def residual(dense: OneLayer, small: OneLayer, kept: Tensor | None = None) -> Residual:
    """The difference of two layers over the same inputs, as hidden layers.

    Args:
        dense: the layer before. small: the layer after.
        kept: (k,) integers; row s of `small` claims to be row kept[s] of `dense` (claims are checked against the
            tensors, never believed). None: no row is shared.

    Returns:
        r = dense − small.

    Raises:
        InvalidInputError: the layers do not fit each other, or `kept` is no list of distinct dense rows.

    Example:
        >>> from coreprune.maths.activation import activation
        >>> layer = OneLayer(torch.eye(2), torch.zeros(2), torch.ones(1, 2), torch.zeros(1), activation("relu"))
        >>> len(residual(layer, layer, torch.arange(2)).common.bias)
        0
    """
    n, k = len(dense.bias), len(small.bias)
    if dense.activation != small.activation:
        found = f"{dense.activation} and {small.activation}"
        raise InvalidInputError(f"layers of two activations, {found}: compare like with like")
    if dense.incoming.shape[1] != small.incoming.shape[1] or len(dense.constant) != len(small.constant):
        raise InvalidInputError(
            f"dense is {tuple(dense.incoming.shape)}→{len(dense.constant)}, small {tuple(small.incoming.shape)}→"
            f"{len(small.constant)}: both must read and write the same things"
        )
    if kept is None:
        kept, same, near = torch.zeros(k, dtype=torch.long), *torch.zeros(2, k, dtype=torch.bool)
    else:
        kept = kept.detach().to("cpu", torch.long)
        if kept.shape != (k,) or len(set(kept.tolist()) & set(range(n))) != k:
            found = f"{kept.tolist()[:8]}…"
            raise InvalidInputError(f"kept must hold {k} distinct rows of the {n} dense ones, found {found}")
        same, near = _compare(dense, small, kept)
    shared = same | near
    outgoing = dense.outgoing.index_add(1, kept[shared], small.outgoing[:, shared], alpha=-1)
    outgoing = torch.cat([outgoing, -small.outgoing[:, ~shared]], 1)
    live = outgoing.ne(0).any(0)
    common = OneLayer(
        torch.cat([dense.incoming, small.incoming[~shared]])[live],
        torch.cat([dense.bias, small.bias[~shared]])[live],
        outgoing[:, live],
        dense.constant - small.constant,
        dense.activation,
    )
    nothing = torch.zeros_like(dense.constant)
    drifted = near & ~same
    source = kept[drifted]
    reader = small.outgoing[:, drifted]
    before = OneLayer(dense.incoming[source], dense.bias[source], reader, nothing, dense.activation)
    after = OneLayer(small.incoming[drifted], small.bias[drifted], reader, nothing, dense.activation)
    return Residual(common, before, after)


def _compare(dense: OneLayer, small: OneLayer, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows of small equal their dense row, and which are close enough to be a rounded copy; two (k,) bool."""
    change = (small.incoming - dense.incoming[kept]).norm(dim=1) + (small.bias - dense.bias[kept]).abs()
    size = dense.incoming[kept].norm(dim=1) + dense.bias[kept].abs()
    near = change <= (SAME_ROW * size if math.isfinite(dense.activation.lipschitz) else torch.zeros_like(size))
    same = (small.incoming == dense.incoming[kept]).all(1) & (small.bias == dense.bias[kept])
    return same, near


def upper_bound(
    difference: Residual, domain: Domain, generator: torch.Generator, steps: int = 200, nodes: int = 512
) -> Tensor:
    """B_i ≥ sup_{x in domain} |r_i(x)|, proved in float64 with rounding; exactly 0 where r_i is identically 0.

    Any `steps`, `nodes` and `generator` give a true bound; more steps give a tighter one.

    Args:
        difference: r. domain: where x may be. generator: draws starting points of the descent.
        steps: descent steps on the relaxation; 0 evaluates the starting relaxation.
        nodes: cells per unit on which the final bound follows a bent activation.

    Returns:
        B, (p,).

    Example:
        >>> from coreprune.maths.activation import activation
        >>> from coreprune.maths.domain import Ball
        >>> relu = OneLayer(torch.eye(2), torch.zeros(2), torch.ones(1, 2), torch.zeros(1), activation("relu"))
        >>> half = OneLayer(torch.eye(2)[:1], torch.zeros(1), torch.ones(1, 1), torch.zeros(1), activation("relu"))
        >>> r = residual(relu, half, torch.tensor([0]))  # relu(x_2) over the unit disc: at most 1
        >>> 1 <= upper_bound(r, Ball(1.0), torch.Generator()).item() < 1.001
        True
    """
    common = difference.common
    rest = difference.drift(domain) + gamma(4) * common.constant.abs()
    if not len(common.bias):
        return rest + common.constant.abs()
    units = domain.units(common)
    fine, coarse = cells(units, nodes), cells(units, 16)
    coarse = replace(coarse, error=torch.zeros_like(coarse.error))  # the search may round, the proof may not
    n, m = units.directions.shape
    idle = common.outgoing.new_zeros(len(common.constant), n - len(common.bias))  # the coordinates of a box
    weights = _both_signs(torch.cat([common.outgoing, idle], 1))
    bounds = []
    for weight in torch.split(weights, max(1, STATE // n)):
        chord = secant(units, weight)
        bound = certify_linear(units, weight, chord, fine)
        slope, bend = descend(units, weight, chord, coarse, steps, generator)
        block = max(1, STATE // (m * m))
        bounds.append(torch.fmin(bound, certify(units, weight, slope, bend, fine, block)))
    constants = _both_signs(common.constant)
    total = (torch.cat(bounds) + constants).view(2, -1).amax(0).clamp(min=0)
    total = torch.where(total.isnan(), torch.inf, total)  # overflow: nothing is known
    return total * (1 + gamma(8)) + rest


def _both_signs(rows: Tensor) -> Tensor:
    return torch.cat([rows, -rows])


def lower_bound(
    difference: Residual, domain: Domain, generator: torch.Generator, restarts: int = 8, steps: int = 80
) -> tuple[Tensor, Tensor]:
    """An input found for every output at which |r_i| is large: a proved lower bound of the worst case.

    Gradient ascent on ±r_i from random starts. φ' is taken as a difference quotient over a shrinking width, so that
    jumps and flat stretches are seen, and small bumps passed over, at first.

    Args:
        difference: r. domain: where x may be. generator: draws the starts.
        restarts: starts per output and sign. steps: steps of each.

    Returns:
        b, (p,), with b_i ≤ |r_i(x_i)| in real arithmetic, and the witnesses x, (p, d), inside the domain.
    """
    layer, lift = difference.common, None
    span = domain.span(layer.incoming)
    if span is not None:
        layer, lift = OneLayer(span[0], layer.bias, layer.outgoing, layer.constant, layer.activation), span[1]
    width = domain.support(layer.incoming).clamp(min=1e-12)
    weights = _both_signs(layer.outgoing)
    found = []
    for rows in torch.split(weights, max(1, STATE // (restarts * max(1, *layer.incoming.shape)))):
        weight = rows.repeat_interleave(restarts, 0)
        x = domain.sample((len(weight), layer.incoming.shape[1]), generator)
        for step in range(steps):
            z, h = x @ layer.incoming.T + layer.bias, width * 0.5 * 0.9**step + 1e-9
            rise = (layer.activation(z + h) - layer.activation(z - h)) / (2 * h)
            x = domain.ascend(x, (weight * rise) @ layer.incoming, 0.2 * 0.96**step)
        value = (layer.activation(x @ layer.incoming.T + layer.bias) * weight).sum(1)
        best = value.view(-1, restarts).argmax(1)
        found.append(x[torch.arange(len(rows)) * restarts + best])
    points = torch.cat(found)
    points = domain.project(points if lift is None else points @ lift.T)
    low, high = difference.enclosure(points)
    p = len(layer.constant)
    proved = torch.maximum(low, -high).clamp(min=0)  # every witness serves every output
    best = proved.argmax(0)
    return proved[best, torch.arange(p)], points[best]


@dataclass(frozen=True)
class WorstCase:
    """lower_i ≤ sup_x |y_i(x) − ŷ_i(x)| ≤ upper_i, both proved.

    Attributes:
        lower: (p,). upper: (p,). witness: (p, d), inputs at which `lower` is attained.
    """

    lower: Tensor
    upper: Tensor
    witness: Tensor

    @property
    def ratio(self) -> float:
        """Max upper / max lower: by how much at most the bound on the largest error is too large; 1 if both are 0."""
        high, low = float(self.upper.max()), float(self.lower.max())
        return 1.0 if high == 0 else high / low if low > 0 else math.inf


def worst_case(
    dense: OneLayer, small: OneLayer, kept: Tensor | None, domain: Domain, generator: torch.Generator, steps: int = 200
) -> WorstCase:
    """Enclose the worst difference of two layers over a domain, output by output.

    Args:
        dense: the layer before. small: after. kept: rows of dense that small claims to keep, or None.
        domain: where x may be. generator: for both searches. steps: of the descent on the upper bound.

    Returns:
        Bounds from above and from below, with the inputs that prove the latter.

    Example:
        >>> from coreprune.maths.activation import activation
        >>> from coreprune.maths.domain import Ball
        >>> layer = OneLayer(torch.eye(2), torch.zeros(2), torch.ones(1, 2), torch.zeros(1), activation("relu"))
        >>> worst_case(layer, layer, torch.arange(2), Ball(1.0), torch.Generator()).upper
        tensor([0.], dtype=torch.float64)
    """
    difference = residual(dense, small, kept)
    lower, witness = lower_bound(difference, domain, generator)
    return WorstCase(lower, upper_bound(difference, domain, generator, steps), witness)
