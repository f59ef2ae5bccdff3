"""Refined cuts of convolutions with BatchNorms: what is compared behind them, and what follows what."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded
from torch import nn
from torch.nn import functional as F

import coreprune as cp
from coreprune.engine.correction import as_cut
from coreprune.engine.kept import works
from coreprune.engine.runner import Steps
from coreprune.engine.together import put, windows
from coreprune.engine.turning import follows, turned
from coreprune.model.discover import discover
from coreprune.model.tensors import tensors_of

WIDTH = 12


class Block(nn.Module):
    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(WIDTH, WIDTH, 3, padding=padding, bias=False) for _ in range(2))
        self.norm_a, self.norm_b = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)
        self.crop = 2 - 2 * padding

    def forward(self, x):
        inner = self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))
        return F.relu(inner + (x[:, :, self.crop : -self.crop, self.crop : -self.crop] if self.crop else x))


class Residual(nn.Module):
    """Three blocks, of which every first convolution can be cut."""

    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, WIDTH, 3), nn.ModuleList(Block(padding) for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def ends(self, x):
        found = [F.relu(self.stem(x))]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found[1:]

    def forward(self, x):
        return self.head(self.ends(x)[-1].mean((2, 3)))


def loader(seed=1, count=12):
    return [torch.randn(8, 3, 18, 18, generator=seeded(100 * seed + i)) for i in range(count)]


@pytest.fixture(params=[1, 0], ids=["padded", "bare"])
def model(request):
    torch.manual_seed(0)
    net = Residual(request.param)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = None
    with torch.no_grad():
        for x in loader():
            net(x)
    return net.eval()


def cut(model, method, x, **more):
    return cp.prune(model, x[0], remove={"blocks.*": 0.5}, kinds=["conv"], method=method, **{"data": x} | more)


def test_the_error_falls_on_inputs_that_nobody_descended_on(model):
    fresh = torch.cat(loader(seed=9))

    def error(method):
        with torch.no_grad():
            return float((cut(model, method, loader()).model(fresh) - model(fresh)).square().mean())

    assert error("refined") < 0.8 * error("kernel")


def test_what_shifts_the_outputs_behind_a_reader_turns_too_and_statistics_do_not(model):
    plan = cut(model, "refined", loader()).plan
    assert all("turned" in one.evidence for one in plan.cuts)
    kernel = cut(model, "kernel", loader()).plan
    for i in range(3):
        assert plan.shifts[f"blocks.{i}.norm_b.bias"].any()
        for name in (f"blocks.{i}.norm_a.running_var", f"blocks.{i}.norm_b.running_var"):
            assert torch.equal(plan.shifts.get(name, torch.zeros(1)), kernel.shifts.get(name, torch.zeros(1)))


def test_a_window_follows_what_the_cut_network_brings(model):
    """Behind a block that was turned, the pass of dense shape has the values of the network that comes out."""
    x = loader()
    found, tensors = discover(model, x[0], "export"), tensors_of(model)
    plan = cut(model, "kernel", x).plan
    made = [one for work in works(found, tensors, plan.cuts) for one in windows(found.graphs[0], [work], 1)]
    assert len(made) == 3 and all(one.part is not None for one in made)
    new = turned(found, tensors, plan.cuts, [((one,), {}) for one in x], shifts=plan.shifts, following=True)
    small = cut(model, "refined", x).model
    start = tensors | {name: tensors[name] + shift.to(tensors[name]) for name, shift in plan.shifts.items()}
    names = [made[0].part.incoming, *(tuple(node.name for node in one.part.last) for one in made)]
    steps = Steps(found.graphs[0], start | as_cut(plan.cuts, start), [((x[0],), {})], names)
    steps.values(names[0])
    steps.put(put(tensors, [new]))
    with torch.no_grad():
        ends = small.ends(x[0])
    for own, end in zip(names[1:], ends, strict=True):
        (given,) = steps.values(own)
        value = given[own[0]]
        expected = end if value.dim() == 4 else end.mean((2, 3))  # the last is pooled first
        assert torch.allclose(value, expected, atol=1e-4)


def test_on_noise_every_site_turns_on_its_own_and_statistics_follow(model):
    small = cut(model, "refined", loader(), data=None, prior=cp.Gaussian())
    assert any("turned" in one.evidence for one in small.plan.cuts)
    assert all("sites" not in one.evidence.get("turned", {}) for one in small.plan.cuts)
    assert any(name.endswith("running_var") for name in small.plan.shifts)


def test_where_another_cut_reaches_a_convolution_every_site_turns_on_its_own(model):
    """The stream is cut too, which the first convolutions read."""
    small = cp.prune(model, loader()[0], remove={"*": 0.25}, method="refined", data=loader())
    assert not follows(small.plan.cuts, noise=False)
    assert any("turned" in one.evidence for one in small.plan.cuts)
    assert all("sites" not in one.evidence.get("turned", {}) for one in small.plan.cuts)
    alone = cut(model, "refined", loader()).plan.cuts
    assert follows(alone, noise=False) and not follows(alone, noise=True)


def test_the_plan_on_disk_makes_the_same_network(model, tmp_path):
    small = cut(model, "refined", loader())
    small.plan.save(tmp_path / "plan")
    again = cp.apply(model, cp.Plan.load(tmp_path / "plan"), loader()[0])
    for name, tensor in small.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
