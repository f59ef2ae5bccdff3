"""From labels to sites: what they are called, where their units lie, which bias takes a constant, and in which order."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import coreprune as cp
from coreprune.model.network import discover_network
from coreprune.model.site import Location, parameters_after


def of(model, *shape):
    x = shape[0] if isinstance(shape[0], (torch.Tensor, dict, tuple)) else torch.zeros(*shape)
    return discover_network(model.eval(), x)


def site(found, name):
    return next(site for site in found.sites if site.name == name)


def reasons(found):
    return {refusal.name: refusal.reason for refusal in found.refused}


class Module(nn.Module):
    """Parts by name, and a forward pass as a function of them."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.f = forward
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if type(part) is torch.Tensor else part)

    def forward(self, *x):
        return self.f(self, *x)


def places(one):
    return {(at.tensor, at.axis, at.start, at.span) for at in one.locations if at.tensor}


# ---------------------------------------------------------------- kinds and places


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_heads_of_a_fused_projection_have_three_places_in_each_tensor():
    (heads,) = of(Fused(), 2, 5, 8).sites
    assert (heads.name, heads.kind, heads.units) == ("qkv", "heads", 4)
    assert places(heads) == {
        *(("qkv.weight", 0, start, 2) for start in (0, 8, 16)),
        *(("qkv.bias", 0, start, 2) for start in (0, 8, 16)),
        ("out.weight", 1, 0, 2),
    }
    (reader,) = heads.readers
    assert (reader.block, reader.bias, reader.sign, reader.outputs) == (2, "out.bias", 1.0, 0)
    assert heads.incoming == Location("qkv.weight", 0, 0, 2) and heads.bias == Location("qkv.bias", 0, 0, 2)


def grouped(m, x):
    q, k, v = (f(x).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (m.q, m.k, m.v))
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return m.o(y.transpose(1, 2).flatten(2))


def test_a_key_head_goes_with_all_its_query_heads():
    model = Module(grouped, q=nn.Linear(8, 12), k=nn.Linear(8, 4), v=nn.Linear(8, 4), o=nn.Linear(12, 8))
    (heads,) = of(model, 2, 5, 8).sites
    assert heads.kind == "heads" and heads.units == 2
    assert {(t, span) for t, _, _, span in places(heads)} == {
        ("q.weight", 6), ("q.bias", 6), ("k.weight", 2), ("k.bias", 2), ("v.weight", 2), ("v.bias", 2), ("o.weight", 6)
    }  # fmt: skip
    assert heads.readers[0].block == 6


def test_queries_that_share_one_key_head_stay():
    model = Module(grouped, q=nn.Linear(8, 12), k=nn.Linear(8, 2), v=nn.Linear(8, 2), o=nn.Linear(12, 8))
    found = of(model, 2, 5, 8)
    assert not found.sites and reasons(found)["q"] == "is combined with a tensor that is not cut"


def shuffled(m, x):
    h = m.a(x)
    n, c, height, width = h.shape
    h = h.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(h.shape)
    return m.b(h)


def test_a_channel_shuffle_gives_an_order():
    found = of(Module(shuffled, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 2, 3)), 1, 3, 8, 8)
    (one,) = found.sites
    assert one.kind == "conv" and one.units == 4
    assert places(one) == {("a.weight", 0, 0, 1), ("a.weight", 0, 4, 1), ("a.bias", 0, 0, 1), ("a.bias", 0, 4, 1),
                           ("b.weight", 1, 0, 2)}  # fmt: skip


def test_a_shuffle_between_groups_has_its_entries_in_order():
    model = Module(
        lambda m, x: m.b(torch.cat([(h := m.a(x).unflatten(1, (2, 4)).transpose(1, 2).flatten(1)), h.flip(0)], 1)),
        a=nn.Linear(3, 8), b=nn.Linear(16, 2),
    )  # fmt: skip
    (one,) = of(model, 2, 3).sites
    at = one.readers[0].weight
    assert at.entries(4).tolist() == [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]]
    assert at.order and at.span == 4


@pytest.mark.parametrize("last,span", [((0, 1, 2, 3), 9), ((0, 2, 3, 1), 9)])
def test_a_flattened_image_has_an_entry_for_every_position(last, span):
    model = Module(lambda m, x: m.b(m.a(x).permute(last).flatten(1)), a=nn.Conv2d(3, 4, 3), b=nn.Linear(36, 2))
    (one,) = of(model, 1, 3, 5, 5).sites
    at = one.readers[0].weight
    assert at.span == span and one.readers[0].block == 1
    expected = torch.arange(36).reshape(4, 9) if last[1] == 1 else torch.arange(36).reshape(9, 4).T
    assert torch.equal(at.entries(4), expected)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 6 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 6 * i, 6, 3, padding=1) for i in range(3))
        self.last = nn.Linear(26, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.last(F.relu(self.norms[3](x)).mean((2, 3)))


def test_channels_that_are_concatenated_again_and_again_lie_at_their_offsets():
    found = of(Dense(), 1, 3, 6, 6)
    assert [s.name for s in found.sites] == ["stem", "convs.0", "convs.1", "convs.2"]
    for i in range(3):
        one = site(found, f"convs.{i}")
        starts = {at.start for at in (*one.others, *(r.weight for r in one.readers))}
        assert starts == {8 + 6 * i} and one.units == 6
        readers = {*(f"convs.{j}.weight" for j in range(i + 1, 3)), "last.weight"}
        assert {r.weight.tensor for r in one.readers} == readers


def stream(m, x):
    h = m.a(x)
    h = h + m.c(m.b(h).relu())
    return m.e(h + m.d(h.relu()))


def test_a_residual_stream_has_several_writers_and_readers():
    sizes = {"a": (5, 6), "b": (6, 7), "c": (7, 6), "d": (6, 6), "e": (6, 2)}
    found = of(Module(stream, **{name: nn.Linear(*size) for name, size in sizes.items()}), 3, 5)
    assert [(s.name, s.kind, s.units) for s in found.sites] == [("a", "residual", 6), ("b", "linear", 7)]
    whole = found.sites[0]
    assert [r.weight.tensor for r in whole.readers] == ["b.weight", "d.weight", "e.weight"]
    assert [m.weight.tensor for m in found.makers["a"]] == ["a.weight", "c.weight", "d.weight"]
    assert {t for t, axis, *_ in places(whole) if axis == 0} == {f"{n}.{p}" for n in "acd" for p in ("weight", "bias")}


def test_gates_and_tables_have_their_own_kinds():
    gated = Module(lambda m, x: m.c(F.silu(m.a(x)) * m.b(x)), a=nn.Linear(5, 6), b=nn.Linear(5, 6), c=nn.Linear(6, 2))
    one_matrix = Module(lambda m, x: m.b(F.glu(m.a(x))), a=nn.Linear(5, 12), b=nn.Linear(6, 2))
    table = Module(lambda m, i: m.b(m.a(i)), a=nn.Embedding(9, 6), b=nn.Linear(6, 2))
    for model, x in ((gated, torch.zeros(2, 5)), (one_matrix, torch.zeros(2, 5)), (table, torch.zeros(2, 3).long())):
        (one,) = of(model, x).sites
        assert one.units == 6 and one.kind == ("embedding" if model is table else "gated")


def test_depthwise_kernels_and_norms_belong_to_the_units():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)
    )
    found = of(model, 1, 3, 6, 6)
    (one,) = found.sites
    assert (one.name, one.activation, one.bias.tensor) == ("0", "relu", "")
    assert {at.tensor for at in one.others} == {
        "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight", "3.bias"
    }  # fmt: skip
    ((maker,),) = found.makers.values()
    assert maker.norm == ("1.weight", "1.bias", "1.running_mean", "1.running_var", 1e-5)


def test_the_reader_of_a_single_column_has_its_outputs_on_the_other_axis():
    model = Module(lambda m, x: m.a(x).relu() @ m.b, a=nn.Linear(5, 6), b=torch.randn(6, 1))
    (one,) = of(model, 3, 5).sites
    assert (one.readers[0].weight.axis, one.readers[0].outputs) == (0, 1)
    cp.prune(model, (torch.randn(3, 5),), units={"a": 3})


def test_a_transposed_parameter_is_written_on_its_other_axis():
    model = Module(
        lambda m, x: F.linear(F.linear(x, m.a.t()).relu(), m.b.t()), a=torch.randn(5, 6), b=torch.randn(6, 2)
    )
    found = of(model, 3, 5)
    (one,) = found.sites
    assert one.incoming == Location("a", 1) and one.readers[0].weight == Location("b", 0)
    assert one.readers[0].outputs == 1 and found.makers["a"][0].weight == Location("a", 1)
    assert reasons(found) == {"b": "is an output of the network"}


# ---------------------------------------------------------------- refusals


def test_tied_weights_that_are_written_and_read_are_refused():
    model = Module(
        lambda m, x: F.linear(F.linear(x, m.w).relu(), m.w.t()) + m.c(m.b(x)),
        w=torch.randn(6, 5), b=nn.Linear(5, 4), c=nn.Linear(4, 5),
    )  # fmt: skip
    found = of(model, 3, 5)
    assert [s.name for s in found.sites] == ["b"]
    assert reasons(found)["w"] == "is both written and read along axis 0 of w"


def test_modules_that_share_a_weight_are_cut_together_or_not_at_all():
    model = Module(
        lambda m, x: m.d(m.b(m.a(x).relu()).relu() + m.c(m.a(x)).relu()),
        a=nn.Linear(5, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 6), d=nn.Linear(6, 2),
    )  # fmt: skip
    model.c.weight = model.b.weight
    found = of(model, 3, 5)
    assert [(s.name, s.units) for s in found.sites] == [("a", 6), ("b", 6)]
    assert found.aliases == {"b.weight": ("c.weight",)}
    small = cp.prune(model, (torch.randn(3, 5),), units={"a": 3, "b": 4}).model
    assert small.c.weight is small.b.weight and tuple(small.b.weight.shape) == (4, 3)


def test_buffers_that_are_not_saved_hold_their_units():
    model = Module(lambda m, x: m.b(m.a(x) * m.mask), a=nn.Linear(5, 6), b=nn.Linear(6, 2))
    model.register_buffer("mask", torch.rand(6), persistent=False)
    found = of(model, 3, 5)
    assert not found.sites and reasons(found)["a"] == "lives in a buffer that is not saved"


def test_weights_that_are_computed_are_refused():
    model = nn.Sequential(nn.Linear(5, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 2))
    found = of(model, 3, 5)
    assert not found.sites and "its weight is computed" in reasons(found)["1"]


def test_units_that_hang_together_are_one():
    model = Module(
        lambda m, x: m.b(torch.stack(m.a(x).unbind(1)).sum(0)[:, None]), a=nn.Linear(5, 2), b=nn.Linear(1, 2)
    )
    assert not of(model, 3, 5).sites


def test_units_that_nothing_reads_are_told():
    found = of(Module(lambda m, x: m.b(m.a(x).mean(1, keepdim=True)), a=nn.Linear(5, 6), b=nn.Linear(1, 2)), 3, 5)
    assert reasons(found) == {"a": "is summed up over its units (mean)", "b": "is an output of the network"}


# ---------------------------------------------------------------- biases


def bias_of(model, name, *shape):
    found = of(model, *shape)
    return {r.weight.tensor: (r.bias, r.sign) for s in found.sites for r in s.readers}[name]


def conv_bn(**settings):
    settings = {"bias": False, "kernel_size": 3} | settings
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, **settings), nn.BatchNorm2d(5))


@pytest.mark.parametrize(
    "settings,expected",
    [
        ({}, ("3.running_mean", -1.0)),
        ({"bias": True}, ("2.bias", 1.0)),
        ({"padding": 1}, ("", 1.0)),
        ({"padding": 1, "bias": True}, ("", 1.0)),
        ({"padding": "same"}, ("", 1.0)),
        ({"padding": "valid"}, ("3.running_mean", -1.0)),
        ({"stride": 2}, ("3.running_mean", -1.0)),
    ],
    ids=str,
)
def test_a_convolution_takes_a_constant_in_its_bias_or_its_norm_unless_it_is_padded(settings, expected):
    assert bias_of(conv_bn(**settings), "2.weight", 1, 3, 8, 8) == expected


def test_a_transposed_convolution_takes_none():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2))
    assert bias_of(model, "2.weight", 1, 3, 8, 8) == ("", 1.0)


def test_a_linear_map_takes_it_in_its_own_bias_or_its_norm_or_not_at_all():
    for bias, norm, expected in (
        (True, True, ("2.bias", 1.0)),
        (False, False, ("", 1.0)),
        (False, True, ("3.running_mean", -1.0)),
    ):
        model = nn.Sequential(
            nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=bias), nn.BatchNorm1d(4) if norm else nn.Identity()
        )
        assert bias_of(model, "2.weight", 3, 5) == expected


def test_a_norm_over_another_axis_takes_none():
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4))
    found = of(model, 3, 4, 5)
    assert [r.bias for r in found.sites[0].readers] == [""]
    cp.prune(model, (torch.randn(3, 4, 5),), units={"0": 3})
    wide = nn.Sequential(nn.Linear(5, 9, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(9, 2)).eval()
    assert of(wide, 3, 4, 5).makers["0"][0].norm is None
    cp.prune(wide, (torch.randn(3, 4, 5),), units={"0": 3}, method="magnitude")


def test_a_convolution_that_something_else_reads_too_takes_none():
    model = Module(
        lambda m, x: m.norm(h := m.b(m.a(x).relu())) + h,
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 5, 3, bias=False), norm=nn.BatchNorm2d(5),
    )  # fmt: skip
    assert bias_of(model, "b.weight", 1, 3, 8, 8) == ("", 1.0)


def test_a_norm_that_two_convolutions_share_takes_none():
    model = Module(
        lambda m, x: m.norm(m.b(h := m.a(x).relu())) + m.norm(m.c(h)),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 5, 3, bias=False), c=nn.Conv2d(4, 5, 3, bias=False), norm=nn.BatchNorm2d(5),
    )  # fmt: skip
    assert bias_of(model, "b.weight", 1, 3, 8, 8) == bias_of(model, "c.weight", 1, 3, 8, 8) == ("", 1.0)
    cp.prune(model, (torch.randn(2, 3, 8, 8),), units={"a": 2})


@pytest.mark.parametrize("how", ["twice", "tied", "added", "returned"])
def test_a_bias_that_serves_something_else_too_takes_none(how):
    def forward(m, x):
        h = m.a(x).relu()
        y, z = m.b(h), m.c(x)
        if how == "twice":
            return y + F.linear(x, m.c.weight, m.b.bias)
        return (y + z) + m.b.bias if how == "added" else ((y + z), m.b.bias) if how == "returned" else y + z

    model = Module(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 4), c=nn.Linear(5, 4))
    if how == "tied":
        model.c.bias = model.b.bias
    assert bias_of(model, "b.weight", 3, 5) == ("", 1.0)
    cp.prune(model, (torch.randn(3, 5),), units={"a": 3})


def test_a_bias_of_the_left_factor_runs_over_the_wrong_axis():
    model = Module(
        lambda m, x: torch.addmm(m.c, m.b, torch.relu(F.linear(x, m.a)).t()),
        a=torch.randn(6, 5), b=torch.randn(3, 6), c=torch.randn(3),
    )  # fmt: skip
    assert bias_of(model, "b", 3, 5) == ("", 1.0)
    cp.prune(model, (torch.randn(3, 5),), units={"a": 3})


def test_one_of_several_matrices_in_a_parameter_takes_none():
    def forward(m, x):
        h = m.a(x).relu()
        return F.linear(h, m.w[0], m.b[0]) + F.linear(h.sin(), m.w[1], m.b[1])

    model = Module(forward, a=nn.Linear(5, 6), w=torch.randn(2, 4, 6), b=torch.randn(2, 4))
    assert bias_of(model, "w", 3, 5) == ("", 1.0)
    cp.prune(model, (torch.randn(3, 5),), units={"a": 3})


def test_pieces_of_one_matrix_take_it_in_the_same_pieces_of_one_bias():
    def forward(m, x, swapped=False):
        h = m.a(x).relu()
        b = m.b.chunk(2)
        return sum(F.linear(h, w, c) for w, c in zip(m.w.chunk(2), b[::-1] if swapped else b, strict=True))

    parts = {"a": nn.Linear(5, 6), "w": torch.randn(8, 6), "b": torch.randn(8)}
    right, wrong = Module(forward, **parts), Module(lambda m, x: forward(m, x, True), **parts)
    assert bias_of(right, "w", 3, 5) == ("b", 1.0) and bias_of(wrong, "w", 3, 5) == ("", 1.0)
    for model in (right, wrong):
        cp.prune(model, (torch.randn(3, 5),), units={"a": 3})


# ---------------------------------------------------------------- called twice, order, names


class Twice(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(3, 6, 1), nn.Conv1d(6, 5, 1, bias=not norm), nn.Linear(5, 2)
        self.norms = nn.ModuleList(nn.BatchNorm1d(5) if norm else nn.Identity() for _ in range(2))

    def forward(self, x):
        h = self.a(x)
        y = self.norms[0](self.b(h.relu())) + self.norms[1](self.b(h.tanh()))
        return self.c(y.mean(2))


@pytest.mark.parametrize("norm", [False, True])
def test_a_module_that_is_called_twice_is_one_reader_with_two_taps(norm):
    torch.manual_seed(0)
    model = Twice(norm).eval()
    found = of(model, 4, 3, 7)
    one = site(found, "a")
    assert [r.weight.tensor for r in one.readers] == ["b.weight"] and one.readers[0].bias == ("" if norm else "b.bias")
    (taps,) = found.taps["a"]
    assert len(taps) == 2 and len({(tap.node, tap.operand) for tap in taps}) == 2
    cp.prune(model, (torch.randn(4, 3, 7),), units={"a": 3, "b": 3})


def test_sites_come_in_forward_order_with_the_names_of_their_modules_every_time():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.third, self.second = nn.Linear(7, 2), nn.Linear(6, 7), nn.Linear(5, 6)
            self.first = nn.ModuleDict({"x": nn.Linear(4, 5)})

        def forward(self, x):
            for f in (self.first["x"], self.second, self.third):
                x = f(x).relu()
            return self.last(x)

    model = Backwards()
    found = of(model, 3, 4)
    assert [s.name for s in found.sites] == ["first.x", "second", "third"]
    for _ in range(2):
        again = of(model, 3, 4)
        assert again.sites == found.sites and again.refused == found.refused and again.makers == found.makers
    assert set(found.taps) == set(found.makers) == {s.name for s in found.sites}


def test_sites_in_one_tensor_have_names_of_their_own():
    model = Module(
        lambda m, x: torch.einsum("bhd,hdo->bo", torch.einsum("bi,ihd->bhd", x, m.a).relu(), m.b),
        a=torch.randn(5, 4, 3), b=torch.randn(4, 3, 2),
    )  # fmt: skip
    assert [(s.name, s.incoming.axis, s.units) for s in of(model, 3, 5).sites] == [("a", 1, 4), ("a[2]", 2, 3)]


def test_units_are_numbered_as_they_stand_in_their_first_writer():
    model = Module(
        lambda m, x: m.c(torch.cat([m.b(x), m.a(x)], 1)), a=nn.Linear(3, 4), b=nn.Linear(3, 5), c=nn.Linear(9, 2)
    )
    for one, start in zip(of(model, 2, 3).sites, (0, 5), strict=True):
        assert one.incoming.entries(one.units).flatten().tolist() == list(range(one.units))
        assert one.readers[0].weight.start == start


def test_what_is_counted_is_what_goes():
    torch.manual_seed(0)
    model, x = Fused().eval(), torch.randn(2, 5, 8)
    found = of(model, x)
    small = cp.prune(model, x, units={"qkv": 3}).model
    assert sum(p.numel() for p in small.parameters()) == parameters_after(found.shapes, found.sites, {"qkv": 3})
    assert found.governs(found.sites[0]) == 24 * 8 + 24 + 8 * 8
