"""Every fact that an `Activation` claims, attacked: what a bound relies on must not be false."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Generator, Tensor

from coreprune.maths.activation import ACTIVATIONS, Activation, activation
from coreprune.maths.domain import Ball, OneLayer
from coreprune.maths.hermite import expand
from coreprune.maths.relax import Units, cells, read_error
from coreprune.maths.worst_case import residual, upper_bound
from coreprune.testing.common import Checker, Conformance

__all__ = ["check_activation"]

STEP = 1e-3
PANELS = 2**16  # of the midpoint rule, the independent quadrature
CLOSE = 1e-6  # what that rule is good for
TERMS = 24


def check_activation(phi: Activation, reference: Callable[[Tensor], Tensor] | None = None) -> Conformance:
    """Try to falsify everything that an activation claims of itself.

    What is claimed must be true; what is not claimed, such as a spline, is not asked for. Values: elementwise, finite,
    dtype kept, gradients agree with differences. Facts: Lipschitz constant, curvature, extrema, knots, homogeneity,
    scale, spline, range and envelope. What is computed from them: Hermite coefficients and variance against an
    independent quadrature, chords and worst cases against values. The facts are looked at on |z| ≤ 14 scales, in
    steps of a thousandth: no finite check proves them.

    Args:
        phi: the activation, in `ACTIVATIONS` or not.
        reference: an independent implementation on float64 tensors, to compare the values with.

    Returns:
        What was checked.

    Raises:
        ConformanceError: the first claim that is false, with an input that shows it.

    Example:
        >>> from dataclasses import replace
        >>> check_activation(activation("tanh")).checked[:2]
        ('elementwise, dtype kept, finite', 'Lipschitz constant')
        >>> check_activation(replace(activation("tanh"), lipschitz=0.9))
        Traceback (most recent call last):
        coreprune.testing.common.ConformanceError: activation 'tanh': lipschitz=0.9, but ... raise it to at least 1
    """
    checker = Checker(f"activation {phi.name!r}")
    _values(checker, phi, reference)
    grid = phi.scale * torch.arange(-14_000, 14_001, dtype=torch.float64) * STEP
    _slopes(checker, phi, grid)
    _shape(checker, phi, grid)
    _claims(checker, phi, grid)
    _range(checker, phi)
    _moments(checker, phi)
    _bounds(checker, phi)
    return checker.result()


def _values(checker: Checker, phi: Activation, reference: Callable[[Tensor], Tensor] | None) -> None:
    """Elementwise, deterministic, finite, in the input's precision; and equal to the reference."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        value = phi(torch.tensor([-1.0, 0.5], dtype=dtype))
        checker.require(value.dtype == dtype, f"{dtype} became {value.dtype}", "compute in the dtype of the input")
    wide = torch.tensor([-1e4, -100.0, -0.0, 0.0, 100.0, 1e4])
    for x in (wide, wide.double()):
        checker.require(
            torch.isfinite(phi(x)).all(), f"values at {x.tolist()} are {phi(x).tolist()}", "avoid the overflow"
        )
    z = 3 * phi.scale * torch.randn(6, 5, generator=Generator().manual_seed(1), dtype=torch.float64)
    z[0, :3] = torch.tensor([0.0, -1e4, 1e4])
    given = z.clone()
    value = phi(z)
    checker.require(torch.equal(z, given), "the input was written into", "return a new tensor")
    checker.require(value.shape == z.shape, f"{tuple(z.shape)} became {tuple(value.shape)}", "keep the shape")
    alone = torch.stack([phi(x) for x in z.flatten()]).reshape(z.shape)
    elementwise = torch.allclose(alone, value, rtol=1e-12, atol=1e-14) and torch.equal(phi(z), value)
    checker.require(elementwise, "the value at one number depends on the others", "give an elementwise function of z")
    checker.passed("elementwise, dtype kept, finite")
    if reference is None:
        return
    x = phi.scale * torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    gap = (phi(x) - reference(x)).abs()
    allowed = read_error(phi, x.abs()) + 1e-15 * reference(x).abs()
    at = int((gap - allowed).argmax())
    what = f"φ({float(x[at]):.6g}) is {float(phi(x[at])):.15g} and the reference {float(reference(x)[at]):.15g}"
    checker.require((gap <= allowed).all(), what, "compute it to full precision, as the proofs assume")
    checker.passed("equal to the reference")


def _away(phi: Activation, z: Tensor, gap: float) -> Tensor:
    """Points further than `gap` from every knot."""
    far = torch.ones_like(z, dtype=torch.bool)
    for knot in phi.knots:
        far &= (z - knot).abs() > gap
    return far


def _slopes(checker: Checker, phi: Activation, grid: Tensor) -> None:
    """The Lipschitz constant, gradients, knots and curvature."""
    step = STEP * phi.scale
    rise = phi(grid).diff().abs()
    if math.isfinite(phi.lipschitz):
        g = Generator().manual_seed(2)
        ends = 20 * phi.scale * torch.randn(2, 20_000, generator=g, dtype=torch.float64)
        ends[1, ::2] = ends[0, ::2] + 0.1 * ends[1, ::2]
        left, right = torch.cat([grid[:-1], ends[0]]), torch.cat([grid[1:], ends[1]])
        slope = (phi(left) - phi(right)).abs() / (left - right).abs()
        at = int(slope.argmax())
        most = float(slope[at])
        what = f"lipschitz={phi.lipschitz:.10g}, but between {float(left[at]):.6g} and {float(right[at]):.6g} φ "
        checker.require(
            most <= phi.lipschitz * (1 + 1e-9),
            f"{what}changes {most:.10g} times as fast",
            f"raise it to at least {most:.6g}",
        )
    else:
        jumps = rise > 10 * step * max(float(rise.median()) / step, 1.0)
        checker.require(jumps.any(), "lipschitz=inf, but φ has no jump", "give its Lipschitz constant")
    checker.passed("Lipschitz constant")
    _gradients(checker, phi, grid + step / math.pi)
    kinks = (phi(grid).diff() / step).diff().abs() > 10 * STEP * max(phi.curvature * phi.scale, 0.1)
    for z in grid[1:-1][kinks].tolist():
        near = min((abs(z - knot) for knot in phi.knots), default=math.inf)
        checker.require(near <= 2 * step, f"φ or its slope jumps near {z:.4g}, which is no knot", "add it to knots")
    checker.passed("knots")
    bend = (phi(grid + step) - 2 * phi(grid) + phi(grid - step)).abs() / step**2
    bend = torch.where(_away(phi, grid, 1.5 * step), bend, 0.0)
    at = int(bend.argmax())
    checker.require(
        float(bend[at]) <= phi.curvature + 1e-7 * max(1.0, 1 / phi.scale**2),
        f"curvature={phi.curvature:.6g}, but near {float(grid[at]):.4g} φ bends by {float(bend[at]):.6g}",
        "raise it to at least that",
    )
    checker.passed("curvature")


def _gradients(checker: Checker, phi: Activation, points: Tensor) -> None:
    """Gradients, which `refined` descends on, and the largest of them against the Lipschitz constant."""
    step = 1e-6 * phi.scale
    z = points[_away(phi, points, 2 * step)].requires_grad_()
    value = phi(z)
    if value.requires_grad:
        (slope,) = torch.autograd.grad(value.sum(), z)
    else:  # a function of comparisons alone, such as a step, is flat
        slope = torch.zeros_like(z)
    with torch.no_grad():
        central = (phi(z + step) - phi(z - step)) / (2 * step)
    z = z.detach()
    gap = (slope - central).abs()
    at = int(gap.argmax())
    checker.require(
        float(gap[at]) <= 1e-6 * (1 + float(slope.abs().max())),
        f"its gradient at {float(z[at]):.6g} is {float(slope[at]):.6g}, and differences give {float(central[at]):.6g}",
        "mend the backward pass",
    )
    most = float(slope.abs().max())
    checker.require(
        most <= phi.lipschitz * (1 + 1e-14),
        f"lipschitz={phi.lipschitz!r}, but its gradient reaches {most!r}",
        "round it up",
    )
    checker.passed("gradients agree with differences")


def _shape(checker: Checker, phi: Activation, grid: Tensor) -> None:
    """All and only the turning points are extrema."""
    rise = phi(grid).diff()
    moving = rise.abs() > 1e-13 * phi.scale
    turns = grid[1:][moving][1:][rise[moving].sign().diff() != 0].tolist()
    step = 2 * STEP * phi.scale
    for z in turns:
        near = any(abs(z - e) <= step for e in phi.extrema)
        checker.require(near, f"φ turns near {z:.6g}, which is no extremum of it", "add it to extrema, exactly")
    for e in phi.extrema:
        near = any(abs(z - e) <= step for z in turns)
        checker.require(near or abs(e) > float(grid[-1]), f"φ does not turn at the extremum {e:.6g}", "take it out")
    checker.passed("extrema, so monotone or not as said")


def _claims(checker: Checker, phi: Activation, grid: Tensor) -> None:
    """Homogeneous, straight beyond forty scales, a spline, and made again from its name: where claimed."""
    if phi.homogeneous:
        for c in (0.0, 0.25, 3.0, 100.0):
            gap = (phi(c * grid) - c * phi(grid)).abs()
            at = float(grid[int(gap.argmax())])
            checker.require(
                float(gap.max()) <= 1e-10 * (1 + c) * phi.scale,
                f"homogeneous, but φ({c:g}·{at:.4g}) is not {c:g}·φ({at:.4g})",
                "say homogeneous=False",
            )
        checker.passed("homogeneous")
    far = 40 * phi.scale * torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)
    for side in (far, -far):
        left, middle, right = phi(side).tolist()
        checker.require(
            abs(left - 2 * middle + right) <= 1e-12 * max(phi.scale, abs(middle)),
            f"scale={phi.scale:g}, but beyond {float(side[0]):g} φ still bends",
            "give the length over which it bends, a larger one",
        )
    checker.passed("straight beyond forty scales")
    if phi.spline is not None:
        spline, value = phi.spline(grid), phi(grid)
        at = int((spline - value).abs().argmax())
        checker.require(
            float((spline - value)[at].abs()) <= 1e-12 * max(1.0, float(value.abs().max())),
            f"at {float(grid[at]):.6g} its spline is {float(spline[at]):.6g} and φ {float(value[at]):.6g}",
            "mend its jumps",
        )
        lost = {jump[0] for jump in phi.spline.jumps} - set(phi.knots)
        checker.require(not lost, f"the spline jumps at {sorted(lost)}, which are no knots", "add them to knots")
        checker.passed("spline")
    if phi.name in ACTIVATIONS:
        again = activation(phi.name, **dict(phi.parameters))
        checker.require(
            again == phi and torch.equal(again(grid), phi(grid)),
            f"its name and parameters {dict(phi.parameters)} make another activation",
            "write all its numbers into parameters, so that a saved plan finds it again",
        )
        checker.passed("made again from its name")


def _range(checker: Checker, phi: Activation) -> None:
    """Range, envelope and value at zero, against values on a grid that knows nothing of φ."""
    g = Generator().manual_seed(3)
    ends = torch.sort(4 * phi.scale * torch.randn(40, 2, generator=g, dtype=torch.float64), 1).values
    share = torch.linspace(0, 1, 4001, dtype=torch.float64)
    inside = phi(ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * share)
    low, high = phi.range(ends[:, 0], ends[:, 1])
    slack = 1e-12 * (1 + inside.abs().amax(1))
    near = slack + (1e-5 * phi.scale if math.isinf(phi.lipschitz) else 1e-2 * phi.lipschitz * phi.scale)
    least, most = inside.amin(1), inside.amax(1)
    fine = (low <= least + slack) & (least - near <= low) & (most - slack <= high) & (high <= most + near)
    at = int((~fine).int().argmax())
    checker.require(
        fine.all(),
        f"range over [{float(ends[at, 0]):.4g}, {float(ends[at, 1]):.4g}] is from {float(low[at]):.6g} to "
        f"{float(high[at]):.6g}, but values there run from {float(least[at]):.6g} to {float(most[at]):.6g}",
        "give every local extremum exactly",
    )
    radii = phi.scale * torch.tensor([0.0, 0.05, 0.5, 1.3, 3.5, 8.0], dtype=torch.float64)
    found = phi.envelope(radii)
    values = phi(radii[:, None] * torch.linspace(-1, 1, 8001, dtype=torch.float64)).abs().amax(1)
    checker.require(
        (found >= values - 1e-12 * (1 + values)).all() and (found.diff() >= 0).all(),
        f"the envelope is {found.tolist()} and |φ| reaches {values.tolist()}",
        "give every local extremum exactly",
    )
    zero = float(phi(torch.zeros(1, dtype=torch.float64)))
    checker.require(phi.at_zero == zero, f"at_zero is {phi.at_zero} and φ(0) = {zero}", "leave it to the class")
    checker.passed("range and envelope")


def _moments(checker: Checker, phi: Activation) -> None:
    """Hermite coefficients and variance against the midpoint rule between the knots, which shares no code with them."""
    s = phi.scale
    mean = torch.tensor([0.0, 0.3, -1.0, 2.5, 0.5, *list(phi.knots)[:2], -0.7], dtype=torch.float64)
    std = torch.tensor([1.0, 0.5, 2.0, 0.2, 5.0, *[0.8] * len(phi.knots[:2]), 0.0], dtype=torch.float64)
    mean[[0, 1, 2, 3, 4, -1]] *= s
    std = std * s
    expansion = expand(phi, mean, std, TERMS)
    for i, (mu, sigma) in enumerate(zip(mean.tolist(), std.tolist(), strict=True)):
        c, variance = _midpoint(phi, mu, sigma)
        allowed = CLOSE * (s * 1e-3 + float(c.abs().max()))
        gap = (expansion.coefficients[i] - c).abs()
        k = int(gap.argmax())
        checker.require(
            float(gap[k]) <= allowed,
            f"its Hermite coefficient {k} at mean {mu:g}, deviation {sigma:g} is "
            f"{float(expansion.coefficients[i, k]):.8g}, but another quadrature gives {float(c[k]):.8g}",
            "mend spline, knots or scale, which the integration goes by",
        )
        checker.require(
            abs(float(expansion.variance[i]) - variance) <= CLOSE * (variance + allowed),
            f"its variance at mean {mu:g}, deviation {sigma:g} is {float(expansion.variance[i]):.8g}, but another "
            f"quadrature gives {variance:.8g}",
            "mend spline, knots or scale, which the integration goes by",
        )
    checker.passed("Hermite coefficients and variance")


def _midpoint(phi: Activation, mean: float, std: float) -> tuple[Tensor, float]:
    """c_0 … c_K and the variance of φ(mean + std z): the midpoint rule on [−12, 12], cut at the knots."""
    knots = [(knot - mean) / std for knot in phi.knots] if std > 0 else []
    ends = [-12.0, *sorted(z for z in knots if -12 < z < 12), 12.0]
    z, weight = [], []
    for low, high in pairwise(ends):
        width = (high - low) / PANELS
        z.append(low + width * (torch.arange(PANELS, dtype=torch.float64) + 0.5))
        weight.append(torch.full((PANELS,), width, dtype=torch.float64))
    x = torch.cat(z)
    w = torch.cat(weight) * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    value = phi(mean + std * x)
    polynomials = [torch.ones_like(x), x]
    for k in range(1, TERMS):
        polynomials.append(x * polynomials[k] - k * polynomials[k - 1])
    c = [float((w * value * p).sum()) / math.sqrt(math.factorial(k)) for k, p in enumerate(polynomials)]
    return torch.tensor(c, dtype=torch.float64), float((w * (value - c[0]).square()).sum())


def _bounds(checker: Checker, phi: Activation) -> None:
    """Chords with their errors, and worst cases of small layers, against values."""
    b = phi.scale * torch.tensor([0.0, -0.5, 1.0, 3.0, -2.0], dtype=torch.float64)
    radius = phi.scale * torch.tensor([1.0, 2.0, 0.3, 6.0, 4.0], dtype=torch.float64)
    one = torch.ones_like(b)
    for count in (2, 16, 64):
        cell = cells(Units(phi, b, radius, one[:, None], one, 0 * one), count)
        share = torch.linspace(0.001, 0.999, 41, dtype=torch.float64)[:, None, None]
        t = cell.left + share * (cell.right - cell.left)
        chord = cell.at_left + share * (cell.at_right - cell.at_left)
        z = b + radius * t
        off = (phi(z) - chord).abs() - cell.error - 1e-11 * (phi.scale + z.abs())
        off = off.masked_fill((cell.right - cell.left < 1e-9).expand_as(off), -1.0)
        where = int(off.argmax())
        checker.require(
            float(off.max()) <= 0,
            f"near {float(z.flatten()[where]):.5g} φ leaves its chord by more than knots and curvature allow",
            "add the knot, or raise curvature",
        )
    g = Generator().manual_seed(4)
    for _ in range(3):
        P, bias, W = (torch.randn(*size, generator=g, dtype=torch.float64) for size in ((5, 2), (5,), (2, 5)))
        dense = OneLayer(phi.scale * P, phi.scale * bias, W, torch.zeros(2), phi)
        small = OneLayer(dense.incoming[:3], dense.bias[:3], W[:, :3], torch.zeros(2), phi)
        proved = upper_bound(residual(dense, small, torch.arange(3)), Ball(1.5), g, steps=20, nodes=64)
        angle = torch.linspace(0, 2 * math.pi, 400, dtype=torch.float64)
        disc = torch.linspace(0, 1.5, 40, dtype=torch.float64)[:, None, None] * torch.stack(
            [angle.cos(), angle.sin()], 1
        )
        found = (dense(disc.reshape(-1, 2)) - small(disc.reshape(-1, 2))).abs().amax(0)
        checker.require(
            (found <= proved).all(),
            f"a worst case of {proved.tolist()} was proved, and {found.tolist()} found",
            "some fact is false: look at lipschitz, curvature, knots and extrema again",
        )
    checker.passed("chords and worst cases")
