"""Every fact stored with an activation is attacked; a new activation is one row of `helpers.CASES`."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import CASES, Case, brute_range

from coreprune.errors import CorepruneError, UnknownNameError
from coreprune.maths.activation import ACTIVATIONS, activation

GRID = torch.linspace(-14, 14, 28_001, dtype=torch.float64)  # steps of 1e-3, through every whole number
each = pytest.mark.parametrize("case", CASES, ids=str)
smooth_somewhere = pytest.mark.parametrize("case", [c for c in CASES if c.phi.curvature], ids=str)
lipschitz = pytest.mark.parametrize("case", [c for c in CASES if math.isfinite(c.phi.lipschitz)], ids=str)


def second_differences(case: Case) -> torch.Tensor:
    """|φ(z+h) − 2φ(z) + φ(z−h)| / h² wherever [z−h, z+h] has no knot inside."""
    h = 1e-3
    bend = (case.phi(GRID + h) - 2 * case.phi(GRID) + case.phi(GRID - h)).abs() / h**2
    away = torch.ones_like(GRID, dtype=torch.bool)
    for knot in case.phi.knots:
        away &= (GRID - knot).abs() > 1.5 * h
    return bend[away]


def test_table_holds_every_activation():
    assert {case.name for case in CASES} == set(ACTIVATIONS)


@lipschitz
def test_no_secant_is_steeper_than_lipschitz(case):
    g = torch.Generator().manual_seed(1)
    ends = 20 * torch.randn(2, 100_000, generator=g, dtype=torch.float64)
    ends[1, ::2] = ends[0, ::2] + 0.1 * ends[1, ::2]  # near pairs and far pairs
    rise, run = (case.phi(ends[0]) - case.phi(ends[1])).abs(), (ends[0] - ends[1]).abs()
    assert bool((rise <= case.phi.lipschitz * run + 1e-13).all())


@lipschitz
def test_lipschitz_is_the_steepest_slope(case):
    slopes = case.phi(GRID).diff().abs() / 1e-3
    assert 0.99 * case.phi.lipschitz <= float(slopes.max()) <= case.phi.lipschitz + 1e-10


@lipschitz
def test_lipschitz_is_not_rounded_below_the_largest_derivative(case):
    grid = GRID + 1e-4 / math.pi  # off the knots
    for _ in range(2):
        z = grid.clone().requires_grad_()
        (slope,) = torch.autograd.grad(case.phi(z).sum(), z)
        peak = float(grid[slope.abs().argmax()])
        grid = torch.linspace(peak - 1e-3, peak + 1e-3, 20_001, dtype=torch.float64)
    assert float(slope.abs().max()) <= case.phi.lipschitz * (1 + 1e-14)


def test_a_jump_has_no_lipschitz_constant():
    assert activation("binary_step").lipschitz == math.inf


@each
def test_nothing_bends_more_than_curvature(case):
    assert float(second_differences(case).max()) <= case.phi.curvature + 1e-7


@smooth_somewhere
def test_curvature_is_not_sloppy(case):
    slack = 0.95 if case.name == "soft_clipping" else 0.99
    assert float(second_differences(case).max()) >= slack * case.phi.curvature


@each
def test_every_kink_is_a_knot(case):
    h = 1e-3
    slope = case.phi(GRID).diff() / h
    bent = GRID[1:-1][slope.diff().abs() > 10 * h * max(case.phi.curvature, 0.1)]
    assert all(min((abs(float(z) - k) for k in case.phi.knots), default=math.inf) <= 2 * h for z in bent)


@each
def test_extrema_are_all_and_only_the_turning_points(case):
    rise = case.phi(GRID).diff()
    moving = rise.abs() > 1e-13
    sign, at = rise[moving].sign(), GRID[1:][moving]
    turns = at[1:][sign.diff() != 0]
    assert len(turns) == len(case.phi.extrema)
    assert all(abs(float(t) - e) < 2e-3 for t, e in zip(turns, sorted(case.phi.extrema), strict=True))
    assert case.phi.monotone == (len(turns) == 0)


@each
def test_range_is_exact(case):
    g = torch.Generator().manual_seed(2)
    ends = torch.sort(4 * torch.randn(40, 2, generator=g, dtype=torch.float64), dim=1).values
    ends[0] = torch.tensor([-9.0, 9.0])
    low, high = case.phi.range(ends[:, 0], ends[:, 1])
    for (a, b), least, most in zip(ends.tolist(), low.tolist(), high.tolist(), strict=True):
        smallest, largest = brute_range(case.reference, a, b)
        assert smallest - 1e-6 <= least <= smallest + 1e-14
        assert largest - 1e-14 <= most <= largest + 1e-6


@each
def test_envelope_is_exact(case):
    radii = torch.tensor([0.0, 0.05, 0.5, 0.9, 1.3, 2.0, 3.5, 8.0], dtype=torch.float64)
    for r, found in zip(radii.tolist(), case.phi.envelope(radii).tolist(), strict=True):
        largest = max(abs(v) for v in brute_range(case.reference, -r, r))
        assert largest - 1e-14 <= found <= largest + 1e-6


@each
def test_envelope_never_falls(case):
    assert bool((case.phi.envelope(torch.linspace(0, 20, 4001, dtype=torch.float64)).diff() >= 0).all())


@each
def test_homogeneous_exactly_when_claimed(case):
    off = max(
        float((case.phi(c * GRID) - c * case.phi(GRID)).abs().max()) / (1 + c) for c in (0.0, 0.25, 0.7, 3.0, 100.0)
    )
    assert (off < 1e-10) == case.phi.homogeneous


@each
def test_straight_beyond_forty_scales(case):
    far = 40 * case.phi.scale * torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)
    for side in (far, -far):
        left, middle, right = case.phi(side).tolist()
        assert abs(left - 2 * middle + right) <= 1e-13 * case.phi.scale


@each
def test_agrees_with_torch_in_float64(case):
    torch.testing.assert_close(case.phi(GRID), case.reference(GRID), rtol=1e-12, atol=1e-14)


@each
def test_agrees_with_torch_in_float32(case):
    z = GRID.float()
    torch.testing.assert_close(case.phi(z), case.reference(z), rtol=2e-6, atol=2e-6)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_inputs_stay_finite(case, dtype):
    z = torch.tensor([-1e4, -100.0, -0.0, 0.0, 100.0, 1e4], dtype=dtype)
    found = case.phi(z)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found, case.reference(z))


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtype_is_kept(case, dtype):
    assert case.phi(torch.tensor([-1.0, 0.5], dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("case", [c for c in CASES if c.phi.spline], ids=str)
def test_spline_is_the_function(case):
    torch.testing.assert_close(case.phi.spline(GRID), case.reference(GRID), rtol=1e-13, atol=1e-13)
    assert {jump[0] for jump in case.phi.spline.jumps} <= set(case.phi.knots)


@each
def test_at_zero(case):
    assert case.phi.at_zero == pytest.approx(float(case.reference(torch.zeros(1, dtype=torch.float64))), abs=1e-15)


@each
def test_name_and_parameters_make_it_again(case):
    again = activation(case.phi.name, **dict(case.phi.parameters))
    assert again == case.phi
    assert torch.equal(again(GRID), case.phi(GRID))


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"'rleu'.*relu") as caught:
        activation("rleu")
    assert isinstance(caught.value, CorepruneError)
