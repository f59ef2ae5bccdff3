"""What each site's cut costs when all are made together: against closed forms, brute force, and the widths by it."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Branches, seeded
from torch import Tensor, nn
from torch.nn import functional as F

import coreprune as cp
from coreprune.allocation import allocate
from coreprune.engine import shares
from coreprune.engine.inputs import inputs
from coreprune.engine.local import Request
from coreprune.engine.masking import reconstructed
from coreprune.engine.network import decide_network, surveyed
from coreprune.engine.observe import clipped
from coreprune.engine.runner import run
from coreprune.engine.shares import balanced, lost
from coreprune.maths.layer import Coreset
from coreprune.maths.methods import METHODS
from coreprune.model.network import discover_network
from coreprune.model.site import Inspection, Tap
from coreprune.model.tensors import tensors_of
from coreprune.priors.gaussian import Gaussian

Pairs = list[list[tuple[Tap, Coreset]]]


class Words(nn.Module):
    """Predicts one of 30 tokens from one of 30 tokens, in two residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)
        self.up, self.down = nn.Linear(16, 48), nn.Linear(48, 16)
        self.up2, self.down2 = nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x + self.down2(F.gelu(self.up2(x))))


def cut_in_half(model: nn.Module, x: Tensor) -> tuple[Inspection, dict[str, Tensor], Pairs]:
    """Every site cut to half of its units under noise."""
    found, tensors = discover_network(model, x), tensors_of(model)
    request = Request(METHODS["kernel"], Gaussian(), 1.0, 0)
    cuts = decide_network(found, tensors, {s.name: s.units // 2 for s in found.sites if s.kind == "linear"}, request)
    pairs = [
        [(tap, one) for taps, one in zip(found.taps[cut.site.name], cut.coresets, strict=True) for tap in taps]
        for cut in cuts
    ]
    return found, tensors, pairs


def with_cuts(found: Inspection, tensors: dict[str, Tensor], pairs: Pairs, x: Tensor, at: list[float]) -> Tensor:
    """The output where each site's readers get so much of what stands for the units."""
    of = {id(tap): (a, coreset) for part, a in zip(pairs, at, strict=True) for tap, coreset in part}

    def hook(tap: Tap, value: Tensor) -> Tensor:
        a, coreset = of[id(tap)]
        return value + a * (reconstructed(value, tap, coreset) - value)

    (output,) = run(found.graphs[0], tensors, ((x,), {}), taps=[t for part in pairs for t, _ in part], hook=hook)
    return output


def test_shares_of_a_loss_of_second_order_are_exact():
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.randn(200, 6)
    found, tensors, pairs = cut_in_half(model, x)
    y = model(x).detach().double()
    energy = float((y - y.mean(0)).square().sum())
    first, second = (with_cuts(found, tensors, pairs, x, at).double() - y for at in ([1.0, 0.0], [0.0, 1.0]))
    both = first + second
    got = lost(found.graphs[0], tensors, pairs, [((x,), {})])
    assert got.total == pytest.approx(float(both.square().sum()) / energy, rel=1e-5)
    assert got.shares == pytest.approx([float((e * both).sum()) / energy for e in (first, second)], rel=1e-4)
    assert sum(got.shares) == pytest.approx(got.total, rel=1e-4)


def test_predictions_lose_their_divergence_and_shares_sum_to_about_it():
    torch.manual_seed(1)
    model, ids = Words().eval(), torch.randint(30, (16, 9), generator=seeded(0))
    found, tensors, pairs = cut_in_half(model, ids)
    p = model(ids).detach().log_softmax(-1).double()
    q = with_cuts(found, tensors, pairs, ids, [1.0, 1.0]).log_softmax(-1).double()
    divergence = float((p.exp() * (p - q)).sum(-1).mean())
    got = lost(found.graphs[0], tensors, pairs, [((ids[:10],), {}), ((ids[10:],), {})])
    assert got.total == pytest.approx(divergence, rel=1e-4)
    assert sum(got.shares) == pytest.approx(divergence, rel=0.1)
    step = 0.05  # each share is the slope at the middle
    for i, share in enumerate(got.shares):
        ends = []
        for sign in (1, -1):
            q = with_cuts(found, tensors, pairs, ids, [0.5 + sign * step * (j == i) for j in range(2)]).log_softmax(-1)
            ends.append(float((p.exp() * (p - q.double())).sum(-1).mean()))
        assert share == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2)


def test_what_stands_for_itself_costs_nothing():
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.randn(20, 6)
    found, tensors = discover_network(model, x), tensors_of(model)
    whole = Coreset(torch.arange(24), torch.eye(24), torch.zeros(24))
    pairs = [[(tap, whole) for taps in found.taps[site.name] for tap in taps] for site in found.sites]
    got = lost(found.graphs[0], tensors, pairs, [((x,), {})])
    assert got.total < 1e-12
    assert got.shares == pytest.approx([0.0, 0.0], abs=1e-12)


def test_samples_with_more_energy_than_the_median_are_scaled_down_to_it():
    rows = torch.randn(101, 7, generator=seeded(0))
    rows[3] *= 1000
    energies = torch.rand(7, generator=seeded(1))
    energy = (rows.square() * energies).sum(1)
    got = clipped(rows, energies)
    after = (got.square() * energies).sum(1)
    assert torch.allclose(after, energy.clamp(max=float(energy.median())), rtol=1e-4)
    assert torch.equal(got[energy <= energy.median()], rows[energy <= energy.median()])
    assert torch.allclose(F.normalize(got), F.normalize(rows), atol=1e-6)


def request_for(model: nn.Module, x: Tensor):
    found, tensors = discover_network(model, x), tensors_of(model)
    request = Request(METHODS["kernel"], Gaussian(), 1.0, 0)
    return found, tensors, request, surveyed(found, tensors, request)


@pytest.mark.parametrize("second", [0.03, 1.0, 30.0])
def test_no_more_is_lost_than_where_all_sites_lose_one_share(second):
    torch.manual_seed(2)
    model, x = Branches(second).eval(), torch.randn(8, 6)
    found, tensors, request, survey = request_for(model, x)
    budget = {"params": "50%"}
    kept = balanced(found, tensors, request, survey, lambda by: allocate(found, by, budget))
    even = allocate(found, shares._alike(found), budget)
    batches = list(inputs(found.graphs[0], request.prior, 0))

    def loss(widths: dict[str, int]) -> float:
        cuts = decide_network(found, tensors, widths, request, survey)
        pairs = [[(tap, cut.coresets[0]) for tap in found.taps[cut.site.name][0]] for cut in cuts]
        return lost(found.graphs[0], tensors, pairs, batches).total

    assert loss(kept) <= loss(even)
    assert abs(even["a"] - even["b"]) <= 1
    if second == 0.03:
        assert kept["a"] > kept["b"] + 4
        assert loss(kept) < 0.8 * loss(even)
    if second == 30.0:
        assert kept["b"] > kept["a"] + 4


def test_widths_move_no_further_in_a_round_than_a_share_is_known_for():
    curve = torch.linspace(1, 0, 11, dtype=torch.float64)
    near = shares._near(curve, 8)
    assert torch.equal(near[4:], curve[4:])
    assert float(near[:4].min()) > 1e5 * float(curve[0])


def test_scales_are_shares_over_errors_and_what_is_whole_keeps_its_own():
    curves = {name: torch.tensor([1.0, 0.5, 0.1, 0.0]).double() for name in "abc"}
    nan = dict.fromkeys("abc", math.nan)
    first = shares._scaled(nan, curves, {"a": 1, "b": 2, "c": 3}, {"a": 1.0, "b": 0.4, "c": 0.0})
    assert first["a"] == pytest.approx(2.0)
    assert first["b"] == pytest.approx(4.0)
    assert first["c"] == pytest.approx(math.sqrt(8.0))  # nothing is learnt of a site that is whole
    second = shares._scaled(first, curves, {"a": 2, "b": 3, "c": 2}, {"a": 0.8, "b": 0.0, "c": -1.0})
    assert second["a"] == pytest.approx(4.0)  # √(2 · 8)
    assert second["b"] == first["b"]
    assert 0 < second["c"] < first["c"]  # a cut that helps is taken for one that costs next to nothing


def test_a_network_in_which_nothing_is_free_is_not_measured(monkeypatch):
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    torch.manual_seed(0)
    monkeypatch.setattr(shares, "lost", None)
    small = cp.prune(One().eval(), torch.zeros(1, 3, 9, 9), remove=0.4)
    assert len(small.plan.cuts) == 1


def test_curves_alone_decide_where_no_gradient_comes_through(monkeypatch):
    def refuses(*_, **__):
        raise NotImplementedError("derivative is not implemented")

    torch.manual_seed(2)
    model, x = Branches(0.03).eval(), torch.randn(8, 6)
    found, tensors, request, survey = request_for(model, x)
    monkeypatch.setattr(shares, "lost", refuses)
    by_curves = allocate(found, survey.curves, {"params": "50%"})
    assert balanced(found, tensors, request, survey, lambda by: allocate(found, by, {"params": "50%"})) == by_curves


def test_the_same_call_gives_the_same_widths():
    torch.manual_seed(0)
    model, ids = Words().eval(), torch.randint(30, (4, 9), generator=seeded(0))
    plans = [cp.plan(model, ids, remove=0.3, kinds=["linear"], prior="noise") for _ in range(2)]
    assert plans[0].kept == plans[1].kept
    assert all(
        torch.equal(a.coresets[0].indices, b.coresets[0].indices)
        for a, b in zip(plans[0].cuts, plans[1].cuts, strict=True)
    )
    assert all(p.grad is None for p in model.parameters())


def test_one_massive_token_does_not_make_the_curve_of_its_block():
    """The first block answers one token with a number of a thousand; where its curve bends is what all others say."""
    torch.manual_seed(0)
    model = Words().eval()
    ids = torch.randint(1, 30, (32, 16), generator=seeded(3))
    ids[0, 0] = 0
    with torch.no_grad():
        model.table.weight[0] = 0
        model.table.weight[0, 0] = 60.0
        model.up.weight[5, 0] = 40.0
    found, tensors = discover_network(model, ids), tensors_of(model)
    data = cp.Data([ids])
    plain, typical = (
        surveyed(found, tensors, Request(METHODS["kernel"], data, 1.0, 0, typical=usual)).curves["up"]
        for usual in (False, True)
    )
    assert float(plain[1]) < 0.01  # one unit explains all but a hundredth of what is read
    assert float(typical[1]) > 0.5


@pytest.mark.parametrize("zero", ["head", "inputs"])
def test_a_network_that_always_says_the_same_is_cut_by_the_curves_as_they_are(zero):
    """No share of an error says anything of it: each is nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(200, 10)
    ).eval()
    if zero == "head":
        nn.init.zeros_(model[5].weight)
    x = torch.randn(4, 3, 9, 9)
    given = {"prior": "noise"} if zero == "head" else {"data": [torch.zeros(8, 3, 9, 9)]}
    assert cp.prune(model, x, remove=0.3, **given).parameters <= 0.7 * sum(p.numel() for p in model.parameters())
