"""BatchNorm statistics after a cut, against what the cut network itself gets; exact cases; and what goes without them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from helpers import equal_states, seeded
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import coreprune as cp
from coreprune.engine.correction import FEWEST, _small, as_cut, corrections
from coreprune.engine.equivalence import check
from coreprune.engine.inputs import inputs
from coreprune.engine.made import Made
from coreprune.engine.norms import Norms
from coreprune.engine.runner import run
from coreprune.errors import CheckpointError, UnsupportedModelError
from coreprune.maths.layer import Coreset
from coreprune.model.discover import discover
from coreprune.model.tensors import tensors_of
from coreprune.plan import Cut
from coreprune.priors.gaussian import Gaussian
from coreprune.surgery.edits import edited

F64 = torch.float64


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and eval mode, with statistics and scales of all sizes."""
    g = seeded(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=g, dtype=F64)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.square())
            elif "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.3 * noise)
            elif value.dim() > 1:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.5 * noise)
    return model


class Padded(nn.Module):
    """Constants have no place: both readers pad with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.b, self.norm2 = nn.Conv2d(10, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c, self.norm3 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x)).relu()
        return self.norm3(self.c(self.norm2(self.b(h)).relu()))


class Taking(nn.Module):
    """Constants go into running means, as the readers have neither bias nor padding; one layer has no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 10, 3, bias=False), nn.BatchNorm2d(10)
        self.b, self.norm2 = nn.Conv2d(10, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.c, self.d = nn.Conv2d(8, 7, 1), nn.Conv2d(7, 6, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.b(self.norm(self.a(x)).relu())).relu()
        return self.norm3(self.d(self.c(h).relu()))


class Stream(nn.Module):
    """Two blocks on a residual stream, with a depthwise convolution, and a Linear behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.norm1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.norm2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.norm3 = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)
        self.out, self.norm4 = nn.Linear(8 * 16, 9), nn.BatchNorm1d(9)
        self.last = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm0(self.stem(x)).relu()
        h = (h + self.norm2(self.b(self.norm1(self.a(h)).relu()))).relu()
        h = self.norm3(self.deep(h)).relu()
        return self.last(self.norm4(self.out(h.flatten(1))).relu())


class Attends(nn.Module):
    """Heads, a gated layer and two readers of one site, none with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(8, 24), nn.Linear(8, 8)
        self.gate, self.up, self.down = nn.Linear(8, 10), nn.Linear(8, 10), nn.Linear(10, 8)
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 3), nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        h = self.a(x)
        return self.b(h.relu()), self.c(h.tanh())


NETS = {"padded": (Padded, (4, 3, 6, 6)), "taking": (Taking, (4, 3, 8, 8)), "stream": (Stream, (4, 3, 6, 6))}
EVERY = {**NETS, "attends": (Attends, (2, 5, 8))}


def network(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = EVERY[name]
    return lively(make()), torch.randn(shape, generator=seeded(1), dtype=F64)


def by_hand(model: nn.Module, x: Tensor, cuts: Iterable[Cut], prior: Gaussian | None = None) -> cp.Plan:
    """A plan out of cuts, with the corrections that belong to it."""
    found, tensors, made = discover(model, x), tensors_of(model), tuple(cuts)
    batches = inputs(found.graphs[0], prior or Gaussian(), 0)
    return cp.Plan(made, {}, found.shapes, corrections(found, tensors, Made(made, tensors), batches))


def plain(plan: cp.Plan) -> cp.Plan:
    return replace(plan, shifts={})


# ---------------------------------------------------------------- brute force


def own_statistics(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of what every BatchNorm gets when all normalise each batch by itself, by hooks on the module.

    As in training, a BatchNorm's output has mean β and deviation |γ| √(σ²/(σ²+ε)).
    """
    got: dict[str, list[Tensor]] = {}

    def instead(name: str):
        def hook(norm: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> Tensor:
            x, var = given[0].transpose(0, 1), norm.running_var
            rows = x.flatten(1)
            got.setdefault(name, []).append(rows)
            m, v = rows.mean(1), rows.var(1, correction=0)
            y = (rows - m[:, None]) / v.sqrt()[:, None] * (norm.weight * (var / (var + norm.eps)).sqrt())[:, None]
            return (y + norm.bias[:, None]).reshape(x.shape).transpose(0, 1)

        return hook

    norms = {n: m for n, m in model.named_modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))}
    hooks = [norm.register_forward_hook(instead(name)) for name, norm in norms.items()]
    with torch.no_grad():
        for x in batches:
            model(x)
    for hook in hooks:
        hook.remove()
    every = {name: torch.cat(parts, 1) for name, parts in got.items()}
    return {name: (rows.mean(1), rows.var(1, correction=0)) for name, rows in every.items()}


def kept_channels(plan: cp.Plan, model: nn.Module, name: str) -> Tensor:
    for cut in plan.cuts:
        if any(at.tensor == f"{name}.running_mean" for at in cut.site.locations):
            return cut.kept
    return torch.arange(model.get_submodule(name).num_features)


BRUTE = [
    "padded",
    "stream",
    "taking",
]


@pytest.mark.parametrize("name", BRUTE)
def test_statistics_move_as_those_of_the_cut_network_do(name):
    """μ' = μ − c + (m' + c − m) σ/√v and σ'² = σ² v'/v, c the constants that a running mean has taken up."""
    model, x = network(name)
    plan = cp.plan(model, x, remove={"*": 0.5}, prior="noise")
    assert plan.shifts
    batches = [args[0] for args, _ in inputs(discover(model, x).graphs[0], Gaussian(), 0)]
    bare, small = cp.apply(model, plain(plan)).model, cp.apply(model, plan).model
    dense, cut = own_statistics(model, batches), own_statistics(bare, batches)
    moved = 0.0
    for norm, (m_cut, v_cut) in cut.items():
        kept = kept_channels(plan, model, norm)
        m, v = (value[kept] for value in dense[norm])
        mean, variance = (getattr(model.get_submodule(norm), f"running_{s}")[kept] for s in ("mean", "var"))
        own = bare.get_submodule(norm).running_mean  # μ − c
        expected = own + (m_cut + mean - own - m) * (variance / v).sqrt()
        found = small.get_submodule(norm)
        scale = float(variance.sqrt().max())
        torch.testing.assert_close(found.running_mean, expected, rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(found.running_var, variance * v_cut / v, rtol=1e-4, atol=0)
        moved = max(moved, float((found.running_var / variance - 1).abs().max()))
    assert moved > 0.1  # there was something to correct


@pytest.mark.parametrize("name", ["padded", "stream"])
def test_what_is_cut_gets_less_variance_first_of_all(name):
    """T is a projection of what it was measured on: one cut alone can only take variance from its readers' outputs."""
    model, x = network(name)
    site = "a"
    plan = cp.plan(model, x, units={site: 3}, prior="noise")
    behind = {"padded": "norm2", "stream": "norm2"}[name]
    variance = model.get_submodule(behind).running_var
    change = plan.shifts[f"{behind}.running_var"] / variance
    assert float(change.mean()) < -0.05 and float(change.max()) < 0.1
    assert f"{'norm' if name == 'padded' else 'norm1'}.running_var" not in plan.shifts


# ---------------------------------------------------------------- the dense network as the cut one


@pytest.mark.parametrize("name", EVERY)
def test_readers_of_dense_shape_compute_what_the_cut_network_does(name):
    model, x = network(name)
    plan = plain(cp.plan(model, x, remove={"*": 0.5}, prior="noise"))
    assert len(plan.cuts) > 1
    tensors = tensors_of(model)
    before = {key: value.clone() for key, value in tensors.items()}
    small = as_cut(plan.cuts, tensors)
    assert all(small[key].shape == tensors[key].shape for key in small)
    assert all(torch.equal(tensors[key], before[key]) for key in tensors)
    with torch.no_grad():
        ours, cut, dense = functional_call(model, small, (x,)), cp.apply(model, plan).model(x), model(x)
    triples = zip(*((one if isinstance(one, tuple) else (one,)) for one in (ours, cut, dense)), strict=True)
    for one, other, before_ in triples:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        assert float((before_ - other).abs().max()) > 1e-3


def test_units_that_stay_keep_their_places():
    model, x = network("padded")
    (cut,) = cp.plan(model, x, units={"a": 4}, method="magnitude").cuts
    weight = as_cut([cut], tensors_of(model))["b.weight"]
    gone = torch.ones(10, dtype=torch.bool)
    gone[cut.kept] = False
    assert torch.equal(weight[:, cut.kept], model.b.weight[:, cut.kept]) and not bool(weight[:, gone].any())


# ---------------------------------------------------------------- exact cases


@pytest.mark.parametrize("name", NETS)
def test_keeping_all_corrects_nothing(name):
    model, x = network(name)
    sites = discover(model, x).sites
    cuts = [
        Cut(s, tuple(Coreset(torch.arange(s.units), torch.ones(s.units, dtype=F64)) for _ in s.readers)) for s in sites
    ]
    assert by_hand(model, x, cuts).shifts == {}


def twins(name: str) -> tuple[nn.Module, Tensor, Cut]:
    """A network in which units 5 to 9 of the first layer repeat units 0 to 4, and the cut that joins them."""
    model, x = network(name)
    with torch.no_grad():
        for value in (
            model.a.weight,
            model.norm.weight,
            model.norm.bias,
            model.norm.running_mean,
            model.norm.running_var,
        ):
            value[5:] = value[:5]
    site = next(s for s in discover(model, x).sites if s.name == "a")
    eye = torch.eye(5, dtype=F64)
    return model, x, Cut(site, (Coreset(torch.arange(5), torch.cat([eye, eye])),))


@pytest.mark.parametrize("name", ["padded", "taking"])
def test_units_that_repeat_others_go_without_a_correction(name):
    model, x, cut = twins(name)
    plan = by_hand(model, x, [cut])
    for key, vector in plan.shifts.items():
        assert float(vector.abs().max()) < 1e-6 * float(model.state_dict()[key].abs().max())
    small = cp.apply(model, plan).model
    torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reader", [
    "bias", "running mean",
])  # fmt: skip
def test_units_that_are_constant_go_without_a_correction(reader):
    """What they were goes into a bias or a running mean, and the network is the same."""
    model, x = network("taking")
    with torch.no_grad():
        if reader == "bias":
            model.b.bias = nn.Parameter(torch.zeros(8, dtype=F64))
        model.norm.weight[5:], model.norm.bias[5:] = 0, torch.arange(1.0, 6.0).double()
    found = discover(model, x)
    site = next(s for s in found.sites if s.name == "a")
    assert site.readers[0].bias == {"bias": "b.bias", "running mean": "norm2.running_mean"}[reader]
    T, t = torch.eye(10, dtype=F64)[:, :5].contiguous(), torch.zeros(10, dtype=F64)
    t[5:] = model.norm.bias[5:].detach()
    plan = by_hand(model, x, [Cut(site, (Coreset(torch.arange(5), T, t),))])
    for key, vector in plan.shifts.items():
        assert float(vector.abs().max()) < 1e-4 * float(model.state_dict()[key].abs().max()), key
    torch.testing.assert_close(cp.apply(model, plan).model(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_channels_that_do_not_vary_are_left_alone(seed):
    """Sums in single precision must not be taken for variance."""
    model, x = network("padded")[0].float(), torch.randn(4, 3, 9, 9, generator=seeded(1))
    with torch.no_grad():
        model.norm2.weight[:4] = 0
        model.norm2.bias[:4] = 0.1 + torch.rand(4, generator=seeded(seed))
        model.c.padding, model.c.weight[:5, 4:] = (0, 0), 0
    site = next(s for s in discover(model, x).sites if s.name == "b")
    louder = Coreset(torch.arange(8), torch.full((8,), 1.1))
    plan = by_hand(model, x, [Cut(site, (louder,))])
    for key in ("norm3.running_mean", "norm3.running_var"):
        assert not bool(plan.shifts[key][:5].any()) and bool(plan.shifts[key][5:].all())


# ---------------------------------------------------------------- when there is nothing to say


def test_few_values_say_nothing():
    model, x = network("padded")
    found, tensors = discover(model, x), tensors_of(model)
    cuts = cp.plan(model, x, units={"a": 4}, method="magnitude").cuts
    batch = ((x,), {})
    cuts = Made(cuts, tensors)
    enough = -(-FEWEST // (len(x) * 36))
    assert corrections(found, tensors, cuts, [batch] * (enough - 1)) == {}
    assert corrections(found, tensors, cuts, [batch] * enough) != {}


def test_methods_without_a_law_correct_nothing():
    model, x = network("padded")
    assert cp.plan(model, x, units={"a": 4}, method="magnitude").shifts == {}
    assert cp.plan(model, x, units={"a": 4}, method="magnitude", reweight=True).shifts != {}


def test_networks_without_batch_norms_correct_nothing():
    model, x = network("attends")
    assert cp.plan(model, x, remove={"*": 0.5}, prior="noise").shifts == {}


def test_a_norm_that_is_used_twice_is_left_alone():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 6, 1)
            self.norm, self.norm1 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.b(self.a(x).relu())).relu()
            return self.norm1(self.norm(self.c(h)).relu())

    model = lively(Twice())
    plan = cp.plan(model, torch.randn(4, 3, 9, 9, generator=seeded(0), dtype=F64), units={"a": 3}, prior="noise")
    assert set(plan.shifts) == {"norm1.running_mean", "norm1.running_var"}


def test_the_model_and_the_random_numbers_of_others_are_untouched():
    model, x = network("stream")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    first = cp.plan(model.train(), x, remove={"*": 0.5}, prior="noise", seed=2).shifts
    again = cp.plan(model, x, remove={"*": 0.5}, prior="noise", seed=2).shifts
    assert all(torch.equal(first[key], again[key]) for key in again) and first.keys() == again.keys()
    assert model.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---------------------------------------------------------------- what it is good for


def trained(seed: int) -> nn.Module:
    """A padded network whose statistics are those of the images that it gets."""
    model = lively(Padded(), seed)
    for norm in (model.norm, model.norm2, model.norm3):
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        model.train()(torch.randn(256, 3, 6, 6, generator=seeded(seed + 50), dtype=F64))
    return model.eval()


@pytest.mark.parametrize("seed", range(3))
def test_without_the_correction_a_network_is_worse(seed):
    """Outputs have their mean and variance again, and a detector, which waits for large ones, finds more of them.

    The mean square error alone is no judge of it: that is least where outputs are shrunk.
    """
    model, x = trained(seed), torch.randn(256, 3, 6, 6, generator=seeded(seed + 90), dtype=F64)
    plan = cp.plan(model, x[:4], units={"a": 3, "b": 3}, prior="noise")
    mean, deviation = (v.detach()[:, None] for v in (model.norm3.bias, model.norm3.weight.abs()))
    with torch.no_grad():
        every = [m(x) for m in (model, cp.apply(model, plan).model, cp.apply(model, plain(plan)).model)]
    dense, found, without = ((one.transpose(0, 1).flatten(1) - mean) / deviation for one in every)
    for one, near in ((found, True), (without, False)):
        assert (abs(float(one.var(1).mean()) - 1) < 0.05) == near
        assert (float(one.mean(1).abs().max()) < 0.1) == near

    def score(one: Tensor) -> float:
        both, either = (one > 1.5) & (dense > 1.5), (one > 1.5).double() + (dense > 1.5).double()
        return float(2 * both.sum() / either.sum())

    assert score(found) > 1.2 * score(without)


# ---------------------------------------------------------------- the plan


def test_a_plan_with_corrections_survives_the_disk(tmp_path):
    model, x = network("stream")
    plan = cp.plan(model, x, remove={"*": 0.5}, prior="noise")
    plan.save(tmp_path / "plan")
    again = cp.Plan.load(tmp_path / "plan")
    assert again.shifts.keys() == plan.shifts.keys() and plan.shifts
    assert all(torch.equal(again.shifts[key], plan.shifts[key]) for key in plan.shifts)
    small = cp.apply(model, plan).model
    assert equal_states(cp.apply(model, again).model, small)
    assert not equal_states(cp.apply(model, plain(plan)).model, small)


def test_plans_that_know_no_corrections_still_load(tmp_path):
    model, x = network("padded")
    plain(cp.plan(model, x, units={"a": 4}, prior="noise")).save(tmp_path / "plan")
    file = tmp_path / "plan" / "plan.json"
    body = json.loads(file.read_text())
    del body["shifts"]
    file.write_text(json.dumps(body))
    assert cp.Plan.load(tmp_path / "plan").shifts == {}


@pytest.mark.parametrize(
    "harm",
    [
        lambda s: {**s, "norm2.running_var": s["norm2.running_var"][:3]},
        lambda s: {**s, "norm2.running_var": s["norm2.running_var"][:, None]},
        lambda s: {**s, "norm9.running_var": torch.ones(8)},
    ],
    ids=["short", "two axes", "not there"],
)
def test_a_damaged_correction_is_refused_and_changes_nothing(harm):
    model, x = network("padded")
    plan = cp.plan(model, x, units={"a": 4}, prior="noise")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"the plan corrects norm\d.running_var, .* damaged, make it again"):
        cp.apply(model, replace(plan, shifts=harm(plan.shifts)), inplace=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("named", [["norm2.running_mean", "norm9.running_var"], 3, [["a"]]], ids=str)
def test_corrections_that_are_not_in_the_file_are_refused(tmp_path, named):
    model, x = network("padded")
    cp.plan(model, x, units={"a": 4}, prior="noise").save(tmp_path / "plan")
    file = tmp_path / "plan" / "plan.json"
    body = json.loads(file.read_text())
    file.write_text(json.dumps({**body, "shifts": named}))
    with pytest.raises(CheckpointError, match="damaged"):
        cp.Plan.load(tmp_path / "plan")


# ---------------------------------------------------------------- the check


@pytest.mark.parametrize("name", NETS)
def test_the_check_holds_for_corrected_networks_and_fails_where_one_side_is_not(name, monkeypatch):
    model, x = network(name)
    plan = cp.plan(model, x, remove={"*": 0.5}, prior="noise")
    found, tensors = discover(model, x), tensors_of(model)

    def difference(made: cp.Plan, told: cp.Plan) -> float:
        exact = edited(made.to(F64).edits(tensors), tensors, dtype=F64)
        return check(model, cp.apply(model, made).model, found, told, exact)

    assert difference(plan, plan) < 1e-12
    assert difference(plain(plan), plain(plan)) < 1e-12
    assert difference(plan, plain(plan)) > 1e-4
    assert difference(plain(plan), plan) > 1e-4


def test_a_correction_that_gets_lost_on_the_way_is_told(monkeypatch):
    model, x = network("padded")
    plan = cp.plan(model, x, units={"a": 4}, prior="noise")

    def forgets(edits, *args, **kwargs):
        return edited([e for e in edits if getattr(e, "tensor", "") != "norm3.running_var"], *args, **kwargs)

    monkeypatch.setattr(sys.modules[Made.__module__], "edited", forgets)
    with pytest.raises(UnsupportedModelError, match="differ by"):
        cp.apply(model, plan)


@pytest.mark.parametrize("name", NETS)
def test_what_was_seen_while_observing_is_what_a_run_of_its_own_sees(name):
    """And tensors of the cut network's own shapes say the same of its statistics as those of dense shape."""
    model, x = network(name)
    plan = cp.plan(model, x, remove={"*": 0.5}, prior="noise")
    alone = by_hand(model, x, plan.cuts).shifts
    assert plan.shifts.keys() == alone.keys() and plan.shifts
    found, tensors = discover(model, x), tensors_of(model)
    for key, value in alone.items():
        assert torch.equal(plan.shifts[key], value)
    graph = found.graphs[0]
    whole, own, kept = (
        as_cut(plan.cuts, tensors),
        *_small(graph, tensors, Made(plan.cuts, tensors), ["norm3.running_mean"]),
    )
    assert own["norm3.running_mean"].shape == kept["norm3.running_mean"].shape
    norms = [Norms(graph) for _ in range(2)]
    for given, one in zip(({**tensors, **whole}, own), norms, strict=True):
        run(graph, given, ((x,), {}), batch_statistics=True, norms=one, complete=False)
    for norm in norms[0].every:
        if norm.mean == "norm3.running_mean":
            for a, b in zip(norms[0].moments(norm), norms[1].moments(norm), strict=True):
                torch.testing.assert_close(a[kept[norm.mean]], b, rtol=1e-9, atol=1e-9)
