from __future__ import annotations

import json

import pytest
import torch
from helpers import METHODS, equal_states, lenet_like, sizes
from torch import nn

import coreprune as cp
from coreprune.errors import CheckpointError
from coreprune.maths.layer import Coreset
from coreprune.plan import Cut


def made(method="sampling", **request):
    return cp.plan(lenet_like(), method=method, **(request or {"units": {"0": 5, "2": 4}}))


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_plan_cuts_the_same_network_bit_for_bit(tmp_path, method):
    plan = made(method)
    plan.save(tmp_path / "plan")
    again = cp.Plan.load(tmp_path / "plan")
    assert again.kept == plan.kept == {"0": 5, "2": 4}
    assert dict(again.recipe) == json.loads(json.dumps(dict(plan.recipe)))
    assert [dict(cut.evidence) for cut in again.cuts] == [dict(cut.evidence) for cut in plan.cuts]
    assert equal_states(cp.apply(lenet_like(), again).model, cp.apply(lenet_like(), plan).model)


def test_a_plan_is_json_and_safetensors(tmp_path):
    made().save(tmp_path / "plan")
    assert sorted(f.name for f in (tmp_path / "plan").iterdir()) == ["plan.json", "plan.safetensors"]
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["kind"] == "plan"


@pytest.mark.parametrize("request_", [{"remove": 0.5}, {"remove": {"*": 0.5}}, {"draws": {"0": 4}}], ids=str)
def test_every_request_can_be_saved(tmp_path, request_):
    plan = made(**request_)
    plan.save(tmp_path / "plan")
    assert cp.Plan.load(tmp_path / "plan").kept == plan.kept


def test_the_recipe_says_how_to_make_it_again():
    plan = made(remove=0.4, seed=9, radius=2.5, ignore=["2"])
    recipe = plan.recipe
    arguments = {name: recipe[name] for name in ("method", "remove", "seed", "radius", "ignore")}
    again = cp.plan(lenet_like(), **arguments)
    assert equal_states(cp.apply(lenet_like(), again).model, cp.apply(lenet_like(), plan).model)
    assert recipe["data_used"] is False


def test_mix_and_offset_make_the_network_that_is_meant():
    """Unit 2 becomes twice unit 0 minus unit 1 plus 7, in a reader that has no bias to hold the constant."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2, bias=False)).double()
    site = cp.inspect(model).sites[0]
    T = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    t = torch.tensor([0.0, 0.0, 7.0], dtype=torch.float64)
    plan = cp.Plan((Cut(site, (Coreset(torch.tensor([0, 1]), T, t),)),), {}, cp.inspect(model).shapes)
    small = cp.apply(model, plan).model
    x = torch.randn(5, 4, dtype=torch.float64)
    h = model[:2](x)
    expected = torch.stack([h[:, 0], h[:, 1], 2 * h[:, 0] - h[:, 1] + 7], 1) @ model[2].weight.T
    torch.testing.assert_close(small(x), expected)
    assert sizes(small) == [(4, 2), (2, 2)]
    assert model[2].bias is None


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 12), nn.ReLU(), nn.Linear(12, 4)),
        nn.Sequential(nn.Linear(6, 16), nn.ReLU()),
        nn.Sequential(nn.Flatten(), lenet_like()),
        nn.Sequential(nn.Linear(6, 16, bias=False), *lenet_like()[1:]),
    ],
    ids=["shape", "missing", "names", "bias"],
)
def test_a_plan_for_another_network_is_refused_and_changes_nothing(other):
    before = {name: t.clone() for name, t in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="made for"):
        cp.apply(other, made(), inplace=True)
    assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())


def broken(tmp_path, change):
    made().save(tmp_path / "plan")
    file = tmp_path / "plan" / "plan.json"
    body = json.loads(file.read_text())
    change(body)
    file.write_text(json.dumps(body))
    return tmp_path / "plan"


def first_site(body):
    return body["cuts"][0]["site"]


CHANGES = {
    "no cuts": lambda b: b.pop("cuts"),
    "no recipe": lambda b: b.pop("recipe"),
    "no shapes": lambda b: b.pop("shapes"),
    "cuts no list": lambda b: b.update(cuts=3),
    "shapes no table": lambda b: b.update(shapes=[]),
    "cut no table": lambda b: b.update(cuts=["x"]),
    "parameters no table": lambda b: first_site(b).update(parameters=[1]),
    "readers no list": lambda b: first_site(b).update(readers=None),
    "unknown field": lambda b: first_site(b)["incoming"].update(extra=1),
    "other site": lambda b: first_site(b).update(name="nope"),
    "fewer units": lambda b: first_site(b).update(units=2),
    "units no number": lambda b: first_site(b).update(units="many"),
    "two readers": lambda b: first_site(b).update(readers=first_site(b)["readers"] * 2),
    "other kind": lambda b: b.update(kind="structure"),
    "later version": lambda b: b.update(version=99),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_plan_is_refused(tmp_path, name):
    path = broken(tmp_path, CHANGES[name])
    with pytest.raises(CheckpointError):
        cp.Plan.load(path)


MISLED = {
    "tensor that is not there": lambda b: first_site(b)["incoming"].update(tensor="9.weight"),
    "reader that is not there": lambda b: first_site(b)["readers"][0]["weight"].update(tensor="9.weight"),
    "axis that is not there": lambda b: first_site(b)["incoming"].update(axis=5),
    "start beyond the end": lambda b: first_site(b)["incoming"].update(start=10),
    "more units than rows": lambda b: first_site(b).update(units=99),
}


@pytest.mark.parametrize("name", MISLED)
def test_a_plan_that_points_elsewhere_is_refused_and_changes_nothing(tmp_path, name):
    path, model = broken(tmp_path, MISLED[name]), lenet_like()
    with pytest.raises(CheckpointError):
        cp.apply(model, cp.Plan.load(path), inplace=True)
    assert equal_states(model, lenet_like())


@pytest.mark.parametrize("kept", [[0.0, 1.0], [[0, 1]], [], [1, 0], [0, 0], [-1, 2], [0, 16], list(range(17))], ids=str)
def test_impossible_kept_units_are_refused(tmp_path, kept):
    from safetensors.torch import load_file, save_file

    made().save(tmp_path / "plan")
    file = tmp_path / "plan" / "plan.safetensors"
    tensors = load_file(file)
    tensors["0/kept"] = torch.tensor(kept)
    save_file(tensors, file)
    with pytest.raises(CheckpointError):
        cp.Plan.load(tmp_path / "plan")


@pytest.mark.parametrize("file", ["plan.json", "plan.safetensors"])
def test_half_a_plan_is_refused(tmp_path, file):
    made().save(tmp_path / "plan")
    (tmp_path / "plan" / file).unlink()
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        cp.Plan.load(tmp_path / "plan")
