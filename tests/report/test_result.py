"""The report of a result in memory, and what a notebook shows of it."""

from __future__ import annotations

import html
import json

import pytest
import torch

import coreprune as cp
from coreprune.errors import InvalidInputError
from coreprune.report.card import card
from report.results import convolutions, saved, stack

IMAGE = torch.zeros(2, 3, 9, 9)
SIZES = ("dense_parameters", "dense_bytes", "parameters", "bytes")


def body(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_in_memory_and_on_disk_say_the_same(tmp_path):
    small, found = saved(tmp_path / "small", stack(), remove=0.4)
    told, kept = body(small.report(tmp_path / "r.html")), json.loads(json.dumps(found.to_json()))
    for key in ("name", "load", "file_bytes"):
        told.pop(key), kept.pop(key)
    assert told == kept


def test_with_the_dense_network_and_what_verify_found(tmp_path):
    model = stack()
    small = cp.prune(model, units={"0": 7})
    checked = cp.verify(model, small)
    told = body(small.report(tmp_path / "r.html", model, torch.zeros(4, 6), checked=checked))
    assert told["multiply_adds"] == {"before": 6 * 16 + 16 * 12 + 48, "after": 6 * 7 + 7 * 12 + 48}
    assert told["statements"] == checked.statements()
    with pytest.raises(InvalidInputError):
        small.report(tmp_path / "r.html", model, torch.zeros(4, 7))


@pytest.mark.parametrize(("model", "inputs"), [(stack, ()), (convolutions, (IMAGE,))], ids=["stack", "convolutions"])
def test_curves_of_a_budget_are_kept_and_drawn(tmp_path, model, inputs):
    small = cp.prune(model(), *inputs, budget={"params": "60%"})
    path = small.report(tmp_path / "r.html")
    for row in body(path)["sites"]:
        if not row["whole"]:
            points = dict(map(tuple, row["curve"]))
            assert {0, row["after"], row["before"]} <= set(points)
            errors = [error for _, error in row["curve"]]
            assert errors == sorted(errors, reverse=True)
            assert errors[0] == pytest.approx(1, abs=0.05)
    assert "Error over units kept" in path.read_text()
    assert "could not be cut" in path.read_text()
    assert body(path)["made_with"]["torch"] == torch.__version__
    assert "Error over units kept" not in cp.prune(model(), *inputs, remove={"*": 0.4}).report(path).read_text()


def test_why_a_prior_was_picked_goes_behind_it(tmp_path):
    """In the summary, on the page, in its JSON, in a notebook and on a model card; only where nobody chose it."""
    for i, (request, picked) in enumerate((({}, True), ({"prior": "noise"}, False))):
        small = cp.prune(convolutions(), IMAGE, remove={"*": 0.4}, **request)
        path = small.report(tmp_path / f"{i}.html")
        recipe = small.plan.recipe
        assert ("prior_reason" in recipe) is picked
        said = f"prior: {recipe['prior']}" + (f"; picked because {recipe['prior_reason']}" if picked else "")
        assert said in " ".join(small.summary().split())
        structure = {"recipe": recipe, "size": dict.fromkeys(SIZES, 1), "sites": []}
        for where in (path.read_text(), small._repr_html_(), card(structure, "Net")):
            plain = html.unescape(where)
            assert recipe["prior"] in plain and ("picked because" in plain) is picked
            assert not picked or f"{recipe['prior']}; picked because {recipe['prior_reason']}" in plain
        assert body(path)["recipe"].get("prior_reason") == recipe.get("prior_reason")
        assert '<th scope="row">prior_reason' not in path.read_text()


def test_a_notebook_shows_the_sites():
    small = cp.prune(stack(), units={"0": 7})
    assert f"{small.dense_parameters:,} → {small.parameters:,} parameters" in small._repr_html_()
