"""Cuts of any network: each site on its own, the same every time, with a replacement for each reader."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import coreprune as cp
from coreprune.engine import cutting, network
from coreprune.engine.cutting import Job, cut_sites
from coreprune.engine.local import Request
from coreprune.engine.network import decide_network, surveyed
from coreprune.engine.observe import Observed
from coreprune.errors import InvalidInputError
from coreprune.maths.methods import METHODS
from coreprune.model.network import discover_network
from coreprune.model.site import Location, Maker, Reader, Site
from coreprune.priors.data import Data
from coreprune.priors.gaussian import Gaussian


class Mixed(nn.Module):
    """A stem and a residual stream of channels, a convolution within, a gated part and attention behind it."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3)
        self.back = nn.Conv2d(6, 8, 3, padding=2, bias=False)
        self.norm = nn.LayerNorm(8)
        self.gate, self.up, self.down = nn.Linear(8, 10), nn.Linear(8, 10), nn.Linear(10, 8)
        self.qkv, self.out, self.last = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = F.relu(self.stem(x))
        h = h + self.back(F.relu(self.inner(h)))
        h = self.norm(h.flatten(2).transpose(1, 2))
        h = self.norm(h + self.down(F.silu(self.gate(h)) * self.up(h)))
        q, k, v = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        h = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.last(h.mean(1))


class Stream(nn.Module):
    """Units with three readers: one with a bias, one that is padded, one without a bias."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 5, 3)
        self.c, self.d = nn.Conv1d(8, 5, 3, padding=1), nn.Conv1d(8, 5, 1, bias=False)

    def forward(self, x):
        h = self.a(x)
        return self.b(h.relu()), self.c(h.tanh() + 1), self.d(h.sigmoid())


class Stream12(nn.Module):
    """Twelve channels with two readers, one without a place for a constant."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 3), nn.Conv2d(12, 2, 3, bias=False)

    def forward(self, x):
        h = self.a(x)
        return self.b(h.relu()) + self.c(h.tanh())


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(0)
    model = Mixed().eval()
    return model, discover_network(model, torch.randn(2, 3, 6, 6))


@pytest.fixture(scope="module")
def stream():
    torch.manual_seed(0)
    model = Stream().eval()
    return model, discover_network(model, torch.randn(4, 3, 9))


WIDTHS = {"inner": 3, "gate": 4, "qkv": 2, "out": 5}


def request(method="kernel", seed=0, prior=None, **more):
    return Request(METHODS[method], prior or Gaussian(), 1.0, seed, **more)


def tensors(model):
    return {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def same(one, other):
    assert one.site == other.site and one.evidence == other.evidence and len(one.coresets) == len(other.coresets)
    for a, b in zip(one.coresets, other.coresets, strict=True):
        assert torch.equal(a.indices, b.indices) and torch.equal(a.mix, b.mix)
        assert (a.offset is None) == (b.offset is None) and (a.offset is None or torch.equal(a.offset, b.offset))


def test_the_sites_are_those_meant(mixed):
    assert {(s.name, s.kind, s.units) for s in mixed[1].sites} == {
        ("inner", "conv", 6), ("gate", "gated", 10), ("qkv", "heads", 4), ("out", "linear", 8)
    }  # fmt: skip


@pytest.mark.parametrize("method", ["kernel", "sampling", "uniform"])
def test_a_cut_depends_on_neither_the_order_nor_the_other_sites(mixed, method):
    model, found = mixed
    cuts = {c.site.name: c for c in decide_network(found, tensors(model), WIDTHS, request(method))}
    assert list(cuts) == [s.name for s in found.sites]
    turned = replace(found, sites=found.sites[::-1])
    for one in decide_network(turned, tensors(model), WIDTHS, request(method)):
        same(one, cuts[one.site.name])
    for name, width in WIDTHS.items():
        (alone,) = decide_network(found, tensors(model), {name: width}, request(method))
        same(alone, cuts[name])


@pytest.mark.parametrize("method", ["kernel", "refined", "magnitude"])
def test_sites_of_one_width_are_cut_together_each_as_alone(method, monkeypatch):
    """Three widths in turn, of one reader and of several, in groups of all sizes; to rounding, as products differ by it."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 3, 3, padding=1)) for _ in range(8)]
    model = nn.Sequential(*layers, Stream12()).eval()
    found = discover_network(model, torch.randn(2, 3, 6, 6))
    assert [site.units for site in found.sites] == [12, 3] * 8 + [12]
    widths = {site.name: (5, 2, 4, 2)[i % 4] for i, site in enumerate(found.sites)}
    alone = {name: decide_network(found, tensors(model), {name: k}, request(method))[0] for name, k in widths.items()}
    told: list[tuple[int, int, str]] = []
    for most in (1, 300, 2**18):
        monkeypatch.setattr(cutting, "BESIDE", most)
        told.clear()
        cuts = decide_network(found, tensors(model), widths, request(method, progress=lambda *now: told.append(now)))
        assert [now[:2] for now in told] == [(i, 17) for i in range(18)]
        assert sorted(now[2] for now in told) == sorted([*widths, ""])
        assert [cut.site.name for cut in cuts] == list(widths)
        for cut in cuts:
            other = alone[cut.site.name]
            assert torch.equal(cut.kept, other.kept)
            assert cut.evidence["relative_error"] == pytest.approx(other.evidence["relative_error"], rel=1e-9)
            for one, two in zip(cut.coresets, other.coresets, strict=True):
                assert torch.allclose(one.mix, two.mix, atol=1e-9)
                assert one.offset is two.offset is None or torch.allclose(one.offset, two.offset, atol=1e-9)


@pytest.mark.parametrize("method", ["kernel", "sampling", "uniform"])
def test_the_seed_decides_everything_to_the_last_bit(mixed, method):
    model, found = mixed
    before = {name: t.clone() for name, t in tensors(model).items()}
    runs = []
    for state in (1, 2):
        torch.manual_seed(state)
        after = torch.get_rng_state()
        runs.append(decide_network(found, tensors(model), WIDTHS, request(method, seed=5)))
        assert torch.equal(torch.get_rng_state(), after)
    for one, other in zip(*runs, strict=True):
        same(one, other)
    others = decide_network(found, tensors(model), WIDTHS, request(method, seed=6))
    assert any(not torch.equal(a.coresets[0].mix, b.coresets[0].mix) or not torch.equal(a.kept, b.kept)
               for a, b in zip(runs[0], others, strict=True))  # fmt: skip
    assert all(torch.equal(before[name], t) for name, t in tensors(model).items())


@pytest.mark.parametrize("method", ["magnitude", "uniform", "sampling", "sensitivity"])
@pytest.mark.parametrize("reweight", [False, True])
def test_methods_that_keep_units_work_on_every_kind_of_site(mixed, method, reweight):
    model, found = mixed
    cuts = decide_network(found, tensors(model), WIDTHS, request(method, reweight=reweight))
    for cut in cuts:
        assert cut.kept.numel() == WIDTHS[cut.site.name] and bool((cut.kept.diff() > 0).all())
        (coreset,) = cut.coresets
        block = cut.site.readers[0].block
        assert coreset.mix.shape == ((cut.site.units * block, cut.kept.numel() * block) if reweight else cut.kept.shape)
    if reweight:
        plain = decide_network(found, tensors(model), WIDTHS, request(method))
        for one, other in zip(cuts, plain, strict=True):
            assert torch.equal(one.kept, other.kept)
            assert one.evidence["mean_square"] <= other.evidence["mean_square"] * (1 + 1e-9)
    if method in {"magnitude", "sensitivity"} and not reweight:
        assert all(bool((c.coresets[0].mix == 1).all()) for c in cuts)


def test_methods_carry_through_to_a_network_that_was_checked(mixed):
    model, _ = mixed
    x = torch.randn(2, 3, 6, 6)
    small = cp.prune(model, x, units=WIDTHS, method="sampling", reweight=True)
    assert small.model(x).shape == (2, 3) and small.model.inner.out_channels == 3


def test_methods_that_merge_units_are_refused(mixed):
    model, found = mixed
    why = r"method='folding' merges units, which inner \(conv\) does not allow: use method='kernel'"
    with pytest.raises(InvalidInputError, match=why):
        decide_network(found, tensors(model), {"inner": 3}, request("folding"))


def test_methods_that_merge_units_are_refused_before_anything_is_observed(mixed, monkeypatch):
    model, _ = mixed
    monkeypatch.setattr("coreprune.planning._observed", None)
    with pytest.raises(InvalidInputError, match=r"method='folding' merges units .* which only a stack"):
        cp.plan(model, torch.randn(2, 3, 6, 6), units=WIDTHS, method="folding")


@pytest.mark.parametrize("name", ["inner", "gate", "out", "qkv"])
def test_units_that_join_others_behind_their_activation_are_mixed(mixed, name):
    model, found = mixed
    (cut,) = decide_network(found, tensors(model), {name: 2}, request("merging"))
    (coreset,), block = cut.coresets, cut.site.readers[0].block
    assert coreset.mix.shape == (cut.site.units * block, 2 * block) and coreset.offset is None


def test_the_norms_of_units_have_their_batch_norm_folded_in():
    """Unit 2 has the smallest weights and, behind its BatchNorm, the largest."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 1, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([4.0, 3, 0.1, 2])[:, None, None])
        model[1].running_var.copy_(torch.tensor([100.0, 100, 0.0001, 100]))
    found = discover_network(model, torch.randn(3, 2, 5))
    (cut,) = decide_network(found, tensors(model), {"0": 1}, request("magnitude"))
    assert cut.kept.tolist() == [2]


# ---------------------------------------------------------------- several readers


def test_every_reader_has_its_own_replacement(stream):
    model, found = stream
    (cut,) = decide_network(found, tensors(model), {"a": 4}, request())
    readers = {r.weight.tensor: c for r, c in zip(cut.site.readers, cut.coresets, strict=True)}
    assert list(readers) == ["b.weight", "c.weight", "d.weight"]
    mixes = [c.mix for c in readers.values()]
    assert all(torch.equal(c.indices, cut.kept) for c in cut.coresets)
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in pairwise(mixes))


def test_readers_without_a_place_for_a_constant_go_through_the_origin(stream):
    model, found = stream
    (cut,) = decide_network(found, tensors(model), {"a": 4}, request())
    offsets = {r.weight.tensor: c.offset for r, c in zip(cut.site.readers, cut.coresets, strict=True)}
    assert offsets["c.weight"] is None and offsets["d.weight"] is None and offsets["b.weight"].shape == (8,)
    assert {r.weight.tensor: r.bias for r in cut.site.readers} == {"b.weight": "b.bias", "c.weight": "", "d.weight": ""}
    small = cp.apply(model, cp.plan(model, torch.randn(4, 3, 9), units={"a": 4}), torch.randn(4, 3, 9))
    assert torch.equal(small.model.c.bias, model.c.bias) and small.model.d.bias is None
    assert not torch.equal(small.model.b.bias, model.b.bias)


def test_the_replacement_is_the_regression_of_what_each_reader_gets(stream):
    """On data, with as many samples as the shrinkage does not matter."""
    model, found = stream
    torch.manual_seed(1)
    x = torch.randn(200, 3, 9)
    (cut,) = decide_network(found, tensors(model), {"a": 4}, request(prior=Data([x])))
    with torch.no_grad():
        h = model.a(x).double()
        seen = [f.movedim(1, 2).flatten(0, 1) for f in (h.relu(), h.tanh() + 1, h.sigmoid())]
    for y, coreset in zip(seen, cut.coresets, strict=True):
        X = y[:, cut.kept]
        if coreset.offset is not None:
            X = torch.cat([X, torch.ones(len(X), 1, dtype=torch.float64)], 1)
        best = torch.linalg.lstsq(X, y).solution.T
        found_there = coreset.mix if coreset.offset is None else torch.cat([coreset.mix, coreset.offset[:, None]], 1)
        assert float((y - X @ found_there.T).norm() / (y - X @ best.T).norm()) < 1.02


def hand_made(block=1):
    """One site of three units read by a matrix, and moments under which unit 1 repeats unit 0."""
    n = 3 * block
    site = Site("s", "linear", 3, "identity", (), Location("p", 0, 0, block), Location("", 0),
                (Reader(Location("w", 1, 0, block), "c", 1.0, block),))  # fmt: skip
    A = torch.eye(n, dtype=torch.float64)
    A[block : 2 * block, :block], A[block : 2 * block, block : 2 * block] = torch.eye(block), 0
    weights = {
        "p": torch.ones(n, 2),
        "w": torch.randn(4, n, generator=torch.Generator().manual_seed(0)),
        "c": torch.zeros(4),
    }
    return site, (Maker(site.incoming),), weights, (Observed(torch.ones(n).double(), A @ A.T, 10**9),)


@pytest.mark.parametrize("block", [1, 2])
def test_a_repeated_unit_is_replaced_by_its_twin(block):
    site, makers, weights, seen = hand_made(block)
    (cut,) = cut_sites([Job(site, makers, seen, 2)], weights, request())
    assert cut.kept.tolist() in ([0, 2], [1, 2])
    mix = torch.eye(3 * block).double()[:, : 2 * block] * 0
    mix[:block, :block] = mix[block : 2 * block, :block] = torch.eye(block)
    mix[2 * block :, block:] = torch.eye(block)
    assert torch.allclose(cut.coresets[0].mix, mix, atol=1e-6)
    assert torch.allclose(cut.coresets[0].offset, torch.zeros(3 * block).double(), atol=1e-6)
    assert cut.evidence["relative_error"] < 1e-3


# ---------------------------------------------------------------- curves


def test_curves_fall_to_nothing(mixed, stream):
    for model, found in (mixed, stream):
        curves = surveyed(found, tensors(model), request()).curves
        assert list(curves) == [s.name for s in found.sites]
        for one in found.sites:
            curve = curves[one.name]
            assert curve.shape == (one.units + 1,) and curve[0] == 1 and curve[-1] == 0
            assert bool((curve.diff() <= 0).all()) and curve.dtype == torch.float64


def test_a_curve_says_what_a_cut_leaves(mixed):
    """err(k) is the share of the energy that a cut to k units reports, which tells it of the spread, for one reader."""
    model, found = mixed
    survey = surveyed(found, tensors(model), request())
    for width in (1, 3):
        for cut in decide_network(found, tensors(model), dict.fromkeys(WIDTHS, width), request()):
            assert len(cut.coresets) == 1
            share = cut.evidence["mean_square"] / cut.evidence["output_variance"]
            curve = survey.curves[cut.site.name] * survey.above[cut.site.name]
            assert math.isclose(float(curve[width]), share, rel_tol=1e-3)


def test_dead_units_are_free():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 6, 1), nn.ReLU(), nn.Conv1d(6, 3, 1)).eval()
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
    found = discover_network(model, torch.randn(4, 2, 9))
    curve = surveyed(found, tensors(model), request()).curves["0"]
    assert float(curve[4]) == 0 and float(curve[3]) > 1e-4
    (cut,) = decide_network(found, tensors(model), {"0": 4}, request())
    assert cut.kept.tolist() == [0, 2, 3, 5] and cut.evidence["relative_error"] < 1e-4


def test_a_survey_spares_the_second_observation_and_says_the_same(mixed, monkeypatch):
    model, found = mixed
    survey = surveyed(found, tensors(model), request())
    alone = {cut.site.name: cut for cut in decide_network(found, tensors(model), WIDTHS, request())}
    monkeypatch.setattr(network, "moments", lambda *a, **k: pytest.fail("observed twice"))
    for cut in decide_network(found, tensors(model), WIDTHS, request(), survey):
        other = alone[cut.site.name]
        assert torch.equal(cut.kept, other.kept)
        for a, b in zip(cut.coresets, other.coresets, strict=True):
            assert torch.allclose(a.mix, b.mix, atol=1e-9)


def test_a_path_without_an_end_goes_through_every_number_of_units(mixed, monkeypatch):
    """Where units are added, as they are where there are many of them, the curve must not end after the first."""
    model, found = mixed
    down = surveyed(found, tensors(model), request())
    monkeypatch.setattr("coreprune.maths.kernel.SMALL", 0)
    up = surveyed(found, tensors(model), request())
    for site in found.sites:
        curves = down.curves[site.name], up.curves[site.name]
        assert torch.allclose(curves[1], curves[0], atol=0.2), site.name
        assert curves[1][-1] == 0
        assert float(curves[1][site.units - 1]) < 0.2 * float(curves[1][1])


def test_an_error_is_a_share_of_the_spread_where_there_is_no_place_for_a_constant():
    """Units far from zero, read without a bias: against the outputs themselves, by their definition."""

    class Far(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 40), nn.Linear(40, 6, bias=False)

        def forward(self, x):
            return self.down(self.up(torch.sin(self.first(x))).relu())

    torch.manual_seed(0)
    model = Far().eval()
    with torch.no_grad():
        model.up.bias += 10
    loader = [torch.randn(500, 8) for _ in range(8)]
    for asked in ({"units": {"up": 8}}, {"budget": {"error": 0.05}}):
        small = cp.prune(model, loader[0][:4], data=loader, **asked)
        with torch.no_grad():
            y, z = (torch.cat([net(x) for x in loader]).double() for net in (model, small.model))
        share = float((y - z).square().sum() / (y - y.mean(0)).square().sum()) ** 0.5
        (cut,) = [cut for cut in small.plan.cuts if cut.site.name == "up"]
        claimed = cut.evidence["relative_error"]
        if "units" in asked:
            assert claimed == pytest.approx(share, rel=0.1)
        else:
            assert share <= claimed <= 0.05  # shrinkage claims more
