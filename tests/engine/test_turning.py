"""Refined cuts of captured networks: the error falls on inputs nobody descended on, and the plan says all of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import coreprune as cp
from coreprune.engine import alone, descent
from coreprune.engine.alone import Alone
from coreprune.engine.kept import Kept, works
from coreprune.engine.observe import as_seen
from coreprune.engine.runner import Steps, part_between, run
from coreprune.engine.turning import turned
from coreprune.errors import InvalidInputError
from coreprune.model.discover import discover
from coreprune.model.tensors import tensors_of


class Gated(nn.Module):
    """Two gated layers with a residual stream around them."""

    def __init__(self, units: int = 24, width: int = 12, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.ModuleList(nn.Linear(width, units, bias=bias) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(width, units, bias=bias) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(units, width, bias=bias) for _ in range(2))

    def forward(self, x):
        for gate, up, down in zip(self.gate, self.up, self.down, strict=True):
            x = x + down(nn.functional.silu(gate(x)) * up(x))
        return x


@pytest.fixture
def gated():
    torch.manual_seed(0)
    return Gated().eval()


def loader(seed=1, count=40, width=12):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 16, width, generator=generator) for _ in range(count)]


def cut(model, method, x, **more):
    return cp.prune(model, x[0], remove={"*": 0.4}, method=method, data=x, **more)


def error(model, small, x):
    with torch.no_grad():
        pairs = [(model(one), small(one)) for one in x]
    return sum(float((a - b).square().sum()) for a, b in pairs)


@pytest.mark.parametrize("bias", [False, True])
def test_the_error_falls_on_inputs_that_nobody_descended_on(bias, monkeypatch):
    monkeypatch.setattr(alone, "EPOCHS", 20)  # inputs are few here
    torch.manual_seed(0)
    model, fresh = Gated(bias=bias).eval(), loader(seed=9)
    before, after = (error(model, cut(model, method, loader()).model, fresh) for method in ("kernel", "refined"))
    assert after < 0.9 * before


def test_units_that_are_kept_are_those_of_the_kernel(gated):
    kernel, refined = (cut(gated, method, loader()).plan for method in ("kernel", "refined"))
    assert [c.kept.tolist() for c in kernel.cuts] == [c.kept.tolist() for c in refined.cuts]
    for name in refined.shifts:
        assert refined.shifts[name].shape == gated.state_dict()[name].shape


def test_what_goes_is_not_moved_and_stands_for_nothing(gated):
    plan = cut(gated, "refined", loader()).plan
    for cut_ in plan.cuts:
        gone = torch.ones(24, dtype=torch.bool)
        gone[cut_.kept] = False
        assert not plan.shifts[cut_.site.incoming.tensor][gone].any()
        assert not plan.shifts[cut_.site.readers[0].weight.tensor][:, gone].any()
        assert bool((cut_.coresets[0].mix == 1).all()) and cut_.coresets[0].offset is None


def test_the_plan_on_disk_makes_the_same_network(gated, tmp_path):
    small = cut(gated, "refined", loader())
    small.plan.save(tmp_path / "plan")
    again = cp.apply(gated, cp.Plan.load(tmp_path / "plan"))
    for name, tensor in small.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_the_same_call_gives_the_same_bits_and_leaves_the_model(gated):
    before = {name: tensor.clone() for name, tensor in gated.state_dict().items()}
    one, two = (cut(gated, "refined", loader(), seed=3).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(before[name], tensor) for name, tensor in gated.state_dict().items())


@pytest.mark.parametrize("rate", [0.0, 3.0])
def test_a_site_whose_error_does_not_fall_stays_as_the_closed_form_left_it(gated, monkeypatch, rate):
    monkeypatch.setattr(descent, "RATE", rate)
    kernel, same = (cut(gated, method, loader()).model.state_dict() for method in ("kernel", "refined"))
    assert all(torch.equal(kernel[name], same[name]) for name in kernel)


def test_the_error_that_is_told_is_the_one_of_what_was_held_back(gated):
    """Every tenth input, recomputed from the cut network's own layers."""
    x = loader()
    small = cut(gated, "refined", x)
    held = torch.cat(x)[9::10]
    silu = nn.functional.silu
    with torch.no_grad():
        (y, z) = (m.down[0](silu(m.gate[0](held)) * m.up[0](held)).flatten(0, 1) for m in (gated, small.model))
        weight = 1 / y.square().sum(1).clamp(min=float(y.square().sum(1).median()))
        expected = float(((y - z).square().sum(1) * weight).mean())
    evidence = small.plan.cuts[0].evidence
    assert evidence["turned"]["after"] == pytest.approx(expected, rel=0.05)  # products may be of bfloat16
    assert evidence["turned"]["after"] < evidence["turned"]["before"]
    assert evidence["relative_error"] == pytest.approx(float((y - z).norm() / y.norm()), rel=0.05)


def test_an_input_of_massive_energy_weighs_as_one():
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1e6, 0.0]])
    z = y + torch.tensor([[0.1, 0.0], [0.0, 0.0], [1e5, 0.0]])
    found = descent.weighed(z, y, -1, descent.median([y], -1))
    assert float(found) == pytest.approx((0.01 + 0 + 0.01) / 3, rel=1e-5)


def test_weights_in_bfloat16_turn_and_stay_in_it(gated):
    model = gated.to(torch.bfloat16)
    x = [one.to(torch.bfloat16) for one in loader()]
    small = cut(model, "refined", x)
    assert {p.dtype for p in small.model.parameters()} == {torch.bfloat16}
    assert all("turned" in one.evidence for one in small.plan.cuts)


def test_convolutions_without_norms_turn_where_no_other_site_shares_a_tensor():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(12, 4, 3)).eval()
    x = [torch.randn(8, 3, 12, 12) for _ in range(8)]
    small = cut(model, "refined", x)
    assert ["turned" in one.evidence for one in small.plan.cuts] == [True, False, True]
    assert {name.split(".")[0] for name in small.plan.shifts} == {"0", "2", "4", "6"}


def test_a_network_in_which_nothing_can_turn_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x):
            h = self.a(x).relu()
            return self.b(h) + self.b(h.square())

    with pytest.raises(InvalidInputError, match=r"there is nothing to turn.*use method='kernel'"):
        cp.prune(Twice().eval(), torch.zeros(2, 3, 8, 8), remove={"*": 0.5}, method="refined", prior="noise")


def test_few_inputs_are_refused(gated):
    with pytest.raises(InvalidInputError, match="20 inputs or more"):
        cut(gated, "refined", loader(count=2))


# ---------------------------------------------------------------- the parts it stands on


def test_a_part_gives_what_the_whole_gives(gated):
    x = torch.randn(2, 16, 12)
    found, tensors = discover(gated, x, "export"), tensors_of(gated)
    site = found.sites[1]
    ((tap,),) = found.taps[site.name]
    names = {site.incoming.tensor, site.readers[0].weight.tensor, "up.1.weight"}
    part = part_between(found.graphs[0], names, [tap.node])
    assert part is not None and len(part.incoming) == 1 and set(part.states) == names
    ((value,),) = (
        one.values() for one in Steps(found.graphs[0], tensors, [((x,), {})], [part.incoming]).values(part.incoming)
    )
    with torch.no_grad():
        expected = gated.down[1](nn.functional.silu(gated.gate[1](value)) * gated.up[1](value))
        (given,) = part(tensors, {part.incoming[0]: value})
    assert torch.allclose(given, expected, atol=1e-6)


def test_a_part_does_not_hold_together_where_something_else_uses_it(gated):
    """What the first layer adds to is also added to what the second one gives."""
    found = discover(gated, torch.randn(2, 16, 12), "export")
    ((tap,),) = found.taps[found.sites[1].name]
    assert part_between(found.graphs[0], {"gate.0.weight"}, [tap.node]) is None


def test_passes_side_by_side_give_the_values_of_one_after_the_other(gated):
    x, found, tensors = loader(count=3), discover(gated, torch.randn(8, 16, 12), "export"), tensors_of(gated)
    taps = [found.taps[site.name][0][0] for site in found.sites]
    calls = [((one,), {}) for one in x]
    seen = []
    for call in calls:
        hook = lambda tap, value: seen.append(as_seen(value, tap).flatten(1))  # noqa: E731
        run(found.graphs[0], tensors, call, taps=taps, hook=hook)
    steps = Steps(found.graphs[0], tensors, calls, [[tap.operand] for tap in taps])
    by_tap = [steps.values([tap.operand]) for tap in taps]
    for i in range(3):
        for j, tap in enumerate(taps):
            assert torch.equal(as_seen(by_tap[j][i][tap.operand], tap).flatten(1), seen[2 * i + j])
    assert all(not held for _, held in steps._passes)


def test_sites_are_turned_whatever_their_order(gated):
    x = loader()
    found, tensors = discover(gated, x[0], "export"), tensors_of(gated)
    cuts = cut(gated, "kernel", x).plan.cuts
    calls = [((one,), {}) for one in x]
    one, two = (turned(found, tensors, order, calls) for order in (cuts, cuts[::-1]))
    assert [c.site.name for c in two.cuts] == [c.site.name for c in cuts[::-1]]
    assert all(torch.equal(one.shifts[name], two.shifts[name]) for name in one.shifts)


def test_one_input_in_ten_is_held_back_and_no_other():
    passes = [{"x": torch.zeros(7, 2), "mask": torch.zeros(1, 2)}, {"x": torch.zeros(18, 2)}]
    learnt, back = descent.split(passes)
    assert [rows.tolist() for _, rows in back] == [[2, 12]]
    assert sorted(len(rows) for _, rows in learnt) == [7, 16]
    assert not set(learnt[1][1].tolist()) & {2, 12}


class Centred(Gated):
    """The same, but what a layer's units give is about their mean over the sequence."""

    def forward(self, x):
        for gate, up, down in zip(self.gate, self.up, self.down, strict=True):
            h = nn.functional.silu(gate(x)) * up(x)
            x = x + down(h - h.mean(1, keepdim=True))
        return x


@pytest.mark.parametrize("kind,alone", [(Gated, True), (Centred, False)])
def test_positions_are_rows_of_their_own_where_that_changes_nothing(kind, alone):
    torch.manual_seed(0)
    model, x = kind().eval(), loader()
    found, tensors = discover(model, x[0], "export"), tensors_of(model)
    work = works(found, tensors, cut(model, "kernel", x).plan.cuts)[0]
    values = Steps(found.graphs[0], tensors, [((one,), {}) for one in x], [work.part.incoming]).values(
        work.part.incoming
    )
    site = Alone(Kept(found, tensors, work), values)
    held = torch.cat(x)[9::10]
    (given,) = site.back[0][0].values()
    assert len(site.back) == (1 if alone else 32)
    if alone:
        assert torch.equal(given, held.flatten(0, 1)) and len(site.learnt[0][1]) == 288 * 16
    assert all("turned" in one.evidence for one in cut(model, "refined", x).plan.cuts)
