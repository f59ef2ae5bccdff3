"""Images matched to BatchNorm statistics: they come near, they follow the seed, and the network is left alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor, nn
from torch.nn import functional as F

from coreprune.errors import InvalidInputError
from coreprune.priors.matched import Matched, matches

FEW = Matched(count=6, steps=5, together=4)


def pictures(count: int, seed: int, side: int = 12) -> Tensor:
    """Smooth images whose channels have means and scales of their own and go together."""
    g = seeded(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=g)
    mixed = torch.einsum("oc,nchw->nohw", torch.randn(3, 3, generator=seeded(9)), coarse)
    smooth = F.interpolate(mixed, (side, side), mode="bilinear", align_corners=False)
    return smooth * torch.tensor([0.5, 1.0, 2.0])[:, None, None] + torch.tensor([1.0, -0.5, 0.2])[:, None, None]


def trained(seed: int = 0) -> nn.Sequential:
    """Random filters whose BatchNorms hold the statistics of 512 such images, exactly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 10, 3, bias=False), nn.BatchNorm2d(10, momentum=None), nn.ReLU(),
            nn.Conv2d(10, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8, momentum=None), nn.ReLU(),
            nn.Conv2d(8, 4, 1),
        )  # fmt: skip
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.weight.copy_(0.5 + torch.rand(norm.num_features, generator=seeded(1)))
            norm.bias.copy_(0.3 * torch.randn(norm.num_features, generator=seeded(2)))
        model.train()
        model(pictures(512, 1))
    return model.eval()


def seen(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Every BatchNorm with mean and variance of what it gets, each channel on its own."""
    found: list[tuple[nn.Module, Tensor, Tensor]] = []

    def look(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        each = [given[0][:, c].double().flatten() for c in range(given[0].shape[1])]
        means = torch.stack([one.mean() for one in each])
        found.append((norm, means, torch.stack([(one - one.mean()).square().mean() for one in each])))

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def loss(model: nn.Module, x: Tensor) -> float:
    """The formula, channel by channel."""
    layers = []
    for norm, means, variances in seen(model, x):
        each = []
        for m, v, mu, var in zip(means, variances, norm.running_mean, norm.running_var, strict=True):
            own = float(var) + norm.eps
            each.append((float(m) - float(mu)) ** 2 / own + (math.sqrt(float(v) / own) - 1) ** 2)
        layers.append(sum(each) / len(each))
    return sum(layers) / len(layers)


def drawn(model: nn.Module, prior: Matched, example: Any = None, seed: int = 0) -> Tensor:
    calls = prior.draw(model, torch.zeros(2, 3, 12, 12) if example is None else example, seed)
    assert all(len(args) == 1 and not kwargs for args, kwargs in calls)
    return torch.cat([args[0] for args, _ in calls])


# ---------------------------------------------------------------- they match


def test_the_loss_falls_step_by_step_to_a_small_part():
    model = trained()
    losses = [loss(model, drawn(model, Matched(count=16, steps=steps))) for steps in (1, 4, 16, 60)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0.3
    assert losses[-1] < 0.02 * losses[0]


def test_statistics_are_near_those_of_the_training_data_and_noise_has_others():
    model = trained()
    noise = torch.randn(64, 3, 12, 12, generator=seeded(0))
    images = drawn(model, Matched(count=64))
    for x, near in ((images, True), (noise, False)):
        for norm, m, v in seen(model, x):
            off = (m - norm.running_mean).abs() / norm.running_var.sqrt()
            ratio = (v / norm.running_var).sqrt()
            assert (float(off.max()) < 0.25) == near
            assert (float((ratio - 1).abs().max()) < 0.25) == near


def test_hidden_units_are_nearer_to_those_of_pictures_than_noise_makes_them():
    """What no statistic holds, the covariance between channels, comes nearer too."""
    model = trained()

    def covariance(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cov(model[:6](x).transpose(0, 1).flatten(1).double())

    goal, images = covariance(pictures(256, 5)), drawn(model, Matched(count=64))
    noise = torch.randn(64, 3, 12, 12, generator=seeded(0))
    assert float((covariance(images) - goal).norm()) < 0.7 * float((covariance(noise) - goal).norm())


def test_images_that_agree_already_stay_where_they_are():
    """The statistics of the very noise it starts from: the loss is zero, and so is its slope but for rounding."""
    model = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5, momentum=None))
    noise = torch.randn(8, 3, 6, 6, generator=seeded(4))
    with torch.no_grad():
        model.train()(noise)
    n = noise.numel() / 3
    model[1].running_var *= (n - 1) / n  # training holds the unbiased variance
    model[1].running_var -= model[1].eps
    found = drawn(model.eval(), Matched(count=8, steps=1, rate=1e-4), torch.zeros(1, 3, 6, 6), seed=4)
    assert loss(model, found) < 1e-6
    torch.testing.assert_close(found, noise, rtol=0, atol=2e-4)


def test_steps_grow_shorter_in_a_straight_line(monkeypatch):
    rates: list[float] = []

    class Watched(torch.optim.Adam):
        def step(self, closure: Any = None) -> None:
            rates.extend(group["lr"] for group in self.param_groups)
            super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    drawn(trained(), Matched(count=2, steps=4, rate=0.2, std=3.0))
    assert rates == pytest.approx([0.6, 0.45, 0.3, 0.15])


def test_it_starts_from_noise_of_the_mean_and_deviation_given():
    prior = Matched(count=40, steps=1, rate=1e-9, mean=3.0, std=0.5, together=40)
    noise = torch.randn(40, 3, 12, 12, generator=seeded(7))
    torch.testing.assert_close(drawn(trained(), prior, seed=7), 0.5 * noise + 3, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- the seed


def test_the_seed_decides_every_bit_and_nothing_else_does():
    model = trained()
    first = drawn(model, FEW, seed=3)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert torch.equal(drawn(model, FEW, seed=3), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(drawn(model, FEW, seed=4), first)
    assert len(first.flatten(1).unique(dim=0)) == 6


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize("count,together,rows", [(6, 4, [4, 2]), (8, 4, [4, 4]), (3, 64, [3]), (1, 1, [1])])
@pytest.mark.parametrize("own", [1, 2])
def test_there_are_as_many_images_as_were_asked(count, together, rows, own):
    calls = Matched(count=count, steps=2, together=together).draw(trained(), torch.zeros(own, 3, 12, 12), 0)
    assert [args[0].shape for args, _ in calls] == [(n, 3, 12, 12) for n in rows]


class Gated(nn.Module):
    """An image, a scale for each image, a number, a mask that is not of the batch, and an option."""

    def forward(self, scale: Tensor, by: float, image: Tensor, mask: Tensor | None = None, *, on: bool = False):
        assert on and by == 2.5 and scale.shape[0] == image.shape[0] and mask is not None and mask.shape == (5,)
        return self.out(self.norm(self.conv(image * scale[:, None, None, None] * by))) * mask[:, None, None]

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)


def test_what_goes_with_the_images_follows_them():
    scale, mask = torch.tensor([1, 2, 3]), torch.ones(5, dtype=torch.bool)
    example = ((scale, 2.5), {"image": torch.zeros(3, 3, 8, 8), "mask": mask, "on": True})
    for (args, kwargs), rows in zip(
        Matched(count=12, steps=2, together=7).draw(Gated(), example, 0), [7, 5], strict=True
    ):
        assert torch.equal(args[0], torch.tensor([1, 2, 3, 1, 2, 3, 1])[:rows]) and args[1] == 2.5
        assert kwargs["image"].shape == (rows, 3, 8, 8) and kwargs["mask"] is mask and kwargs["on"] is True
        assert not kwargs["image"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32], ids=str)
def test_images_have_the_precision_of_the_example(dtype):
    model = trained().to(dtype)
    (args, _), *_ = FEW.draw(model, torch.zeros(2, 3, 12, 12, dtype=dtype), 0)
    assert args[0].dtype == dtype
    assert {p.dtype for p in model.parameters()} == {dtype}
    model(args[0])


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("train", [True, False])
def test_the_model_is_left_as_it_was(train):
    model = trained().train(train)
    model.insert(2, nn.Dropout(0.5))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    modes, wants = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():  # as a caller may have it
        first = drawn(model, FEW)
    assert torch.equal(drawn(model, FEW), first)
    assert [m.training for m in model.modules()] == modes and [p.requires_grad for p in model.parameters()] == wants
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)),
    ],
    ids=["group", "forgetful", "instance"],
)
def test_networks_that_remember_nothing_are_told_so(model):
    assert not matches(model)
    with pytest.raises(InvalidInputError, match="Sequential has no BatchNorm with running statistics: give another"):
        FEW.draw(model, torch.zeros(2, 3, 8, 8), 0)


@pytest.mark.parametrize(
    "norm,shape", [(nn.BatchNorm1d, (5,)), (nn.BatchNorm1d, (5, 7)), (nn.BatchNorm3d, (5, 3, 3, 3))]
)
def test_every_sort_of_batch_norm_will_do(norm, shape):
    model = nn.Sequential(norm(5)).eval()
    model[0].running_mean.fill_(2.0)
    assert matches(model)
    calls = Matched(count=32, steps=60).draw(model, torch.zeros(2, *shape), 0)
    x = torch.cat([args[0] for args, _ in calls])
    assert x.shape == (32, *shape) and float((x.transpose(0, 1).flatten(1).mean(1) - 2).abs().max()) < 0.2


@pytest.mark.parametrize(
    "prior",
    [
        Matched(count=0),
        Matched(steps=0),
        Matched(together=0),
        Matched(rate=0.0),
        Matched(rate=math.nan),
        Matched(std=0.0),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_meant_are_refused(prior):
    with pytest.raises(InvalidInputError, match="give positive numbers"):
        prior.draw(trained(), torch.zeros(2, 3, 12, 12), 0)


def test_inputs_without_an_image_are_told():
    with pytest.raises(InvalidInputError, match="hold no image"):
        FEW.draw(trained(), torch.zeros(2, 3, 12, 12, dtype=torch.long), 0)


class Blocked(nn.Sequential):
    """Lets no gradient through."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


def test_networks_that_let_no_gradient_through_are_told():
    model = Blocked(*trained())
    with pytest.raises(InvalidInputError, match=r"cannot be matched for Blocked \(.+\): give prior='noise'") as caught:
        FEW.draw(model, torch.zeros(2, 3, 12, 12), 0)
    assert "\n" not in str(caught.value)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_images_that_run_away_are_told():
    with pytest.raises(InvalidInputError, match="ran away to infinity: give a smaller rate"):
        Matched(count=2, steps=3, rate=1e30).draw(trained(), torch.zeros(2, 3, 12, 12), 0)


# ---------------------------------------------------------------- what is said


def test_progress_only_rises_and_ends_at_the_end():
    calls: list[tuple[int, int, str]] = []
    Matched(count=10, steps=4, together=4).draw(trained(), torch.zeros(2, 3, 12, 12), 0, lambda *c: calls.append(c))
    done = [call[0] for call in calls]
    assert done == sorted(done) and done[0] == 0 and done[-1] == 12
    assert {call[1:] for call in calls} == {(12, "matching images")}


def test_the_prior_in_words():
    assert Matched(count=5, steps=7).said == "5 images matched to the BatchNorm statistics in 7 steps from noise"
