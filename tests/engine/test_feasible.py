"""Heads whose number the code fixes are found out on shapes alone, and refused; all others stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import coreprune as cp
from coreprune.engine.feasible import discovered, feasible
from coreprune.errors import InvalidInputError, UnknownNameError, UnsupportedModelError
from coreprune.model.discover import discover

X = torch.randn(2, 7, 12)


class Attention(nn.Module):
    """Fused queries, keys and values of 4 heads of 6.

    How many there are the code says (fixed), an attribute that is known to say it (told), or the view finds out (free);
    or the code says it and the view finds out how large they are (squeezed). With image they are merged into four axes.
    """

    def __init__(self, sort: str) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 72), nn.Linear(24, 12)
        self.sort, self.num_heads = sort, 4

    def forward(self, x):
        n, t, _ = x.shape
        heads = {"fixed": 4, "told": self.num_heads, "squeezed": 4}.get(self.sort, -1)
        size = -1 if self.sort == "squeezed" else 6
        q, k, v = self.qkv(x).view(n, t, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(h.reshape(n, t, 1, -1)[:, :, 0] if self.sort == "image" else h.flatten(2))


class Net(nn.Module):
    """Blocks with attention of these sorts, and something else that can be cut."""

    def __init__(self, *sorts: str, plain: bool = False) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({f"{sort}{i}": Attention(sort) for i, sort in enumerate(sorts)})
        self.wide, self.narrow, self.scale = nn.Linear(12, 24), nn.Linear(24, 12), torch.ones(12) if plain else 1.0

    def forward(self, x):
        for block in self.attention.values():
            x = x + block(x)
        return x * self.scale + self.narrow(self.wide(x).relu())


def made(*sorts, **more):
    torch.manual_seed(0)
    return Net(*sorts, **more).eval()


def heads(found):
    return [site.name for site in found.sites if site.kind == "heads"]


@pytest.mark.parametrize(
    "sorts",
    [(), ("free",), ("told",), ("fixed",), ("free", "fixed"), ("fixed", "told", "free", "fixed", "told")],
    ids="-".join,
)
def test_those_that_the_code_fixes_are_refused_and_the_others_stay(sorts):
    model = made(*sorts)
    found = discovered(model, X)
    assert heads(discover(model, X)) == [f"attention.{name}.qkv" for name in model.attention]
    assert heads(found) == [f"attention.{name}.qkv" for name in model.attention if "fixed" not in name]
    told = {one.name: one.reason for one in found.refused}
    for name in model.attention:
        if "fixed" in name:
            assert "its code fixes the number of heads" in told[f"attention.{name}.qkv"]
            assert "view(batch, length, -1, size of a head)" in told[f"attention.{name}.qkv"]
    small = cp.prune(model, X, remove={"*": 0.5})
    assert set(small.plan.kept) == {*heads(found), "wide"}
    assert small.model(X).shape == X.shape


@pytest.mark.parametrize(
    "sorts", [("squeezed",), ("free", "squeezed", "told"), ("squeezed", "fixed"), ("image", "squeezed")], ids="-".join
)
def test_heads_that_would_only_become_smaller_are_refused(sorts):
    """The module runs with half of the width, and would compute something else."""
    model = made(*sorts)
    found = discovered(model, X)
    assert heads(found) == [f"attention.{name}.qkv" for name in model.attention if name[:4] in {"free", "told", "imag"}]
    told = {one.name: one.reason for one in found.refused}
    for name in model.attention:
        if "squeezed" in name:
            assert "a view to (2, 7, 3, 4, 6) makes (2, 7, 3, 4, 3)" in told[f"attention.{name}.qkv"]
    small = cp.prune(model, X, remove={"*": 0.5})
    assert set(small.plan.kept) == {*heads(found), "wide"}


def test_code_of_another_class_is_not_judged_by_its_name():
    """Blocks are called alike, and one class fixes its heads: those of the other stay."""

    class Other(Attention):
        pass

    torch.manual_seed(0)
    model = Net().eval()
    model.attention = nn.ModuleDict({"0": Attention("fixed"), "1": Other("free"), "2": Attention("fixed")})
    assert heads(discovered(model, X)) == ["attention.1.qkv"]


def test_what_is_refused_may_be_ignored_and_may_not_be_asked_for():
    model = made("fixed", "free")
    kept = cp.prune(model, X, remove={"*": 0.5}, ignore=["attention.fixed0.qkv"]).plan.kept
    assert set(kept) == {"attention.free1.qkv", "wide"}
    with pytest.raises(UnsupportedModelError, match="cannot be cut: its code fixes the number of heads"):
        cp.plan(model, X, units={"attention.fixed0.qkv": 2})
    assert cp.plan(model, X, units={"*qkv": 2}).kept == {"attention.free1.qkv": 2}
    with pytest.raises(UnknownNameError, match="no site matches 'nothing'"):
        cp.plan(model, X, remove={"*": 0.5}, ignore=["nothing"])


def test_nothing_is_changed_and_nothing_is_computed():
    model = made("fixed", "free")
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    found = discover(model, X)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)  # values are not looked at
    assert len(feasible(model, found).refused) == len(found.refused) + 1
    assert all(id(model.state_dict(keep_vars=True)[name]) == same for name, (same, _) in before.items())
    assert all(parameter.shape == before[name][1].shape for name, parameter in model.named_parameters())


def test_code_that_cannot_be_tried_on_shapes_says_nothing_of_its_heads():
    """It mixes in a tensor of its own that has values. What fails then is found out after the cut."""
    model = made("fixed", plain=True)
    found = discover(model, X)
    assert heads(feasible(model, found)) == heads(found) == ["attention.fixed0.qkv"]
    with pytest.raises(UnsupportedModelError, match=r"does not run.*pass ignore=\['attention.fixed0.qkv'\]"):
        cp.prune(model, X, remove={"*": 0.5})


def test_blocks_that_were_captured_on_their_own_are_tried_on_their_own():
    found = discovered(made("fixed", "free"), X, "blocks")
    assert [captured.path for captured in found.graphs] == [
        "attention.fixed0", "attention.free1", "wide", "narrow",
    ]  # fmt: skip
    assert heads(found) == ["attention.free1.qkv"]


def test_a_stack_and_a_network_without_heads_are_not_tried(monkeypatch):
    monkeypatch.setattr("coreprune.engine.feasible._misfit", lambda *_: pytest.fail("tried"))
    stack = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert len(discovered(stack).sites) == 1
    assert len(discovered(made(), X).sites) == 1


def test_what_is_asked_is_checked_before_anything_is_observed(monkeypatch):
    """Of every kind of wish; nothing has been drawn, run or timed by then."""
    for step in ("_observed", "with_table"):
        monkeypatch.setattr(f"coreprune.planning.{step}", lambda *_: pytest.fail("observed"))
    model = made("free")
    wrong = [
        {"remove": 0.999},
        {"remove": 0.2, "round_to": 0},
        {"remove": 0.2, "ignore": ["nothing"]},
        {"remove": 0.2, "ignore": ["re:("]},
        {"remove": 0.2, "ignore": ["*"]},
        {"remove": 0.2, "kinds": ["conv"]},
        {"remove": 0.2, "protect": {"wide": 25}},
        {"remove": 0.2, "radius": 2.0},
        {"units": {"wide": 25}},
        {"units": {"wide": 3}, "ignore": ["wide"]},
        {"units": {"wide": 3}, "uniform": "config"},
        {"remove": {"wide": 1.5}},
        {"budget": {"foo": 3}},
        {"budget": {"params": ""}},
        {"budget": {"params": True}},
        {"budget": {"bytes": "20MB"}},
        {"budget": {"params": "1%"}},
        {"budget": {"latency": "fast"}},
        {"budget": {"latency": "50%"}, "ignore": ["*"], "protect": {"nothing": 1}},
        {"budget": {"cosine": 0.9}, "ignore": ["nothing"]},
        {"budget": {"divergence": 0.1}},  # the network predicts no tokens
        {"budget": {"divergence": None}},
        {"budget": {"cosine": [0.9]}},
        {"remove": "150%"},
        {"remove": 0.2, "seed": True},
        {"remove": 0.2, "kinds": 3},
        {"remove": 0.2, "ignore": None},
        {"remove": 0.2, "ignore": [3]},
        {"remove": 0.2, "protect": {"*": 0.0}},
    ]
    for asked in wrong:
        with pytest.raises((InvalidInputError, UnknownNameError)) as refusal:
            cp.plan(model, X, **asked)
        assert "\n" not in str(refusal.value)


def test_a_fraction_that_cannot_go_is_told_of_as_one():
    with pytest.raises(
        InvalidInputError, match=r"remove=0.999 was asked, but one unit left .* ask for at most 0\.\d+$"
    ):
        cp.plan(made("free"), X, remove=0.999)


def test_a_width_of_a_site_that_is_left_whole_is_told_of_as_that():
    for whole in ({"ignore": ["wide"]}, {"kinds": ["heads"]}):
        with pytest.raises(InvalidInputError, match="units= was asked of 'wide', which ignore= or kinds= leaves whole"):
            cp.plan(made("free"), X, units={"wide": 3}, **whole)


def test_a_radius_is_refused_where_nothing_is_made_of_it():
    model = made("free")
    with pytest.raises(InvalidInputError, match=r"radius=2\.0 was asked of a network that is no stack"):
        cp.plan(model, X, remove=0.2, radius=2.0)
    assert cp.plan(model, X, remove=0.2, radius=2.0, method="sampling").kept  # whose probabilities depend on it
