"""Refined coresets: kept units that may turn, where nothing more than closed form is asked.

A kept unit need not be one of the dense ones. Starting from a kernel coreset, the incoming rows
Q ã + b' of the kept units descend on the exact expected squared error under the law of the
pre-activations,

    E(Q, b') = tr W (G − X G̃⁻¹ Xᵀ) Wᵀ,     G̃ = Cov φ(Qã + b'),  X = Cov(φ(a), φ(Qã + b')),

with the outgoing weights eliminated in closed form at every step (variable projection, Golub &
Pereyra 1973). Every entry is a Mehler sum, so the gradient is exact; no sample is drawn. L-BFGS never
ends above its start, so the result is never worse than the kernel coreset under the law.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController
from torch import Generator, Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.activation import Activation
from coreprune.maths.gram import correlation
from coreprune.maths.hermite import Expansion, expand
from coreprune.maths.kernel import kernel, law_needed
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.propagate import Component

__all__ = ["refined"]

STEPS = 60  # of L-BFGS
TERMS = 8  # Mehler terms of the descent; the replacement at the end uses all
RIDGE = 1e-5  # on correlations, against fitting the law to more digits than it deserves
ROUNDED = 1e-4  # share of its mean variance by which a covariance in single precision is raised


@dataclass(frozen=True)
class _Dense:
    """One component seen from the descent: the dense units, and the law of the pre-activations to turn in."""

    weight: float
    covariance: Tensor  # of a
    std: Tensor
    expansion: Expansion  # of φ(a)
    pre: Component  # of ã without its bias
    cross: Tensor  # Cov(a, ã)


def refined(layer: Layer, units: int, generator: Generator | None = None, *, steps: int = STEPS) -> Coreset:
    """A kernel coreset whose kept units are then turned to where the expected squared error is least.

    Args:
        layer: with a law of its pre-activations.
        units: k.
        generator: not used.
        steps: of L-BFGS.

    Returns:
        A coreset whose `incoming` and `shift` say what the kept units compute.

    Raises:
        InvalidInputError: the law has no Gaussian pre-activations (it was measured on data).
    """
    law = law_needed(layer)
    if law.pair is None:
        raise InvalidInputError("method 'refined' needs a Gaussian prior, and this law was measured: use 'kernel'")
    start = kernel(layer, units)
    if units == layer.units or steps == 0 or layer.activation.name in {"identity", "binary_step"}:
        return start
    problem = _Problem(layer)
    Q, b = problem.descend(start.indices, steps)
    return problem.coreset(start.indices, Q, b)


class _Problem:
    """The expected squared error as a function of the kept units' incoming rows."""

    def __init__(self, layer: Layer) -> None:
        law = law_needed(layer)
        assert law.pair is not None
        self.phi: Activation = layer.activation
        self.readers = layer.outgoing.double()
        total = sum(c.weight for c in law.pair.components)
        self.bias = layer.bias.double()
        self.parts = [_dense(self.phi, c, law.pair.split, self.bias, c.weight / total) for c in law.pair.components]
        # coordinates in which the pre-activations to turn in are white
        spread = _weighted([(d.weight, d.pre.covariance) for d in self.parts])
        ridge = 1e-6 * spread.diagonal().mean()
        self.white = torch.linalg.cholesky(spread + ridge * torch.eye(len(spread), dtype=torch.float64))
        self.start_mean = _weighted([(d.weight, d.expansion.mean) for d in self.parts])
        self.energy = self._total()

    def _total(self) -> Tensor:
        """Tr M W G Wᵀ of the dense units, the scale of the loss."""
        G = self._mix(
            [(d.expansion, d.expansion, correlation(d.covariance, d.std, d.std)) for d in self.parts],
            self.start_mean,
            self.start_mean,
        )
        return ((self.readers @ G) * self.readers).sum()

    def _mix(self, terms: list[tuple[Expansion, Expansion, Tensor]], left: Tensor, right: Tensor) -> Tensor:
        """Covariance over the mixture, from each component's expansions and correlations."""
        parts = []
        for part, (e, f, rho) in zip(self.parts, terms, strict=True):
            parts.append((part.weight, _mehler(e, f, rho) + torch.outer(e.mean - left, f.mean - right)))
        return _weighted(parts)

    def statistics(self, q: Tensor, b: Tensor, terms: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (k,) and covariance (k, k) of the kept units, and Cov(h, kept) (n, k); q in white coordinates."""
        Q = torch.linalg.solve_triangular(self.white.T, q.T, upper=True).T
        expansions, own, across = [], [], []
        for d in self.parts:
            spread = Q @ d.pre.covariance @ Q.T
            std = spread.diagonal().clamp(min=1e-24).sqrt()
            e = expand(self.phi, Q @ d.pre.mean + b, std, terms)
            expansions.append(e)
            rho = spread / (std[:, None] * std)
            eye = torch.eye(len(q), dtype=torch.float64)
            own.append((e, e, rho * (1 - eye) + eye))
            dense = Expansion(d.expansion.coefficients[:, : terms + 1], _tail(d.expansion, terms))
            inverse = torch.where(d.std > 0, 1 / d.std.clamp(min=1e-300), 0.0)
            across.append((dense, e, (d.cross @ Q.T) * inverse[:, None] / std))
        mean = _weighted([(d.weight, e.mean) for d, e in zip(self.parts, expansions, strict=True)])
        G = self._mix(own, mean, mean)
        ridge = RIDGE * torch.diag(G.diagonal().clamp(min=1e-30))
        return mean, G + ridge, self._mix(across, self.start_mean, mean)

    def loss(self, q: Tensor, b: Tensor) -> Tensor:
        """Share of the readers' energy that the kept units cannot explain."""
        _, G, X = self.statistics(q, b, TERMS)
        explained = torch.linalg.solve_triangular(torch.linalg.cholesky(G), (self.readers @ X).T, upper=False)
        unexplained: Tensor = 1 - explained.square().sum() / self.energy
        return unexplained

    def descend(self, kept: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The rows (white coordinates) and biases after L-BFGS from the kept dense units."""
        k, n = kept.numel(), self.white.shape[0]
        start = torch.cat([self.white[kept].flatten(), self.bias[kept]])

        def value_and_slope(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            at = torch.from_numpy(flat.copy()).to(start).requires_grad_()
            loss = self.loss(at[: k * n].reshape(k, n), at[k * n :])
            (slope,) = torch.autograd.grad(loss, at)
            return float(loss.detach()), slope.cpu().numpy()

        options = {"maxiter": steps, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-10}
        with _one_thread():  # its vector operations are too small to share out, and wait for each other if they are
            found = minimize(value_and_slope, start.cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
        best = torch.from_numpy(found.x).to(start)
        return best[: k * n].reshape(k, n), best[k * n :]

    def coreset(self, kept: Tensor, q: Tensor, b: Tensor) -> Coreset:
        """The optimal replacement by the turned units."""
        full = self.parts[0].expansion.coefficients.shape[1] - 1
        mean, G, X = self.statistics(q, b, full)
        T = torch.cholesky_solve(X.T, torch.linalg.cholesky(G)).T
        Q = torch.linalg.solve_triangular(self.white.T, q.T, upper=True).T
        return Coreset(kept, T, self.start_mean - T @ mean, Q.T.contiguous(), b - Q @ self.bias)


def _one_thread() -> AbstractContextManager[Any]:
    """Hold the BLAS of NumPy and SciPy to one thread; PyTorch's own is left alone where it is another."""
    held: AbstractContextManager[Any] = ThreadpoolController().select(internal_api="openblas").limit(limits=1)
    return held


def _dense(phi: Activation, c: Component, split: int | None, bias: Tensor, weight: float) -> _Dense:
    n = c.mean.numel() if split is None else split
    mean, spread = c.mean.double(), c.covariance.double()
    std = spread.diagonal()[:n].clamp(min=0).sqrt()
    expansion = expand(phi, mean[:n], std)
    own = spread[:n, :n]
    at = 0 if split is None else split
    pre = spread[at:, at:]
    if c.covariance.dtype != torch.float64:  # semi-definite but for rounding, which the descent would exploit
        most = torch.outer(std, std)
        own = own.clamp(-most, most)
        pre = pre + ROUNDED * pre.diagonal().mean() * torch.eye(len(pre), dtype=pre.dtype)
    return _Dense(weight, own, std, expansion, Component(weight, mean[at:] - bias, pre), spread[:n, at:])


def _weighted(parts: list[tuple[float, Tensor]]) -> Tensor:
    """Σ weight · tensor."""
    return torch.stack([weight * tensor for weight, tensor in parts]).sum(0)


def _tail(e: Expansion, terms: int) -> Tensor:
    """τ when only the first `terms` are kept."""
    return (e.tail.square() + e.coefficients[:, terms + 1 :].square().sum(1)).sqrt()


def _mehler(e: Expansion, f: Expansion, rho: Tensor) -> Tensor:
    """Σ_k c_ik d_jk ρ^k with the tails as term K + 1, differentiable, (n, m)."""
    c = torch.cat([e.coefficients[:, 1:], e.tail[:, None]], 1)
    d = torch.cat([f.coefficients[:, 1:], f.tail[:, None]], 1)
    return cast(Tensor, _MehlerSum.apply(c, d, rho))  # type: ignore[no-untyped-call]


class _MehlerSum(torch.autograd.Function):
    """S_ij = Σ_{k=1}^{K} c_ik d_jk ρ_ij^k with its derivatives written out, which saves most of the memory traffic.

    ∂S/∂ρ = Σ k c_ik d_jk ρ^{k−1} comes with S from one Horner pass; ∂/∂c_ik and ∂/∂d_jk of Σ_ij g_ij S_ij are
    (g ∘ ρ^k) d_k and (g ∘ ρ^k)ᵀ c_k.
    """

    @staticmethod
    def forward(ctx: Any, c: Tensor, d: Tensor, rho: Tensor) -> Tensor:
        total, slope = torch.zeros_like(rho), torch.zeros_like(rho)
        for k in range(c.shape[1] - 1, -1, -1):  # S ← ρ (S + c_k d_kᵀ), S' ← S + c_k d_kᵀ + ρ S'
            total.addr_(c[:, k], d[:, k])
            slope.mul_(rho).add_(total)
            total.mul_(rho)
        ctx.save_for_backward(c, d, rho, slope)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        c, d, rho, slope = ctx.saved_tensors
        g = gradients[0]
        weighted, by_c, by_d = g.clone(), torch.empty_like(c), torch.empty_like(d)
        for k in range(c.shape[1]):
            weighted.mul_(rho)
            if ctx.needs_input_grad[0]:
                by_c[:, k] = weighted @ d[:, k]
            if ctx.needs_input_grad[1]:
                by_d[:, k] = weighted.T @ c[:, k]
        return (
            by_c if ctx.needs_input_grad[0] else None,
            by_d if ctx.needs_input_grad[1] else None,
            g * slope,
        )
