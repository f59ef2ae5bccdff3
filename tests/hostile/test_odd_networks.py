"""Networks and inputs that cannot be cut, or only in part: one sentence each, and whatever can be cut still is."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo.families import lively
from zoo.wirings import FusedAttention

import coreprune as cp
from coreprune.errors import CorepruneError, InvalidInputError, UnsupportedModelError
from zoo import suite

HALF = {"*": 0.5}
SITES = ["first", "middle", "wide"]


class Block(nn.Module):
    """Linear, what is asked, Linear; and a second hidden layer that is always a site."""

    def __init__(self, between=F.relu, first=None):
        super().__init__()
        self.between = between
        self.first = first if first is not None else nn.Linear(6, 12)
        self.middle, self.wide, self.last = nn.Linear(12, 5), nn.Linear(5, 10), nn.Linear(10, 4)

    def forward(self, x):
        return self.last(F.relu(self.wide(self.middle(self.between(self.first(x))))))


def net(*words, **named):
    torch.manual_seed(0)
    return lively(Block(*words, **named))


def rows(count=3):
    return (torch.randn(count, 6, generator=torch.Generator().manual_seed(1)),)


def said(kind, call, *words):
    """One sentence without line breaks, which holds the words."""
    with pytest.raises(kind) as refusal:
        call()
    text = str(refusal.value)
    assert isinstance(refusal.value, CorepruneError)
    assert "\n" not in text
    assert len(text) < 1500
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
    return text


def cut(model, given=None, **asked):
    return cp.prune(model, rows() if given is None else given, **({"remove": HALF} | asked))


def names(model, given=None):
    return [site.name for site in cp.inspect(model, rows() if given is None else given).sites]


def reasons(model, given=None):
    return {one.name: one.reason for one in cp.inspect(model, rows() if given is None else given).refused}


# ---------------------------------------------------------------- code


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))
        self.two = nn.Sequential(nn.Linear(6, 14), nn.ReLU(), nn.Linear(14, 6))

    def forward(self, x):
        x = self.one(x)
        return self.two(x) if x.sum() > -1e9 else x


def test_code_that_depends_on_values_is_cut_block_by_block():
    model = lively(Branches())
    assert names(model) == ["one.0", "two.0"]
    small = cut(model)
    assert small.plan.kept == {"one.0": 6, "two.0": 7}
    assert suite.run(small.model, rows()).shape == (3, 6)
    said(UnsupportedModelError, lambda: cp.inspect(model, rows(), capture="export"), "torch.export", "capture='blocks'")


def test_a_network_of_lambdas_is_cut_and_saved(tmp_path):
    def make():
        return net(lambda x: F.relu(x) * 2)

    small = cut(make())
    assert set(small.plan.kept) == set(SITES)
    small.save(tmp_path / "small")
    again = cp.load(tmp_path / "small", make)
    assert torch.equal(suite.run(again, rows()), suite.run(small.model, rows()))


def test_code_that_changes_a_global_is_cut():
    seen = []

    def remember(x):
        seen.append(len(seen))
        return F.relu(x)

    assert set(cut(net(remember)).plan.kept) == set(SITES)
    assert seen


class Numbered(nn.Module):
    """Sizes of its heads that stand in the code, where nothing can follow them."""

    def __init__(self):
        super().__init__()
        self.attention = FusedAttention()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 12)) for _ in range(3))

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.attention.qkv(x).view(n, t, 3, 4, 5).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.attention.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        for block in self.blocks:
            x = x + block(x)
        return x


class Masking(nn.Module):
    """Leaves half of a sequence out, by lot, in eval mode too, as masked autoencoders do."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x):
        noise = torch.rand(x.shape[:2], device=x.device)
        kept = noise.argsort(1)[:, : x.shape[1] // 2, None].expand(-1, -1, x.shape[2])
        return self.narrow(self.wide(x.gather(1, kept)).relu()), noise


def test_what_the_code_draws_itself_is_drawn_alike_on_both_sides():
    model, x = lively(Masking()), torch.randn(2, 8, 12)
    state = torch.get_rng_state()
    assert cut(model, (x,)).plan.kept == {"wide": 12}
    assert torch.equal(torch.get_rng_state(), state)


def test_heads_whose_number_is_in_the_code_are_refused_and_the_others_cut():
    model, given = lively(Numbered()), (torch.randn(2, 7, 12),)
    assert "its code fixes the number of heads (shape '[2, 7, 3, 4, 5]'" in reasons(model, given)["attention.qkv"]
    assert len(cut(model, given).plan.kept) == 3


def test_numbers_in_the_code_are_found_out_after_the_cut_too_and_the_site_is_named(monkeypatch):
    """Where they cannot be found out before it, as in code that needs values."""
    monkeypatch.setattr("coreprune.engine.feasible.feasible", lambda _, found: found)
    model, given = lively(Numbered()), (torch.randn(2, 7, 12),)
    before = suite.values(model)
    text = said(UnsupportedModelError, lambda: cut(model, given), "does not run", "[1, 7, 3, 4, 5]")
    assert "pass ignore=['attention.qkv']" in text
    assert suite.equal(suite.values(model), before)
    with pytest.raises(UnsupportedModelError) as caught:
        cut(model, given)
    assert caught.value.ignore == ("attention.qkv",)
    assert len(cut(model, given, ignore=caught.value.ignore).plan.kept) == 3


def test_a_hook_that_changes_outputs_is_part_of_the_network():
    model = net()
    model.first.register_forward_hook(lambda _module, _inputs, output: output * 3)
    model.middle.register_forward_hook(lambda _module, _inputs, output: output.softmax(-1))
    assert set(cut(model).plan.kept) == {"first", "wide"}
    assert "softmax" in reasons(model)["middle"]
    whole = cp.prune(model, rows(), units={"first": 12})
    assert torch.equal(suite.run(whole.model, rows()), suite.run(model, rows()))


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = Block()

    def forward(self, x, scale=None, flag=True):
        y = self.inside(x)
        return {"a": [y, None, {"b": (y * 2, 3)}], "n": None, "k": 7, "f": flag, "s": scale}


def test_outputs_of_any_shape_stay_what_they_are():
    model = lively(Outputs())
    small = cut(model)
    assert set(small.plan.kept) == {f"inside.{name}" for name in SITES}
    assert suite.kinds(suite.run(small.model, rows())) == suite.kinds(suite.run(model, rows()))


# ---------------------------------------------------------------- layers


def test_complex_weights_are_refused():
    model = nn.Sequential(nn.Linear(6, 8, dtype=torch.cfloat), nn.Linear(8, 2, dtype=torch.cfloat))
    said(UnsupportedModelError, lambda: cut(model, (torch.randn(2, 6, dtype=torch.cfloat),)), "0.weight is complex")


def test_quantised_layers_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantise = torch.ao.quantization.quantize_dynamic
        model = quantise(copy.deepcopy(net()), {nn.Linear}, dtype=torch.qint8)
    said(UnsupportedModelError, lambda: cut(model), "first is quantised", "floating point")


def test_meta_weights_are_inspected_and_not_planned():
    with torch.device("meta"):
        model, given = Block(), (torch.randn(3, 6),)
    assert names(model.eval(), given) == SITES
    said(InvalidInputError, lambda: cp.plan(model, given, remove=HALF), "meta device", "load the weights first")


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_computed_weights_are_refused_and_the_others_cut(wrap):
    model = net(first=wrap(nn.Linear(6, 12)))
    assert names(model) == SITES[1:]
    assert "merge or remove it" in reasons(model)["first"]
    assert set(cut(model).plan.kept) == set(SITES[1:])
    said(
        CorepruneError, lambda: cut(model, remove=None, units={"first": 6}), "first cannot be cut", "merge or remove it"
    )


class Merged(nn.Module):
    """W + B A, computed in forward."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(6, 12)
        self.a, self.b = nn.Parameter(torch.empty(2, 6)), nn.Parameter(torch.empty(12, 2))

    def forward(self, x):
        return F.linear(x, self.base.weight + self.b @ self.a, self.base.bias)


class Branched(nn.Module):
    """The same as two more linear layers, whose output is added."""

    def __init__(self):
        super().__init__()
        self.base, self.scale = nn.Linear(6, 12), 0.5
        self.lora_A, self.lora_B = nn.Linear(6, 2, bias=False), nn.Linear(2, 12, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x)) * self.scale


@pytest.mark.parametrize("kind", [Merged, Branched])
def test_adapters_are_cut_exactly_or_refused_with_reason(kind):
    model = net(first=kind())
    small = cut(model)  # passes the check, whatever was cut
    assert "wide" in small.plan.kept
    cut_first = [name for name in small.plan.kept if name.startswith("first")]
    if kind is Branched:
        assert small.model.first.base.out_features == small.model.first.lora_B.out_features == 6
    else:
        assert cut_first or any("computed" in r for n, r in reasons(model).items() if n.startswith("first"))


def test_frozen_batchnorm_in_train_mode_is_left_in_it():
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))).train()
    model[1].weight.requires_grad_(False)
    counts = {k: v.clone() for k, v in model[1].state_dict().items()}
    small = cut(model, (torch.randn(2, 3, 8, 8),)).model
    assert small.training and small[1].training and not small[1].weight.requires_grad
    assert all(torch.equal(v, counts[k]) for k, v in model[1].state_dict().items())
    assert small[1].num_features == 4


# ---------------------------------------------------------------- wrappers and values


def test_wrappers_are_refused_with_what_to_pass():
    said(UnsupportedModelError, lambda: cut(torch.compile(net(), backend="eager")), "torch.compile", "_orig_mod")
    said(UnsupportedModelError, lambda: cut(nn.DataParallel(net())), "DataParallel", "plain module inside")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(value):
    model = net()
    with torch.no_grad():
        model.middle.weight[1, 1] = value
    assert names(model) == SITES
    said(InvalidInputError, lambda: cut(model), "middle.weight", "NaN or infinite numbers (1)")


def test_networks_with_nothing_to_cut():
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return x * self.factor

    said(UnsupportedModelError, lambda: cut(Scalar()), "Scalar has no layer that can be cut")
    said(UnsupportedModelError, lambda: cut(nn.Sequential(nn.ReLU())), "no layer that can be cut")
    said(UnsupportedModelError, lambda: cut(nn.Sequential(nn.Linear(6, 3))), "no layer that can be cut", "output")


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    "given",
    [rows()[0], rows(), list(rows()), {"x": rows()[0]}, (rows(), {}), (rows(), {"scale": 2.0}), ((), {"x": rows()[0]})],
    ids=["tensor", "tuple", "list", "dict", "args and none", "args and kwargs", "kwargs"],
)
def test_inputs_of_every_form(given):
    assert set(cut(lively(Outputs()), given).plan.kept) == {f"inside.{name}" for name in SITES}


@pytest.mark.parametrize(
    "given",
    [(torch.randn(3, 7),), {"y": torch.randn(3, 6)}, (), "text", 5, (rows(), rows())],
    ids=["wrong size", "wrong name", "none", "text", "number", "too many"],
)
def test_inputs_that_do_not_fit(given):
    said(CorepruneError, lambda: cp.inspect(net(), given), "example_inputs [", "do not fit Block", "pass one batch")


def test_missing_inputs_are_asked_for():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    said(UnsupportedModelError, lambda: cp.prune(model, remove=HALF), "pass example_inputs: one batch")


def test_an_empty_batch_is_refused():
    said(InvalidInputError, lambda: cut(net(), (torch.empty(0, 6),)), "empty")


def test_what_is_no_module():
    said(InvalidInputError, lambda: cut("text"), "torch.nn.Module", "str")
    said(InvalidInputError, lambda: cut(nn.Linear), "type")
    said(
        UnsupportedModelError,
        lambda: cut(nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))),
        "lazy",
        "run the model once",
    )
