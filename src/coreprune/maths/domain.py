"""What the worst case is taken over and of: a ball or a box of inputs, and one hidden layer in float64.

A domain knows three things: how far a linear function can go over it (`support`), how to put hidden units over it
into the normal form of `coreprune.maths.relax` (`units`), and how to climb inside it (`sample`, `ascend`, `project`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.activation import Activation
from coreprune.maths.relax import Units, gamma, read_error

__all__ = ["Ball", "Box", "Domain", "OneLayer"]

FLOOR = 1e-6


def _floored(reach: Tensor, magnitude: Tensor) -> Tensor:
    """Radii to measure t in: reach, but never tiny beside the bias (t would drown in rounding) and never 0."""
    radius = torch.maximum(reach, FLOOR * magnitude.abs())
    return torch.where(radius > 1e-100, radius, 1)


@dataclass(frozen=True)
class OneLayer:
    """x ↦ W φ(Px + b) + c in float64, exactly the stored numbers.

    Attributes:
        incoming: P, (n, d). bias: b, (n,). outgoing: W, (p, n). constant: c, (p,). activation: φ.

    Example:
        >>> from coreprune.maths.activation import activation
        >>> one = torch.eye(1, dtype=torch.bfloat16)
        >>> OneLayer(one, one[0] - 1, one, one[0], activation("relu"))(torch.tensor([[-3.0], [2.0]])).tolist()
        [[1.0], [3.0]]
    """

    incoming: Tensor
    bias: Tensor
    outgoing: Tensor
    constant: Tensor
    activation: Activation

    def __post_init__(self) -> None:
        n = len(self.incoming) if self.incoming.dim() == 2 else -1
        p = len(self.constant)
        if self.bias.shape != (n,) or self.outgoing.shape != (p, n) or self.constant.shape != (p,):
            shapes = [tuple(t.shape) for t in (self.incoming, self.bias, self.outgoing, self.constant)]
            raise InvalidInputError(f"asked for P n×d, b n, W p×n, c p; found {shapes}: pass one site's four tensors")
        for name in ("incoming", "bias", "outgoing", "constant"):
            exact = getattr(self, name).detach().to("cpu", torch.float64)
            if not exact.isfinite().all():
                raise InvalidInputError(
                    f"the {name} numbers of a layer hold infinities or NaNs: nothing can be bounded over it, leave "
                    "worst cases out (worst=False)"
                )
            object.__setattr__(self, name, exact)

    def __call__(self, x: Tensor) -> Tensor:
        """Y for a batch of inputs: (N, d) → (N, p)."""
        return self.activation(x.double() @ self.incoming.T + self.bias) @ self.outgoing.T + self.constant

    def enclosure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Proved (low, high) of the real y at the float64 points x, rounding included; two (N, p)."""
        x = x.double()
        n, d = self.incoming.shape
        z = x @ self.incoming.T + self.bias
        error = gamma(d + 8) * (x.abs() @ self.incoming.abs().T + self.bias.abs())
        low, high = self.activation.range(z - error, z + error)
        read = read_error(self.activation, z.abs() + error)
        middle, half = (low + high) / 2, (high - low) / 2 + read
        size = (middle.abs() + half) @ self.outgoing.abs().T + self.constant.abs()
        spread = (half @ self.outgoing.abs().T) * (1 + gamma(n + 8)) + gamma(2 * n + 16) * size
        y = middle @ self.outgoing.T + self.constant
        return y - spread, y + spread


@dataclass(frozen=True)
class Ball:
    """‖x‖₂ ≤ radius."""

    radius: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.radius) and self.radius >= 0):
            raise InvalidInputError(f"asked for a ball of radius {self.radius}: give a finite radius ≥ 0")

    def support(self, rows: Tensor) -> Tensor:
        """sup_x |row·x| for every row, rounded up; (n, d) → (n,)."""
        length: Tensor = torch.linalg.vector_norm(rows, dim=1)
        return length * (self.radius * (1 + gamma(rows.shape[1] + 8)))

    def units(self, layer: OneLayer) -> Units:
        """Normal form of the hidden units, with x = β u, or Bᵀx = β u when n < d."""
        rows, d = layer.incoming, layer.incoming.shape[1]
        reach = self.support(rows)
        radius = _floored(reach, layer.bias)
        slack = gamma(8) * reach / radius
        span = self.span(rows)
        if span is not None:
            reduced, basis = span
            lost = (rows - reduced @ basis.T).norm(dim=1)
            lost = lost + gamma(3 * d + 8) * (rows.norm(dim=1) + reduced.norm(dim=1) * basis.norm())
            skew = float((basis.T @ basis - torch.eye(len(rows), dtype=rows.dtype)).norm()) + gamma(3 * d) * d
            slack = slack + self.radius * lost / radius
            rows = reduced * (1 + skew)  # ‖Bᵀx‖ ≤ (1 + skew) ‖x‖
        directions = self.radius * rows / radius[:, None]
        return Units(layer.activation, layer.bias, radius, directions, reach / radius + slack, slack)

    def span(self, rows: Tensor) -> tuple[Tensor, Tensor] | None:
        """(R, B), P = R Bᵀ with B orthonormal, d×n: fewer coordinates in which to search; None if n ≥ d."""
        if len(rows) >= rows.shape[1]:
            return None
        basis, triangle = torch.linalg.qr(rows.T)
        return triangle.T.contiguous(), basis

    def project(self, x: Tensor) -> Tensor:
        """The nearest points inside, safely: (…, d) → (…, d)."""
        inner = self.radius * (1 - 1e-12)
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * (inner / length.clamp(min=1e-300)).clamp(max=1)

    def ascend(self, x: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """A step of length rate·radius along the gradient, then back inside."""
        return self.project(x + rate * self.radius * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-300))

    def sample(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Points of the sphere, uniformly, in any coordinates: shape (N, m)."""
        x = torch.randn(shape, dtype=torch.float64, generator=generator)
        return self.project(x * (self.radius / x.norm(dim=-1, keepdim=True).clamp(min=1e-300)))


@dataclass(frozen=True)
class Box:
    """lower ≤ x ≤ upper, elementwise; both (d,)."""

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            object.__setattr__(self, name, getattr(self, name).detach().to("cpu", torch.float64))
        if self.lower.dim() != 1 or self.lower.shape != self.upper.shape:
            found = f"{tuple(self.lower.shape)} and {tuple(self.upper.shape)}"
            raise InvalidInputError(f"a box needs two vectors of one length, found shapes {found}")
        if not (self.upper - self.lower >= 0).all() or not (self.upper - self.lower).isfinite().all():
            raise InvalidInputError("a box needs finite lower ≤ upper everywhere: exchange or clamp the wrong entries")

    @property
    def centre(self) -> Tensor:
        """The middle, (d,)."""
        return self.lower + (self.upper - self.lower) / 2

    @property
    def half(self) -> Tensor:
        """Half-widths about `centre`, rounded up, (d,)."""
        return torch.maximum(self.upper - self.centre, self.centre - self.lower) * (1 + gamma(4))

    def support(self, rows: Tensor) -> Tensor:
        """sup_x |row·x| over the least box about 0 that holds this one, rounded up; (n, d) → (n,)."""
        return rows.abs() @ torch.maximum(self.lower.abs(), self.upper.abs()) * (1 + gamma(rows.shape[1] + 8))

    def span(self, rows: Tensor) -> tuple[Tensor, Tensor] | None:
        """None: a box is no box in other coordinates."""
        return None

    def units(self, layer: OneLayer) -> Units:
        """Normal form x = centre + half ∘ √m u, ‖u‖₂ ≤ 1; that |√m u_k| ≤ 1 is told by m further units of weight 0."""
        rows, d = layer.incoming, layer.incoming.shape[1]
        wide = self.half.nonzero()[:, 0] if self.half.any() else torch.zeros(1, dtype=torch.long)
        m = len(wide)
        stretched = rows[:, wide] * self.half[wide]
        bias = layer.bias + rows @ self.centre
        blur = gamma(d + 8) * (layer.bias.abs() + rows.abs() @ self.centre.abs())
        reach = stretched.abs().sum(1) * (1 + gamma(d + 8))
        radius = _floored(reach, bias.abs() + blur)
        slack = blur / radius + gamma(8) * reach / radius
        own = torch.ones(m, dtype=rows.dtype)
        directions = torch.cat([stretched / radius[:, None], torch.eye(m, dtype=rows.dtype)]) * math.sqrt(m)
        slack = torch.cat([slack, gamma(8) * own])
        return Units(
            layer.activation,
            torch.cat([bias, 0 * own]),
            torch.cat([radius, own]),
            directions,
            torch.cat([reach / radius, own]) + slack,
            slack,
            coordinates=m,
        )

    def project(self, x: Tensor) -> Tensor:
        """The nearest points inside: (…, d) → (…, d)."""
        return x.clamp(self.lower, self.upper)

    def ascend(self, x: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """A step of rate half-widths along the gradient's signs, then back inside."""
        return self.project(x + rate * self.half * gradient.sign())

    def sample(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Points of the box, uniformly: shape (N, d)."""
        share = torch.rand(shape, dtype=torch.float64, generator=generator)
        return self.project(self.lower + (self.upper - self.lower) * share)


#: where inputs may lie
Domain = Ball | Box
