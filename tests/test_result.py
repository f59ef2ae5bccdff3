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
from coreprune.plan import Cut


def saved(path: Path, model: nn.Module | None = None, **request) -> cp.Pruned:
    small = cp.prune(model or lenet_like(), **({"units": {"0": 5, "2": 4}, "method": "sampling"} | request))
    small.save(path)
    return small


def test_a_strict_load_in_another_process_gives_the_same_bits(tmp_path):
    small = saved(tmp_path / "small")
    x = torch.randn(7, 6)
    save_file({"x": x}, tmp_path / "x")
    code = (
        "import coreprune as cp, torch; from helpers import lenet_like;"
        "from safetensors.torch import load_file, save_file;"
        "torch.set_num_threads(1); model = cp.load('small', lambda: lenet_like(seed=99));"
        "save_file({'y': model(load_file('x')['x']).detach(), **model.state_dict()}, 'y')"
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
    with pytest.raises(CheckpointError, match=r"[02]\.weight"):
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
