"""What errors cost the whole network, against the errors themselves and against the divergence of predictions."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded
from torch import Tensor, nn
from torch.nn import functional as F

from coreprune.engine.local import Request
from coreprune.engine.network import decide_network, surveyed
from coreprune.engine.runner import run
from coreprune.engine.sensitivity import sensitivities
from coreprune.maths.methods import METHODS
from coreprune.maths.readers import choose
from coreprune.maths.reading import Reading, weighed
from coreprune.model.network import discover_network
from coreprune.model.site import Inspection, Tap
from coreprune.model.tensors import tensors_of
from coreprune.priors.gaussian import Gaussian


class Tail(nn.Module):
    """Two hidden layers and a linear end that reads few of the second's directions."""

    def __init__(self, end: int = 2) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 24), nn.Linear(24, 12), nn.Linear(12, end)
        with torch.no_grad():
            self.c.weight[:, 3:] *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(F.relu(self.a(x))))


class Words(nn.Module):
    """Predicts one of 7 tokens from one of 7 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down, self.head = (
            nn.Embedding(7, 8),
            nn.Linear(8, 16),
            nn.Linear(16, 8),
            nn.Linear(8, 7),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x + self.down(F.gelu(self.up(x))))


def found_in(model: nn.Module, x: Tensor, name: str) -> tuple[Inspection, dict[str, Tensor], Tap]:
    found = discover_network(model, x)
    return found, tensors_of(model), found.taps[name][0][0]


def moved(found: Inspection, tensors: dict[str, Tensor], tap: Tap, x: Tensor, errors: Tensor) -> Tensor:
    """The output with errors added to what one reader gets."""
    (output,) = run(found.graphs[0], tensors, ((x,), {}), taps=[tap], hook=lambda _, value: value + errors)
    return output


def test_squared_errors_of_a_linear_end_are_what_is_said():
    torch.manual_seed(0)
    model, x = Tail().eval(), torch.randn(64, 6)
    found, tensors, tap = found_in(model, x, "a")
    (M,) = sensitivities(found.graphs[0], tensors, [(tap,)], [((x,), {})] * 400)
    W = (model.c.weight @ model.b.weight).double().detach()
    y = model(x).double().detach()
    exact = len(x) * W.T @ W / (y - y.mean(0)).square().sum()
    assert torch.linalg.matrix_norm(M - exact) < 0.05 * torch.linalg.matrix_norm(exact)  # 25,600 directions
    errors = torch.randn(x.shape[0], 24, generator=seeded(1)) * 0.1
    actual = (moved(found, tensors, tap, x, errors).double() - y).square().sum() / (y - y.mean(0)).square().sum()
    said = ((errors.double() @ exact) * errors).sum() / len(x)
    assert float(said) == pytest.approx(float(actual), rel=1e-4)


def test_predictions_diverge_by_what_is_said():
    torch.manual_seed(1)
    model, ids = Words().eval(), torch.randint(7, (32, 8), generator=seeded(0))
    found, tensors, tap = found_in(model, ids, "up")
    (M,) = sensitivities(found.graphs[0], tensors, [(tap,)], [((ids,), {})] * 40, seed=3)
    errors = torch.randn(32, 8, 16, generator=seeded(1)) * 0.02
    dense = model(ids).detach().double().log_softmax(-1)
    small = moved(found, tensors, tap, ids, errors).double().log_softmax(-1)
    divergence = float((dense.exp() * (dense - small)).sum(-1).mean())
    said = 0.5 * float((errors.double() @ M * errors).sum(-1).mean())
    assert said == pytest.approx(divergence, rel=0.1)


def test_a_reader_that_no_output_sees_costs_nothing():
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.a(x))
            return self.b(h) + 0.0 * self.c(h)

    torch.manual_seed(0)
    model, x = Blind().eval(), torch.randn(16, 4)
    found = discover_network(model, x)
    taps = found.taps[found.sites[0].name]
    costs = sensitivities(found.graphs[0], tensors_of(model), taps, [((x,), {})])
    assert sorted(float(M.trace()) > 0 for M in costs) == [False, True]


def test_the_same_seed_gives_the_same_bits_and_nothing_else_is_touched():
    torch.manual_seed(0)
    model, x = Tail().eval(), torch.randn(8, 6)
    found, tensors, tap = found_in(model, x, "a")
    state, before = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    first, again = (sensitivities(found.graphs[0], tensors, [(tap,)], [((x,), {})], seed=5)[0] for _ in range(2))
    other = sensitivities(found.graphs[0], tensors, [(tap,)], [((x,), {})], seed=6)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("outputs", [5, 40])
def test_weighed_readings_have_the_gram_that_was_given(outputs):
    W = torch.randn(outputs, 20, generator=seeded(0), dtype=torch.float64)
    g = torch.randn(3 * outputs, outputs, generator=seeded(1), dtype=torch.float64)
    M = (g @ W).T @ (g @ W)
    G = torch.randn(50, 20, generator=seeded(2), dtype=torch.float64)
    reading = weighed(Reading(W, torch.zeros(20, dtype=torch.float64), G.T @ G), M)
    assert reading.outgoing.shape[0] == min(outputs, 20)
    assert torch.allclose(reading.gram, M, rtol=1e-5, atol=1e-5 * float(M.diagonal().max()))


def test_units_are_chosen_for_the_outputs_of_the_network():
    torch.manual_seed(0)
    model, x = Tail().eval(), torch.randn(64, 6)
    found = discover_network(model, x)
    site = found.sites[0].name
    errors = []
    for costs in (False, True):
        request = Request(METHODS["kernel"], Gaussian(), 1.0, 0, costs=costs)
        (cut,) = decide_network(found, tensors_of(model), {site: 6}, request)
        h = F.relu(model.a(x)).detach().double()
        coreset = cut.coresets[0]
        T, t = coreset.mix.double(), coreset.offset.double()
        error = h[:, coreset.indices] @ T.T + t - h
        errors.append(float((error @ (model.c.weight @ model.b.weight).detach().double().T).square().sum()))
    assert errors[1] < 0.8 * errors[0]


def test_curves_are_costs_where_costs_are_asked_for():
    torch.manual_seed(0)
    model, x = Tail().eval(), torch.randn(64, 6)
    found = discover_network(model, x)
    curves = surveyed(found, tensors_of(model), Request(METHODS["kernel"], Gaussian(), 1.0, 0, costs=True)).curves
    first, second = (curves[site.name] for site in found.sites)
    # all that the network says comes through either layer: without any of its units its variance is lost
    assert float(first[0]) == pytest.approx(1, rel=0.15)
    assert float(second[0]) == pytest.approx(1, rel=0.15)
    assert float(first[-1]) == float(second[-1]) == 0


def test_choosing_by_costs_reaches_the_least_cost_of_all_choices():
    G = torch.randn(60, 6, generator=seeded(3), dtype=torch.float64)
    G = G.T @ G / 60
    u = torch.randn(40, 6, generator=seeded(4), dtype=torch.float64)
    M, W = u.T @ u, torch.randn(9, 6, generator=seeded(5), dtype=torch.float64)
    reading = weighed(Reading(W, torch.zeros(6, dtype=torch.float64), G, constant=False), M)
    kept = choose([reading], 6, 5).kept
    left = []
    for gone in range(6):
        S = [j for j in range(6) if j != gone]
        T = torch.linalg.solve(G[S][:, S], G[S])
        left.append(float(torch.trace(M @ (G - G[:, S] @ T))))
    (gone,) = set(range(6)) - set(kept.tolist())
    assert left[gone] == min(left)
