"""Seeds, and that the ball and the bound told of every site are true."""

from __future__ import annotations

import pytest
import torch
from helpers import CASES, in_ball, lenet_like, random_layer, seeded
from torch import nn

import coreprune as cp
from coreprune.engine import local
from coreprune.engine.local import generator_for, image_radius
from coreprune.maths.bounds import error_of_draws, lipschitz_sensitivity
from coreprune.maths.layer import Layer
from coreprune.maths.sampling import sensitivity


def test_generator_depends_on_seed_and_name_alone():
    def first(seed, name):
        return int(torch.randint(2**60, (), generator=generator_for(seed, name)))

    assert first(0, "fc1") == first(0, "fc1")
    assert len({first(seed, name) for seed in (0, 1, 10) for name in ("fc1", "fc2", "0")}) == 9


@pytest.mark.parametrize("case", CASES, ids=str)
def test_image_radius_is_never_exceeded(case):
    for seed in range(5):
        layer = random_layer(n=6, d=2, phi=case.name, seed=seed, radius=2.0, **case.parameters)
        assert float(layer.hidden(in_ball(2000, 2, 2.0)).norm(dim=1).max()) <= image_radius(layer) * (1 + 1e-12)


def test_image_radius_knows_the_spectral_norm():
    """An orthogonal matrix of 100 rows moves the ball to itself; unit by unit one would find 10 times that."""
    Q = torch.linalg.qr(torch.randn(100, 100, generator=seeded(0), dtype=torch.float64)).Q
    layer = Layer(Q, torch.zeros(100, dtype=torch.float64), Q, random_layer().activation, 1.0)
    assert 1 - 1e-9 <= image_radius(layer) <= 100**0.25 + 1e-9


def hidden_norms(model: nn.Sequential, at: int, radius: float) -> float:
    x = in_ball(500, model[0].in_features, radius)
    with torch.no_grad():
        return float(model[:at](x).norm(dim=1).max())


def balls(model, **request):
    """The network with its sites cut, and the ball told of each."""
    small = cp.prune(model, method="uniform", **request)
    return small.model, {cut.site.name: cut.evidence["radius"] for cut in small.plan.cuts}


@pytest.mark.parametrize("function", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU])
def test_the_ball_of_every_site_holds_what_reaches_it(function):
    model = nn.Sequential(nn.Linear(3, 9), function(), nn.Linear(9, 8), function(), nn.Linear(8, 7), function())
    model.append(nn.Linear(7, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(0)))
    small, found = balls(model, units={"*": 4}, radius=2.0)
    assert found["0"] == 2.0
    assert hidden_norms(model, 2, 2.0) <= found["2"]  # before the cut of site 0, and after it
    assert hidden_norms(small, 2, 2.0) <= found["2"]
    assert hidden_norms(small, 4, 2.0) <= found["4"]


def test_the_ball_after_a_refused_layer_holds_what_reaches_it():
    model = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 8), nn.CELU(), nn.Linear(8, 7), nn.ReLU())
    model.append(nn.Linear(7, 2)).double()
    with torch.no_grad():
        model[2].weight.mul_(1000)
    _, found = balls(model, units={"4": 4}, radius=1.0)
    assert found["4"] is None or hidden_norms(model, 4, 1.0) <= found["4"]


def test_the_ball_of_the_first_site_is_that_of_its_own_input():
    """The norm of the network's input says nothing of what a layer before the first Linear makes of it."""
    scale = nn.Conv1d(1, 1, 1, bias=False)
    with torch.no_grad():
        scale.weight.fill_(1000.0)
    model = nn.Sequential(scale, nn.Flatten(), nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2))
    try:
        found = cp.plan(model, torch.ones(1, 1, 3), method="uniform", units={"2": 4})
    except cp.CorepruneError:
        return
    with torch.no_grad():
        reached = float(model[:2](torch.ones(1, 1, 3)).norm())
    told = found.cuts[0].evidence["radius"]
    assert told is None or reached <= told


@pytest.mark.parametrize("function", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU])
def test_the_bound_told_is_that_of_the_probabilities_used(function):
    """The theorem's T stands for pr ∝ L R ‖p‖; draws by the envelope need B = max s/pr, which is larger."""
    model = nn.Sequential(nn.Linear(3, 9), function(), nn.Linear(9, 4)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(0)))
    plan = cp.plan(model, draws={"0": 5}, method="sampling", radius=4.0)
    layer = Layer(
        model[0].weight.detach(), model[0].bias.detach(), model[2].weight.detach(), plan.cuts[0].site.phi, 4.0
    )
    s = sensitivity(layer)
    B = float((lipschitz_sensitivity(layer)[s > 0] / s[s > 0]).max() * s.sum())
    known = plan.cuts[0].evidence
    told, theorem = known["theorem_error"], error_of_draws(B, 5, known["theorem_delta"], 4)
    assert told >= theorem * (1 - 1e-9)


def test_progress_tells_every_site_and_the_end():
    calls = []
    cp.plan(lenet_like(), method="uniform", units={"0": 3}, progress=lambda *step: calls.append(step))
    assert calls == [(0, 2, "0"), (1, 2, "2"), (2, 2, "")]


@pytest.mark.parametrize("limit", [0, 200, 10**9])
@pytest.mark.parametrize("method", ["kernel", "refined", "magnitude"])
def test_layers_in_single_precision_are_decided_nearly_alike(monkeypatch, method, limit):
    """A limit of 200 entries leaves the first layer (16 x 6) in double precision, and not the second (40 x 16)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 4))
    errors = []
    for entries in (2**24, limit):
        monkeypatch.setattr(local, "DOUBLE", entries)
        plan = cp.plan(net, units={"0": 9, "2": 10}, method=method, prior=cp.Gaussian(std=0.8))
        errors.append([cut.evidence["relative_error"] for cut in plan.cuts])
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


def test_a_cut_that_takes_a_layer_below_the_limit_changes_precisions_within_it(monkeypatch):
    """The second layer has 40 x 16 entries in the dense network and 40 x 4 where the first was cut."""
    monkeypatch.setattr(local, "DOUBLE", 200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 4))
    small = cp.prune(net, units={"0": 4, "2": 10})
    assert small.plan.kept == {"0": 4, "2": 10}
