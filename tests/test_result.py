"""A smaller network on disk: no pickle, strict, the same bits in another process."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import equal_states, lenet_like, sizes, wider
from safetensors.torch import load_file, save_file
from torch import nn

import coreprune as cp
from coreprune.errors import CheckpointError
from coreprune.maths.layer import Coreset
from coreprune.model.site import Location, Reader, Site
from coreprune.plan import Cut
from coreprune.result import read_claims
from coreprune.surgery.apply import install, spared_copy
from coreprune.surgery.attributes import follow
from coreprune.surgery.edits import edited


def saved(path: Path, model: nn.Module | None = None, **request) -> cp.Pruned:
    small = cp.prune(model or lenet_like(), **({"units": {"0": 5, "2": 4}, "method": "sampling"} | request))
    small.save(path)
    return small


def test_a_strict_load_in_another_process_gives_the_same_bits(tmp_path):
    small = saved(tmp_path / "small")
    x = torch.randn(7, 6)
    save_file({"x": x}, tmp_path / "x")
    code = (  # the input as torch lays memory out: where a file puts it, products can end in other bits
        "import coreprune as cp, torch; from helpers import lenet_like;"
        "from safetensors.torch import load_file, save_file;"
        "torch.set_num_threads(1); model = cp.load('small', lambda: lenet_like(seed=99));"
        "save_file({'y': model(load_file('x')['x'].clone()).detach(), **model.state_dict()}, 'y')"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(cp.__file__).parents[1])])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, check=True)
    found = load_file(tmp_path / "y")
    assert torch.equal(found.pop("y"), small.model(x))
    state = small.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_the_directory_holds_safetensors_and_json_only(tmp_path):
    saved(tmp_path / "small")
    assert sorted(f.name for f in (tmp_path / "small").iterdir()) == ["model.safetensors", "structure.json"]
    json.loads((tmp_path / "small" / "structure.json").read_text())
    load_file(tmp_path / "small" / "model.safetensors")


def test_nothing_in_the_directory_is_a_pickle(tmp_path):
    saved(tmp_path / "small")
    for file in (tmp_path / "small").iterdir():
        raw = file.read_bytes()
        assert raw[:2] != b"PK"
        with pytest.raises((pickle.UnpicklingError, ValueError, KeyError, IndexError, EOFError, AttributeError)):
            pickle.loads(raw)


def test_structure_agrees_with_the_file(tmp_path):
    small = saved(tmp_path / "small")
    body = json.loads((tmp_path / "small" / "structure.json").read_text())
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    assert body["size"]["parameters"] == sum(t.numel() for t in tensors.values()) == small.parameters
    assert body["size"]["bytes"] == sum(t.numel() * t.element_size() for t in tensors.values()) == small.bytes
    assert body["size"]["dense_parameters"] == sum(p.numel() for p in lenet_like().parameters())
    assert body["tensors"] == {n: [str(t.dtype).split(".")[1], list(t.shape)] for n, t in tensors.items()}
    assert body["modules"]["0"] == {"in_features": 6, "out_features": 5}
    assert [site["kept"] for site in body["sites"]] == [cut.kept.tolist() for cut in small.plan.cuts]
    assert body["recipe"]["seed"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtype_survives_though_the_factory_makes_float32(tmp_path, dtype):
    small = saved(tmp_path / "small", lenet_like(dtype=dtype))
    assert equal_states(cp.load(tmp_path / "small", lenet_like), small.model)


def test_loaded_network_is_plain_and_trainable(tmp_path):
    saved(tmp_path / "small")
    model = cp.load(tmp_path / "small", lenet_like)
    assert sizes(model) == [(6, 5), (5, 4), (4, 4)]
    model(torch.ones(1, 6)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_mode_and_requires_grad_are_the_factorys(tmp_path):
    saved(tmp_path / "small")
    model = cp.load(tmp_path / "small", lambda: lenet_like().eval().requires_grad_(False))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_tied_tensors_outside_the_cut(tmp_path):
    def make():
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5), nn.Softmax(-1), nn.Linear(5, 5), nn.CELU())
        model.append(nn.Linear(5, 5))
        model[6].weight = model[4].weight
        return model

    small = saved(tmp_path / "small", make(), units={"0": 3})
    assert small.model[6].weight is small.model[4].weight
    found = cp.load(tmp_path / "small", make)
    assert found[6].weight is found[4].weight
    assert equal_states(found, small.model)


def test_buffers_survive(tmp_path):
    def make():
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5), nn.BatchNorm1d(5))

    model = make()
    model[3].running_mean.fill_(3)
    model[3].num_batches_tracked.fill_(7)
    small = saved(tmp_path / "small", model, units={"0": 3})
    assert equal_states(cp.load(tmp_path / "small", make), small.model)


def test_a_bias_that_was_made_survives(tmp_path):
    def make():
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2, bias=False))

    model = make()
    coreset = Coreset(torch.tensor([0]), torch.ones(1), torch.tensor([0.0, 2.0, 3.0]))
    plan = cp.Plan((Cut(cp.inspect(model).sites[0], (coreset,)),), {}, cp.inspect(model).shapes)
    small = cp.apply(model, plan)
    small.save(tmp_path / "small")
    found = cp.load(tmp_path / "small", make)
    assert found[2].bias is not None
    assert equal_states(found, small.model)


def test_nothing_cut_is_saved_and_loaded_too(tmp_path):
    small = saved(tmp_path / "small", units={"0": 16})
    assert equal_states(cp.load(tmp_path / "small", lenet_like), small.model)


@pytest.mark.parametrize(
    "make",
    [wider, lambda: lenet_like()[:3], lambda: nn.Sequential(nn.Flatten(), lenet_like()), lambda: nn.Linear(6, 4),
     lambda: "text", lambda: None],
    ids=["smaller layer", "fewer layers", "other names", "other class", "text", "none"],
)  # fmt: skip
def test_a_factory_that_makes_something_else_is_refused(tmp_path, make):
    saved(tmp_path / "small", units={"2": 4})
    with pytest.raises(CheckpointError):
        cp.load(tmp_path / "small", make)


def test_a_factory_whose_layers_are_too_small_is_refused(tmp_path):
    saved(tmp_path / "small")
    with pytest.raises(CheckpointError, match="fresh instance"):
        cp.load(tmp_path / "small", lambda: nn.Sequential(nn.Linear(6, 3), nn.ReLU(), *lenet_like()[2:]))


def test_existing_directory_needs_force(tmp_path):
    small = saved(tmp_path / "small")
    before = {f.name: f.read_bytes() for f in (tmp_path / "small").iterdir()}
    with pytest.raises(CheckpointError, match="force"):
        small.save(tmp_path / "small")
    assert {f.name: f.read_bytes() for f in (tmp_path / "small").iterdir()} == before
    cp.prune(lenet_like(), units={"0": 2}, method="uniform").save(tmp_path / "small", force=True)
    assert cp.load(tmp_path / "small", lenet_like)[0].out_features == 2


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        saved(tmp_path / name)
    for file in ("model.safetensors", "structure.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def rewrite(path: Path, change) -> None:
    body = json.loads((path / "structure.json").read_text())
    change(body)
    (path / "structure.json").write_text(json.dumps(body))


STRUCTURES = {
    "later version": lambda b: b.update(version=99),
    "a plan": lambda b: b.update(kind="plan"),
    "no tensors": lambda b: b.pop("tensors"),
    "tensors no table": lambda b: b.update(tensors=[1, 2]),
    "no modules": lambda b: b.pop("modules"),
    "modules no table": lambda b: b.update(modules=3),
    "a tensor more": lambda b: b["tensors"].update(extra=["float32", [1]]),
    "another shape": lambda b: b["tensors"].update({"0.weight": ["float32", [6, 6]]}),
    "another dtype": lambda b: b["tensors"].update({"0.weight": ["float64", [5, 6]]}),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_damaged_structure_is_refused(tmp_path, name):
    saved(tmp_path / "small")
    rewrite(tmp_path / "small", STRUCTURES[name])
    with pytest.raises(CheckpointError):
        cp.load(tmp_path / "small", lenet_like)


def test_text_that_is_not_json_is_refused(tmp_path):
    saved(tmp_path / "small")
    text = (tmp_path / "small" / "structure.json").read_text()
    (tmp_path / "small" / "structure.json").write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match="JSON"):
        cp.load(tmp_path / "small", lenet_like)


TENSORS = {
    "one missing": lambda t: t.pop("2.bias"),
    "one more": lambda t: t.update(extra=torch.ones(1)),
    "another shape": lambda t: t.update({"0.weight": torch.ones(6, 6)}),
    "another rank": lambda t: t.update({"0.weight": torch.ones(30)}),
    "another dtype": lambda t: t.update({"0.weight": t["0.weight"].double()}),
}


@pytest.mark.parametrize("name", TENSORS)
def test_other_tensors_are_refused(tmp_path, name):
    saved(tmp_path / "small")
    file = tmp_path / "small" / "model.safetensors"
    tensors = load_file(file)
    TENSORS[name](tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError):
        cp.load(tmp_path / "small", lenet_like)


def test_shapes_that_agree_with_the_json_but_not_with_each_other_are_refused(tmp_path):
    """Both files say that layer 0 has 3 units and layer 2 reads 5: no such network can run."""
    saved(tmp_path / "small")
    file = tmp_path / "small" / "model.safetensors"
    tensors = load_file(file)
    tensors |= {"0.weight": tensors["0.weight"][:3].clone(), "0.bias": tensors["0.bias"][:3].clone()}
    save_file(tensors, file)
    rewrite(
        tmp_path / "small",
        lambda b: b["tensors"].update({"0.weight": ["float32", [3, 6]], "0.bias": ["float32", [3]]}),
    )
    with pytest.raises(CheckpointError, match=r"5 units of 0 were kept, so that 0\.(weight|bias)"):
        cp.load(tmp_path / "small", lenet_like)


class Bomb:
    """A pickle that leaves a mark where it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_named_safetensors_is_refused_and_not_opened(tmp_path, protocol):
    saved(tmp_path / "small")
    (tmp_path / "small" / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "mark"), protocol=protocol))
    with pytest.raises(CheckpointError):
        cp.load(tmp_path / "small", lenet_like)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "structure.json"])
def test_a_missing_file_is_refused_by_name(tmp_path, file):
    saved(tmp_path / "small")
    (tmp_path / "small" / file).unlink()
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        cp.load(tmp_path / "small", lenet_like)


def test_no_directory(tmp_path):
    with pytest.raises(CheckpointError):
        cp.load(tmp_path / "nowhere", lenet_like)


class Small(nn.Module):
    """A tied embedding, heads that are counted in an attribute, grouped channels, and a buffer that is not saved."""

    def __init__(self, seed: int = 0, outer: int = 6):
        super().__init__()
        self.words, self.head = nn.Embedding(11, outer), nn.Linear(outer, 11, bias=False)
        self.head.weight = self.words.weight
        self.num_heads, self.inner_dim = 4, 12
        self.qkv, self.o = nn.Linear(outer, 36), nn.Linear(12, outer)
        self.up, self.norm = nn.Conv1d(outer, 8, 1), nn.GroupNorm(4, 8)
        self.deep, self.down = nn.Conv1d(8, 8, 3, padding=1, groups=4), nn.Conv1d(8, outer, 1)
        self.register_buffer("scale", torch.ones(8), persistent=False)
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in [*self.parameters(), self.scale]:
                value.copy_(torch.randn(value.shape, generator=g))

    def forward(self, ids):
        x = self.words(ids)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(x).split(self.inner_dim, -1))
        x = x + self.o((torch.softmax(q @ k.transpose(2, 3), -1) @ v).transpose(1, 2).flatten(2))
        h = self.deep(torch.relu(self.norm(self.up(x.transpose(1, 2)))) * self.scale[:, None])
        return self.head(x + self.down(h).transpose(1, 2))


def at(tensor: str, axis: int, *where: int) -> Location:
    return Location(tensor, axis, *where)


PARTS = [at(f"qkv.{leaf}", 0, start, 3) for leaf in ("weight", "bias") for start in (0, 12, 24)]
PAIRS = [at(name, 0, 0, 2) for name in ("norm.weight", "norm.bias", "deep.weight", "deep.bias", "scale")]
SITES = (
    Site("qkv", "heads", 4, "identity", (), PARTS[0], PARTS[3], (Reader(at("o.weight", 1, 0, 3), "o.bias", block=3),),
         tuple(PARTS[1:3] + PARTS[4:])),
    Site("up", "conv", 4, "relu", (), at("up.weight", 0, 0, 2), at("up.bias", 0, 0, 2),
         (Reader(at("down.weight", 1, 0, 2), "down.bias", block=2),), tuple(PAIRS)),
    Site("words", "embedding", 6, "identity", (), at("words.weight", 1), at("", 0),
         (Reader(at("qkv.weight", 1), "qkv.bias"), Reader(at("up.weight", 1), "up.bias")),
         (at("o.weight", 0), at("o.bias", 0), at("down.weight", 0), at("down.bias", 0))),
)  # fmt: skip


def smaller(model: nn.Module) -> cp.Pruned:
    dense = model.state_dict() | {"scale": model.scale}
    kept = [[0, 3], [0, 1, 3], [0, 2, 3, 5]]
    cuts = tuple(
        Cut(site, tuple(Coreset(torch.tensor(k), torch.ones(len(k))) for _ in site.readers))
        for site, k in zip(SITES, kept, strict=True)
    )
    plan = cp.Plan(cuts, {"method": "uniform"}, {name: tuple(tensor.shape) for name, tensor in dense.items()})
    plan.check(plan.shapes)
    changed, followed = edited(plan.edits(dense), dense), follow(model, cuts)
    small = spared_copy(model, changed)
    install(small, changed, followed)
    return cp.Pruned(small, plan, 0, 0, tuple(followed))


def test_a_general_network_computes_what_the_masked_one_does():
    model = Small().double()
    small, masked = smaller(model).model, Small().double()
    with torch.no_grad():
        masked.o.weight[:, 3:9] = 0
        masked.down.weight[:, 4:6] = 0
        for gone in (1, 4):
            masked.words.weight[:, gone] = 0
            masked.o.weight[gone] = masked.o.bias[gone] = masked.down.weight[gone] = masked.down.bias[gone] = 0
    x = torch.arange(10).reshape(2, 5)
    torch.testing.assert_close(small(x), masked(x))
    assert (small.num_heads, small.inner_dim, small.norm.num_groups, small.deep.groups) == (2, 6, 3, 3)
    assert small.head.weight is small.words.weight
    assert small.scale.shape == (6,)


def test_a_general_network_has_the_same_bits_in_another_process(tmp_path):
    small = smaller(Small())
    small.save(tmp_path / "small")
    code = (
        "import coreprune as cp, torch; from test_result import Small; from safetensors.torch import save_file;"
        "torch.set_num_threads(1); model = cp.load('small', lambda: Small(seed=9));"
        "assert model.head.weight is model.words.weight;"
        "save_file({'y': model(torch.arange(10).reshape(2, 5)).detach()}, 'y')"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(cp.__file__).parents[1])])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, check=True)
    assert torch.equal(load_file(tmp_path / "y")["y"], small.model(torch.arange(10).reshape(2, 5)))


def test_what_is_written_of_a_general_network(tmp_path):
    small = smaller(Small())
    small.save(tmp_path / "small")
    body = json.loads((tmp_path / "small" / "structure.json").read_text())
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    assert "words.weight" in tensors
    assert "head.weight" not in tensors
    assert body["aliases"] == {"words.weight": ["head.weight"]}
    assert body["modules"][""] == {"num_heads": 2, "inner_dim": 6}
    assert body["modules"]["deep"] == {"in_channels": 6, "out_channels": 6, "groups": 3}
    assert body["modules"]["norm"] == {"num_channels": 6, "num_groups": 3}
    assert body["changed"]["qkv.weight"] == [36, 6]
    assert body["changed"]["scale"] == [8]
    assert small.parameters == body["size"]["parameters"] == sum(t.numel() for n, t in tensors.items() if n != "scale")
    assert {name: claim.indices.tolist() for name, claim in read_claims(tmp_path / "small").items()} == {
        "qkv": [0, 3],
        "up": [0, 1, 3],
        "words": [0, 2, 3, 5],
    }


def test_bfloat16_and_mode_survive(tmp_path):
    small = smaller(Small().bfloat16())
    small.save(tmp_path / "small")
    found = cp.load(tmp_path / "small", lambda: Small(seed=3).eval())
    assert equal_states(found, small.model)
    assert found.scale.dtype == torch.bfloat16
    assert not found.training


def untied(seed: int = 0) -> Small:
    model = Small(seed)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    return model


def test_a_factory_that_ties_what_was_not_tied_is_refused(tmp_path):
    model = Small()
    dense = untied()
    small = cp.Pruned(dense, cp.Plan((), {}, {}), 0, 0)
    small.save(tmp_path / "same")
    assert torch.equal(cp.load(tmp_path / "same", Small).head.weight, dense.head.weight)
    with torch.no_grad():
        dense.head.weight[0] += 1
    small.save(tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"one tensor in the fresh instance and two in"):
        cp.load(tmp_path / "small", Small)
    cp.Pruned(model, cp.Plan((), {}, {}), 0, 0).save(tmp_path / "tied")
    assert equal_states(cp.load(tmp_path / "tied", untied), model)


HARMED = {
    "another number of heads": lambda b: b["modules"][""].update(num_heads="two"),
    "no number of heads": lambda b: b["modules"][""].update(num_heads=0),
    "an attribute that is not there": lambda b: b["modules"][""].update(heads=2),
    "an attribute that is no number": lambda b: b["modules"][""].update(training=1),
    "a method": lambda b: b["modules"][""].update(forward=1),
    "a field of what is not there": lambda b: b["modules"][""].update({"config.heads": 1}),
    "a module that is not there": lambda b: b["modules"].update(other={}),
    "attributes no table": lambda b: b["modules"].update(up=3),
    "sizes that the tensors deny": lambda b: b["modules"]["deep"].update(groups=2),
    "dense shapes of another network": lambda b: b["changed"].update({"up.weight": [10, 6, 1]}),
    "dense shapes that are none": lambda b: b["changed"].update({"up.weight": 3}),
    "no dense shapes": lambda b: b.pop("changed"),
    "no aliases": lambda b: b.pop("aliases"),
    "empty aliases": lambda b: b["aliases"].clear(),
    "aliases of nothing": lambda b: b["aliases"].update(other=["head.weight"]),
    "aliases no lists": lambda b: b["aliases"].update({"words.weight": 3}),
    "units kept": lambda b: b["sites"][0].update(kept=[0]),
    "places": lambda b: b["sites"][0]["site"]["incoming"].update(axis=5),
    "a version to come": lambda b: b.update(version=3),
}


@pytest.mark.parametrize("name", HARMED)
def test_a_general_structure_that_was_harmed_is_refused(tmp_path, name):
    smaller(Small()).save(tmp_path / "small")
    rewrite(tmp_path / "small", HARMED[name])
    with pytest.raises(CheckpointError):
        cp.load(tmp_path / "small", Small)


@pytest.mark.parametrize(
    "make", [lambda: Small(outer=7), lambda: nn.ModuleDict({"head": Small()})], ids=["sizes", "names"]
)
def test_a_general_network_needs_its_own_factory(tmp_path, make):
    smaller(Small()).save(tmp_path / "small")
    with pytest.raises(CheckpointError, match="dense architecture"):
        cp.load(tmp_path / "small", make)


@pytest.mark.parametrize("biased", [True, False])
def test_what_the_first_format_wrote_still_loads(tmp_path, biased):
    def make(seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5, bias=biased), nn.Tanh(), nn.Linear(5, 2))

    small = saved(tmp_path / "small", make(), units={"0": 3, "2": 2}, method="kernel")

    def older(body):
        body["version"] = 1
        del body["changed"], body["aliases"]

    rewrite(tmp_path / "small", older)
    assert equal_states(cp.load(tmp_path / "small", lambda: make(5)), small.model)
    with pytest.raises(CheckpointError, match="fresh instance"):
        cp.load(tmp_path / "small", lambda: nn.Sequential(nn.Linear(4, 7), *make()[1:]))
    rewrite(tmp_path / "small", lambda body: body["tensors"].update({"0.weight": ["float32", [2, 4]]}))
    with pytest.raises(CheckpointError):
        cp.load(tmp_path / "small", make)
