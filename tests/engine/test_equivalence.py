"""Float64 whatever the precision, and the comparison that every cut must pass: broken on purpose, it must say so."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import coreprune as cp
from coreprune.engine import double, equivalence, masking
from coreprune.engine.double import Double
from coreprune.engine.equivalence import check, require
from coreprune.engine.made import Made
from coreprune.engine.masking import reconstructed
from coreprune.errors import UnsupportedModelError
from coreprune.maths.layer import Coreset, Thin
from coreprune.model.capture import capture
from coreprune.model.site import Inspection, Location, Reader, Site, Tap
from coreprune.plan import Cut, Plan
from coreprune.surgery.edits import edited


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def floats(outputs):
    return [v for v in pytree.tree_leaves(outputs) if isinstance(v, torch.Tensor) and v.is_floating_point()]


def gap(a, b):
    assert all(x.dtype == y.dtype == torch.float64 for x, y in zip(a, b, strict=True))
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in zip(a, b, strict=True))


def widened(inputs):
    return pytree.tree_map(lambda v: double.wide(v) if isinstance(v, torch.Tensor) else v, inputs)


# ---------------------------------------------------------------- Double


class Casts(nn.Module):
    """A norm as language models write it: in float32 whatever comes in."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(normal(6))
        self.register_buffer("low", normal(6, seed=1).half())

    def forward(self, x):
        kind = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        steps = torch.arange(0.0, 1.5, 0.25, dtype=torch.float32) + torch.full((6,), 0.1).half() + torch.arange(6) / 7
        bias = F.softmax(x.bfloat16() + steps, -1, dtype=torch.float32)
        return self.weight * x.to(kind) + bias.type_as(self.weight) + self.low


class Query(nn.Module):
    """Parameters that meet activations before any map."""

    def __init__(self):
        super().__init__()
        self.first, self.query, self.table = (nn.Parameter(normal(*s)) for s in ((1, 1, 8), (1, 1, 3, 8), (8, 8)))

    def forward(self, x):
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        y = F.scaled_dot_product_attention(self.query.expand(len(x), -1, -1, -1), x[:, None], x[:, None])
        x[:, 0] = self.first[0]
        x.mul_(self.table[0]).clamp_(max=2.0)
        return torch.einsum("bhqd,de->bhqe", y, self.table), torch.cdist(x, self.table), torch.baddbmm(
            self.table.expand(len(x), -1, -1), x.transpose(1, 2), x, alpha=0.5, beta=2.0
        )  # fmt: skip


LAYERS = {
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose1d(3, 4, 3), (2, 3, 5)),
    "batch norm": (lambda: nn.BatchNorm1d(4).eval(), (5, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 8), (2, 8, 5)),
    "instance norm": (lambda: nn.InstanceNorm1d(8, affine=True), (2, 8, 5)),
    "rms norm": (lambda: nn.RMSNorm(8), (2, 8)),
    "prelu": (lambda: nn.PReLU(8), (2, 8, 5)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), (2, 5, 8)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), (2, 8)),
    "parameters": (Query, (2, 5, 8)),
}


class TestDouble:
    @pytest.mark.parametrize("name", LAYERS)
    def test_it_is_the_module_in_double_precision(self, name):
        make, shape = LAYERS[name]
        model, x = make(), normal(*shape).double()
        with torch.no_grad():
            with Double():
                got = floats(model(x.clone()))
            assert gap(got, floats(copy.deepcopy(model).double()(x.clone()))) < 1e-14

    def test_casts_do_not_round(self):
        model, x = Casts(), normal(4, 6).double()
        copied = copy.deepcopy(model).double()
        with torch.no_grad():
            with Double():
                got, again = floats(model(x)), floats(copied(x))
            y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            steps = torch.arange(6).double() * 0.25 + 0.1 + torch.arange(6).double() / 7
            expected = model.weight.double() * y + F.softmax(y + steps, -1) + model.low.double()
        assert gap(got, again) == 0 and gap(got, [expected]) < 1e-14

    def test_the_default_type_is_left_alone(self):
        with Double():
            assert torch.get_default_dtype() == torch.float32
            assert torch.zeros(2).dtype == torch.float64 and torch.arange(3).dtype == torch.int64
            with pytest.raises(RuntimeError):
                torch.zeros(2) @ torch.zeros(3)
        assert torch.get_default_dtype() == torch.float32 and torch.zeros(2).dtype == torch.float32

    def test_the_least_number_masks_without_overflow(self):
        with Double():
            least = torch.full((2, 3), torch.finfo(torch.float64).min)
            assert (least + least).isfinite().all() and torch.allclose(
                F.softmax(least, -1), torch.tensor(1 / 3).double()
            )

    def test_buffers_that_are_written_into_are_written(self):
        cache = torch.zeros(4)
        with Double():
            cache[1:3] = torch.tensor([1.0, 2.0]).double()
        assert cache.tolist() == [0, 1, 2, 0] and cache.dtype == torch.float32

    @pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
    def test_large_weights_in_pieces(self, kind, monkeypatch):
        a, b, c = normal(2, 7, 30).double(), normal(2, 30, 11, seed=1).to(kind), normal(11, seed=2).to(kind)
        sizes, old = [], double.wide
        monkeypatch.setattr(double, "PIECE", 8 * 70)
        monkeypatch.setattr(
            double, "wide", lambda v: sizes.append(v.numel() if isinstance(v, torch.Tensor) else 0) or old(v)
        )
        wide = b.double(), c.double()
        with torch.no_grad(), Double():
            got = [a[0] @ b[0], a @ b, torch.addmm(c, a[0], b[0], alpha=2, beta=3), b[0].T @ a[0].T]
            got += [F.linear(a, b[1].T, c), torch.baddbmm(c, a, b), b[0].T @ b[1]]
        expected = [a[0] @ wide[0][0], a @ wide[0], 3 * wide[1] + 2 * (a[0] @ wide[0][0]), wide[0][0].T @ a[0].T]
        expected += [F.linear(a, wide[0][1].T, wide[1]), wide[1] + a @ wide[0], wide[0][0].T @ wide[0][1]]
        for x, y in zip(got, expected, strict=True):
            assert x.dtype == torch.float64 and x.shape == y.shape and torch.allclose(x, y, rtol=1e-13, atol=1e-13)
        assert max(sizes) <= 2 * 7 * 30  # nothing but activations is larger than a piece

    def test_an_embedding_is_looked_up_and_then_converted(self, monkeypatch):
        sizes, old = [], double.wide
        monkeypatch.setattr(
            double, "wide", lambda v: sizes.append(v.numel() if isinstance(v, torch.Tensor) else 0) or old(v)
        )
        table = nn.Embedding(1000, 4)
        with torch.no_grad(), Double():
            assert torch.equal(table(torch.tensor([7])), table.weight[7:8].double())
        assert max(sizes) == 4

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("family", ["llama", "bert", "resnet-basic", "vit", "t5", "mixtral", "whisper"])
    def test_published_architectures(self, family):
        pytest.importorskip("transformers")
        from zoo.families import TABLE

        one = next(f for f in TABLE if f.name == family)
        model, inputs = one.make(), widened(one.inputs())
        with torch.no_grad(), Double():
            a = floats(model(**inputs))
            assert gap(a, floats(model.double()(**inputs))) < 1e-12
        if family in {"bert", "resnet-basic", "vit", "whisper"}:  # no casts in their code
            with torch.no_grad():
                assert gap(a, floats(model(**inputs))) < 1e-12


# ---------------------------------------------------------------- reconstruction


def loops(value, entries, kept, T, t):
    """x̂ written out, for units on the last axis."""
    n, block, share = entries.shape
    out = value.clone()
    for row, old in zip(out, value, strict=True):
        for j in range(n):
            for d in range(block):
                for p in range(share):
                    row[entries[j, d, p]] = t[j * block + d] + sum(
                        T[j * block + d, s * block + e] * old[entries[kept[s], e, p]]
                        for s in range(len(kept))
                        for e in range(block)
                    )
    return out


@pytest.mark.parametrize("block,share", [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_reconstruction_is_the_formula(block, share, monkeypatch):
    monkeypatch.setattr(masking, "PIECE", 20)
    n, kept = 4, torch.tensor([1, 3])
    entries = torch.randperm(n * block * share + 2, generator=torch.Generator().manual_seed(0))[2:].reshape(
        n, block, share
    )
    value = normal(5, entries.numel() + 2).double()
    T, t = normal(n * block, 2 * block, seed=1).double(), normal(n * block, seed=2).double()
    got = reconstructed(value, Tap(0, "", "", 1, entries), Coreset(kept, T, t))
    assert torch.allclose(got, loops(value, entries, kept, T, t), atol=1e-14)
    moved = reconstructed(value.T.contiguous(), Tap(0, "", "", -2, entries), Coreset(kept, T, t))
    assert torch.allclose(moved.T, got)


def test_a_copy_of_ones_own_is_written_into():
    value, tap = normal(5, 12).double(), Tap(0, "", "", 1, torch.arange(3, 9).reshape(6, 1, 1))
    coreset = Coreset(torch.tensor([0, 2]), normal(6, 2, seed=1).double(), normal(6, seed=2).double())
    before = value.clone()
    expected = reconstructed(value, tap, coreset)
    assert torch.equal(value, before)
    assert reconstructed(value, tap, coreset, own=True) is value and torch.equal(value, expected)


def test_one_matrix_for_every_entry_of_a_unit_and_one_weight_for_every_unit():
    kept, entries = torch.tensor([0, 2]), torch.arange(12).reshape(3, 2, 2)
    value, tap = normal(5, 12).double(), Tap(0, "", "", 1, torch.arange(12).reshape(3, 2, 2))
    T, t, w = normal(3, 2, seed=1).double(), normal(6, seed=2).double(), torch.tensor([2.0, -1.0])
    full = torch.kron(T, torch.eye(2).double())
    assert torch.allclose(
        reconstructed(value, tap, Coreset(kept, T)), loops(value, entries, kept, full, torch.zeros(6))
    )
    assert torch.allclose(reconstructed(value, tap, Coreset(kept, T, t)), loops(value, entries, kept, full, t))
    alone = reconstructed(value, tap, Coreset(kept, w)).reshape(5, 3, 4)
    assert torch.equal(alone[:, 0], 2 * value[:, :4]) and torch.equal(alone[:, 2], -value[:, 8:])
    assert not alone[:, 1].any()
    each = reconstructed(value, tap, Coreset(kept, w, t)).reshape(5, 3, 2, 2)
    assert torch.allclose(each, alone.reshape(5, 3, 2, 2) + t.reshape(3, 2, 1))
    assert torch.allclose(reconstructed(value, tap, Coreset(kept, w, t[:3])).reshape(5, 3, 4), alone + t[:3, None])


def test_thin_weights_reconstruct_as_they_do_written_out():
    tap = Tap(0, "n", "x", 1, torch.arange(10).reshape(5, 1, 2))
    T = Thin(torch.tensor([1, 4]), normal(2, 1).double(), normal(1, 3).double())
    value, t = normal(4, 12, 2).double(), normal(5).double()
    found, expected = (reconstructed(value, tap, Coreset(KEPT, mix, t)) for mix in (T, T.dense()))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    W = normal(7, 5).double()
    assert torch.allclose(Coreset(KEPT, T).outgoing(W), W @ Coreset(KEPT, T).matrix(5), rtol=1e-12)


# ---------------------------------------------------------------- equivalence


def inspection(model, example, where, *, captures=None):
    """Sites by hand: name → (units, [(operator, which, axis, share)] by reader)."""
    graphs = captures or (capture(model, example),)
    sites, taps = [], {}
    for name, (units, readers) in where.items():
        at = Location(f"{name}.weight", 0)
        read = tuple(Reader(Location(f"{name}'s {i}", 1), "") for i, _ in enumerate(readers))
        sites.append(Site(name, "linear", units, "relu", (), at, Location(f"{name}.bias", 0), read))
        taps[name] = tuple(tuple(_tap(graphs, units, *one) for one in reader) for reader in readers)
    return Inspection(tuple(sites), (), {}, 0, graphs=graphs, taps=taps)


def _tap(graphs, units, operator, which, axis, share=1, graph=0):
    node = [n for n in graphs[graph].graph.graph.nodes if str(n.target).startswith(f"aten.{operator}.")][which]
    return Tap(graph, node.name, node.args[0].name, axis, torch.arange(units * share).reshape(units, 1, share))


def planned(found, *coresets):
    return Plan(tuple(Cut(site, tuple(each)) for site, each in zip(found.sites, coresets, strict=True)), {}, {})


def shrunk(model, tensors64):
    """A copy with rounded tensors of other shapes."""
    small = copy.deepcopy(model)
    for name, value in tensors64.items():
        path, _, leaf = name.rpartition(".")
        module = small.get_submodule(path)
        setattr(module, leaf, nn.Parameter(value.to(next(model.parameters()).dtype)))
    return small


KEPT = torch.tensor([0, 2, 3])


def coreset(n=5, offset=True, seed=3):
    return Coreset(KEPT, normal(n, 3, seed=seed).double(), normal(n, seed=seed + 1).double() if offset else None)


def perceptron(kind=torch.float32):
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).to(kind)
    found = inspection(model, torch.zeros(2, 4, dtype=kind), {"0": (5, [[("linear", 1, 1)]])})
    one = coreset()
    W = model[2].weight.detach().double()
    new = {
        "0.weight": model[0].weight.detach()[KEPT].double(),
        "0.bias": model[0].bias.detach()[KEPT].double(),
        "2.weight": W @ one.mix,
        "2.bias": model[2].bias.detach().double() + W @ one.offset,
    }
    return model, found, planned(found, [one]), new


class TestCheck:
    @pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
    def test_an_exact_cut_agrees_in_every_precision(self, kind):
        model, found, plan, new = perceptron(kind)
        assert check(model, shrunk(model, new), found, plan, new) < 1e-14
        assert require(model, shrunk(model, new), found, plan, new) < 1e-14

    def test_rounding_is_no_agreement(self):
        model, found, plan, new = perceptron()
        rounded = {name: value.float() for name, value in new.items()}
        assert 1e-9 < check(model, shrunk(model, new), found, plan, rounded) < 1e-5

    @pytest.mark.parametrize("broken", ["0.weight", "0.bias", "2.weight", "2.bias"])
    def test_every_wrong_tensor_is_found(self, broken):
        model, found, plan, new = perceptron()
        new[broken] = new[broken].clone()
        new[broken].view(-1)[1] += 1e-3
        with pytest.raises(UnsupportedModelError, match=r"differ by \d.*nothing was changed"):
            require(model, shrunk(model, new), found, plan, new)

    @pytest.mark.parametrize("what", ["mix", "offset", "indices"])
    def test_every_wrong_part_of_the_plan_is_found(self, what):
        model, found, plan, new = perceptron()
        one = plan.cuts[0].coresets[0]
        mix, offset, indices = one.mix.clone(), one.offset.clone(), one.indices.clone()
        {"mix": mix.view(-1), "offset": offset, "indices": indices}[what][1] += 1
        wrong = planned(found, [Coreset(indices, mix, offset)])
        assert check(model, shrunk(model, new), found, wrong, new) > 1e-3

    def test_both_models_are_as_they_were(self):
        model, found, plan, new = perceptron()
        model.train()[1].eval()
        small = shrunk(model, new)
        small.register_buffer("count", torch.zeros(1))
        before = {
            k: (id(v), v.clone())
            for m in (model, small)
            for k, v in {**dict(m.named_parameters()), "of": next(m.parameters())}.items()
        }
        check(model, small, found, plan, new)
        after = {
            k: (id(v), v)
            for m in (model, small)
            for k, v in {**dict(m.named_parameters()), "of": next(m.parameters())}.items()
        }
        assert all(before[k][0] == after[k][0] and torch.equal(before[k][1], after[k][1]) for k in before)
        assert [m.training for m in model] == [True, False, True] and small.training and not small.count.any()
        assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in small.parameters())
        assert torch.get_default_dtype() == torch.float32

    def test_a_network_that_does_not_run_is_told_with_its_reason_and_left_as_it_was(self):
        model, found, plan, new = perceptron()
        new["2.weight"] = new["2.weight"][:, :2]
        small = shrunk(model, new)
        own = dict(small.named_parameters())
        with pytest.raises(UnsupportedModelError, match=r"does not run: .*shapes.*; nothing was changed"):
            require(model, small, found, plan, new)
        assert all(small.get_parameter(name) is p for name, p in own.items())

    def test_units_mixed_before_the_activation_cannot_be_compared(self):
        model, found, plan, new = perceptron()
        one = plan.cuts[0].coresets[0]
        turned = Coreset(one.indices, one.mix, one.offset, normal(5, 3), normal(3))
        with pytest.raises(UnsupportedModelError, match="mixed before their activation"):
            check(model, shrunk(model, new), found, planned(found, [turned]), new)

    def test_another_shape_of_the_output_is_told(self):
        model, found, plan, new = perceptron()
        new["2.weight"], new["2.bias"] = new["2.weight"][:2], new["2.bias"][:2]
        with pytest.raises(UnsupportedModelError, match=r"outputs have shapes \[\(2, 2\)\] .* \[\(2, 3\)\]"):
            check(model, shrunk(model, new), found, plan, new)

    @pytest.mark.parametrize("padding,offset,equal", [(0, True, True), (1, False, True), (1, True, False)])
    def test_a_constant_behind_padding_is_no_bias(self, padding, offset, equal):
        model = nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=padding)
        ).eval()
        found = inspection(model, torch.zeros(4, 2, 6, 6), {"0": (5, [[("conv2d", 1, 1)]])})
        one = coreset(offset=offset)
        W = model[3].weight.detach().double()
        state = {name: value.double() for name, value in model.state_dict().items()}
        new = {name: state[name][KEPT] for name in state if name[0] in "01" and state[name].dim()}
        new["3.weight"] = torch.einsum("oihw,ij->ojhw", W, one.mix)
        new["3.bias"] = state["3.bias"] + (torch.einsum("oihw,i->o", W, one.offset) if offset else 0)
        small = shrunk(model, {k: v for k, v in new.items() if "running" not in k})
        small[1].running_mean, small[1].running_var = new["1.running_mean"].float(), new["1.running_var"].float()
        difference = check(model, small, found, planned(found, [one]), new)
        assert difference < 1e-13 if equal else difference > 1e-3

    def test_entries_that_share_a_matrix_behind_a_flatten(self):
        model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
        found = inspection(model, torch.zeros(2, 2, 4, 4), {"0": (5, [[("linear", 0, 1, 4)]])})
        one = coreset()
        W = model[3].weight.detach().double().reshape(3, 5, 4)
        new = {f"0.{leaf}": getattr(model[0], leaf).detach()[KEPT].double() for leaf in ("weight", "bias")}
        new["3.weight"] = torch.einsum("ons,nk->oks", W, one.mix).flatten(1)
        new["3.bias"] = model[3].bias.detach().double() + torch.einsum("ons,n->o", W, one.offset)
        assert check(model, shrunk(model, new), found, planned(found, [one]), new) < 1e-14

    def test_readers_have_matrices_of_their_own_and_a_module_called_twice_two_taps(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(5, 3)

            def forward(self, x):
                h = torch.relu(self.a(x))
                again = torch.relu(self.a(self.b(h)))
                return {"first": self.c(h), "rest": (self.b(again), None)}

        model = Twice()
        reads = {"b": [("linear", 1, 1), ("linear", 4, 1)], "c": [("linear", 3, 1)]}
        found = inspection(model, torch.zeros(2, 4), {"a": (5, [reads["b"], reads["c"]])})
        two = coreset(seed=3), coreset(seed=8)
        new = {f"a.{leaf}": getattr(model.a, leaf).detach()[KEPT].double() for leaf in ("weight", "bias")}
        for name, one in zip("bc", two, strict=True):
            W, bias = (getattr(getattr(model, name), leaf).detach().double() for leaf in ("weight", "bias"))
            new |= {f"{name}.weight": W @ one.mix, f"{name}.bias": bias + W @ one.offset}
        assert check(model, shrunk(model, new), found, planned(found, two), new) < 1e-14
        assert check(model, shrunk(model, new), found, planned(found, two[::-1]), new) > 1e-3
        forgotten = inspection(model, torch.zeros(2, 4), {"a": (5, [reads["b"][:1], reads["c"]])})
        assert check(model, shrunk(model, new), forgotten, planned(found, two), new) > 1e-3

    def test_tied_tensors_are_replaced_under_all_their_names(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.table, self.mid, self.head = nn.Embedding(20, 4), nn.Linear(4, 5), nn.Linear(5, 4)
                self.out = nn.Linear(4, 20, bias=False)
                self.out.weight = self.table.weight

            def forward(self, ids):
                return self.out(self.head(torch.relu(self.mid(self.table(ids)))))

        model = Tied()
        found = inspection(model, torch.zeros(2, 6, dtype=torch.long), {"mid": (5, [[("linear", 1, 2)]])})
        one, W = coreset(offset=False), model.head.weight.detach().double()
        new = {f"mid.{leaf}": getattr(model.mid, leaf).detach()[KEPT].double() for leaf in ("weight", "bias")}
        new["head.weight"] = W @ one.mix
        small = shrunk(model, new)
        small.out.weight = small.table.weight
        new["table.weight"] = model.table.weight.detach().double()
        assert check(model, small, found, planned(found, [one]), new) < 1e-14
        new["table.weight"] = new["table.weight"].flip(0)
        assert check(model, small, found, planned(found, [one]), new) > 1e-3

    def test_blocks_are_compared_on_what_they_were_given(self):
        class Sorts(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))

            def forward(self, x):
                return self.block(x) if float(x.sum()) > 0 else x

        model, x = Sorts(), normal(2, 4)
        found = inspection(
            model, None, {"block.0": (5, [[("linear", 1, 1)]])}, captures=(capture(model.block, x, path="block"),)
        )
        given = equivalence._arguments(found.graphs[0], None, dict(model.named_parameters()))
        assert torch.equal(given[0][0], x)
        one, W = coreset(), model.block[2].weight.detach().double()
        new = {f"block.0.{leaf}": getattr(model.block[0], leaf).detach()[KEPT].double() for leaf in ("weight", "bias")}
        new |= {"block.2.weight": W @ one.mix, "block.2.bias": model.block[2].bias.detach().double() + W @ one.offset}
        assert check(model, shrunk(model, new), found, planned(found, [one]), new) < 1e-14
        new["block.2.bias"] = model.block[2].bias.detach().double()
        assert check(model, shrunk(model, new), found, planned(found, [one]), new) > 1e-3

    @pytest.mark.parametrize("broken", ["first.2.bias", "second.2.bias"])
    def test_every_block_counts_and_not_the_last_alone(self, broken):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4))
                self.second = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))

            def forward(self, x):
                return self.second(self.first(x))

        model, x = Two(), normal(2, 4)
        captures = tuple(capture(model.get_submodule(name), x, path=name) for name in ("first", "second"))
        where = {f"{name}.0": (5, [[("linear", 1, 1, 1, graph)]]) for graph, name in enumerate(("first", "second"))}
        found, one, new = inspection(model, None, where, captures=captures), coreset(), {}
        for name in ("first", "second"):
            block = model.get_submodule(name)
            W = block[2].weight.detach().double()
            new |= {f"{name}.0.{leaf}": getattr(block[0], leaf).detach()[KEPT].double() for leaf in ("weight", "bias")}
            new |= {f"{name}.2.weight": W @ one.mix, f"{name}.2.bias": block[2].bias.detach().double() + W @ one.offset}
        plan = planned(found, [one], [one])
        assert check(model, shrunk(model, new), found, plan, new) < 1e-14
        new[broken] = new[broken] + 0.5
        assert check(model, shrunk(model, new), found, plan, new) > 1e-3

    def test_code_that_cannot_do_with_noise_or_float64_is_compared_on_captures(self):
        class Asks(nn.Module):
            def __init__(self, stack):
                super().__init__()
                self.table, self.stack = nn.Embedding(50, 4), stack

            def forward(self, x, ids):
                if not torch.compiler.is_compiling() and ids.max() > 3:
                    raise ValueError("an index beyond what the code knows")
                x = x + self.table(ids)
                return self.stack(x) + x.new_tensor(0.1) + 1e3 * torch.finfo(x.dtype).eps

        stack, _, plan, new = perceptron()
        model = Asks(stack)
        example = (torch.zeros(2, 4), torch.tensor([1, 3]))
        found = inspection(model, example, {"0": (5, [[("linear", 1, 1)]])})
        new = {f"stack.{name}": value for name, value in new.items()}
        assert check(model, shrunk(model, new), found, plan, new) < 1e-14
        new["stack.2.bias"] = new["stack.2.bias"] + 1e-6
        assert check(model, shrunk(model, new), found, plan, new) > 1e-8

    def test_recurrent_layers_elsewhere_do_not_stand_in_the_way(self):
        class Mixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.gru, self.a, self.b = nn.GRU(4, 4), nn.Linear(4, 5), nn.Linear(5, 3)

            def forward(self, x):
                return self.b(torch.relu(self.a(self.gru(x)[0])))

        model = Mixed()
        found = inspection(model, torch.zeros(3, 2, 4), {"a": (5, [[("linear", -1, 2)]])})
        one, W = coreset(), model.b.weight.detach().double()
        new = {f"a.{leaf}": getattr(model.a, leaf).detach()[KEPT].double() for leaf in ("weight", "bias")}
        new |= {"b.weight": W @ one.mix, "b.bias": model.b.bias.detach().double() + W @ one.offset}
        small = shrunk(model, new)
        assert check(model, small, found, planned(found, [one]), new) < 1e-13
        assert (
            small.gru._flat_weights[0] is small.gru.weight_ih_l0 and small(torch.zeros(3, 2, 4)).dtype == torch.float32
        )

    def test_what_is_not_a_number_is_no_agreement(self):
        model, found, plan, new = perceptron()
        new["2.bias"] = new["2.bias"] * float("nan")
        assert check(model, shrunk(model, new), found, plan, new) == float("inf")
        with pytest.raises(UnsupportedModelError, match="differ by inf"):
            require(model, shrunk(model, new), found, plan, new)

    def test_a_stack_without_a_graph_is_not_passed_silently(self):
        model, found, plan, new = perceptron()
        with pytest.raises(AssertionError):
            check(model, shrunk(model, new), Inspection(found.sites, (), {}, 4), plan, new)


class Sized(nn.Module):
    """Convolutions on images; `fixed` makes the code hold their size, `deep` leaves nothing of small ones."""

    def __init__(self, how="free"):
        super().__init__()
        self.a, self.b, self.how = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 6, 3, 2), how
        self.head = nn.Linear(6 * 31 * 31 if how == "fixed" else 6, 4)

    def forward(self, x):
        h = torch.relu(self.b(torch.relu(self.a(x))))
        if self.how == "fixed":
            return self.head(h.flatten(1))
        if self.how == "branch" and x.shape[-1] < 100:
            return self.head(h.mean((2, 3))) + 1
        return self.head(h.mean((2, 3)))


@pytest.mark.parametrize("how,sides", [("free", {32}), ("fixed", {128}), ("branch", {32, 128})])
def test_smaller_images_stand_for_large_ones_where_the_code_takes_them(how, sides, monkeypatch):
    seen, old = set(), equivalence._live
    monkeypatch.setattr(equivalence, "_live", lambda m, a, d: seen.add(a[0][0].shape[-1]) or old(m, a, d))
    torch.manual_seed(0)
    model, x = Sized(how).eval(), torch.randn(2, 3, 128, 128)
    assert cp.prune(model, x, units={"a": 5}).model.a.out_channels == 5
    assert seen == sides


def test_on_smaller_images_too_a_wrong_cut_is_told(monkeypatch):
    torch.manual_seed(0)
    model, x = Sized().eval(), torch.randn(2, 3, 128, 128)

    def wrong(*args, **kwargs):
        return {n: t * (1 + 1e-6) if n == "b.weight" else t for n, t in edited(*args, **kwargs).items()}

    monkeypatch.setattr(sys.modules[Made.__module__], "edited", wrong)
    with pytest.raises(UnsupportedModelError, match="differ by"):
        cp.prune(model, x, units={"a": 5})


def test_the_distance_is_that_of_the_worst_output_in_shares_of_its_own_largest_entry():
    a, b = torch.tensor([1.0, -4.0]).double(), torch.tensor([[8.0]]).double()
    distance = equivalence._distance
    assert distance([a, b], [a + torch.tensor([0.0, 0.5]), b]) == pytest.approx(0.5 / 4)
    assert distance([a, b], [a, b - 2]) == pytest.approx(2 / 8)
    assert distance([a, b], [a + torch.tensor([0.0, 0.5]), b - 2]) == pytest.approx(2 / 8)
    assert distance([b, a], [b - 2, a + torch.tensor([0.0, 0.5])]) == pytest.approx(2 / 8)
    assert distance([a], [a.clone()]) == 0.0


class Casting(nn.Module):
    """Wants one precision and no other, of which a graph that was captured in that precision knows nothing."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        h = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c((h if h.dtype == torch.float32 else h.half().to(h.dtype)).mean((2, 3)))


@pytest.mark.parametrize("casts", [False, True])
def test_code_that_casts_is_run_again_where_everything_is_widened(casts, monkeypatch):
    ways, old = [], equivalence._live
    monkeypatch.setattr(equivalence, "_live", lambda m, a, d: ways.append(d is not None) or old(m, a, d))
    torch.manual_seed(0)
    model, x = (Casting() if casts else Sized()).eval(), torch.randn(2, 3, 8, 8)
    cp.prune(model, x, units={"a": 5})
    assert ways == ([False, True] if casts else [False])
    ways.clear()
    monkeypatch.setattr(equivalence, "FEW", 100)  # entries, and the network has more
    cp.prune(model, x, units={"a": 5})
    assert ways == [True]
