"""The paper's coresets: importance sampling of the units of a neuron or of a layer.

Source: Mussay et al., "Data-Independent Neural Pruning via Coresets", arXiv:1907.04018, Algorithm 1
and its extension to layers. Points are p_j = (row j of P, b_j) ∈ R^{d+1}, queries (x, 1) with
‖x‖ ≤ β, hence of norm at most R = √(1 + β²).

Two meanings of size, each by its own name:

``draws=m``
    m independent draws with replacement, the estimator of the theorem. The number of units
    that survive is random and at most m.
``units=k``
    exactly k survivors: systematic sampling without replacement, with inclusion probabilities
    π_j proportional to the sensitivities (capped at 1) and Horvitz–Thompson weights 1/π_j.

Both are unbiased at every input.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.activation import Activation
from coreprune.maths.layer import Coreset, Layer

__all__ = [
    "coreset_of_layer",
    "coreset_of_neuron",
    "draws_for_units",
    "expected_units",
    "inclusion_probabilities",
    "sensitivity",
]


def sensitivity(layer: Layer) -> Tensor:
    """How much a unit can matter to any output: s_j = max_i |W_ij| · φ̄(R‖p_j‖); 0 if it is dead on the ball.

    Returns:
        (n,), non-negative. pr(j) = s_j / Σ s is the paper's distribution, with the envelope φ̄ in
        place of φ(β‖p‖), so that it also covers signed and non-monotone activations.

    Source: [M19], Algorithm 1, line 2; layers: max over the neurons i of the next layer.
    """
    reach = layer.activation.envelope(layer.query_radius * layer.norms)
    strongest = layer.outgoing.abs().amax(0)
    return torch.where(layer.dead(), 0.0, strongest * reach)


def coreset_of_neuron(
    points: Tensor,
    weights: Tensor,
    activation: Activation,
    radius: float,
    *,
    draws: int | None = None,
    units: int | None = None,
    generator: Generator,
) -> Tensor:
    """Sparse weights u with Σ u_j φ(p_j·q) ≈ Σ w_j φ(p_j·q) for every query q = (x, 1), ‖x‖ ≤ β.

    With ``draws=m`` signed weights are split, w = w⁺ − w⁻, and each part gets a coreset of m draws of its
    own (the errors add: 2ε). With ``units=k`` one sample by |w_j| φ̄(R‖p_j‖) serves both signs, since a
    Horvitz–Thompson weight is the same for either.

    Args:
        points: p_j with the bias as last coordinate, (n, d + 1).
        weights: w, (n,), any signs.
        activation: φ.
        radius: β ≥ 0.
        draws: m, draws with replacement for each sign that is there.
        units: k ≤ n, exact number of non-zero weights (fewer only if fewer matter at all).
        generator: source of randomness, on the device of `points`.

    Returns:
        u, (n,), E u = w wherever the sensitivity is positive.

    Example:
        >>> points, weights = torch.randn(1000, 5), torch.rand(1000)
        >>> from coreprune.maths.activation import activation
        >>> g = torch.Generator().manual_seed(0)
        >>> u = coreset_of_neuron(points, weights, activation("relu"), 1.0, units=50, generator=g)
        >>> int((u != 0).sum())
        50

    Source: [M19], Algorithm 1 and its remark on negative weights.
    """
    size = _one_of(draws, units)
    if units is not None:
        layer = Layer(points[:, :-1], points[:, -1], weights[None], activation, radius)
        _check_units(units, layer.units)
        return weights * _systematic(sensitivity(layer), units, generator)
    coreset = torch.zeros_like(weights)
    for sign, part in ((1, weights.clamp(min=0)), (-1, (-weights).clamp(min=0))):
        s = sensitivity(Layer(points[:, :-1], points[:, -1], part[None], activation, radius))
        if bool(s.any()):
            coreset += sign * part * _draw(s, size, generator)
    return coreset


def coreset_of_layer(
    layer: Layer, *, draws: int | None = None, units: int | None = None, generator: Generator
) -> Coreset:
    """A coreset shared by all neurons of the next layer, so that whole units disappear.

        draws=m:   W'_ij = W_ij · count_j / (m · pr(j))
        units=k:   W'_ij = W_ij / π_j

    Args:
        layer: the n units and all they feed.
        draws: m, i.i.d. draws with replacement.
        units: k ≤ n, exact number of survivors. If fewer than k units matter on the ball, the
            survivors are filled up with units that do not.
        generator: source of randomness, on the device of the layer.

    Returns:
        The kept units and their weights (T diagonal on S); c is unchanged.

    Source: [M19], section "coresets for a layer"; Horvitz & Thompson 1952; Madow 1949 (systematic sampling).
    """
    size = _one_of(draws, units)
    s = sensitivity(layer)
    if units is None:
        scale = _draw(s, size, generator) if bool(s.any()) else torch.zeros_like(s)
        kept = scale.nonzero()[:, 0] if bool(scale.any()) else scale.argmax()[None]  # nothing matters: one stays, at 0
    else:
        _check_units(units, layer.units)
        scale = _systematic(s, units, generator)
        kept = torch.sort(torch.argsort(scale, descending=True, stable=True)[:units]).values
    return Coreset(kept, scale[kept])


def inclusion_probabilities(size: Tensor, k: int) -> Tensor:
    """π_j = min(1, c·s_j) with c such that Σ π_j = k.

    Args:
        size: s ≥ 0, (n,).
        k: expected sample size; if fewer than k entries are positive, those all get π = 1.

    Returns:
        π, (n,), float64.
    """
    s = size.double()
    k = min(k, int((s > 0).sum()))
    if k == 0:
        return torch.zeros_like(s)
    ordered = torch.sort(s, descending=True).values
    rest = ordered.flip(0).cumsum(0).flip(0)  # rest[t] = sum of all but the t largest
    certain = torch.arange(s.numel(), device=s.device)
    # t units are certain as long as the next largest would get more than its share of k − t
    capped = (certain < k) & ((k - certain) * ordered > rest)
    t = int(capped.sum())
    if t == k:
        return (s >= ordered[k - 1]).double()
    return torch.clamp((k - t) * s / rest[t], max=1.0)


def _draw(s: Tensor, m: int, generator: Generator) -> Tensor:
    """count_j / (m · pr(j)) of m draws with probabilities pr = s / Σ s, by inversion, (n,)."""
    cumulative = s.double().cumsum(0)
    at = torch.rand(m, generator=generator, device=s.device, dtype=torch.float64) * cumulative[-1]
    last = int(s.nonzero()[-1])
    counts = torch.bincount(torch.searchsorted(cumulative, at, right=True).clamp(max=last), minlength=s.numel())
    scale = counts * cumulative[-1] / (m * s.double().clamp(min=torch.finfo(torch.float64).tiny))
    return scale.to(s.dtype)


def _systematic(s: Tensor, k: int, generator: Generator) -> Tensor:
    """1 / π_j for the units of one systematic sample of size k in random order, 0 elsewhere, (n,)."""
    pi = inclusion_probabilities(s, k)
    order = torch.randperm(s.numel(), generator=generator, device=s.device)
    start = torch.rand((), generator=generator, device=s.device, dtype=torch.float64)
    steps = torch.floor(pi[order].cumsum(0) + start)
    total = round(float(pi.sum()))  # the sum is a whole number; rounding in it must not cost a unit
    steps[-1] = torch.floor(total + start)
    hit = torch.diff(steps, prepend=torch.floor(start)[None]) > 0
    scale = torch.zeros_like(pi)
    chosen = order[hit]
    scale[chosen] = 1 / pi[chosen]
    return scale.to(s.dtype)


def _check_units(units: int, n: int) -> None:
    if units > n:
        raise InvalidInputError(f"{units} units were asked of {n}: ask for at most {n}")


def _one_of(draws: int | None, units: int | None) -> int:
    if (draws is None) == (units is None):
        raise InvalidInputError("say either draws=m (with replacement) or units=k (exactly k survivors)")
    size = draws if draws is not None else units
    assert size is not None
    if size < 1:
        raise InvalidInputError(f"a coreset of {size} was asked for: ask for at least 1")
    return size


def expected_units(s: Tensor, draws: int) -> float:
    """E[#distinct] = Σ_j 1 − (1 − pr(j))^m: units that survive m draws on average."""
    pr = s.double() / s.double().sum()
    return float(-torch.expm1(draws * torch.log1p(-pr.clamp(max=1 - 1e-16))).sum())


def draws_for_units(s: Tensor, k: int) -> int:
    """The smallest m for which at least k units survive on average (k at most the number that can)."""
    k = min(k, int((s > 0).sum()))
    high = max(k, 1)
    while expected_units(s, high) < k - 0.5 and high < 2**40:
        high *= 2
    low = max(k, 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if expected_units(s, middle) >= k - 0.5 else (middle + 1, high)
    return low
