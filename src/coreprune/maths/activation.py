"""Activations as values: a function on R together with what is *proved* of it.

Every bound in coreprune uses an activation only through the facts stored here, and
every fact has a test that tries to falsify it (``tests/maths/test_activation.py``).

Facts
-----
``lipschitz``   L with |φ(u) − φ(v)| ≤ L |u − v|                     (inf for the step)
``extrema``     every local extremum; between two of them φ is monotone
``knots``       every point where φ, φ' or φ'' jumps
``curvature``   sup |φ''| away from the knots
``scale``       length over which φ bends; beyond ≈ 40 scales it is its own asymptote
``spline``      for piecewise polynomials of degree ≤ 2, the jumps at their knots

A continuous function on [l, u] takes its extreme values at l, at u or at a local extremum, so
range and envelope below are exact, for monotone and non-monotone φ alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from coreprune.errors import UnknownNameError

__all__ = ["ACTIVATIONS", "Activation", "Spline", "activation"]

SQRT2 = math.sqrt(2.0)


@dataclass(frozen=True)
class Spline:
    """φ(z) = c + m z + Σ_t [J₀ 1(z ≥ t) + J₁ (z − t)₊ + J₂ (z − t)₊² / 2].

    Attributes:
        constant: c. slope: m, of the leftmost piece.
        jumps: (t, J₀, J₁, J₂) of every knot: what φ, φ' and φ'' jump by at t.
    """

    constant: float = 0.0
    slope: float = 0.0
    jumps: tuple[tuple[float, float, float, float], ...] = ()

    def __call__(self, z: Tensor) -> Tensor:
        """φ(z), elementwise."""
        value = self.constant + self.slope * z
        for t, j0, j1, j2 in self.jumps:
            over = (z - t).clamp(min=0)
            value = value + j0 * (z >= t) + j1 * over + j2 / 2 * over.square()
        return value


@dataclass(frozen=True)
class Activation:
    """An elementwise function φ: R → R and the facts that bounds may rely on.

    Attributes:
        name: the key in `ACTIVATIONS`.
        function: φ, applied elementwise; keeps dtype and device.
        lipschitz: smallest known L with |φ(u) − φ(v)| ≤ L|u − v|; inf if φ jumps.
        curvature: sup |φ''| away from `knots`.
        extrema: all strict local extrema of φ; φ is monotone iff this is empty.
        knots: all points where φ, φ' or φ'' is discontinuous.
        homogeneous: φ(cz) = c φ(z) for every c ≥ 0.
        scale: natural length of φ: outside |z| ≤ 40·scale it equals its asymptote to 1e-16.
        spline: φ written as a piecewise polynomial, if it is one.
        parameters: the numbers the function was made with, for writing it down.

    Example:
        >>> relu = activation("relu")
        >>> relu.envelope(torch.tensor(2.0)).item(), relu.monotone
        (2.0, True)
        >>> gaussian = activation("gaussian")          # not monotone: the envelope is the peak
        >>> gaussian.envelope(torch.tensor(2.0)).item()
        1.0
    """

    name: str
    function: Callable[[Tensor], Tensor] = field(repr=False, compare=False)
    lipschitz: float
    curvature: float = 0.0
    extrema: tuple[float, ...] = ()
    knots: tuple[float, ...] = ()
    homogeneous: bool = False
    scale: float = 1.0
    spline: Spline | None = None
    parameters: tuple[tuple[str, float], ...] = ()

    def __call__(self, z: Tensor) -> Tensor:
        """φ(z), elementwise."""
        return self.function(z)

    @property
    def monotone(self) -> bool:
        """Whether φ is monotone on all of R."""
        return not self.extrema

    @property
    def at_zero(self) -> float:
        """φ(0), which the theorem's sensitivity needs when it is not 0."""
        return float(self.function(torch.zeros((), dtype=torch.float64)))

    def range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Exact minimum and maximum of φ over [lower, upper], elementwise.

        Args:
            lower: any shape. upper: same shape, lower ≤ upper.

        Returns:
            (min, max) of φ over each interval (infimum and supremum where φ jumps).
        """
        ends = torch.stack([self.function(lower), self.function(upper)])
        low, high = ends.amin(0), ends.amax(0)
        for point in self.extrema:
            inside = (lower <= point) & (point <= upper)
            peak = self.function(torch.as_tensor(point, dtype=lower.dtype, device=lower.device))
            low = torch.where(inside, torch.minimum(low, peak), low)
            high = torch.where(inside, torch.maximum(high, peak), high)
        return low, high

    def supremum(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Sup |φ(z)| over lower ≤ z ≤ upper, elementwise, exact."""
        low, high = self.range(lower, upper)
        return torch.maximum(low.abs(), high.abs())

    def envelope(self, radius: Tensor) -> Tensor:
        """φ̄(r) = sup_{|z| ≤ r} |φ(z)|, elementwise: what stands for φ(β‖p‖) when φ is signed or not monotone."""
        return self.supremum(-radius, radius)


def _identity(z: Tensor) -> Tensor:
    return z


def _relu(z: Tensor) -> Tensor:
    return z.clamp(min=0)


def _softplus(z: Tensor) -> Tensor:
    return torch.logaddexp(z, torch.zeros_like(z))


def _step(z: Tensor) -> Tensor:
    return (z >= 0).to(z.dtype)


def _soft_clipping(z: Tensor) -> Tensor:
    """log((1 + eᶻ) / (1 + eᶻ⁻¹)): a smooth step from 0 to 1 [M19]."""
    return _softplus(z) - _softplus(z - 1)


def _gaussian(z: Tensor) -> Tensor:
    return torch.exp(-z.square())


def _relu6(z: Tensor) -> Tensor:
    return z.clamp(0, 6)


def _hardsigmoid(z: Tensor) -> Tensor:
    return _relu6(z + 3) / 6


def _hardswish(z: Tensor) -> Tensor:
    return z * _hardsigmoid(z)


def _gelu(z: Tensor) -> Tensor:
    return 0.5 * z * torch.erfc(-z / SQRT2)


def _gelu_tanh(z: Tensor) -> Tensor:
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def _silu(z: Tensor) -> Tensor:
    return z * torch.sigmoid(z)


def _mish(z: Tensor) -> Tensor:
    return z * torch.tanh(_softplus(z))


def _leaky_relu(slope: float = 0.01) -> Activation:
    return Activation(
        "leaky_relu",
        lambda z: torch.where(z >= 0, z, slope * z),
        lipschitz=max(1.0, abs(slope)),
        extrema=(0.0,) if slope < 0 else (),
        knots=(0.0,),
        homogeneous=True,
        spline=Spline(slope=slope, jumps=((0.0, 0.0, 1 - slope, 0.0),)),
        parameters=(("slope", slope),),
    )


def _elu(alpha: float = 1.0, gain: float = 1.0) -> Activation:
    return Activation(
        "elu",
        lambda z: gain * torch.where(z >= 0, z, alpha * torch.expm1(z.clamp(max=0))),
        lipschitz=gain * max(1.0, abs(alpha)),
        curvature=gain * abs(alpha),
        extrema=(0.0,) if alpha < 0 else (),
        knots=(0.0,),
        parameters=(("alpha", alpha), ("gain", gain)),
    )


def _hardtanh(low: float = -1.0, high: float = 1.0) -> Activation:
    return Activation(
        "hardtanh",
        lambda z: z.clamp(low, high),
        lipschitz=1.0,
        knots=(low, high),
        scale=max(1.0, (high - low) / 2),
        spline=Spline(constant=low, jumps=((low, 0.0, 1.0, 0.0), (high, 0.0, -1.0, 0.0))),
        parameters=(("low", low), ("high", high)),
    )


def _scaled_softplus(beta: float = 1.0) -> Activation:
    return Activation(
        "softplus",
        lambda z: _softplus(beta * z) / beta,
        lipschitz=1.0,
        curvature=beta / 4,
        scale=1 / beta,
        parameters=(("beta", beta),),
    )


_SELU_ALPHA, _SELU_GAIN = 1.6732632423543772, 1.0507009873554805

#: name → maker. A maker takes the activation's own parameters (slope, alpha, …) as keywords.
ACTIVATIONS: dict[str, Callable[..., Activation]] = {
    "identity": lambda: Activation("identity", _identity, lipschitz=1.0, homogeneous=True, spline=Spline(slope=1.0)),
    # the paper's family [M19, table 1]: non-negative and, but for the Gaussian, non-decreasing
    "relu": lambda: Activation(
        "relu", _relu, lipschitz=1.0, knots=(0.0,), homogeneous=True, spline=Spline(jumps=((0.0, 0.0, 1.0, 0.0),))
    ),
    "softplus": _scaled_softplus,
    "sigmoid": lambda: Activation("sigmoid", torch.sigmoid, lipschitz=0.25, curvature=1 / (6 * math.sqrt(3))),
    "binary_step": lambda: Activation(
        "binary_step", _step, lipschitz=math.inf, knots=(0.0,), spline=Spline(jumps=((0.0, 1.0, 0.0, 0.0),))
    ),
    "soft_clipping": lambda: Activation(
        "soft_clipping", _soft_clipping, lipschitz=math.tanh(0.25), curvature=1 / (6 * math.sqrt(3))
    ),
    "relu6": lambda: Activation(
        "relu6",
        _relu6,
        lipschitz=1.0,
        knots=(0.0, 6.0),
        spline=Spline(jumps=((0.0, 0.0, 1.0, 0.0), (6.0, 0.0, -1.0, 0.0))),
    ),
    "gaussian": lambda: Activation(
        "gaussian", _gaussian, lipschitz=math.sqrt(2 / math.e), curvature=2.0, extrema=(0.0,)
    ),
    # what networks use today
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "selu": lambda: Activation(
        "selu",
        _elu(_SELU_ALPHA, _SELU_GAIN).function,
        lipschitz=_SELU_ALPHA * _SELU_GAIN,
        curvature=_SELU_ALPHA * _SELU_GAIN,
        knots=(0.0,),
    ),
    "tanh": lambda: Activation("tanh", torch.tanh, lipschitz=1.0, curvature=4 / (3 * math.sqrt(3))),
    "hardtanh": _hardtanh,
    "hardsigmoid": lambda: Activation(
        "hardsigmoid",
        _hardsigmoid,
        lipschitz=1 / 6,
        knots=(-3.0, 3.0),
        scale=3.0,
        spline=Spline(jumps=((-3.0, 0.0, 1 / 6, 0.0), (3.0, 0.0, -1 / 6, 0.0))),
    ),
    "hardswish": lambda: Activation(
        "hardswish",
        _hardswish,
        lipschitz=1.5,
        curvature=1 / 3,
        extrema=(-1.5,),
        knots=(-3.0, 3.0),
        scale=3.0,
        spline=Spline(jumps=((-3.0, 0.0, -0.5, 1 / 3), (3.0, 0.0, -0.5, -1 / 3))),
    ),
    "gelu": lambda: Activation(
        "gelu",
        _gelu,
        lipschitz=1.1289041452,
        curvature=math.sqrt(2 / math.pi),
        extrema=(-0.75179152469356445746,),
    ),
    "gelu_tanh": lambda: Activation(
        "gelu_tanh",
        _gelu_tanh,
        lipschitz=1.1289930687,
        curvature=math.sqrt(2 / math.pi),
        extrema=(-0.75246142207101625849,),
    ),
    "silu": lambda: Activation("silu", _silu, lipschitz=1.0998393202, curvature=0.5, extrema=(-1.2784645427610737951,)),
    "mish": lambda: Activation(
        "mish", _mish, lipschitz=1.0884981613, curvature=0.6442046373, extrema=(-1.1924312145154952121,)
    ),
}


def activation(name: str, **parameters: float) -> Activation:
    """Look an activation up by name.

    Args:
        name: a key of `ACTIVATIONS`.
        **parameters: the activation's own numbers, such as ``slope`` of ``leaky_relu``.

    Raises:
        UnknownNameError: no activation of that name is known.

    Example:
        >>> activation("leaky_relu", slope=0.2)(torch.tensor([-1.0, 1.0]))
        tensor([-0.2000,  1.0000])
    """
    if name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise UnknownNameError(f"unknown activation {name!r}; known are {known}: use one of these or add a row for it")
    return ACTIVATIONS[name](**parameters)
