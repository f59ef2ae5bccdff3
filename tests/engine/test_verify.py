"""What `verify` says is true, whatever cut the network and whatever the cut network claims of itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import in_ball, seeded
from scipy.stats import beta
from torch import nn

import coreprune as cp
from coreprune.engine.verify import certify
from coreprune.errors import CheckpointError, InvalidInputError
from coreprune.maths.domain import Ball
from coreprune.maths.layer import Coreset


def network(function=nn.ReLU, widths=(3, 10, 9, 2), seed=0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), function()]
    model = nn.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(100 * seed + i)) / 2)
    return model


def largest_change(model: nn.Module, small: nn.Module, radius: float) -> float:
    """Found by sampling the ball and climbing from the best points."""
    x = in_ball(20_000, 3, radius)
    with torch.no_grad():
        gap = (model(x) - small(x)).abs().amax(1)
    x = x[gap.topk(50).indices].clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=0.02 * radius)
    best = float(gap.max())
    for _ in range(100):
        gap = (model(x) - small(x)).abs().amax(1)
        best = max(best, float(gap.detach().max()))
        adam.zero_grad()
        (-gap.sum()).backward()
        adam.step()
        with torch.no_grad():
            x *= (radius / x.norm(dim=1, keepdim=True)).clamp(max=1)
    return best


@pytest.mark.parametrize("method", ["kernel", "refined", "sampling", "magnitude", "folding"])
@pytest.mark.parametrize("function", [nn.ReLU, nn.Tanh, nn.GELU])
def test_the_bound_of_the_whole_network_is_never_broken(method, function):
    model = network(function)
    small = cp.prune(model, units={"0": 6, "2": 5}, method=method, radius=2.0)
    checked = cp.verify(model, small, samples=1000)
    found = largest_change(model, small.model, 2.0)
    assert 0 < found <= checked.end_bound
    assert all(site.lower <= site.upper for site in checked.sites)


def test_three_cut_layers_compose():
    model = network(nn.SiLU, (3, 8, 7, 6, 2))
    small = cp.prune(model, units={"0": 5, "2": 5, "4": 4}, radius=1.5)
    checked = cp.verify(model, small, samples=1000)
    assert len(checked.sites) == 3
    assert largest_change(model, small.model, 1.5) <= checked.end_bound


def test_wrong_claims_make_the_bound_worse_and_never_false():
    model = network()
    small = cp.prune(model, units={"0": 6, "2": 5}, radius=2.0)
    found, prior, domain = cp.inspect(model), cp.Gaussian(), Ball(2.0)
    honest = certify(model, small.model, found, small.claims(), prior=prior, domain=domain, samples=200)
    liar = {"0": Coreset(torch.arange(6), torch.ones(6)), "2": Coreset(torch.arange(5), torch.ones(5))}
    told = certify(model, small.model, found, liar, prior=prior, domain=domain, samples=200)
    assert largest_change(model, small.model, 2.0) <= told.end_bound
    assert told.end_bound > honest.end_bound
    assert told.end_predicted == honest.end_predicted  # takes no claim


def test_a_network_tampered_with_is_found_out():
    """Cut weights that are not those of the plan change what is said, since only tensors count."""
    model = network()
    small = cp.prune(model, units={"0": 6, "2": 5}, radius=2.0)
    before = cp.verify(model, small, samples=200)
    with torch.no_grad():
        small.model[4].weight.add_(1.0)
    after = cp.verify(model, small, samples=200)
    assert after.end_predicted > 2 * before.end_predicted
    assert largest_change(model, small.model, 2.0) <= after.end_bound


def test_rounding_of_the_stored_network_is_part_of_the_bound():
    model = network()
    small = cp.prune(model, units={"0": 9, "2": 8}, radius=2.0)
    rounded = replace(small, model=small.model.to(torch.bfloat16))
    checked = cp.verify(model, rounded, samples=200)
    assert largest_change(model, rounded.model.double(), 2.0) <= checked.end_bound


def test_nothing_cut_is_nothing_changed():
    model = network()
    checked = cp.verify(model, cp.prune(model, units={"0": 10, "2": 9}))
    assert checked.sites == ()
    assert checked.end_bound == 0
    assert checked.end_measured == 0
    assert checked.exceed == 0


def test_mean_square_of_the_first_site_is_exact():
    model = network()
    small = cp.prune(model, units={"0": 6}, prior=cp.Gaussian(0.2, 0.7))
    (site,) = cp.verify(model, small, worst=False).sites
    x = 0.2 + 0.7 * torch.randn(400_000, 3, generator=seeded(1), dtype=torch.float64)
    with torch.no_grad():
        gap = (model[:3](x) - small.model[:3](x)).square()
    spread = gap.sum(1).std() / len(x) ** 0.5
    expected = site.relative_error**2 * float(model[:3](x).detach().var(0).sum())
    assert site.exact
    assert abs(float(gap.sum(1).mean()) - expected) < 5 * float(spread)


def test_a_later_site_alone_is_not_called_exact():
    model = network()
    (site,) = cp.verify(model, cp.prune(model, units={"2": 5}), worst=False).sites
    assert not site.exact


def test_the_share_beyond_the_order_statistic_is_a_beta_quantile():
    model = network()
    checked = cp.verify(model, cp.prune(model, units={"0": 6, "2": 5}), samples=1000, worst=False)
    assert checked.exceed_probability == pytest.approx(float(beta.ppf(0.95, 11, 990)), rel=1e-9)


def test_the_counted_statement_holds_as_often_as_it_says():
    """40 runs with fresh samples at 95 % confidence: 8 or more failures have a chance under 1e-3."""
    model = network()
    small = cp.prune(model, units={"0": 6, "2": 5})
    x = torch.randn(200_000, 3, generator=seeded(7))
    with torch.no_grad():
        gap = (model(x.double()) - small.model(x.double())).abs().amax(1)
    failures = 0
    for seed in range(40):
        checked = cp.verify(model, small, samples=500, worst=False, seed=seed)
        failures += float((gap > checked.exceed).double().mean()) > checked.exceed_probability + 1e-3
    assert failures < 8


def test_what_follows_the_last_linear_layer_is_named_and_not_covered():
    model = nn.Sequential(*network(), nn.GELU())
    checked = cp.verify(model, cp.prune(model, units={"0": 6}), samples=200)
    assert "GELU" in checked.tail
    assert any("the network before 5 (GELU)" in line for line in checked.statements())


def test_a_saved_network_is_verified_like_the_one_in_memory(tmp_path):
    model = network()
    small = cp.prune(model, units={"0": 6, "2": 5}, method="refined", prior=cp.Gaussian(std=0.5), radius=2.0)
    small.save(tmp_path / "small")
    assert cp.verify(model, tmp_path / "small", samples=200) == cp.verify(model, small, samples=200)


def test_modes_and_parameters_are_left_alone():
    model = network().train()
    small = cp.prune(model, units={"0": 6})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cp.verify(model, small, samples=200, worst=False)
    assert model.training
    assert small.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_refusals():
    model = network()
    small = cp.prune(model, units={"0": 6})
    with pytest.raises(InvalidInputError, match="at least"):
        cp.verify(model, small, samples=0, worst=False)
    with pytest.raises(InvalidInputError, match="shape"):
        cp.verify(model, small, inputs=torch.zeros(200, 4), worst=False)
    with pytest.raises(InvalidInputError, match="what prune returned"):
        cp.verify(model, small.model)
    with pytest.raises(InvalidInputError, match="give one of them"):
        cp.verify(model, small, radius=1.0, box=(0.0, 1.0))
    with pytest.raises(InvalidInputError, match="made from"):
        cp.verify(network(widths=(3, 5, 9, 2)), small)


def captured(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()


def test_a_captured_network_is_measured_on_inputs_of_its_own_prior_that_the_cut_did_not_see():
    net, x = captured(), torch.zeros(2, 1, 8, 8)
    small = cp.prune(net, x, units={"0": 3}, prior=cp.Gaussian(std=0.5))
    checked = cp.verify(net, small)
    assert checked.prior == "random inputs (numbers N(0, 0.5²), tokens uniform), drawn with another seed"
    assert checked.prior in checked.statements()[-1]
    assert cp.verify(net, small, prior="noise").prior == checked.prior.replace("0.5", "1")
    other = cp.verify(net, small, prior=cp.Gaussian(std=5.0))
    assert other.exceed > 2 * checked.exceed


def test_images_that_were_matched_are_matched_anew():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    law = cp.Matched(count=8, steps=2)
    small = cp.prune(net, torch.zeros(2, 3, 8, 8), units={"0": 3}, prior=law)
    checked = cp.verify(net, small, samples=100)
    assert checked.prior == "100 images matched with another seed"
    said = checked.statements()[-1]  # they are matched together: no theorem speaks of such draws
    assert "1.00% of these inputs, which are not independent draws" in said
    assert "confidence" not in said


def test_text_is_counted_and_bounds_nothing_where_numbers_that_are_drawn_do():
    net, x = captured(), torch.zeros(2, 1, 8, 8)
    small = cp.prune(net, x, units={"0": 3}, prior="noise")
    assert cp.verify(net, small).independent
    assert cp.verify(net, small, inputs=torch.randn(150, 1, 8, 8)).independent
    ids = torch.zeros(2, 16, dtype=torch.long)
    speaking = nn.Sequential(nn.Embedding(80, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    cut = cp.prune(speaking, ids, units={"1": 4}, prior="zipf")
    assert cp.verify(speaking, cut).independent
    own = cp.verify(speaking, cut, prior=cp.Mixture(((cp.Zipf(), 1.0), (cp.Zipf(exponent=0.5), 1.0))))
    assert not own.independent
    assert own.exceed_probability <= 0.01  # of the samples themselves; less where some are alike


def test_a_prior_that_a_stack_cannot_have_is_refused():
    model = network()
    with pytest.raises(InvalidInputError, match="stack of Linear layers"):
        cp.verify(model, cp.prune(model, units={"0": 4}), prior="text")


def test_numbers_compared_in_pieces_are_those_compared_at_once(monkeypatch):
    net, x = captured(), torch.zeros(2, 1, 8, 8)
    small = cp.prune(net, x, units={"0": 3})
    whole = cp.verify(net, small)
    monkeypatch.setattr("coreprune.engine.measure._NUMBERS", 4)
    pieces = cp.verify(net, small)
    assert pieces.end_measured == pytest.approx(whole.end_measured, rel=1e-12)
    assert (pieces.exceed, pieces.samples) == (whole.exceed, whole.samples)


def test_another_network_of_the_same_shape_is_refused():
    small = cp.prune(network(), units={"0": 6})
    with pytest.raises(CheckpointError, match="other weights"):
        cp.verify(network(seed=1), small, worst=False)


def test_worst_cases_are_not_silently_left_out_of_a_captured_network():
    net, x = captured(), torch.zeros(2, 1, 8, 8)
    small = cp.prune(net, x, units={"0": 3})
    for more in ({"radius": 1.0}, {"box": (0.0, 1.0)}):
        with pytest.raises(InvalidInputError, match="leave it out"):
            cp.verify(net, small, **more)


def test_names_of_priors_mean_of_a_stack_what_they_can():
    model = network()
    small = cp.prune(model, units={"0": 6})
    plain = cp.verify(model, small, worst=False, samples=200)
    assert cp.verify(model, small, prior="noise", worst=False, samples=200) == plain
    with pytest.raises(InvalidInputError, match="there are auto, noise"):
        cp.verify(model, small, prior="nothing such")
