"""Moments measured on the user's inputs: one pass or one per site, and the network is left as it was."""

from __future__ import annotations

import pytest
import torch
from helpers import equal_states, lenet_like, seeded
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import coreprune as cp
from coreprune.errors import InvalidInputError
from coreprune.maths.reweight import residual_energy
from coreprune.model.stack import discover
from coreprune.priors.data import Data
from coreprune.priors.gaussian import Gaussian

F64 = torch.float64


def inputs(count: int = 300, d: int = 6) -> Tensor:
    x = torch.randn(count, d, generator=seeded(0), dtype=F64)
    return x * torch.linspace(0.2, 2, d, dtype=F64) + x[:, :1].square()


def law(prior: Data, model: nn.Module, name: str, now: dict[str, Tensor] | None = None):
    found, tensors = discover(model), model.state_dict()
    site = next(site for site in found.sites if site.name == name)
    if prior.sequential:
        return prior.law(model, site, tensors, now or tensors)
    return prior.laws(model, found.sites, tensors)[name]


def moments(h: Tensor) -> tuple[Tensor, Tensor]:
    c = h - h.mean(0)
    return h.mean(0), c.T @ c / len(h)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize(("name", "upto"), [("0", 2), ("2", 4)])
def test_moments_of_the_dense_network(sequential, name, upto):
    model, x = lenet_like(dtype=F64), inputs()
    found = law(Data(x.split(37), sequential), model, name)
    mean, spread = moments(model[:upto](x).detach())
    torch.testing.assert_close(found.moments.mean, mean)
    torch.testing.assert_close(found.moments.covariance, spread)


def test_sequential_sees_the_cut_network_and_the_dense_target():
    model, x = lenet_like(dtype=F64), inputs()
    now = dict(model.state_dict())
    now["0.weight"] = now["0.weight"] * 0.7
    found = law(Data(x.split(37)), model, "2", now)
    dense = model[:4](x).detach()
    cut = lenet_like(dtype=F64)
    cut.load_state_dict(now)
    joint = moments(torch.cat([dense, cut[:4](x).detach()], 1))
    torch.testing.assert_close(torch.cat([found.target, found.moments.mean]), joint[0])
    torch.testing.assert_close(found.own, joint[1][:12, :12])
    torch.testing.assert_close(found.cross, joint[1][:12, 12:])
    torch.testing.assert_close(found.moments.covariance, joint[1][12:, 12:])


def test_sequential_sees_layers_of_another_width():
    model = lenet_like(dtype=F64)
    small = cp.prune(model, data=[inputs()], units={"0": 5, "2": 4})
    assert [m.out_features for m in small.model if isinstance(m, nn.Linear)] == [5, 4, 4]


@pytest.mark.parametrize("sequential", [True, False])
def test_reported_error_is_the_one_on_the_data(sequential):
    """One site: no sampling error at all, it is the same data."""
    model, x = lenet_like(dtype=F64), inputs()
    small = cp.prune(model, prior=Data(x.split(50), sequential), units={"2": 5})
    with torch.no_grad():
        y, cut = model(x), small.model(x)
    known = small.plan.cuts[0].evidence
    assert known["mean_square"] == pytest.approx(float((y - cut).square().sum(1).mean()), rel=1e-6)
    assert known["output_variance"] == pytest.approx(float(y.var(0, unbiased=False).sum()), rel=1e-9)
    assert small.plan.recipe["data_used"]


def test_no_weights_do_better_on_the_data():
    """The last layer refitted by least squares on the very data ends where the plan says."""
    model, x = lenet_like(dtype=F64), inputs()
    small = cp.prune(model, data=[x], units={"2": 5})
    with torch.no_grad():
        h = torch.cat([small.model[:4](x), torch.ones(len(x), 1, dtype=F64)], 1)
        y = model(x)
        best = (y - h @ torch.linalg.lstsq(h, y).solution).square().sum(1).mean()
        ours = (y - small.model(x)).square().sum(1).mean()
    assert float(ours) <= float(best) * (1 + 1e-6) + 1e-12


def test_data_beat_a_prior_that_is_wrong():
    model, x = lenet_like(dtype=F64), inputs()

    def gap(**prior) -> float:
        small = cp.prune(model, units={"0": 8, "2": 6}, **prior).model
        with torch.no_grad():
            return float((model(x) - small(x)).square().mean())

    assert gap(data=[x]) < gap(prior=Gaussian(std=3.0))


@pytest.mark.parametrize("wrap", [tuple, list], ids=["tuple", "list"])
def test_batches_of_inputs_and_labels(wrap):
    model, x = lenet_like(), inputs().float()
    pairs = [wrap((part, torch.zeros(len(part)))) for part in x.split(50)]
    torch.testing.assert_close(
        law(Data(pairs), model, "0").moments.mean, law(Data(x.split(50)), model, "0").moments.mean
    )
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=50)
    torch.testing.assert_close(law(Data(loader), model, "0").moments.mean, law(Data([x]), model, "0").moments.mean)


def test_one_pass_reads_the_loader_once_for_all_sites():
    class Counted:
        reads = 0

        def __iter__(self):
            self.reads += 1
            return iter(inputs().float().split(100))

    once, again = Counted(), Counted()
    cp.prune(lenet_like(), prior=Data(once, sequential=False), units={"0": 5, "2": 4})
    assert once.reads == 1
    cp.prune(lenet_like(), prior=Data(again), units={"0": 5, "2": 4})
    assert again.reads == 2


def test_an_iterator_serves_one_pass():
    iterator = iter(inputs().float().split(100))
    small = cp.prune(lenet_like(), prior=Data(iterator, sequential=False), units={"0": 5, "2": 4})
    assert small.model[0].out_features == 5


def test_an_exhausted_iterator_is_refused_with_what_to_do():
    model = lenet_like()
    with pytest.raises(InvalidInputError, match="more than once"):
        cp.prune(model, prior=Data(iter(inputs().float().split(100))), units={"0": 5, "2": 4}, inplace=True)
    assert equal_states(model, lenet_like())


def test_one_prior_for_two_networks_does_not_mix_them_up():
    """The measured moments are those of the network at hand, also where a `Data` is used again."""
    prior, x = Data([inputs()], sequential=False), inputs()
    for seed in (0, 1):
        model = lenet_like(seed, F64)
        torch.testing.assert_close(law(prior, model, "0").moments.mean, model[:2](x).detach().mean(0))


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "no inputs"),
        ([torch.zeros(0, 6)], "no inputs"),
        ([torch.zeros(4, 5)], "do not fit the model"),
        (["text"], "a str"),
        ([{"x": torch.zeros(4, 6)}], "a dict"),
        ([[]], "yield"),
        ([torch.full((4, 6), float("nan"))], "NaN or infinite"),
        ([torch.full((4, 6), float("inf"))], "NaN or infinite"),
    ],
    ids=str,
)
def test_refusals(sequential, loader, message):
    model = lenet_like()
    with pytest.raises(InvalidInputError, match=message):
        cp.prune(model, prior=Data(loader, sequential), units={"0": 5}, inplace=True)
    assert equal_states(model, lenet_like())


@pytest.mark.parametrize("sequential", [True, False])
def test_modes_buffers_gradients_and_hooks_are_untouched(sequential):
    model = lenet_like()
    model.insert(2, nn.Dropout(0.5))
    model.register_buffer("steps", torch.tensor(3))
    model.train()
    model[3].eval()
    modes = [m.training for m in model.modules()]
    twin = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    small = cp.prune(model, prior=Data([inputs().float()], sequential), units={"0": 5})
    assert [m.training for m in model.modules()] == modes
    assert [m.training for m in small.model.modules()] == modes
    assert all(torch.equal(tensor, twin[name]) for name, tensor in model.state_dict().items())
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in [*model.modules(), *small.model.modules()])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())  # dropout is off while measuring


def test_images_are_flattened_by_the_model_itself():
    model = nn.Sequential(nn.Flatten(), *lenet_like())
    x = inputs().float().reshape(-1, 1, 2, 3)
    small = cp.prune(model, x[:2], data=[x], units={"1": 5})
    assert small.model[1].out_features == 5


def test_sequences_are_batches():
    """(batch, positions, features): each position is a sample."""
    model, x = lenet_like(dtype=F64), inputs()
    flat, deep = (law(Data([v]), model, "0").moments for v in (x, x.reshape(10, 30, 6)))
    torch.testing.assert_close(flat.covariance, deep.covariance)


def test_a_gaussian_sample_gives_what_the_gaussian_prior_gives():
    """200,000 inputs: the law measured agrees with the closed form, and so does the error of any cut."""
    model = lenet_like(dtype=F64)
    x = 0.3 + 0.9 * torch.randn(200_000, 6, generator=seeded(5), dtype=F64)
    measured = law(Data([x]), model, "0")
    plan = cp.plan(model, units={"0": 7}, prior=Gaussian(mean=0.3, std=0.9))
    coreset = plan.cuts[0].coresets[0]
    error, _ = residual_energy(model[2].weight.detach(), measured, coreset)
    assert float(error.sum()) == pytest.approx(plan.cuts[0].evidence["mean_square"], rel=0.05)
