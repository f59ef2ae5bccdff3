"""The numbers of a report are those of the networks, counted again by other means."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn

import coreprune as cp
from coreprune.cli.output import numbers_of
from coreprune.errors import CheckpointError, InvalidInputError
from coreprune.report.beside import beside_of
from coreprune.report.cost import Change, measure, multiply_adds
from coreprune.report.numbers import numbers
from coreprune.report.recipe import python_call, written
from report.results import convolutions, made, saved, site, stack, structure

IMAGE = torch.zeros(2, 3, 9, 9)


def entries(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.state_dict().values())


def test_sizes_and_widths_of_a_stack(tmp_path):
    model = stack()
    small, found = saved(tmp_path / "s", model, units={"0": 7, "2": 5})
    assert found.parameters == Change(entries(model), entries(small.model))
    assert found.tensor_bytes == Change(4 * entries(model), 4 * entries(small.model))
    assert found.file_bytes == Change(None, (tmp_path / "s" / "model.safetensors").stat().st_size)
    assert found.multiply_adds == Change(6 * 16 + 16 * 12 + 12 * 4, 6 * 7 + 7 * 5 + 5 * 4)
    assert found.ends == (6, 4)
    assert [(row.name, row.before, row.after) for row in found.sites] == [("0", 16, 7), ("2", 12, 5)]
    assert found.sites[0].readers == (found.sites[1].writer,)
    evidence = [cut.evidence for cut in small.plan.cuts]
    assert [row.error for row in found.sites] == [known["relative_error"] for known in evidence]
    assert [row.within for row in found.sites] == [known["chebyshev_error"] for known in evidence]
    assert {row.confidence for row in found.sites} == {0.95}


def test_the_theorem_of_the_draws_is_told(tmp_path):
    small, found = saved(tmp_path / "s", stack(), draws={"0": 40}, method="sampling")
    assert found.sites[0].theorem == {
        key: small.plan.cuts[0].evidence[key] for key in ("theorem_draws", "theorem_delta", "theorem_error")
    }


def test_a_network_that_is_no_stack_has_no_ends_and_no_count_without_running_it(tmp_path):
    _, found = saved(tmp_path / "s", convolutions(), IMAGE, units={"a": 5})
    assert (found.ends, found.multiply_adds, found.radius) == (None, Change(), None)


def test_both_networks_are_run(tmp_path):
    model = convolutions()
    small, _ = saved(tmp_path / "s", model, IMAGE, units={"a": 5})
    beside = beside_of(model, small.model, small.plan.recipe, seconds=0)
    found = numbers_of(tmp_path / "s", None, beside)
    assert found.multiply_adds == Change(81 * 8 * 27 + 49 * 10 * 8 * 9 + 20, 81 * 5 * 27 + 49 * 10 * 5 * 9 + 20)
    assert found.cost.latency.runs == 5
    assert found.cost.latency.before > 0
    assert found.cost.inputs == "2×3×9×9 float32"
    assert [(row.name, row.after, bool(row.whole)) for row in found.sites] == [("a", 5, False), ("b", 10, True)]
    assert found.refused == (("last", "is an output of the network"),)
    assert [row.name for row in found.cut] == ["a"]
    assert found.sites[0].error == small.plan.cuts[0].evidence["relative_error"]


def test_attention_is_counted_whatever_kernel_runs_it():
    q = torch.zeros(2, 3, 5, 8)

    class Attends(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert multiply_adds(Attends(), (q,), {}) == 2 * (2 * 3 * 5 * 5 * 8)


def test_models_are_measured_as_they_are_and_left_so():
    model, small = stack().train(), stack()
    before = copy.deepcopy(model.state_dict())
    measure(model, small, torch.zeros(1, 6), seconds=0)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_inputs_that_do_not_fit_are_told():
    with pytest.raises(InvalidInputError, match="do not fit the network"):
        measure(stack(), stack(), torch.zeros(1, 7), seconds=0)


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"remove": 0.3, "ignore": ["b"]}, "ignored"),
        ({"remove": 0.3, "kinds": ["linear"]}, "kind"),
        ({"units": {"a": 3}}, "not asked for"),
        ({"units": {"*": 3}}, "as was asked"),
        ({"remove": 0.3}, "budget"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_why_a_site_stayed_whole(recipe, why):
    found = cp.inspect(convolutions(), IMAGE)
    body = structure([], **({"remove": None} | recipe))
    from coreprune.report.beside import Beside

    row = numbers(body, "x", Beside(inspection=found)).sites[1]
    assert row.name == "b"
    assert why in row.whole


def test_what_the_recipe_wrote_down_is_told_without_the_network():
    rows = [(site("b", 8), 3, {})]
    every = [["a", "conv", 16, "relu"], ["b", "conv", 8, "relu"], ["c", "linear", 4, "tanh"]]
    found = numbers(structure(rows, sites=every, refused=[["d", "is an output"]], versions={"torch": "2"}), "x")
    assert [(row.name, row.before, row.after) for row in found.sites] == [("a", 16, 16), ("b", 8, 3), ("c", 4, 4)]
    assert [row.name for row in found.cut] == ["b"]
    assert found.refused == (("d", "is an output"),)
    assert found.made_with == {"torch": "2"}


def test_alike_sites_get_one_name_and_others_keep_theirs():
    assert {row.group for row in made(5).sites} == {"block.*.mlp"}
    assert [row.group for row in made(2).sites] == ["block.0.mlp", "block.1.mlp"]
    # numbers within words count only where the page would be too long without
    assert [row.group for row in made(9, "layer{}.conv1").sites][:2] == ["layer0.conv1", "layer1.conv1"]
    assert {row.group for row in made(20, "layer{}.conv1").sites} == {"layer*.conv1"}


def test_json_has_no_infinity_and_comes_back(tmp_path):
    rows = [(site("a", 4), 2, {"relative_error": math.nan, "chebyshev_error": math.inf, "chebyshev_delta": 0.05})]
    found = numbers(structure(rows, budget={"params": math.inf}), "x")
    body = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert body["sites"][0]["error"] is None
    assert body["sites"][0]["within"] is None
    assert body["recipe"]["budget"] == {"params": None}
    assert (body["kind"], body["version"]) == ("report", 1)


@pytest.mark.parametrize(
    "harm",
    [
        lambda body: body["recipe"].pop("method"),
        lambda body: body["size"].pop("bytes"),
        lambda body: body["sites"][0].pop("kept"),
        lambda body: body["sites"][0]["site"].pop("incoming"),
        lambda body: body["sites"][0].update(evidence={"curve": {"units": [1], "errors": []}}),
        lambda body: body["sites"][0].update(evidence={"relative_error": "much"}),
        lambda body: body.update(tensors={"a.weight": ["float32"]}),
    ],
)
def test_a_damaged_structure_is_told(harm):
    body = structure([(site("a", 4), 2, {})])
    numbers(body, "x")
    harm(body)
    with pytest.raises(CheckpointError, match="damaged"):
        numbers(body, "x")


def test_the_call_of_the_recipe_makes_the_same_network(tmp_path):
    """What the page shows is run, and gives the same numbers again."""
    for i, request in enumerate(
        (
            {"remove": 0.4, "prior": cp.Gaussian(std=0.5), "seed": 7},
            {"units": {"0": 6}, "method": "sampling", "reweight": True, "radius": 3.0},
            {"budget": {"params": "60%"}, "ignore": ["2"], "round_to": 2},
        )
    ):
        model = stack()
        small, found = saved(tmp_path / str(i), model, **request)
        space = {"model": model}
        exec(found.python, space)
        again = space["small"]
        assert again.plan.recipe == small.plan.recipe
        assert all(
            torch.equal(a, b)
            for a, b in zip(small.model.state_dict().values(), again.model.state_dict().values(), strict=True)
        )


def test_a_prior_is_written_as_it_was_asked_for():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.zeros(1, 3, 9, 9)
    for prior, expected in (
        ("noise", "'noise'"),
        (cp.Gaussian(std=2.0), "cp.Gaussian(std=2.0)"),
        ("auto", None),
        (None, None),
    ):
        recipe = cp.plan(network, x, remove=0.3, prior=prior).recipe
        assert recipe["prior_asked"] == expected
        assert ("prior=" in python_call(recipe)) is (expected is not None)
        assert cp.plan(network, x, remove=0.3, prior=None if expected is None else eval(expected)).kept
    assert written(cp.Gaussian(mean=torch.zeros(3))) == "prior"
    assert written(cp.Generated(temperature=(0.7, 1.0))) == "cp.Generated(temperature=(0.7, 1.0))"


def test_the_call_names_inputs_and_data_where_there_were_some():
    assert "model, example_inputs, " in python_call({"remove": 0.1, "inputs": {"tensor": [1]}})
    assert "prior='noise'" in python_call({"remove": 0.1, "prior_asked": "'noise'", "prior_values": {"mean": 0.0}})
    assert "data=loader" in python_call({"remove": 0.1, "data_used": True})
    assert "prior=prior" in python_call({"remove": 0.1, "prior_values": {"mean": [0.0, 1.0], "std": 1.0}})


def test_the_code_to_load_loads(tmp_path):
    small, found = saved(tmp_path / 'it\'s "small"', stack(), units={"0": 7})
    space = {"make_model": stack}
    exec(found.load, space)
    assert torch.equal(space["model"][0].weight, small.model[0].weight)
