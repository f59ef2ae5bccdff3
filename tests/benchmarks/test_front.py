"""The README's table of trained networks, from made-up records."""

from __future__ import annotations

import pytest

import front


def row(method, cut, figure, *, data=False, **more):
    return {"method": method, "cut": cut, "figure": figure, "data_used": data, "removed": 0.1, **more}


@pytest.fixture(autouse=True)
def records(monkeypatch):
    picture = {"dense_parameters": 200, "parameters": 150}
    ours = [row("coreprune", "", 80.0), row("coreprune, own widths", "", 83.0), row("coreprune, real data", "", 99.0)]
    others = [row("folding", "", 50.0), row("LBYL", "", 70.0), row("FLAP, own widths", "", 75.0, data=True)]
    shown = [one | picture | {"fraction": 0.25} for one in (*ours, *others)]
    dense = row("dense", "", 90.0) | {"fraction": 0.0, "parameters": None, "dense_parameters": None}
    text = [
        row("dense", "nothing", 30.0), row("coreprune", "−20%", 40.0), row("coreprune", "own widths", 39.0),
        row("coreprune, refined", "−20%", 38.0), row("uniform", "−20%", 1234.5), row("magnitude", "−20%", 5678.0),
        row("GRAIL", "−20%", 41.0, data=True), row("FLAP", "own widths", 40.5, data=True),
    ]  # fmt: skip
    made = {
        "vision": {"networks": {"a": {"rows": [dense, *shown]}}},
        "language": {"rows": [one | {"network": "b"} for one in text]},
    }
    monkeypatch.setattr(front, "read_record", made.__getitem__)
    monkeypatch.setattr(
        front, "NETWORKS", {"a": ("A", "accuracy", ".0f", False), "b": ("B", "perplexity", ".1f", True)}
    )


def test_the_best_is_the_highest_accuracy_and_the_lowest_perplexity():
    _, _, a, b = front.table().splitlines()
    assert a == "| A: accuracy | −25%, −25% | 90 | 80 · 83 |  | 70, LBYL | 75, FLAP |"
    assert b == "| B: perplexity | −20%, −10% | 30.0 | 40.0 · 39.0 | 38.0 | 1,234.5, uniform | 40.5, FLAP |"
