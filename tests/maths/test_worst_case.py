"""The worst-case bound, attacked from every side: grids, random points, ascent, exact arithmetic, mutations."""

from __future__ import annotations

import math
from itertools import permutations

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths import relax
from coreprune.maths.activation import ACTIVATIONS, Activation, activation
from coreprune.maths.domain import Ball, Box, Domain, OneLayer
from coreprune.maths.relax import Units, cells, certify, offset, quadratic_supremum, read_error
from coreprune.maths.worst_case import lower_bound, residual, upper_bound, worst_case

torch.set_num_threads(1)
MEMBERS = [(name, {}) for name in sorted(ACTIVATIONS)] + [
    ("leaky_relu", {"slope": -0.3}),
    ("elu", {"alpha": -0.5}),
    ("softplus", {"beta": 4.0}),
    ("hardtanh", {"low": -0.5, "high": 3.0}),
]
every_activation = pytest.mark.parametrize(
    "phi", [activation(name, **p) for name, p in MEMBERS], ids=lambda phi: phi.name
)
BIG = st.sampled_from([0.0, 1e-300, 1e-12, 1e-3, 0.3, 1.0, 4.0, 30.0, 1e3, 1e6])


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def layer(phi: Activation, seed: int, n: int, d: int, p: int) -> OneLayer:
    return OneLayer(normal(seed, n, d), normal(seed + 1, n), normal(seed + 2, p, n), normal(seed + 3, p), phi)


def cut(dense: OneLayer, kept: Tensor, seed: int, dtype: torch.dtype = torch.float64) -> OneLayer:
    """A coreset nobody would choose: the bound must not care."""
    reader = dense.outgoing[:, kept] + 0.5 * normal(seed, len(dense.constant), len(kept))
    tensors = (dense.incoming[kept], dense.bias[kept], reader, dense.constant * 0.9)
    return OneLayer(*(t.to(dtype) for t in tensors), dense.activation)


def units(phi: Activation, bias: Tensor, radius: Tensor, directions: Tensor | None = None) -> Units:
    n = len(bias)
    radius = torch.maximum(radius, 1e-6 * bias.abs()).clamp(min=1e-90)
    d = torch.eye(n, dtype=torch.float64) if directions is None else directions
    return Units(phi, bias, radius, d, torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64))


# --- one unit: the quadratic lies above the function -----------------------------------------------------------------


@every_activation
@settings(max_examples=8, deadline=None)
@given(
    st.floats(-50, 50) | st.sampled_from([0.0, -3.0, 3.0, 6.0]), BIG, st.floats(-3, 3), st.floats(-3, 3),
    st.floats(-3, 3) | st.sampled_from([0.0, 1e-300]), st.sampled_from([2, 7, 64]),
)  # fmt: skip
def test_offset_is_above_a_dense_grid(phi, bias, radius, weight, slope, bend, count) -> None:
    unit = units(phi, torch.tensor([bias], dtype=torch.float64), torch.tensor([radius], dtype=torch.float64))
    r = unit.radius
    v, s, q = (torch.tensor([[a]], dtype=torch.float64) for a in (weight, slope * float(r), bend * float(r)))
    t = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    knots = (torch.tensor([*phi.knots, *phi.extrema], dtype=torch.float64) - bias) / r
    near = torch.cat([knots, knots - 1e-12, knots + 1e-12, normal(0, 50) * 0.01])
    t = torch.cat([t, near[near.abs() <= 1]])
    value = v[0] * phi(bias + r * t) - s[0] * t - q[0] * t * t
    top = offset(cells(unit, count), v, s, q)[0].item()
    lower, upper = unit.ends
    read = read_error(phi, torch.maximum(lower.abs(), upper.abs())).item()
    span = abs(weight) * phi.supremum(lower, upper).item() + (abs(slope) + abs(bend)) * float(r)
    drown = 1e-15 * (abs(bias) / float(r)) * (abs(slope) + abs(bend)) * float(r)
    assert top >= value.max().item() - 8 * read * abs(weight) - 1e-13 * span - 10 * drown


@every_activation
def test_offset_is_tight_with_many_cells(phi) -> None:
    unit = units(phi, torch.tensor([0.4, -2.0, 5.0]).double(), torch.tensor([3.0, 1.0, 8.0]).double())
    v, s, q = normal(5, 6, 3), normal(6, 6, 3), normal(7, 6, 3)
    t = torch.linspace(-1, 1, 40001, dtype=torch.float64)[:, None, None]
    exact = (v * phi(unit.bias + unit.radius * t) - s * t - q * t * t).amax(0)
    top, where = offset(cells(unit, 2048), v, s, q)
    assert (top - exact < 3e-4 * (1 + v.abs())).all()
    assert (top >= exact - 1e-12).all()
    assert (where.abs() <= 1 + 1e-12).all()


def test_cells_cover_the_interval_and_show_both_sides_of_a_jump() -> None:
    unit = units(activation("binary_step"), torch.zeros(1).double(), torch.ones(1).double())
    cell = cells(unit, 8)
    assert cell.left.min() <= -1 and cell.right.max() >= 1
    assert torch.equal(cell.left[1:], cell.right[:-1])
    assert cell.at_right[0].item() == 0 and cell.at_left[1].item() == 1


@every_activation
def test_float64_code_of_the_activation_is_as_exact_as_assumed(phi) -> None:
    mpmath.mp.dps = 40
    par, one = dict(phi.parameters), mpmath.mpf(1)
    sp = lambda z: mpmath.log1p(mpmath.exp(z))  # noqa: E731
    clip = lambda z, a, b: min(max(z, mpmath.mpf(a)), mpmath.mpf(b))  # noqa: E731
    selu = (1.6732632423543772, 1.0507009873554805)
    elu = lambda z, a, g: g * (z if z >= 0 else a * mpmath.expm1(z))  # noqa: E731
    exact = {
        "identity": lambda z: z,
        "relu": lambda z: max(z, 0 * one),
        "softplus": lambda z: sp(par["beta"] * z) / par["beta"],
        "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
        "binary_step": lambda z: one * (z >= 0),
        "soft_clipping": lambda z: sp(z) - sp(z - 1),
        "relu6": lambda z: clip(z, 0, 6),
        "gaussian": lambda z: mpmath.exp(-z * z),
        "leaky_relu": lambda z: z if z >= 0 else par["slope"] * z,
        "elu": lambda z: elu(z, par["alpha"], par["gain"]),
        "selu": lambda z: elu(z, *selu),
        "tanh": mpmath.tanh,
        "hardtanh": lambda z: clip(z, par["low"], par["high"]),
        "hardsigmoid": lambda z: clip(z + 3, 0, 6) / 6,
        "hardswish": lambda z: z * clip(z + 3, 0, 6) / 6,
        "gelu": lambda z: z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2,
        "gelu_tanh": lambda z: z / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (z + 0.044715 * one * z**3))),
        "silu": lambda z: z / (1 + mpmath.exp(-z)),
        "mish": lambda z: z * mpmath.tanh(sp(z)),
    }[phi.name]
    z = torch.cat([normal(3, 60) * 3, normal(4, 40) * 30, torch.tensor([0.0, -3.0, 3.0, 6.0, 1e-9, 300.0]).double()])
    truth = [exact(mpmath.mpf(a)) for a in z.tolist()]
    error = [abs(mpmath.mpf(a) - b) for a, b in zip(phi(z).tolist(), truth, strict=True)]
    assert all(e <= bound for e, bound in zip(error, read_error(phi, z.abs()).tolist(), strict=True))


# --- the shared quadratic ---------------------------------------------------------------------------------------------


def sphere(seed: int, count: int, m: int) -> Tensor:
    u = normal(seed, count, m)
    return u / u.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("n, m", [(1, 1), (3, 5), (12, 4), (40, 30)])
def test_quadratic_supremum_is_sound_and_tight(n: int, m: int) -> None:
    d, s, q = normal(1, n, m), normal(2, 9, n), normal(3, 9, n)
    q[:3], s[3:5] = q[:3].abs(), 0  # definite rows; rows without a linear part (the hard case)
    bound = quadratic_supremum(d, s, q)
    u = torch.cat([sphere(4, 200, m), torch.zeros(1, m).double()])[None].repeat(9, 1, 1)
    for _ in range(200):  # projected gradient ascent from every point
        t = u @ d.T
        rate = 1 / (2 * (q.abs() @ d.square().sum(1)))[:, None, None]
        move = u + rate * ((2 * q[:, None] * t + s[:, None]) @ d)
        u = move / move.norm(dim=2, keepdim=True).clamp(min=1)
    t = u @ d.T
    reached = (s[:, None] * t + q[:, None] * t * t).sum(2).amax(1)
    assert (bound >= reached * (1 - 1e-12)).all()
    assert (bound <= reached + 1e-3 * (1 + reached)).all()


@pytest.mark.parametrize("wrong", ["values", "vectors", "both"])
def test_quadratic_supremum_needs_no_faith_in_eigh(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    d, s, q = normal(1, 8, 6), normal(2, 5, 8), normal(3, 5, 8)
    honest, eigh = quadratic_supremum(d, s, q), torch.linalg.eigh

    def liar(a: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(a)
        values = 0.5 * values if wrong != "vectors" else values
        return values, (vectors.flip(1) * 0.3 if wrong != "values" else vectors)

    monkeypatch.setattr(torch.linalg, "eigh", liar)
    assert (quadratic_supremum(d, s, q) >= honest * (1 - 1e-6)).all()


def test_quadratic_supremum_of_nothing_is_zero() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.float64)
    assert quadratic_supremum(normal(0, 3, 2), nothing, nothing).tolist() == [0, 0]


@every_activation
def test_any_slope_and_bend_give_a_true_bound(phi) -> None:
    n, m, rows = 7, 3, 20
    d = sphere(1, n, m)
    unit = units(phi, 2 * normal(2, n), 3 * normal(3, n).abs(), d)
    v = normal(4, rows, n)
    s, q = v * normal(5, rows, n) * unit.radius, v.abs() * normal(6, rows, n) * unit.radius
    bound = certify(unit, v, s, q, cells(unit, 32), 8)
    u = sphere(7, 20000, m) * torch.rand(20000, 1, dtype=torch.float64, generator=rng(8)) ** (1 / m)
    value = phi(unit.bias + unit.radius * (u @ d.T)) @ v.T
    assert (bound >= value.amax(0)).all()


# --- the whole difference ---------------------------------------------------------------------------------------------


def box(seed: int, d: int) -> Box:
    low = normal(seed, d)
    half = normal(seed + 1, d).abs()
    half[0] = 0  # one input that never moves
    return Box(low, low + half)


def inside(domain: Domain, d: int, count: int, seed: int) -> Tensor:
    points = domain.sample((count, d), rng(seed))
    if isinstance(domain, Ball):  # half of them not on the sphere
        points[::2] *= torch.rand(len(points[::2]), 1, dtype=torch.float64, generator=rng(seed + 1))
    return points


@every_activation
@pytest.mark.parametrize("shape, dtype", [("ball", torch.float16), ("ball", torch.bfloat16), ("box", torch.bfloat16)])
def test_no_point_breaks_the_bound(phi, shape: str, dtype: torch.dtype) -> None:
    d, n = (9, 6) if dtype == torch.bfloat16 else (3, 14)  # with and without a basis of the span
    dense, kept = layer(phi, 10, n, d, 4), torch.tensor([4, 0, 3])
    small = cut(dense, kept, 20, dtype)
    domain = Ball(2.0) if shape == "ball" else box(30, d)
    found = worst_case(dense, small, kept, domain, rng(0), steps=10)
    points = torch.cat([inside(domain, d, 16000, 40), found.witness])
    error = (dense(points) - small(points)).abs().amax(0)
    assert (error <= found.upper).all()
    assert (found.lower <= found.upper).all()
    assert found.ratio < 6
    at = (dense(found.witness) - small(found.witness)).diagonal().abs()
    assert torch.allclose(at, found.lower, rtol=1e-9) or phi.name == "binary_step"


def test_many_random_and_attacked_points_do_not_break_the_bound() -> None:
    dense, kept = layer(activation("gelu"), 50, 60, 20, 8), torch.arange(25)
    small = cut(dense, kept, 60, torch.bfloat16)
    r = residual(dense, small, kept)
    upper = upper_bound(r, Ball(3.0), rng(0), steps=100)
    attacked = lower_bound(r, Ball(3.0), rng(1), restarts=64, steps=150)[1]
    points = torch.cat([inside(Ball(3.0), 20, 100_000, 2), attacked])
    reached = (dense(points) - small(points)).abs().amax(0)
    assert (reached <= upper).all()
    assert (upper <= 3 * reached).all()


@every_activation
@pytest.mark.parametrize("d", [1, 2])
def test_lower_and_upper_enclose_the_grid_in_low_dimension(phi, d: int) -> None:
    dense, kept = layer(phi, 70, 5, d, 3), torch.tensor([1, 4])
    small = cut(dense, kept, 80)
    axis = torch.linspace(-1, 1, 4001 if d == 1 else 301, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * d).view(-1, d)
    ball = (Ball(1.5), 1.5 * grid[grid.norm(dim=1) <= 1])
    box = (Box(torch.full((d,), -2.0), torch.full((d,), 1.0)), 1.5 * grid - 0.5)
    for domain, points in (ball, box) if d == 2 else (ball,):
        found = worst_case(dense, small, kept, domain, rng(0), steps=20)
        truth = (dense(points) - small(points)).abs().amax(0)
        assert (truth <= found.upper).all()
        assert (found.lower >= 0.95 * truth).all()
        assert (found.lower <= found.upper).all()


@pytest.mark.parametrize("domain", [Ball(2.0), Box(torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([2.0, 0.0, 0.75]))])
def test_linear_difference_is_bounded_to_nine_digits_from_the_right_side(domain: Domain) -> None:
    dense = layer(activation("identity"), 90, 6, 3, 4)
    found = worst_case(dense, cut(dense, torch.arange(3), 91), torch.arange(3), domain, rng(0), steps=0)
    mpmath.mp.dps = 50
    r = residual(dense, cut(dense, torch.arange(3), 91), torch.arange(3)).common
    exact = lambda t: mpmath.matrix(t.tolist())  # noqa: E731
    map_, shift = exact(r.outgoing) * exact(r.incoming), exact(r.outgoing) * exact(r.bias) + exact(r.constant)
    for i in range(4):
        row = [map_[i, k] for k in range(3)]
        if isinstance(domain, Ball):
            truth = abs(shift[i]) + domain.radius * mpmath.sqrt(sum(a * a for a in row))
        else:
            pairs = list(zip(domain.lower.tolist(), domain.upper.tolist(), strict=True))
            ends = [sum(pick(a * lo, a * hi) for a, (lo, hi) in zip(row, pairs, strict=True)) for pick in (max, min)]
            truth = max(abs(shift[i] + end) for end in ends)
        assert truth <= mpmath.mpf(found.upper[i].item()) <= truth * (1 + mpmath.mpf("1e-8"))
        assert truth >= mpmath.mpf(found.lower[i].item()) >= truth * (1 - mpmath.mpf("1e-3"))


@every_activation
@pytest.mark.parametrize("domain", [Ball(5.0), Box(torch.full((6,), -1.0), torch.ones(6))])
def test_keeping_everything_is_exactly_zero(phi, domain: Domain) -> None:
    dense, order = layer(phi, 100, 8, 6, 3), torch.randperm(8, generator=rng(3))
    small = OneLayer(dense.incoming[order], dense.bias[order], dense.outgoing[:, order], dense.constant, phi)
    found = worst_case(dense, small, order, domain, rng(0))
    assert found.upper.tolist() == found.lower.tolist() == [0, 0, 0]
    assert found.ratio == 1


def test_one_changed_output_leaves_the_others_at_zero() -> None:
    dense = layer(activation("relu"), 100, 8, 6, 3)
    outgoing = dense.outgoing.clone()
    outgoing[1, 2] += 0.5
    small = OneLayer(dense.incoming, dense.bias, outgoing, dense.constant, dense.activation)
    upper = worst_case(dense, small, torch.arange(8), Ball(1.0), rng(0)).upper
    assert upper[0] == upper[2] == 0 < upper[1]


@every_activation
def test_dead_constant_and_degenerate_domains(phi) -> None:
    dense = layer(phi, 110, 6, 4, 2)
    frozen = OneLayer(dense.incoming * 0, dense.bias, dense.outgoing, dense.constant, phi)
    nothing = OneLayer(dense.incoming[:0], dense.bias[:0], dense.outgoing[:, :0], dense.constant * 0, phi)
    truth = frozen(torch.zeros(1, 4))[0].abs()
    point = Box(torch.ones(4), torch.ones(4))
    for net, domain in ((frozen, Ball(3.0)), (dense, Ball(0.0)), (dense, point), (frozen, point)):
        at = torch.ones(1, 4) if net is dense and domain is point else torch.zeros(1, 4)
        truth = net(at)[0].abs()
        found = worst_case(net, nothing, None, domain, rng(0), steps=5)
        assert (found.upper >= truth).all() and (found.upper <= truth + 1e-4 * (1 + truth)).all()
        assert (found.lower <= truth * (1 + 1e-12)).all()


def test_rows_that_were_not_kept_as_claimed_are_not_believed() -> None:
    dense = layer(activation("relu"), 120, 8, 4, 3)
    small = layer(activation("relu"), 130, 3, 4, 3)  # has nothing to do with dense
    lying = residual(dense, small, torch.arange(3))
    assert torch.allclose(lying(normal(1, 5, 4)), dense(normal(1, 5, 4)) - small(normal(1, 5, 4)))
    assert len(lying.common.bias) == 11
    points = inside(Ball(2.0), 4, 20000, 1)
    assert ((dense(points) - small(points)).abs().amax(0) <= upper_bound(lying, Ball(2.0), rng(0))).all()


def test_rounded_rows_drift_and_jumps_never_do() -> None:
    for name, drifting in (("relu", 8), ("binary_step", 0)):
        dense = layer(activation(name), 140, 8, 5, 3)
        small = cut(dense, torch.arange(8), 141, torch.bfloat16)
        r = residual(dense, small, torch.arange(8))
        assert len(r.before.bias) == drifting
        assert bool((r.drift(Ball(1.0)) > 0).all()) == bool(drifting)
        assert torch.allclose(r(normal(1, 5, 5)), dense(normal(1, 5, 5)) - small(normal(1, 5, 5)))


def test_the_quadratic_relaxation_beats_the_linear_one() -> None:
    dense = layer(activation("relu"), 150, 60, 60, 4)
    r = residual(dense, cut(dense, torch.arange(30), 151), torch.arange(30))
    unit, both = Ball(4.0).units(r.common), torch.cat([r.common.outgoing, -r.common.outgoing])
    linear = relax.certify_linear(unit, both, relax.secant(unit, both), cells(unit, 2)).view(2, 4).amax(0)
    assert (upper_bound(r, Ball(4.0), rng(0)) < 0.7 * linear).all()


@pytest.mark.parametrize("mistake", ["offset", "curvature", "interval", "shared", "drift", "sign"])
def test_a_slightly_wrong_bound_is_caught(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    """One unit, one input: the bound is tight to 0.1 %, so each of these mistakes must show."""
    phi = activation("softplus" if mistake == "curvature" else "relu")
    one = torch.ones(1, 1, dtype=torch.float64)
    weight = -one if mistake in ("curvature", "sign") else one
    dense = OneLayer(one, 0 * one[0], weight, 0 * one[0], phi)
    empty = OneLayer(one[:0], one[0, :0], one[:, :0], 0 * one[0], phi)
    small, kept, truth = empty, None, float(phi(torch.tensor(2.0, dtype=torch.float64)))
    if mistake == "drift":
        small, kept, truth = OneLayer(one * 1.01, 0 * one[0], weight, 0 * one[0], phi), torch.tensor([0]), 0.02
    honest = upper_bound(residual(dense, small, kept), Ball(2.0), rng(0), nodes=4).item()
    assert honest >= truth
    original, ends, quadratic = relax.offset, Units.ends, relax.quadratic_supremum
    if mistake == "offset":
        monkeypatch.setattr(relax, "offset", lambda *a: (original(*a)[0] - 0.01, original(*a)[1]))
    elif mistake == "interval":
        monkeypatch.setattr(Units, "ends", property(lambda self: tuple(0.99 * end for end in ends.fget(self))))
    elif mistake == "shared":
        monkeypatch.setattr(relax, "quadratic_supremum", lambda *a: 0.99 * quadratic(*a))
    elif mistake == "curvature":
        flat = Activation("softplus", phi.function, lipschitz=1.0, curvature=1e-9)
        unit = units(flat, torch.zeros(1).double(), torch.full((1,), 2.0).double())
        top = offset(cells(unit, 4), -one, -one, 0 * one)[0]  # sup of t − softplus(2t): not at a node
        t = torch.linspace(-1, 1, 9999, dtype=torch.float64)
        assert top.item() < (t - phi(2 * t)).max().item()
        return
    elif mistake == "drift":
        monkeypatch.setattr(Ball, "support", lambda self, rows: 0.99 * self.radius * rows.norm(dim=1))
    else:
        monkeypatch.setattr("coreprune.maths.worst_case._both_signs", lambda rows: torch.cat([rows, rows]))
    assert upper_bound(residual(dense, small, kept), Ball(2.0), rng(0), nodes=4).item() < truth


ONES = torch.ones(3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ball(-1.0),
        lambda: Ball(math.inf),
        lambda: Box(ONES, ONES * 0),
        lambda: Box(ONES, torch.ones(2)),
        lambda: Box(ONES, ONES * math.inf),
        lambda: OneLayer(torch.ones(2, 3), ONES, torch.ones(1, 2), ONES[:1], activation("relu")),
        lambda: OneLayer(torch.ones(3, 3) * math.nan, ONES, torch.ones(1, 3), ONES[:1], activation("relu")),
    ],
)
def test_nonsense_is_refused(make) -> None:
    with pytest.raises(InvalidInputError):
        make()


@pytest.mark.parametrize("kept", [[0, 0], [0, 9], [-1, 0], [0]])
def test_wrong_lists_of_kept_rows_are_refused(kept: list[int]) -> None:
    dense = layer(activation("relu"), 1, 5, 3, 2)
    with pytest.raises(InvalidInputError, match="distinct rows"):
        residual(dense, cut(dense, torch.tensor([0, 1]), 2), torch.tensor(kept))


def test_layers_that_do_not_fit_are_refused() -> None:
    dense = layer(activation("relu"), 1, 5, 3, 2)
    for name, d, p in (("tanh", 3, 2), ("relu", 4, 2), ("relu", 3, 1)):
        other = layer(activation(name), 1, 5, d, p)
        with pytest.raises(InvalidInputError):
            residual(dense, other)


def test_same_generator_same_answer() -> None:
    dense = layer(activation("silu"), 1, 12, 5, 2)
    one, two = (worst_case(dense, cut(dense, torch.arange(4), 2), torch.arange(4), Ball(1.0), rng(7)) for _ in range(2))
    assert torch.equal(one.upper, two.upper) and torch.equal(one.witness, two.witness)


# --- what a first run of mutations let through ---


def test_gamma_covers_k_roundings() -> None:
    assert all(k * 2.0**-53 < relax.gamma(k) < k * 2.0**-52 for k in (1, 10, 10**6))


def test_quadratic_supremum_checks_that_cholesky_ran_through(monkeypatch: pytest.MonkeyPatch) -> None:
    d, s, q = normal(1, 1, 3), torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (torch.zeros(1, 3).double(), torch.eye(3).double()[None]))
    assert quadratic_supremum(d, s, q).item() >= d.square().sum().item()


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_quadratic_supremum_needs_no_faith_in_solve(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    d, s, q = normal(1, 8, 6), normal(2, 5, 8), normal(3, 5, 8)
    honest, solve = quadratic_supremum(d, s, q), torch.cholesky_solve
    monkeypatch.setattr(torch, "cholesky_solve", lambda g, factored: factor * solve(g, factored))
    assert (quadratic_supremum(d, s, q) >= honest * (1 - 1e-6)).all()


def test_drift_counts_a_rounded_bias() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    dense = OneLayer(one, 8 * one[0], one, 0 * one[0], activation("relu"))
    small = OneLayer(one, 8.0625 * one[0], one, 0 * one[0], activation("relu"))
    r = residual(dense, small, torch.tensor([0]))
    assert 0.0625 <= upper_bound(r, Ball(1.0), rng(0)).item() < 0.0626


def test_enclosure_adds_the_uncertainty_of_all_three_parts() -> None:
    dense = layer(activation("gelu"), 160, 8, 5, 3)
    r, x = residual(dense, cut(dense, torch.arange(8), 161, torch.bfloat16), torch.arange(8)), 100 * normal(1, 4, 5)
    widths = [high - low for low, high in (part.enclosure(x) for part in (r.common, r.before, r.after))]
    low, high = r.enclosure(x)
    assert all((width > 0).all() for width in widths)
    assert (high - r(x) >= 0.4 * sum(widths)).all() and (r(x) - low >= 0.4 * sum(widths)).all()


def test_enclosure_holds_where_the_pre_activation_loses_all_its_digits() -> None:
    """1e16 + 1 − 1e16 is 1, and 0 or 2 in float64 by the order of the sum."""
    rows = torch.tensor(list(permutations([1e16, 1.0, -1e16, 3.0, -3.0])), dtype=torch.float64)
    zero, one = torch.zeros(len(rows), dtype=torch.float64), torch.eye(len(rows), dtype=torch.float64)
    layer = OneLayer(rows, zero, one, zero, activation("identity"))
    x = torch.ones(1, 5, dtype=torch.float64)
    assert bool((layer(x) != 1).any())
    low, high = layer.enclosure(x)
    assert bool(((low <= 1) & (high >= 1)).all())


def test_support_is_the_farthest_that_a_row_goes() -> None:
    """Exactly over a ball and a box about 0; over any other box, that of the box about 0 which holds it."""
    rows, near = normal(7, 20, 3), 1 + 1e-12
    ball, length = Ball(2.5).support(rows), rows.square().sum(1).sqrt() * 2.5
    assert bool((ball >= length).all() and (ball <= length * near).all())
    lower, upper = torch.tensor([-3.0, 0.5, -1.0]).double(), torch.tensor([-2.0, 0.75, 2.0]).double()
    box, ends = Box(lower, upper).support(rows), torch.tensor([3.0, 0.75, 2.0]).double()
    inside, around = (
        (torch.cartesian_prod(*torch.stack([a, b], 1)) @ rows.T).abs().amax(0)
        for a, b in ((lower, upper), (-ends, ends))
    )
    assert bool((box >= inside).all() and (box >= around).all() and (box <= around * near).all())


@every_activation
@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_no_cell_strays_further_from_its_chord_than_it_says(phi: Activation, count: int) -> None:
    bias = phi.scale * torch.tensor([0.0, 0.0, -0.6, 1.3, -4.0], dtype=torch.float64)
    radius = phi.scale * torch.tensor([0.5, 2.0, 1.1, 3.0, 6.0], dtype=torch.float64)
    cell = cells(units(phi, bias, radius), count)
    share = torch.linspace(0, 1, 101, dtype=torch.float64)[1:-1, None, None]
    t = cell.left + share * (cell.right - cell.left)
    chord = cell.at_left + share * (cell.at_right - cell.at_left)
    wide = cell.right - cell.left > 1e-9
    off = ((phi(bias + radius * t) - chord).abs() - cell.error - 1e-12 * phi.scale)[:, wide]
    assert float(off.max()) <= 0
