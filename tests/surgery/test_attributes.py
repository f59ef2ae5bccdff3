"""Attributes that tell sizes follow the tensors, and those around follow the cut."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from coreprune.model.site import Location, Reader, Site
from coreprune.surgery.attributes import Followed, attributes, follow


def cut_to(module: nn.Module, **axes: dict[int, int]) -> nn.Module:
    """Keep the first entries of some axes of its tensors."""
    for name, sizes in axes.items():
        value = getattr(module, name)
        for axis, size in sizes.items():
            value = value.narrow(axis, 0, size)
        table = module._parameters if name in module._parameters else module._buffers
        table[name] = nn.Parameter(value.detach().clone()) if table is module._parameters else value.clone()
    return module


CASES = {
    "linear": (cut_to(nn.Linear(3, 5), weight={0: 2, 1: 1}), {"in_features": 1, "out_features": 2}),
    "bilinear": (cut_to(nn.Bilinear(3, 4, 5), weight={0: 2, 2: 1}), {"out_features": 2, "in1_features": 3, "in2_features": 1}),
    "conv1d": (cut_to(nn.Conv1d(6, 8, 3), weight={0: 4, 1: 5}), {"in_channels": 5, "out_channels": 4, "groups": 1}),
    "conv3d": (cut_to(nn.Conv3d(6, 8, 3), weight={0: 4}), {"in_channels": 6, "out_channels": 4, "groups": 1}),
    "depthwise": (cut_to(nn.Conv2d(8, 8, 3, groups=8), weight={0: 5}), {"in_channels": 5, "out_channels": 5, "groups": 5}),
    "depthwise times two": (
        cut_to(nn.Conv2d(8, 16, 3, groups=8), weight={0: 10}), {"in_channels": 5, "out_channels": 10, "groups": 5}),
    "whole groups": (cut_to(nn.Conv2d(12, 8, 3, groups=4), weight={0: 6}), {"in_channels": 9, "out_channels": 6, "groups": 3}),
    "within groups": (
        cut_to(nn.Conv2d(12, 8, 3, groups=4), weight={0: 4, 1: 2}), {"in_channels": 8, "out_channels": 4, "groups": 4}),
    "transposed": (
        cut_to(nn.ConvTranspose2d(6, 8, 3), weight={0: 4, 1: 5}), {"in_channels": 4, "out_channels": 5, "groups": 1}),
    "transposed depthwise": (
        cut_to(nn.ConvTranspose1d(8, 8, 3, groups=8), weight={0: 5}), {"in_channels": 5, "out_channels": 5, "groups": 5}),
    "transposed groups": (
        cut_to(nn.ConvTranspose1d(8, 12, 3, groups=4), weight={0: 6}), {"in_channels": 6, "out_channels": 9, "groups": 3}),
    "batch norm": (cut_to(nn.BatchNorm2d(5), weight={0: 3}), {"num_features": 3}),
    "batch norm of statistics": (cut_to(nn.BatchNorm1d(5, affine=False), running_mean={0: 3}), {"num_features": 3}),
    "batch norm of nothing": (nn.BatchNorm1d(5, affine=False, track_running_stats=False), {}),
    "instance norm": (cut_to(nn.InstanceNorm2d(5, affine=True), weight={0: 3}), {"num_features": 3}),
    "group norm": (cut_to(nn.GroupNorm(4, 12), weight={0: 9}), {"num_channels": 9, "num_groups": 3}),
    "layer norm": (cut_to(nn.LayerNorm((4, 5)), weight={1: 3}), {"normalized_shape": (4, 3)}),
    "rms norm": (cut_to(nn.RMSNorm(5), weight={0: 3}), {"normalized_shape": (3,)}),
    "embedding": (cut_to(nn.Embedding(7, 5), weight={1: 3}), {"num_embeddings": 7, "embedding_dim": 3}),
    "prelu": (cut_to(nn.PReLU(5), weight={0: 3}), {"num_parameters": 3}),
    "subclass": (cut_to(type("Own", (nn.Linear,), {})(3, 5), weight={0: 2}), {"in_features": 3, "out_features": 2}),
    "no sizes": (nn.ReLU(), {}),
    "unknown class": (nn.Module(), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_attributes_follow_the_tensors(name):
    module, expected = CASES[name]
    before = dict(vars(module))
    assert attributes(module) == expected
    assert dict(vars(module)) == before
    for attribute, value in expected.items():
        setattr(module, attribute, value)
    assert attributes(module) == expected  # once they agree, nothing moves


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(3, 5, bias=False), lambda: nn.Conv2d(6, 9, 3, groups=3), lambda: nn.ConvTranspose3d(6, 9, 3, groups=3),
     lambda: nn.GroupNorm(3, 6), lambda: nn.LayerNorm((2, 3)), lambda: nn.BatchNorm3d(4), lambda: nn.EmbeddingBag(4, 3)],
)  # fmt: skip
def test_attributes_of_what_was_not_cut_are_those_it_has(make):
    module = make()
    assert attributes(module)
    assert all(getattr(module, name) == value for name, value in attributes(module).items())


def test_the_linear_map_of_gpt_2():
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 4)
    assert attributes(cut_to(layer, weight={0: 3, 1: 5})) == {"nx": 3, "nf": 5}


class Attention(nn.Module):
    """Grouped queries: `groups` keys of `each` queries with `size` entries."""

    def __init__(self, groups=3, each=2, size=5, width=8, config=None):
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = groups * each, groups, size
        self.split_size, self.embed_dim, self.hidden_size = groups * each * size, groups * each * size, width
        self.causal, self.name, self.config = True, "attention", config
        self.q = nn.Linear(width, groups * each * size)
        self.k, self.v = nn.Linear(width, groups * size), nn.Linear(width, groups * size)
        self.o = nn.Linear(groups * each * size, width)


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        self.num_heads = 6


def heads(path: str, groups=3, each=2, size=5, **changes) -> Site:
    q, k = each * size, size
    own = [
        Location(f"{path}{name}.{leaf}", 0, 0, span)
        for name, span in [("q", q), ("k", k), ("v", k)]
        for leaf in ("weight", "bias")
    ]
    reader = Reader(Location(f"{path}o.weight", 1, 0, q), f"{path}o.bias", block=size)
    settings = {"units": groups, "kind": "heads", "readers": (reader,)} | changes
    return Site(
        name=f"{path}q",
        activation="identity",
        parameters=(),
        incoming=own[0],
        bias=own[1],
        others=tuple(own[2:]),
        **settings,
    )


def cut(site: Site, kept: int) -> SimpleNamespace:
    return SimpleNamespace(site=site, kept=torch.arange(kept))


def changes(found: list[Followed]) -> dict[str, tuple[int, int]]:
    return {f"{one.module}.{one.attribute}": (one.old, one.new) for one in found}


def test_heads_and_what_is_counted_in_heads():
    model = nn.Sequential(Block(Attention()), Block(Attention()))
    before = [copy.copy(vars(module)) for module in model.modules()]
    found = follow(model, [cut(heads("1.attention."), 2)])
    assert changes(found) == {
        "1.attention.num_heads": (6, 4),
        "1.attention.num_key_value_heads": (3, 2),
        "1.attention.split_size": (30, 20),
    }
    assert [vars(module) for module in model.modules()] == before


def test_every_attention_has_its_own_numbers():
    """One site over two modules, as where all layers share one table of biases by head."""
    model = nn.Sequential(Block(Attention()), Block(Attention()))
    one, two = (heads(f"{i}.attention.") for i in "01")
    both = heads("0.attention.", readers=one.readers + two.readers)
    both = Site(**{**vars(both), "others": (*both.others, two.incoming, two.bias, *two.others)})
    found = changes(follow(model, [cut(both, 1)]))
    for i in "01":
        assert found[f"{i}.attention.num_heads"] == (6, 2)
        assert found[f"{i}.attention.split_size"] == (30, 10)
    assert not any(name.startswith(".") for name in found)
    single = [cut(one, 1), cut(two, 2)]
    found = changes(follow(model, single))
    assert found["0.attention.num_heads"] == (6, 2)
    assert found["1.attention.num_heads"] == (6, 4)


def test_numbers_that_mean_something_else_stay():
    model = nn.Sequential(Attention())
    model[0].num_heads, model[0].split_size, model[0].num_key_value_heads = 7, 31, 1
    assert follow(model, [cut(heads("0."), 2)]) == []


def test_heads_that_are_a_part_of_all_heads_change_no_number():
    model = nn.Sequential(Attention(groups=4))
    assert follow(model, [cut(heads("0."), 2)]) == []


def test_an_attribute_of_the_module_around_both_is_found():
    """The output projection is in a module beside that of the queries."""
    model = nn.Sequential(Block(Attention()))
    model[0].output, model[0].attention.o = nn.Sequential(model[0].attention.o), nn.Identity()
    reader = Reader(Location("0.output.0.weight", 1, 0, 10), "")
    found = changes(follow(model, [cut(heads("0.attention.", readers=(reader,)), 2)]))
    assert found["0.num_heads"] == (6, 4)


def test_a_shared_configuration_is_followed_by_a_field_for_the_module_alone():
    config = SimpleNamespace(num_attention_heads=6)
    model = nn.Sequential(type("Phi3Attention", (Attention,), {})(config=config), Attention(config=config))
    found = changes(follow(model, [cut(heads("0."), 2), cut(heads("1."), 2)]))
    assert found["0.config.num_attention_heads"] == (6, 4)
    assert "1.config.num_attention_heads" not in found


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.intermediate_size, self.hidden_dim, self.dropout = inner, inner, True


def ffn(units: int, kind: str = "linear") -> Site:
    at = [Location("0.up.weight", 0), Location("0.up.bias", 0), Location("0.down.weight", 1)]
    return Site("0.up", kind, units, "relu", (), at[0], at[1], (Reader(at[2], "0.down.bias"),))


def test_the_inner_width_of_a_block():
    found = changes(follow(nn.Sequential(Mlp(4, 8)), [cut(ffn(8), 3)]))
    assert found == {"0.intermediate_size": (8, 3), "0.hidden_dim": (8, 3)}


def test_a_name_that_may_mean_the_outer_width_is_left_where_both_are_the_same():
    found = changes(follow(nn.Sequential(Mlp(8, 8)), [cut(ffn(8), 3)]))
    assert found == {"0.intermediate_size": (8, 3)}


@pytest.mark.parametrize("kind", ["residual", "embedding"])
def test_streams_change_no_block(kind):
    assert follow(nn.Sequential(Mlp(4, 8)), [cut(ffn(8, kind), 3)]) == []


def test_parameters_without_a_module_of_their_own():
    """Stacked experts: (E, 2I, H) and (E, H, I), and no bias."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up, self.down = nn.Parameter(torch.ones(2, 12, 4)), nn.Parameter(torch.ones(2, 4, 6))
            self.intermediate_dim = 6

    gate, up = Location("0.gate_up", 1), Location("0.gate_up", 1, 6)
    reader = Reader(Location("0.down", 2), "", outputs=1)
    site = Site("0.gate_up", "experts", 6, "identity", (), gate, Location("", 0), (reader,), (up,))
    assert changes(follow(nn.Sequential(Experts()), [cut(site, 4)])) == {"0.intermediate_dim": (6, 4)}


def test_nothing_follows_a_site_that_stays_whole():
    assert follow(nn.Sequential(Mlp(4, 8)), [cut(ffn(8), 8)]) == []
