"""How large a sampled coreset must be, and how far it can be off: the theorem with explicit constants.

Let φ be L-Lipschitz and let one draw pick unit j with probability pr(j). With

    s_j = max_i |W_ij| · (|φ(0)| + L R ‖p_j‖),        B = max_j s_j / pr(j)   (= T = Σ s_j if pr ∝ s)

the mean of m independent draws W_ij φ(p_j·q) / pr(j) satisfies, with probability at least 1 − δ,
for all p outputs i and all ‖x‖ ≤ β at once,

    |y_i(x) − ŷ_i(x)| ≤ B (2 + √(2 ln(2p/δ))) / √m.

*Proof.* One draw lies in [−B, B]. Symmetrisation bounds the expected supremum of one signed
deviation by 2/m · E sup Σ σ φ-terms; the constants φ(0) do not depend on x and vanish under E σ;
Ledoux–Talagrand contraction replaces the rest by B · E‖Σ σ u‖ ≤ B√m with unit vectors u. McDiarmid
(each draw moves the supremum by at most 2B/m) adds B√(2 ln(1/δ')/m); a union over p outputs and
two signs sets δ' = δ/(2p). ∎

The dimension d does not enter. The bound is true and, for trained networks, large against their
outputs: its use is theory, tests and scaling laws. For a small certificate see the other pages.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.layer import Layer

__all__ = ["error_of_draws", "lipschitz_sensitivity", "output_variance", "size_for_error", "total_sensitivity"]


def lipschitz_sensitivity(layer: Layer) -> Tensor:
    """s_j = max_i |W_ij| · (|φ(0)| + L R ‖p_j‖), (n,): the sensitivity for which the theorem holds.

    For ReLU it equals the paper's `sensitivity` on every unit that is not dead.

    Raises:
        InvalidInputError: φ jumps, so that no Lipschitz constant exists.
    """
    phi = layer.activation
    if math.isinf(phi.lipschitz):
        raise InvalidInputError(f"the theorem needs a Lipschitz activation, but {phi.name} jumps: use another bound")
    return layer.outgoing.abs().amax(0) * (abs(phi.at_zero) + phi.lipschitz * layer.query_radius * layer.norms)


def total_sensitivity(layer: Layer, probability: Tensor | None = None) -> float:
    """T = Σ_j s_j, in the units of the layer's output; B = max_j s_j / pr(j) for draws with other probabilities.

    Args:
        layer: the layer.
        probability: pr, (n,), if units are not drawn with pr ∝ s. Units that are dead on the ball need none.
    """
    s = lipschitz_sensitivity(layer).double()
    if probability is None:
        return float(s.sum())
    alive = (s > 0) & ~layer.dead()
    return float((s[alive] / probability.double()[alive]).max()) if bool(alive.any()) else 0.0


def _constant(delta: float, outputs: int) -> float:
    if not 0 < delta < 1:
        raise InvalidInputError(f"delta={delta} is not a probability of failure: give one between 0 and 1")
    return 2 + math.sqrt(2 * math.log(2 * outputs / delta))


def size_for_error(total: float, error: float, delta: float, outputs: int = 1) -> int:
    """M = ⌈(T (2 + √(2 ln(2p/δ))) / ε)²⌉ draws suffice for an error of at most ε.

    Args:
        total: T (or B, if units are drawn with other probabilities).
        error: ε > 0, absolute, in the units of the output.
        delta: δ, probability that the bound fails.
        outputs: p; 1 for a single neuron.

    Example:
        >>> size_for_error(total=1.0, error=0.1, delta=0.05)
        2225
    """
    if not error > 0:
        raise InvalidInputError(f"an error of {error} was asked for: give a positive one")
    return max(1, math.ceil((total * _constant(delta, outputs) / error) ** 2))


def error_of_draws(total: float, draws: int, delta: float, outputs: int = 1) -> float:
    """ε = T (2 + √(2 ln(2p/δ))) / √m, the inverse of `size_for_error`.

    Args:
        total: T (or B).
        draws: m, with replacement.
        delta: δ.
        outputs: p.

    Example:
        >>> round(error_of_draws(total=1.0, draws=2225, delta=0.05), 3)
        0.1
    """
    if draws < 1:
        raise InvalidInputError(f"{draws} draws were asked for: ask for at least 1")
    return total * _constant(delta, outputs) / math.sqrt(draws)


def output_variance(layer: Layer, probability: Tensor, draws: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Exact variance of ŷ_i(x) over the draws, and Bernstein's bound on it.

        Var ŷ_i = (Σ_j (W_ij h_j)² / pr(j) − y_i²) / m   ≤   B · Σ_j |W_ij h_j| / m

    Args:
        layer: the layer.
        probability: pr, (n,), positive wherever a unit matters.
        draws: m.
        x: inputs in the ball, (batch, d).

    Returns:
        (variance, bound), (batch, p) each.

    Source: design of the paper's proof; B = max_j max_i |W_ij| φ̄(R‖p_j‖) / pr(j).
    """
    h = layer.hidden(x)
    used = probability > 0
    inverse = torch.where(used, 1 / torch.where(used, probability, 1.0), 0.0)
    second = (h.square() * inverse) @ layer.outgoing.square().T
    reach = layer.outgoing.abs().amax(0) * layer.activation.envelope(layer.query_radius * layer.norms)
    worst = (reach * inverse).amax()
    return (second - layer(x).square()) / draws, worst * (h.abs() @ layer.outgoing.abs().T) / draws
