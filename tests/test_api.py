"""The verbs: what they change, what they leave alone, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import METHODS, equal_states, in_ball, lenet_like, sizes
from torch import nn

import coreprune as cp
from coreprune.errors import InvalidInputError, UnknownNameError, UnsupportedModelError

each_method = pytest.mark.parametrize("method", METHODS)
UNITS = {"0": 5, "2": 4}


def prune(model=None, *args, **request):
    return cp.prune(model or lenet_like(), *args, **({"units": UNITS} | {"method": "sampling"} | request))


@each_method
def test_model_is_untouched(method):
    model = lenet_like().eval()
    model[0].weight.requires_grad_(False)
    parameters = dict(model.named_parameters())
    small = prune(model, torch.ones(2, 6), method=method).model
    assert equal_states(model, lenet_like())
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert not model.training
    assert sizes(model) == [(6, 16), (16, 12), (12, 4)]
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in parameters.values()}


@each_method
def test_the_result_is_the_same_class_with_smaller_layers(method):
    small = prune(method=method).model
    assert type(small) is nn.Sequential
    assert [type(m) for m in small] == [type(m) for m in lenet_like()]
    assert sizes(small) == [(6, 5), (5, 4), (4, 4)]
    assert [tuple(m.weight.shape) for m in small if isinstance(m, nn.Linear)] == [(5, 6), (4, 5), (4, 4)]
    assert small(torch.ones(3, 6)).shape == (3, 4)


def test_mode_and_requires_grad_are_kept():
    model = lenet_like().eval()
    model[2].requires_grad_(False)
    small = prune(model).model
    assert not small.training
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtype_is_kept(dtype):
    small = prune(lenet_like(dtype=dtype)).model
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert bool(torch.isfinite(small(torch.ones(1, 6, dtype=dtype))).all())


def test_inplace_changes_the_model_itself():
    model = lenet_like()
    result = prune(model, inplace=True)
    assert result.model is model
    assert sizes(model) == [(6, 5), (5, 4), (4, 4)]
    assert equal_states(model, prune().model)


def test_inplace_is_all_or_nothing():
    model = lenet_like()
    with pytest.raises(InvalidInputError):
        prune(model, units={"0": 5, "2": 99}, inplace=True)
    assert equal_states(model, lenet_like())


@each_method
@pytest.mark.parametrize("request_", [{"units": {"0": 16, "2": 12}}, {"remove": 0.0, "units": None}], ids=str)
def test_keeping_everything_is_bit_equal(method, request_):
    x = torch.randn(9, 6)
    assert torch.equal(prune(method=method, **request_).model(x), lenet_like()(x))


@pytest.mark.parametrize("remove", [0.2, 0.5, 0.8])
def test_remove_is_a_fraction_of_parameters(remove):
    result = cp.prune(lenet_like(), remove=remove, method="uniform")
    dense = sum(p.numel() for p in lenet_like().parameters())
    assert result.dense_parameters == dense
    assert result.parameters == sum(p.numel() for p in result.model.parameters()) <= (1 - remove) * dense
    assert result.bytes == 4 * result.parameters


def test_sites_that_are_not_named_stay_whole():
    small = prune(units={"2": 3}).model
    assert sizes(small) == [(6, 16), (16, 3), (3, 4)]
    assert torch.equal(small[0].weight, lenet_like()[0].weight)


@pytest.mark.parametrize("ignore", [["2"], ["[1-9]"], ["re:^2$"]], ids=str)
def test_ignored_sites_stay_whole(ignore):
    small = cp.prune(lenet_like(), remove=0.3, ignore=ignore, method="uniform").model
    assert small[2].out_features == 12
    assert small[0].out_features < 16


@pytest.mark.parametrize(
    "request_",
    [{"units": {"fc": 3}}, {"units": None, "remove": {"fc": 0.1}}, {"units": None, "remove": 0.1, "ignore": ["fc"]},
     {"units": None, "draws": {"fc": 3}}, {"ignore": ["fc"]}, {"units": None, "draws": {"0": 3}, "ignore": ["fc"]}],
    ids=str,
)  # fmt: skip
def test_a_pattern_that_means_nothing_is_an_error(request_):
    with pytest.raises(UnknownNameError, match=r"'fc'.*0, 2"):
        prune(**request_)


def test_ignored_sites_stay_whole_whatever_else_is_asked():
    """Or the contradiction is refused."""
    for request in ({"draws": {"*": 3}}, {"units": {"*": 3}}):
        try:
            small = cp.prune(lenet_like(), method="sampling", ignore=["2"], **request).model
        except cp.CorepruneError:
            continue
        assert small[2].out_features == 12


@each_method
def test_seed_decides_bit_for_bit(method):
    one, again, other = (prune(method=method, seed=seed).model for seed in (3, 3, 4))
    assert equal_states(one, again)
    assert equal_states(one, other) == (not cp.METHODS[method].random)


@each_method
def test_global_random_state_is_neither_used_nor_moved(method):
    torch.manual_seed(0)
    one = prune(method=method).model
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert equal_states(one, prune(method=method).model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["sampling", "uniform"])
def test_a_site_does_not_depend_on_later_sites(method):
    alone, both = (cp.plan(lenet_like(), units=u, method=method) for u in ({"0": 5}, UNITS))
    assert torch.equal(alone.cuts[0].kept, both.cuts[0].kept)


def test_the_random_choice_of_a_site_does_not_depend_on_earlier_sites():
    alone, both = (cp.plan(lenet_like(), units=u, method="uniform") for u in ({"2": 4}, UNITS))
    assert torch.equal(alone.cuts[0].kept, both.cuts[1].kept)


def test_gradients_flow_and_training_goes_on():
    small = prune().model
    x, y = torch.randn(64, 6), torch.randn(64, 4)
    optimiser = torch.optim.Adam(small.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = (small(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in small.parameters())
    assert losses[-1] < losses[0]


def with_dead_units(dtype=torch.float64):
    """Of 16 units, 3 are dead on the ball of radius 2 and 2 feed nothing."""
    model = lenet_like(dtype=dtype)
    with torch.no_grad():
        model[0].bias[[1, 4, 9]] = -2 * model[0].weight[[1, 4, 9]].norm(dim=1) - 0.01
        model[2].weight[:, [0, 7]] = 0
    return model


@pytest.mark.parametrize("method", ["sampling", "sensitivity"])
def test_useless_units_are_removed_exactly(method):
    model = with_dead_units()
    result = cp.prune(model, units={"0": 11}, radius=2.0, method=method)
    assert set(range(16)) - set(result.plan.cuts[0].kept.tolist()) == {0, 1, 4, 7, 9}
    x = in_ball(1000, 6, 2.0)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_layer_that_nobody_reads_can_still_be_drawn_from(tmp_path):
    """Nothing can be drawn by sensitivity here: refused, or a network that works and survives its own file."""
    model = lenet_like()
    with torch.no_grad():
        model[2].weight.zero_()
    try:
        result = cp.prune(model, draws={"0": 4}, method="sampling")
    except cp.CorepruneError:
        return
    torch.testing.assert_close(result.model(torch.ones(1, 6)), model(torch.ones(1, 6)))
    assert result.model[0].out_features >= 1
    result.plan.save(tmp_path / "plan")
    assert cp.Plan.load(tmp_path / "plan").kept == result.plan.kept


def test_default_radius_is_the_root_of_the_features_and_is_said():
    result = cp.prune(lenet_like(), units=UNITS, method="uniform")
    assert result.plan.recipe["radius"] == pytest.approx(math.sqrt(6))
    assert "√d" in result.plan.recipe["radius_from"]
    assert "6" in result.plan.recipe["radius_from"]
    assert f"{math.sqrt(6):.4g}" in result.summary()


def test_given_radius_is_used_and_said():
    result = prune(radius=3.25)
    assert result.plan.recipe["radius"] == 3.25
    assert result.plan.cuts[0].evidence["radius"] == 3.25
    assert "3.25" in result.summary()


@pytest.mark.parametrize("radius", [0, -1, math.nan, math.inf])
def test_impossible_radius(radius):
    with pytest.raises(InvalidInputError, match="radius"):
        prune(radius=radius)


def test_draws_keep_what_was_drawn():
    result = cp.prune(lenet_like(), draws={"0": 6}, method="sampling")
    assert 1 <= result.model[0].out_features <= 6
    assert result.model[2].out_features == 12
    assert result.plan.cuts[0].evidence["theorem_draws"] == 6


@pytest.mark.parametrize("draws", [{"0": 0}, {"0": -3}, {"0": 2.5}, {"0": "6"}], ids=str)
def test_impossible_draws(draws):
    with pytest.raises(InvalidInputError):
        cp.prune(lenet_like(), draws=draws, method="sampling")


def test_draws_and_units_of_one_site_contradict_each_other():
    with pytest.raises(InvalidInputError):
        cp.plan(lenet_like(), draws={"0": 6}, units={"0": 3}, method="sampling")


def test_draws_are_for_sampling_only():
    with pytest.raises(InvalidInputError, match="sampling"):
        cp.prune(lenet_like(), draws={"0": 6}, method="magnitude")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["0.weight", "2.bias", "4.weight"])
def test_weights_that_are_not_finite_are_named(name, value):
    model = lenet_like()
    with torch.no_grad():
        model.state_dict()[name].view(-1)[1] = value
    with pytest.raises(InvalidInputError, match=name.replace(".", r"\.")):
        prune(model)


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(6, 3), nn.ReLU()), nn.Linear(3, 2), nn.ReLU()], ids=str)
def test_nothing_to_cut(model):
    with pytest.raises(UnsupportedModelError):
        cp.prune(model, remove=0.5)


def test_unknown_method():
    with pytest.raises(UnknownNameError, match=r"'magic'.*sampling"):
        prune(method="magic")


def test_a_request_is_needed():
    with pytest.raises(InvalidInputError, match="remove"):
        cp.prune(lenet_like())


def test_wrong_example_inputs():
    with pytest.raises(InvalidInputError, match="6 features"):
        prune(lenet_like(), torch.zeros(1, 7))


def test_inspect_lists_sites_and_refusals():
    found = cp.inspect(lenet_like())
    assert [(s.name, s.units) for s in found.sites] == [("0", 16), ("2", 12)]
    assert [r.name for r in found.refused] == ["4"]


def test_layers_without_bias():
    model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    small = prune(model, units={"0": 5}).model
    assert sizes(small) == [(6, 5), (5, 4)]
    assert small[0].bias is None


def test_hooks_and_attributes_of_the_model_survive():
    model = lenet_like()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    model.note = "kept"
    small = prune(model).model
    small(torch.ones(1, 6))
    assert seen == [1]
    assert small.note == "kept"


def test_more_units_come_nearer():
    """Averaged over 25 seeds, the error of the sampled coreset falls with its size."""
    model, x = lenet_like(dtype=torch.float64), in_ball(200, 6, 2.0)
    errors = []
    for k in (2, 5, 9, 14, 16):
        with torch.no_grad():
            gaps = [(prune(model, units={"0": k}, seed=s).model(x) - model(x)).square().mean() for s in range(25)]
        errors.append(float(torch.stack(gaps).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-20


@each_method
def test_summary_says_what_was_done_in_80_columns(method):
    text = prune(method=method, seed=5).summary()
    for word in (method, "seed 5", "data used: no", "16", "12", "relu"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_public_names():
    for name in ("METHODS", "CorepruneError", "Plan", "Pruned", "apply", "inspect", "load", "plan", "prune"):
        assert name in cp.__all__
        assert hasattr(cp, name)
    assert len(cp.__all__) <= 20


def test_results_print_what_they_say():
    net = lenet_like()
    decided = cp.plan(net, units={"0": 5})
    assert repr(decided).splitlines()[1].split() == ["0", "16", "5"]
    small = cp.apply(net, decided)
    assert repr(small) == f"Pruned(Sequential, {small.dense_parameters} -> {small.parameters} parameters)"
    assert str(small) == small.summary()
    checked = cp.verify(net, small, samples=100, worst=False)
    assert str(checked) == "\n".join(f"- {line}" for line in checked.statements())


def test_what_was_cut_without_an_example_says_what_verify_needs():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with pytest.raises(InvalidInputError, match="--input"):
        cp.verify(net, cp.prune(net, units={"3": 2}))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_the_callers_mode_does_not_matter(mode):
    """Cuts that take gradients, and training, work where the caller takes none; results can be trained afterwards."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    image = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2)).eval()
    x = torch.randn(2, 1, 6, 6)
    with mode():
        small = cp.prune(layers, remove=0.4, method="refined")
        better = cp.distill(small, layers, steps=2)
        seen = cp.prune(image, x, units={"0": 3}, prior=cp.Matched(count=8, steps=2))
        cp.verify(image, seen, samples=100)
    for model, inputs in ((small.model, torch.randn(3, 4)), (better.model, torch.randn(3, 4)), (seen.model, x)):
        model(inputs).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_the_error_of_all_cuts_together_keeps_the_budget(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 1))
    small = cp.prune(model, budget={"error": "10%"}, prior=cp.Gaussian(std=1.0))
    assert 0.08 < small.plan.cuts[-1].evidence["relative_error"] <= 0.1
    checked = cp.verify(model, small, prior=cp.Gaussian(std=1.0), worst=False, samples=4000)
    assert checked.end_measured < 0.11  # measured on samples, beside what was predicted


def test_percentages_are_fractions():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert cp.plan(model, remove="50%").kept == cp.plan(model, remove=0.5).kept
    assert cp.plan(model, remove={"0": "25%"}).kept == {"0": 6}
    with pytest.raises(InvalidInputError, match="at least 0 and below 1"):
        cp.plan(model, remove="half%")
