from __future__ import annotations

import json

import pytest
import torch
from helpers import METHODS, equal_states, lenet_like, sizes
from torch import nn

import coreprune as cp
from coreprune.errors import CheckpointError
from coreprune.maths.layer import Coreset
from coreprune.model.site import Location, Reader, Site
from coreprune.plan import Cut
from coreprune.surgery.apply import install, spared_copy
from coreprune.surgery.edits import edited


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


def test_a_bias_that_one_cut_makes_is_cut_by_the_next_one():
    """Both sites are combinations, and neither reader has a bias to begin with."""
    model = nn.Sequential(
        nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 2, bias=False)
    ).double()
    g = torch.Generator().manual_seed(0)
    found = cp.inspect(model)
    T, t = [torch.randn(2, 3, 2, generator=g).double(), torch.randn(2, 3, generator=g).double()]
    kept = [torch.tensor([0, 2]), torch.tensor([1, 2])]
    cuts = tuple(Cut(site, (Coreset(kept[i], T[i], t[i]),)) for i, site in enumerate(found.sites))
    small = cp.apply(model, cp.Plan(cuts, {}, found.shapes)).model
    x = torch.randn(5, 4, generator=g).double()
    h = model[:2](x)[:, kept[0]] @ T[0].T + t[0]
    h = torch.tanh(h @ model[2].weight.T)[:, kept[1]] @ T[1].T + t[1]
    torch.testing.assert_close(small(x), h @ model[4].weight.T)


class Net(nn.Module):
    """Two convolutions that are concatenated, with BatchNorm, a stream, a depthwise one, and a Linear behind a flatten."""

    def __init__(self, seed=0):
        super().__init__()
        self.a = nn.Conv2d(2, 5, 1)
        self.b = nn.Conv2d(2, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Conv2d(9, 6, 1, bias=False)
        self.after = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 2, groups=6)
        self.out = nn.Linear(6 * 4, 3)
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in self.state_dict().items():
                if value.is_floating_point():
                    value.copy_(torch.randn(value.shape, generator=g).abs() + 0.1 if "var" in name else
                                torch.randn(value.shape, generator=g))  # fmt: skip
        self.eval()

    def hidden(self, x):
        return torch.tanh(self.a(x)), torch.tanh(self.norm(self.b(x)))

    def rest(self, a, b):
        return self.last(torch.relu(self.after(self.mix(torch.cat([a, b], 1)))))

    def last(self, c):
        return self.out(self.deep(c).flatten(1))

    def forward(self, x):
        return self.rest(*self.hidden(x))


def places(*tensors: str, axis: int = 0) -> tuple[Location, ...]:
    return tuple(Location(tensor, axis) for tensor in tensors)


#: two sites on one axis, the constant of which is taken up by the mean of a BatchNorm, and one behind a flatten
SITES = (
    Site("a", "conv", 5, "tanh", (), *places("a.weight", "a.bias"),
         (Reader(Location("mix.weight", 1), "after.running_mean", -1.0),)),
    Site("b", "conv", 4, "tanh", (), *places("b.weight", "norm.bias"),
         (Reader(Location("mix.weight", 1, 0, 1, (5, 6, 7, 8)), "after.running_mean", -1.0),),
         places("norm.weight", "norm.running_mean", "norm.running_var")),
    Site("mix", "conv", 6, "relu", (), *places("mix.weight", "after.bias"),
         (Reader(Location("out.weight", 1, 0, 4), "out.bias", block=4),),
         places("after.weight", "after.running_mean", "after.running_var", "deep.weight", "deep.bias")),
)  # fmt: skip


def general(seed: int = 0) -> tuple[Net, cp.Plan]:
    model = Net(seed).double()
    g = torch.Generator().manual_seed(1)
    cuts = []
    for site, kept in zip(SITES, ([0, 3, 4], [1, 2], [0, 1, 5]), strict=True):
        block = site.readers[0].block
        n, k = site.units * block, len(kept) * block
        T, t = torch.randn(n, k, generator=g).double(), torch.randn(n, generator=g).double()
        cuts.append(Cut(site, (Coreset(torch.tensor(kept), T, t),)))
    return model, cp.Plan(tuple(cuts), {}, {name: tuple(t.shape) for name, t in model.state_dict().items()})


def applied(model: nn.Module, plan: cp.Plan) -> nn.Module:
    state = model.state_dict()
    plan.check({name: tuple(tensor.shape) for name, tensor in state.items()})
    changed = edited(plan.edits(state), state)
    small = spared_copy(model, changed)
    install(small, changed)
    return small


def test_sites_that_share_axes_are_cut_as_the_formula_says():
    """Ŷ of every reader is W (T z + t) + c, where z are the units that were kept."""
    model, plan = general()
    small = applied(model, plan)
    x = torch.randn(7, 2, 3, 3, dtype=torch.float64)
    (a, A), (b, B), (m, M) = [(cut.kept, cut.coresets[0]) for cut in plan.cuts]
    units = []
    for h, kept, coreset in zip(model.hidden(x), (a, b), (A, B), strict=True):
        units.append(torch.einsum("uk,nkij->nuij", coreset.mix, h[:, kept]) + coreset.offset[:, None, None])
    c = model.deep(torch.relu(model.after(model.mix(torch.cat(units, 1))))).flatten(2)
    c = c[:, m].flatten(1) @ M.mix.T + M.offset
    torch.testing.assert_close(small(x), model.out(c))
    assert small.mix.weight.shape == (3, 5, 1, 1)
    assert (small.mix.in_channels, small.mix.out_channels, small.deep.groups, small.after.num_features) == (5, 3, 3, 3)
    assert small.out.in_features == 12


def test_keeping_all_changes_no_bit_of_any_tensor():
    model, plan = general()
    full = [Cut(cut.site, (Coreset(torch.arange(cut.site.units), torch.ones(cut.site.units)),)) for cut in plan.cuts]
    assert equal_states(applied(model, cp.Plan(tuple(full), {}, plan.shapes)), model)


def test_numbers_alone_scale_what_is_kept():
    model, plan = general()
    cuts = [Cut(cut.site, (Coreset(cut.kept, torch.arange(1.0, cut.kept.numel() + 1)),)) for cut in plan.cuts]
    small = applied(model, cp.Plan(tuple(cuts), {}, plan.shapes))
    kept = [cut.kept for cut in cuts]
    entries = torch.cat([kept[0], kept[1] + 5])
    expected = model.mix.weight[kept[2]][:, entries] * torch.tensor([1.0, 2, 3, 1, 2])[:, None, None]
    torch.testing.assert_close(small.mix.weight, expected)


def test_a_general_plan_survives_the_disk(tmp_path):
    model, plan = general()
    plan.save(tmp_path / "plan")
    again = cp.Plan.load(tmp_path / "plan")
    assert [cut.site for cut in again.cuts] == [cut.site for cut in plan.cuts] == list(SITES)
    assert equal_states(applied(model, again), applied(model, plan))


def test_plans_that_were_written_before_there_were_blocks_and_orders_still_load(tmp_path):
    plan = made()
    path = broken(tmp_path, lambda body: [older(cut["site"]) for cut in body["cuts"]])
    again = cp.Plan.load(path)
    assert [cut.site for cut in again.cuts] == [cut.site for cut in plan.cuts]
    assert equal_states(cp.apply(lenet_like(), again).model, cp.apply(lenet_like(), plan).model)


def older(site):
    del site["others"]
    for reader in site["readers"]:
        del reader["sign"], reader["block"], reader["outputs"], reader["weight"]["order"]
    del site["incoming"]["order"], site["bias"]["order"]


def reader_of(body, i=2):
    return body["cuts"][i]["site"]["readers"][0]


HARMED = {
    "order too short": lambda b: reader_of(b, 1)["weight"].update(order=[5, 6, 7]),
    "order twice": lambda b: reader_of(b, 1)["weight"].update(order=[5, 6, 7, 7]),
    "order negative": lambda b: reader_of(b, 1)["weight"].update(order=[5, 6, 7, -1]),
    "order of text": lambda b: reader_of(b, 1)["weight"].update(order=["a", "b", "c", "d"]),
    "order no list": lambda b: reader_of(b, 1)["weight"].update(order=3),
    "order beyond the end": lambda b: reader_of(b, 1)["weight"].update(order=[5, 6, 7, 9]),
    "another site's entries": lambda b: reader_of(b, 1)["weight"].update(order=[4, 6, 7, 8]),
    "start negative": lambda b: reader_of(b, 0)["weight"].update(start=-1),
    "start fraction": lambda b: reader_of(b, 0)["weight"].update(start=0.5),
    "axis negative": lambda b: reader_of(b, 0)["weight"].update(axis=-1),
    "span zero": lambda b: reader_of(b, 0)["weight"].update(span=0),
    "block that does not fit": lambda b: reader_of(b).update(block=3),
    "other block": lambda b: reader_of(b).update(block=2),
    "block zero": lambda b: reader_of(b).update(block=0),
    "sign": lambda b: reader_of(b).update(sign=3),
    "sign of text": lambda b: reader_of(b).update(sign="minus"),
    "outputs on the axis of units": lambda b: reader_of(b).update(outputs=1),
    "outputs on no axis": lambda b: reader_of(b).update(outputs=7),
    "bias no name": lambda b: reader_of(b).update(bias=None),
    "constant and no bias": lambda b: reader_of(b).update(bias=""),
    "no readers": lambda b: b["cuts"][2]["site"].update(readers=[]),
    "others no list": lambda b: b["cuts"][1]["site"].update(others=[3]),
    "others not there": lambda b: b["cuts"][1]["site"]["others"][0].update(tensor="norm.scale"),
    "no such number of units": lambda b: b["cuts"][1]["site"].update(units=10**15),
    "units true": lambda b: b["cuts"][1]["site"].update(units=True),
}


@pytest.mark.parametrize("name", HARMED)
def test_a_general_plan_that_was_harmed_is_refused_in_one_sentence(tmp_path, name):
    model, plan = general()
    plan.save(tmp_path / "plan")
    file = tmp_path / "plan" / "plan.json"
    body = json.loads(file.read_text())
    HARMED[name](body)
    file.write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match="damaged") as caught:
        applied(model, cp.Plan.load(tmp_path / "plan"))
    assert "\n" not in str(caught.value)


PARTS = {
    "mix of another size": ("a/0/mix", lambda t: t[:, :2].clone()),
    "mix of whole numbers": ("a/0/mix", lambda t: t.long()),
    "offset of another size": ("mix/0/offset", lambda t: t[:6].clone()),
    "shift of another size": ("a/shift", lambda _: torch.ones(2)),
    "incoming of another size": ("a/incoming", lambda _: torch.ones(5, 2)),
}


@pytest.mark.parametrize("name", PARTS)
def test_matrices_that_do_not_fit_are_refused(tmp_path, name):
    from safetensors.torch import load_file, save_file

    general()[1].save(tmp_path / "plan")
    file = tmp_path / "plan" / "plan.safetensors"
    tensors, (part, change) = load_file(file), PARTS[name]
    save_file(tensors | {part: change(tensors.get(part))}, file)
    with pytest.raises(CheckpointError, match="damaged"):
        cp.Plan.load(tmp_path / "plan")


def test_constants_that_nothing_takes_up_are_a_defect():
    site = Site(**{**vars(SITES[0]), "readers": (Reader(Location("mix.weight", 1), ""),)})
    kept = torch.tensor([0, 1])
    weight = {"mix.weight": torch.ones(6, 9, 1, 1)}
    assert len(Cut(site, (Coreset(kept, torch.ones(2), torch.zeros(5)),)).reading(weight)) == 1
    with pytest.raises(AssertionError):
        Cut(site, (Coreset(kept, torch.ones(2), torch.ones(5)),)).reading(weight)


def test_stacked_experts_have_no_bias_and_several_readers_each_their_matrix():
    """(E, 2I, H) with gate and up on one axis, (E, H, I) read; and a second reader as language models store it."""
    g = torch.Generator().manual_seed(0)
    tensors = {"gate_up": torch.randn(2, 6, 4, generator=g), "down": torch.randn(2, 4, 3, generator=g),
               "more": torch.randn(3, 5, generator=g), "more_bias": torch.zeros(5)}  # fmt: skip
    readers = (Reader(Location("down", 2), "", outputs=1), Reader(Location("more", 0), "more_bias", outputs=1))
    site = Site(
        "x",
        "experts",
        3,
        "identity",
        (),
        Location("gate_up", 1),
        Location("", 0),
        readers,
        (Location("gate_up", 1, 3),),
    )
    kept, T, t = torch.tensor([0, 2]), torch.randn(3, 2, generator=g), torch.randn(3, generator=g)
    plan = cp.Plan((Cut(site, (Coreset(kept, torch.ones(2)), Coreset(kept, T, t))),), {}, {})
    plan.check({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    found = edited(plan.edits(tensors), tensors)
    assert torch.equal(found["gate_up"], tensors["gate_up"][:, [0, 2, 3, 5]])
    assert torch.equal(found["down"], tensors["down"][:, :, kept])
    torch.testing.assert_close(found["more"], T.T @ tensors["more"])
    torch.testing.assert_close(found["more_bias"], t @ tensors["more"])


def test_units_that_are_turned_are_combined_in_all_their_tensors():
    g = torch.Generator().manual_seed(0)
    tensors = {
        "w": torch.randn(7, 4, generator=g),
        "b": torch.randn(7, generator=g),
        "r": torch.randn(2, 5, generator=g),
    }
    site = Site("x", "linear", 5, "relu", (), Location("w", 0, 1), Location("b", 0, 1), (Reader(Location("r", 1), ""),))
    kept, Q, shift = torch.tensor([1, 4]), torch.randn(5, 2, generator=g), torch.randn(2, generator=g)
    plan = cp.Plan((Cut(site, (Coreset(kept, torch.ones(2), None, Q, shift),)),), {}, {})
    found = edited(plan.edits(tensors), tensors)
    w, b = tensors["w"], tensors["b"]
    torch.testing.assert_close(found["w"], torch.cat([w[:1], Q.T @ w[1:6], w[6:]]))
    torch.testing.assert_close(found["b"], torch.cat([b[:1], Q.T @ b[1:6] + shift, b[6:]]))


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


@pytest.mark.parametrize("change", [lambda w: -w, lambda w: w[:, torch.arange(w.shape[1]).flip(0)] * 1.5])
def test_a_plan_for_other_weights_of_the_same_shape_is_refused(change):
    plan, other = cp.plan(lenet_like(), units={"0": 7}), lenet_like()
    with torch.no_grad():
        other[0].weight.copy_(change(other[0].weight.clone()))
    with pytest.raises(CheckpointError, match="other weights"):
        cp.apply(other, plan)


def test_rounded_weights_are_the_same_network():
    plan = cp.plan(lenet_like(), units={"0": 7})
    assert cp.apply(lenet_like().to(torch.bfloat16), plan).model[0].weight.dtype == torch.bfloat16
